//! The other half of the catalogue: instances that sidecars advertise.

use http::{Method, StatusCode};
use weft_gossip::instance::InstanceHealth;

use crate::harness::{TestServer, advertised, sidecar, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_advertised_instance_is_found_without_registration_and_goes_with_its_sidecar() {
    let server = TestServer::start().await;
    let proxy = sidecar(&server, "edge", 77).await;
    proxy.advertise(vec![advertised("web", "web-1", 9_001, InstanceHealth::Passing)]);
    let found = until("it is found", async || {
        let found = server.get("/discover/web").await;
        if found.status == StatusCode::OK { Ok(found) } else { Err(found.body) }
    })
    .await;
    let label = found.headers["x-weft-consistency"].to_str().unwrap().to_owned();
    assert!(label.starts_with("linearizable(") && label.contains(", gossip("), "{label}");
    let instance = &found.json()["instances"][0];
    assert_eq!((&instance["source"], &instance["owner"]), (&"gossip".into(), &"edge".into()));
    assert_eq!(instance["port"], 9_001);

    // P27: it has one owner, and that is not the registry.
    let refused = server.http(Method::DELETE, "/deregister/web/web-1", "").await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    assert!(refused.body.contains("edge"), "{}", refused.body);

    proxy.leave().await;
    until("it is withdrawn", async || {
        let found = server.get("/discover/web").await;
        if found.status == StatusCode::NOT_FOUND { Ok(()) } else { Err(found.body) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_from_both_sources_is_one_instance_with_the_sidecars_health() {
    let server = TestServer::start().await;
    server.register("web", "web-1", 9_001, "60s").await;
    let proxy = sidecar(&server, "edge", 77).await;
    proxy.advertise(vec![advertised("web", "web-1", 9_001, InstanceHealth::Critical)]);
    until("the sidecar's word counts", async || {
        let found = server.get("/discover/web").await.json();
        if found["healthy"] == 0 && found["total"] == 1 { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
    proxy.advertise(vec![advertised("web", "web-1", 9_001, InstanceHealth::Passing)]);
    until("it is healthy again", async || {
        let found = server.get("/discover/web").await.json();
        if found["healthy"] == 1 && found["total"] == 1 { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
    // G09: deregistering takes away the registration only; the owner of the advertisement is the sidecar.
    server.http(Method::DELETE, "/deregister/web/web-1", "").await;
    let found = server.get("/discover/web").await.json();
    assert_eq!((&found["total"], &found["instances"][0]["source"]), (&1.into(), &"gossip".into()));
    proxy.leave().await;
}
