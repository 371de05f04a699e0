//! `Auth` and what it guards, over real sockets.

use tonic::{Code, Request, Status};
use weft_xds_proto::authpb::{Permission, UserAddOptions, permission::Type};
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::{compare, request_op::Request as Op, watch_request::RequestUnion};

use super::group::pair;
use super::server::{DEADLINE, Server, one, put, range, refusal};

/// A request with a token.
fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("token", token.parse().unwrap());
    request
}

fn denied() -> (Code, String) {
    (Code::PermissionDenied, "etcdserver: permission denied".into())
}

fn nobody() -> (Code, String) {
    (Code::InvalidArgument, "etcdserver: user name is empty".into())
}

fn invalid_token() -> (Code, String) {
    (Code::Unauthenticated, "etcdserver: invalid auth token".into())
}

impl Server {
    async fn add_user(&self, token: &str, name: &str, password: &str) {
        let add =
            pb::AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() };
        self.auth().user_add(by(token, add)).await.unwrap();
    }

    async fn grant_role(&self, token: &str, user: &str, role: &str) {
        let grant = pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
        self.auth().user_grant_role(by(token, grant)).await.unwrap();
    }

    async fn grant(&self, token: &str, role: &str, kind: Type, key: &'static str, end: &'static str) {
        let perm = Some(Permission { perm_type: kind.into(), key: key.into(), range_end: end.into() });
        let grant = pb::AuthRoleGrantPermissionRequest { name: role.into(), perm };
        self.auth().role_grant_permission(by(token, grant)).await.unwrap();
    }

    async fn log_in(&self, name: &str, password: &str) -> Result<String, Status> {
        let login = pb::AuthenticateRequest { name: name.into(), password: password.into() };
        Ok(self.auth().authenticate(login).await?.into_inner().token)
    }

    /// With the users `root` and `app`, the role `app` of which nothing is allowed yet, and their tokens.
    async fn guarded(&self) -> (String, String) {
        self.add_user("", "root", "rootpw").await;
        self.grant_role("", "root", "root").await;
        self.auth().auth_enable(pb::AuthEnableRequest {}).await.unwrap();
        let root = self.log_in("root", "rootpw").await.unwrap();
        self.add_user(&root, "app", "apppw").await;
        self.auth().role_add(by(&root, pb::AuthRoleAddRequest { name: "app".into() })).await.unwrap();
        self.grant_role(&root, "app", "app").await;
        let app = self.log_in("app", "apppw").await.unwrap();
        (root, app)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_enabled_by_root_alone_and_from_then_on_nobody_is_anonymous() {
    let server = Server::start().await;
    let no_root = (Code::FailedPrecondition, "etcdserver: root user does not exist".into());
    assert_eq!(refusal(server.auth().auth_enable(pb::AuthEnableRequest {}).await), no_root);
    server.add_user("", "root", "rootpw").await;
    let no_role = (Code::FailedPrecondition, "etcdserver: root user does not have root role".into());
    assert_eq!(refusal(server.auth().auth_enable(pb::AuthEnableRequest {}).await), no_role);
    server.grant_role("", "root", "root").await;
    let not_enabled = (Code::FailedPrecondition, "etcdserver: authentication is not enabled".to_owned());
    let login = server.log_in("root", "rootpw").await.unwrap_err();
    assert_eq!((login.code(), login.message().to_owned()), not_enabled);
    server.auth().auth_enable(pb::AuthEnableRequest {}).await.unwrap();

    assert_eq!(refusal(server.kv().put(put("a", "1")).await), nobody());
    assert_eq!(refusal(server.kv().range(one("a")).await), nobody());
    assert_eq!(refusal(server.kv().compact(pb::CompactionRequest::default()).await), nobody());
    assert_eq!(refusal(server.lease().lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 7 }).await), nobody());
    assert_eq!(refusal(server.auth().auth_disable(pb::AuthDisableRequest {}).await), nobody());
    assert_eq!(refusal(server.auth().auth_status(pb::AuthStatusRequest {}).await), nobody());
    assert_eq!(refusal(server.maintenance().status(pb::StatusRequest {}).await), nobody());
    assert_eq!(refusal(server.cluster().member_list(pb::MemberListRequest::default()).await), nobody());
    assert_eq!(refusal(server.kv().put(by("made up", put("a", "1"))).await), invalid_token());
    let wrong = server.log_in("root", "wrong").await.unwrap_err();
    let failed = "etcdserver: authentication failed, invalid user ID or password";
    assert_eq!((wrong.code(), wrong.message()), (Code::InvalidArgument, failed));
    assert_eq!(server.log_in("nobody", "").await.unwrap_err().message(), failed);

    let root = server.log_in("root", "rootpw").await.unwrap();
    server.kv().put(by(&root, put("a", "1"))).await.unwrap();
    let mut bearer = Request::new(one("a"));
    bearer.metadata_mut().insert("authorization", format!("Bearer {root}").parse().unwrap());
    assert_eq!(server.kv().range(bearer).await.unwrap().into_inner().count, 1);
    let status = server.auth().auth_status(by(&root, pb::AuthStatusRequest {})).await.unwrap().into_inner();
    assert!(status.enabled && status.auth_revision > 1 && status.header.unwrap().revision > 1);
    server.auth().auth_disable(by(&root, pb::AuthDisableRequest {})).await.unwrap();
    server.kv().put(put("a", "2")).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_does_what_the_roles_grant_and_nothing_else() {
    let server = Server::start().await;
    let (root, app) = server.guarded().await;
    server.grant(&root, "app", Type::Readwrite, "app/", "app0").await;
    server.grant(&root, "app", Type::Write, "drop", "").await;
    server.grant(&root, "app", Type::Read, "z", "\0").await;
    server.kv().put(by(&root, put("b", "1"))).await.unwrap();

    server.kv().put(by(&app, put("app/a", "1"))).await.unwrap();
    server.kv().put(by(&app, put("drop", "1"))).await.unwrap();
    assert_eq!(server.kv().range(by(&app, range("app/", "app0"))).await.unwrap().into_inner().count, 1);
    server.kv().range(by(&app, range("zz", "\0"))).await.unwrap();
    for refused in [one("b"), one("drop"), range("app/", "app1"), range("\0", "\0"), range("y", "\0")] {
        assert_eq!(refusal(server.kv().range(by(&app, refused.clone())).await), denied(), "{refused:?}");
        let serializable = pb::RangeRequest { serializable: true, ..refused.clone() };
        assert_eq!(refusal(server.kv().range(by(&app, serializable)).await), denied());
        let stream = server.kv().range_stream(by(&app, refused)).await.map(drop);
        assert_eq!(stream.unwrap_err().code(), Code::PermissionDenied);
    }
    assert_eq!(refusal(server.kv().put(by(&app, put("b", "2"))).await), denied());
    assert_eq!(refusal(server.kv().put(by(&app, put("z", "2"))).await), denied());
    // To be told what was there is to read it.
    let telling = pb::PutRequest { prev_kv: true, ..put("drop", "2") };
    assert_eq!(refusal(server.kv().put(by(&app, telling)).await), denied());
    let delete = |key: &str, end: &str, prev_kv| pb::DeleteRangeRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        prev_kv,
    };
    assert_eq!(refusal(server.kv().delete_range(by(&app, delete("drop", "", true))).await), denied());
    assert_eq!(refusal(server.kv().delete_range(by(&app, delete("app/", "\0", false))).await), denied());
    server.kv().delete_range(by(&app, delete("drop", "", false))).await.unwrap();
    server.kv().delete_range(by(&app, delete("app/", "app0", true))).await.unwrap();
    assert_eq!(refusal(server.kv().compact(by(&app, pb::CompactionRequest::default())).await), denied());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_part_of_a_transaction_is_checked_also_the_one_that_does_not_run() {
    let server = Server::start().await;
    let (root, app) = server.guarded().await;
    server.grant(&root, "app", Type::Readwrite, "app/", "app0").await;
    let op = |request| pb::RequestOp { request: Some(request) };
    let write = |key: &str| op(Op::RequestPut(put(key, "1")));
    let read = |key: &str| op(Op::RequestRange(one(key)));
    let compare = |key: &'static str| pb::Compare {
        key: key.into(),
        target: compare::CompareTarget::Version.into(),
        target_union: Some(compare::TargetUnion::Version(0)),
        ..Default::default()
    };
    let nested = |txn| op(Op::RequestTxn(txn));
    let txn = |compare, success, failure| pb::TxnRequest { compare, success, failure };
    let own = txn(vec![compare("app/a")], vec![write("app/a")], vec![read("app/a")]);
    server.kv().txn(by(&app, own)).await.unwrap();
    for refused in [
        txn(vec![compare("b")], vec![write("app/b")], vec![]),
        txn(vec![compare("b")], vec![], vec![]),
        txn(vec![], vec![write("b")], vec![]),
        txn(vec![], vec![], vec![write("b")]),
        txn(vec![], vec![read("b")], vec![]),
        txn(vec![], vec![write("app/b")], vec![read("b")]),
        txn(vec![], vec![nested(txn(vec![], vec![], vec![write("b")]))], vec![]),
        txn(vec![], vec![nested(txn(vec![compare("b")], vec![], vec![]))], vec![]),
    ] {
        assert_eq!(refusal(server.kv().txn(by(&app, refused.clone())).await), denied(), "{refused:?}");
    }
    assert_eq!(server.kv().range(by(&root, range("\0", "\0"))).await.unwrap().into_inner().count, 1);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_for_users_and_belong_to_who_may_write_their_keys() {
    let server = Server::start().await;
    let (root, app) = server.guarded().await;
    server.grant(&root, "app", Type::Readwrite, "app/", "app0").await;
    let grant = |id| pb::LeaseGrantRequest { ttl: 60, id };
    server.lease().lease_grant(by(&app, grant(1))).await.unwrap();
    server.lease().lease_grant(by(&root, grant(2))).await.unwrap();
    let leased = |key: &str, lease| pb::PutRequest { lease, ..put(key, "1") };
    server.kv().put(by(&root, leased("b", 2))).await.unwrap();
    server.kv().put(by(&app, leased("app/a", 1))).await.unwrap();

    assert_eq!(refusal(server.kv().put(by(&app, leased("app/b", 2))).await), denied());
    assert_eq!(
        refusal(server.lease().lease_revoke(by(&app, pb::LeaseRevokeRequest { id: 2 })).await),
        denied()
    );
    let keys_of = |id| pb::LeaseTimeToLiveRequest { id, keys: true };
    assert_eq!(refusal(server.lease().lease_time_to_live(by(&app, keys_of(2))).await), denied());
    let told = server.lease().lease_time_to_live(by(&app, keys_of(1))).await.unwrap().into_inner();
    assert_eq!(told.keys, ["app/a"]);
    assert_eq!(refusal(server.lease().lease_leases(by(&app, pb::LeaseLeasesRequest {})).await), denied());
    let all = server.lease().lease_leases(by(&root, pb::LeaseLeasesRequest {})).await.unwrap().into_inner();
    assert_eq!(all.leases.len(), 2);

    let mut renewals = Vec::new();
    for (token, id) in [(&app, 1), (&app, 2), (&root, 2)] {
        let request = tokio_stream::once(pb::LeaseKeepAliveRequest { id });
        let mut answers = server.lease().lease_keep_alive(by(token, request)).await.unwrap().into_inner();
        let answer = tokio::time::timeout(DEADLINE, answers.message()).await.unwrap();
        renewals.push(answer.map(|answer| answer.unwrap().ttl).map_err(|status| status.code()));
    }
    assert_eq!(renewals, [Ok(60), Err(Code::PermissionDenied), Ok(60)]);
    server.lease().lease_revoke(by(&app, pb::LeaseRevokeRequest { id: 1 })).await.unwrap();
    server.stop().await;
}

