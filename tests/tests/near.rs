//! Which instances requests go to, by labels of registrations: from a file on the command line to what a sidecar does
//! that is another process.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, StatusCode};
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::mesh::Mesh;
use weft_tests::process::run;
use weft_tests::wait::until;

async fn apply(mesh: &Mesh, text: &str) {
    let path = mesh.folder("mesh.yaml");
    std::fs::write(&path, text).expect("the folder is ours");
    let applied = mesh.cli(&mesh.servers[0], &["apply", "-f", &path.display().to_string()]).await;
    assert_eq!(applied.code, 0, "{applied:?}");
}

/// Waits until only these answer.
async fn only(outbound: SocketAddr, names: &[&str]) {
    until(&format!("only {names:?} answer"), Duration::from_secs(20), || async {
        let mut seen = BTreeSet::new();
        for _ in 0..12 {
            seen.insert(http_client::get(outbound, "shop", "/x").await?.body.trim().to_owned());
        }
        if seen.iter().map(String::as_str).eq(names.iter().copied()) {
            Ok(())
        } else {
            Err(format!("{seen:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registered_zones_and_versions_decide_who_is_asked() {
    let mesh = Mesh::with_servers(1).await;
    let server = &mesh.servers[0];
    let upstreams = [FakeUpstream::start("one").await, FakeUpstream::start("two").await];
    for (upstream, zone, version) in [(&upstreams[0], "a", "1.4.0"), (&upstreams[1], "b", "2.1.0")] {
        let addr = upstream.addr();
        let body = serde_json::json!({
            "service": "shop", "instance_id": upstream.name(), "host": addr.ip().to_string(), "port": addr.port(),
            "ttl": "60s", "metadata": {"zone": zone, "version": version},
        });
        let answer =
            http_client::request(server.http(), "server", Method::POST, "/register", &body.to_string()).await;
        assert_eq!(answer.expect("the server answers").status, StatusCode::OK);
    }
    let grpc = server.grpc().to_string();
    let proxy = mesh.proxy("p", &[], &["--server", &grpc, "--zone", "a"]).await;
    let outbound = proxy.addr("outbound");
    only(outbound, &["one", "two"]).await;
    apply(
        &mesh,
        "apiVersion: weft.dev/v1\nkind: TrafficPolicy\nmetadata: {name: near}\nspec: {targetRef: {kind: Service, name: shop}, zoneAware: {}}\n",
    )
    .await;
    only(outbound, &["one"]).await;
    apply(
        &mesh,
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: next}\nspec:\n  parentRefs: [{kind: Service, group: '', name: shop}]\n  rules: [{backendRefs: [{name: shop, subset: {version: '>=2'}}]}]\n",
    )
    .await;
    only(outbound, &["two"]).await;
    let told = run(&["explain", "shop", "--admin", &proxy.addr("admin").to_string()]).await;
    assert_eq!(told.code, 0, "{told:?}");
    for part in ["100.0 % to shop with version=>=2", "registry", "version=2.1.0", "zone=b"] {
        assert!(told.stdout.contains(part), "{part} not in {told:?}");
    }
    assert!(!told.stdout.contains("version=1.4.0"), "only those of the subset: {told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_with_most_of_the_callers_sends_some_of_its_requests_elsewhere() {
    let mesh = Mesh::with_servers(1).await;
    let server = &mesh.servers[0];
    let upstreams = [FakeUpstream::start("one").await, FakeUpstream::start("two").await];
    let register = async |service: &str, id: &str, addr: SocketAddr, zone: &str| {
        let body = serde_json::json!({
            "service": service, "instance_id": id, "host": addr.ip().to_string(), "port": addr.port(), "ttl": "60s",
            "metadata": {"zone": zone},
        });
        let answer =
            http_client::request(server.http(), "server", Method::POST, "/register", &body.to_string()).await;
        assert_eq!(answer.expect("the server answers").status, StatusCode::OK);
    };
    for (upstream, zone) in upstreams.iter().zip(["a", "b"]) {
        register("shop", upstream.name(), upstream.addr(), zone).await;
    }
    apply(
        &mesh,
        "apiVersion: weft.dev/v1\nkind: TrafficPolicy\nmetadata: {name: near}\nspec: {targetRef: {kind: Service, name: shop}, zoneAware: {}}\n",
    )
    .await;
    // The proxy's own app is a caller in zone a, with two more there and one in zone b.
    let app = FakeUpstream::start("web").await;
    let service = format!("web={}", app.addr());
    let proxy = mesh.proxy("p", &[server.gossip()], &["--service", &service, "--zone", "a"]).await;
    let (outbound, admin) = (proxy.addr("outbound"), proxy.addr("admin"));
    // As long as nobody else is known to call, each endpoint gets half.
    only(outbound, &["one", "two"]).await;
    for (port, zone) in [(1, "a"), (2, "a"), (3, "b")] {
        register("web", &format!("w-{port}"), SocketAddr::from(([127, 0, 0, 1], port)), zone).await;
    }
    until("a third goes to the other zone", Duration::from_secs(20), || async {
        let answer = http_client::get(admin, "admin", "/clusters?format=json").await?;
        let all: serde_json::Value = serde_json::from_str(&answer.body).map_err(|e| e.to_string())?;
        let shop = all["outbound"].as_array().and_then(|all| all.iter().find(|c| c["name"] == "shop"));
        let levels = shop.map(|shop| shop["levels"].clone()).unwrap_or_default();
        let shares: Vec<_> =
            levels.as_array().into_iter().flatten().map(|l| l["share_permille"].as_u64()).collect();
        if shares == [Some(667), Some(333)] { Ok(()) } else { Err(levels.to_string()) }
    })
    .await;
    let mut far = 0;
    for _ in 0..300 {
        let answer = http_client::get(outbound, "shop", "/x").await.expect("it is answered");
        far += u32::from(answer.body.trim() == "two");
    }
    // Six standard deviations around 100.
    assert!((51..150).contains(&far), "{far} of 300");
}
