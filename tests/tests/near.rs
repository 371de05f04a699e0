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
