//! Three servers that find each other by gossip and form one group.

use std::time::Duration;

use http::{Method, StatusCode};
use weft_xds_proto::weft as pb;

use crate::harness::{TestServer, until};

async fn three() -> Vec<TestServer> {
    let first = TestServer::named("s1", &[]).await;
    let second = TestServer::named("s2", &[&first]).await;
    let third = TestServer::named("s3", &[&second]).await;
    vec![first, second, third]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_registers_another_finds_at_once() {
    let servers = three().await;
    for server in &servers {
        let status = server.mesh().await.status(pb::StatusRequest {}).await.unwrap().into_inner();
        assert_eq!(status.servers.iter().filter(|s| s.voter).count(), 3, "{status:?}");
    }
    for (n, (at, from)) in [(0, 2), (1, 0), (2, 1)].into_iter().enumerate() {
        let name = format!("web-{n}");
        assert_eq!(servers[at].register(&name, "one", 80, "60s").await.status, StatusCode::OK);
        // Linearizable: no wait, no retry.
        let found = servers[from].get(&format!("/discover/{name}?consistency=linearizable")).await;
        assert_eq!(found.status, StatusCode::OK, "{}", found.body);
        let beat = servers[from].http(Method::PUT, &format!("/heartbeat/{name}/one"), "").await;
        assert_eq!(beat.status, StatusCode::OK, "{}", beat.body);
    }
}

/// Design §6: one server of three lost, nothing is; quorum lost, discovery goes on and says what it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_outlives_the_leader_and_then_the_quorum() {
    let mut servers = three().await;
    servers[0].register("web", "one", 80, "600s").await;
    let leader = servers.iter().position(|s| s.server().coordinator().is_leader()).expect("one leads");
    let took = servers[leader].stop().await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    servers.remove(leader);
    until("the rest serves reads and writes", async || {
        let stored = servers[0].register("api", "one", 81, "600s").await;
        if stored.status != StatusCode::OK {
            return Err(stored.body);
        }
        let found = servers[1].get("/discover/web?consistency=linearizable").await;
        if found.status == StatusCode::OK { Ok(()) } else { Err(found.body) }
    })
    .await;

    servers[0].stop().await;
    let last = &servers[1];
    let stale = last.get("/discover/web").await;
    assert_eq!(stale.status, StatusCode::OK, "{}", stale.body);
    let label = stale.headers["x-weft-consistency"].to_str().unwrap();
    assert!(label.starts_with("serializable("), "{label}");
    assert_eq!(stale.json()["instances"][0]["instance_id"], "one");
    let refused = last.get("/discover/web?consistency=linearizable").await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.body);
    let refused = last.register("late", "one", 82, "60s").await;
    assert!(matches!(refused.status.as_u16(), 503 | 504), "{refused:?}");
    let ready = last.get("/readyz").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(!ready.json()["reasons"].as_array().unwrap().is_empty());
}
