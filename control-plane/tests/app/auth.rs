//! Who asks, and requests that come again, over weft.v1 and HTTP on a whole server.

use http::{Method, StatusCode};
use tonic::{Code, Request};
use weft_xds_proto::authpb::{Permission, permission::Type};
use weft_xds_proto::etcdserverpb as etcd;
use weft_xds_proto::etcdserverpb::auth_client::AuthClient;
use weft_xds_proto::etcdserverpb::kv_client::KvClient;
use weft_xds_proto::etcdserverpb::lease_client::LeaseClient;
use weft_xds_proto::weft as pb;

use crate::harness::{Answer, TestServer, http_with};

fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("token", token.parse().expect("ASCII"));
    request
}

/// The tokens of `root` and of `app`, who may write the given prefixes.
async fn guarded(server: &TestServer, prefixes: &[&'static str]) -> (String, String) {
    let mut auth = AuthClient::new(server.channel().await);
    for name in ["root", "app"] {
        let add = etcd::AuthUserAddRequest { name: name.into(), password: "pw".into(), ..Default::default() };
        auth.user_add(add).await.expect("is added");
    }
    auth.role_add(etcd::AuthRoleAddRequest { name: "app".into() }).await.expect("is added");
    for prefix in prefixes {
        let range_end = format!("{}0", prefix.trim_end_matches('/')).into();
        let perm = Some(Permission { perm_type: Type::Readwrite.into(), key: (*prefix).into(), range_end });
        let grant = etcd::AuthRoleGrantPermissionRequest { name: "app".into(), perm };
        auth.role_grant_permission(grant).await.expect("is granted");
    }
    for (user, role) in [("root", "root"), ("app", "app")] {
        let grant = etcd::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
        auth.user_grant_role(grant).await.expect("is granted");
    }
    auth.auth_enable(etcd::AuthEnableRequest {}).await.expect("is enabled");
    let mut token = async |name: &str| {
        let login = etcd::AuthenticateRequest { name: name.into(), password: "pw".into() };
        auth.authenticate(login).await.expect("is known").into_inner().token
    };
    (token("root").await, token("app").await)
}

/// Registration needs a user who may write the instance's key; discovery, over HTTP as over DNS and xDS, needs nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_register_with_a_token_and_are_discovered_without() {
    let server = TestServer::start().await;
    let (root, app) = guarded(&server, &["weft/registry/orders/"]).await;
    let addr = server.server().addrs().http;
    let send = async |method: Method, path: &str, body: &str, token: Option<&str>| -> Answer {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<(&str, &str)> = bearer.iter().map(|b| ("authorization", b.as_str())).collect();
        http_with(addr, method, path, body, &headers).await
    };
    let register = |service: &str| {
        serde_json::json!({
            "service": service, "instance_id": "one", "host": "127.0.0.1", "port": 80, "ttl": "60s",
        })
        .to_string()
    };
    let nobody = send(Method::POST, "/register", &register("orders"), None).await;
    assert_eq!(nobody.status, StatusCode::UNAUTHORIZED, "{nobody:?}");
    assert!(nobody.body.contains("carries no token"), "{nobody:?}");
    let bad = send(Method::POST, "/register", &register("orders"), Some("made up")).await;
    assert_eq!(bad.status, StatusCode::UNAUTHORIZED, "{bad:?}");
    let other = send(Method::POST, "/register", &register("billing"), Some(&app)).await;
    assert_eq!(other.status, StatusCode::FORBIDDEN, "{other:?}");
    let registered = send(Method::POST, "/register", &register("orders"), Some(&app)).await;
    assert_eq!(registered.status, StatusCode::OK, "{registered:?}");
    let root_may = send(Method::POST, "/register", &register("billing"), Some(&root)).await;
    assert_eq!(root_may.status, StatusCode::OK, "{root_may:?}");

    for (token, status) in [(Some(&app), StatusCode::OK), (None, StatusCode::UNAUTHORIZED)] {
        let beat = send(Method::PUT, "/heartbeat/orders/one", "", token.map(String::as_str)).await;
        assert_eq!(beat.status, status, "{beat:?}");
    }
    let beat = send(Method::PUT, "/heartbeat/billing/one", "", Some(&app)).await;
    assert_eq!(beat.status, StatusCode::FORBIDDEN, "{beat:?}");
    let found = server.get("/discover/orders?consistency=linearizable").await;
    assert_eq!((found.status, found.json()["healthy"].clone()), (StatusCode::OK, 1.into()));
    let services = server.mesh().await.services(pb::ServicesRequest {}).await;
    assert_eq!(services.expect("open").into_inner().services.len(), 2);
    let gone = send(Method::DELETE, "/deregister/orders/one", "", None).await;
    assert_eq!(gone.status, StatusCode::UNAUTHORIZED, "{gone:?}");
    let gone = send(Method::DELETE, "/deregister/orders/one", "", Some(&app)).await;
    assert_eq!(gone.status, StatusCode::OK, "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_elections_and_writes_are_for_those_who_may_write_their_keys() {
    let server = TestServer::start().await;
    let (root, app) =
        guarded(&server, &["weft/semaphore/lock%3Adeploy/", "weft/election/job/", "app/"]).await;
    let mut leases = LeaseClient::new(server.channel().await);
    let session = by(&app, etcd::LeaseGrantRequest { ttl: 60, id: 0 });
    let lease = leases.lease_grant(session).await.expect("is granted").into_inner().id;
    let mut semaphores = server.semaphores().await;
    let acquire = |name: &str| pb::AcquireRequest {
        name: name.into(),
        lease,
        permits: 1,
        request_id: 1,
        ..Default::default()
    };
    let granted = semaphores.acquire(by(&app, acquire("lock:deploy"))).await.expect("may").into_inner();
    assert!(granted.acquired);
    let denied = semaphores.acquire(by(&app, acquire("lock:other"))).await.expect_err("may not");
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(semaphores.acquire(acquire("lock:deploy")).await.is_err(), "nobody may not");
    let describe = |name: &str| pb::DescribeSemaphoreRequest { name: name.into() };
    semaphores.describe(by(&app, describe("lock:deploy"))).await.expect("may look");
    let denied = semaphores.describe(by(&app, describe("lock:other"))).await.expect_err("may not");
    assert_eq!(denied.code(), Code::PermissionDenied);
    let release = pb::ReleaseRequest { name: "lock:deploy".into(), lease, request_id: 1 };
    assert!(semaphores.release(release.clone()).await.is_err(), "nobody may not");
    assert!(semaphores.release(by(&app, release)).await.expect("may").into_inner().released);

    let mut elections = server.elections().await;
    let campaign = |name: &str| pb::CampaignRequest { name: name.into(), lease, ..Default::default() };
    assert!(elections.campaign(by(&app, campaign("job"))).await.expect("may").into_inner().elected);
    let denied = elections.campaign(by(&app, campaign("other"))).await.expect_err("may not");
    assert_eq!(denied.code(), Code::PermissionDenied);
    let denied = elections.observe(by(&app, pb::ObserveRequest { name: "other".into() })).await.map(drop);
    assert_eq!(denied.expect_err("may not").code(), Code::PermissionDenied);

    let write = |key: &'static str| pb::Write {
        op: Some(pb::write::Op::Put(pb::Put { key: key.into(), value: "v".into(), lease: 0 })),
    };
    let message = pb::WriteRequest {
        id: 1,
        writes: vec![write("app/a"), write("b"), write("app/c")],
        ..Default::default()
    };
    let mut kv = pb::kv_client::KvClient::new(server.channel().await);
    let stream = by(&app, tokio_stream::once(message));
    let mut answers = kv.write(stream).await.expect("opens").into_inner();
    let answer = answers.message().await.expect("answers").expect("one");
    let codes: Vec<i32> = answer.results.iter().map(|result| result.code).collect();
    assert_eq!(codes, [0, i32::from(Code::PermissionDenied), 0]);

    let mut mesh = server.mesh().await;
    assert!(mesh.status(pb::StatusRequest {}).await.is_err(), "nobody may not");
    mesh.status(by(&app, pb::StatusRequest {})).await.expect("any user may");
    let balance = pb::SetLoadBalancingRequest { service: "orders".into(), policy: "random".into() };
    let denied = mesh.set_load_balancing(by(&app, balance.clone())).await.expect_err("may not");
    assert_eq!(denied.code(), Code::PermissionDenied);
    mesh.set_load_balancing(by(&root, balance)).await.expect("root may");
}

/// P14, A06: the table of requests, users and tokens are as durable as keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repetition_and_a_token_are_recognised_after_a_restart() {
    let mut server = TestServer::start().await;
    let (root, _) = guarded(&server, &[]).await;
    let named = || {
        let put = etcd::PutRequest { key: "k".into(), value: "1".into(), ..Default::default() };
        let mut request = by(&root, put);
        request.metadata_mut().insert("weft-client-id", "a1".parse().expect("ASCII"));
        request.metadata_mut().insert("weft-seq", 1.into());
        request
    };
    let put = async |server: &TestServer| {
        let answer = KvClient::new(server.channel().await).put(named()).await.expect("may").into_inner();
        answer.header.expect("has one").revision
    };
    let first = put(&server).await;
    server.restart().await;
    assert_eq!(put(&server).await, first);
    let get = by(&root, etcd::RangeRequest { key: "k".into(), ..Default::default() });
    let found = KvClient::new(server.channel().await).range(get).await.expect("may").into_inner();
    assert_eq!(found.kvs[0].version, 1);
}