/// Who watches is checked when the watch is created, and again when users or roles have changed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_needs_to_read_its_range_and_ends_when_that_is_revoked() {
    let server = Server::start().await;
    let (root, app) = server.guarded().await;
    server.grant(&root, "app", Type::Read, "app/", "app0").await;
    let create = |key: &'static str, end: &'static str| pb::WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(pb::WatchCreateRequest {
            key: key.into(),
            range_end: end.into(),
            ..Default::default()
        })),
    };
    let (requests, sent) = tokio::sync::mpsc::channel(8);
    let stream = tokio_stream::wrappers::ReceiverStream::new(sent);
    let mut answers = server.watch().watch(by(&app, stream)).await.unwrap().into_inner();
    let mut next =
        async || tokio::time::timeout(DEADLINE, answers.message()).await.unwrap().unwrap().unwrap();

    requests.send(create("\0", "\0")).await.unwrap();
    let refused = next().await;
    assert!(refused.created && refused.canceled && refused.watch_id == -1);
    assert_eq!(refused.cancel_reason, "etcdserver: permission denied");
    requests.send(create("app/", "app0")).await.unwrap();
    let created = next().await;
    assert!(created.created && !created.canceled);
    server.kv().put(by(&root, put("app/a", "1"))).await.unwrap();
    assert_eq!(next().await.events.len(), 1);

    let revoke = pb::AuthRoleRevokePermissionRequest {
        role: "app".into(),
        key: "app/".into(),
        range_end: "app0".into(),
    };
    server.auth().role_revoke_permission(by(&root, revoke)).await.unwrap();
    server.kv().put(by(&root, put("app/a", "secret"))).await.unwrap();
    let ended = next().await;
    assert!(ended.canceled && ended.events.is_empty(), "{ended:?}");
    assert_eq!(ended.cancel_reason, "etcdserver: permission denied");
    drop(requests);

    let anonymous = tokio_stream::once(create("app/", "app0"));
    let mut answers = server.watch().watch(anonymous).await.unwrap().into_inner();
    let refused = answers.message().await.unwrap().unwrap();
    assert_eq!(refused.cancel_reason, "etcdserver: user name is empty");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_ends_with_the_password_the_user_or_authentication_and_not_with_a_role() {
    let server = Server::start().await;
    let (root, app) = server.guarded().await;
    server.grant(&root, "app", Type::Readwrite, "app/", "app0").await;
    let works = async |token: &str| server.kv().put(by(token, put("app/a", "1"))).await.map(drop);
    works(&app).await.unwrap();
    let password = |password: &str| pb::AuthUserChangePasswordRequest {
        name: "app".into(),
        password: password.into(),
        ..Default::default()
    };
    server.auth().user_change_password(by(&root, password("new"))).await.unwrap();
    assert_eq!(works(&app).await.unwrap_err().message(), "etcdserver: invalid auth token");
    assert!(server.log_in("app", "apppw").await.is_err());
    let app = server.log_in("app", "new").await.unwrap();
    works(&app).await.unwrap();

    let user = |name: &str| pb::AuthUserDeleteRequest { name: name.into() };
    server.auth().user_delete(by(&root, user("app"))).await.unwrap();
    server.add_user(&root, "app", "new").await;
    server.grant_role(&root, "app", "app").await;
    assert_eq!(works(&app).await.unwrap_err().message(), "etcdserver: invalid auth token", "another user");
    let mgmt = (Code::InvalidArgument, "etcdserver: invalid auth management".to_owned());
    assert_eq!(refusal(server.auth().user_delete(by(&root, user("root"))).await), mgmt);

    server.auth().auth_disable(by(&root, pb::AuthDisableRequest {})).await.unwrap();
    server.auth().auth_enable(pb::AuthEnableRequest {}).await.unwrap();
    let status = server.auth().auth_status(by(&root, pb::AuthStatusRequest {})).await;
    assert_eq!(refusal(status), invalid_token());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_see_themselves_and_their_roles_and_a_user_without_password_cannot_log_in() {
    let server = Server::start().await;
    let (root, app) = server.guarded().await;
    let user = |name: &str| pb::AuthUserGetRequest { name: name.into() };
    let role = |role: &str| pb::AuthRoleGetRequest { role: role.into() };
    let own = server.auth().user_get(by(&app, user("app"))).await.unwrap().into_inner();
    assert_eq!(own.roles, ["app"]);
    server.auth().role_get(by(&app, role("app"))).await.unwrap();
    assert_eq!(refusal(server.auth().user_get(by(&app, user("root"))).await), denied());
    assert_eq!(refusal(server.auth().role_get(by(&app, role("root"))).await), denied());
    assert_eq!(refusal(server.auth().user_list(by(&app, pb::AuthUserListRequest {})).await), denied());
    let unknown = (Code::FailedPrecondition, "etcdserver: user name not found".to_owned());
    assert_eq!(refusal(server.auth().user_get(by(&root, user("nobody"))).await), unknown);

    let options = Some(UserAddOptions { no_password: true });
    let add = pb::AuthUserAddRequest { name: "cert".into(), options, ..Default::default() };
    server.auth().user_add(by(&root, add)).await.unwrap();
    let refused = server.log_in("cert", "").await.unwrap_err();
    assert!(refused.message().contains("password was given for no password user"), "{refused}");
    let long = pb::AuthUserAddRequest { name: "x".into(), password: "x".repeat(2000), ..Default::default() };
    let (code, text) = refusal(server.auth().user_add(by(&root, long)).await);
    assert!(code == Code::InvalidArgument && text.contains("limit of 1024 bytes"), "{text}");
    let grant = pb::AuthRoleGrantPermissionRequest { name: "app".into(), perm: None };
    let not_given = (Code::InvalidArgument, "etcdserver: permission not given".to_owned());
    assert_eq!(refusal(server.auth().role_grant_permission(by(&root, grant)).await), not_given);
    server.stop().await;
}

/// A12: what one server answered counts on the other at once, and a token is good on both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_one_server_is_good_on_the_other_and_changes_count_there_at_once() {
    let (first, second) = pair().await;
    let (root, app) = first.guarded().await;
    for round in 0..10 {
        first.grant(&root, "app", Type::Readwrite, "app/", "app0").await;
        second.kv().put(by(&app, put("app/a", &round.to_string()))).await.unwrap();
        let revoke = pb::AuthRoleRevokePermissionRequest {
            role: "app".into(),
            key: "app/".into(),
            range_end: "app0".into(),
        };
        first.auth().role_revoke_permission(by(&root, revoke)).await.unwrap();
        assert_eq!(refusal(second.kv().put(by(&app, put("app/a", "x"))).await), denied());
        assert_eq!(refusal(second.kv().range(by(&app, one("app/a"))).await), denied());
    }
    let name = format!("user-{}", 1);
    first.add_user(&root, &name, "pw").await;
    let fresh = first.log_in(&name, "pw").await.unwrap();
    assert_eq!(refusal(second.kv().range(by(&fresh, one("app/a"))).await), denied(), "known there already");
    let hash = async |server: &Server| {
        let all = by(&root, pb::HashRequest {});
        server.maintenance().hash(all).await.unwrap().into_inner().hash
    };
    second.kv().range(by(&root, one("app/a"))).await.unwrap();
    assert_eq!(hash(&first).await, hash(&second).await);
    second.stop().await;
    first.stop().await;
}
