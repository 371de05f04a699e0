//! Sidecars that know each other by gossip alone: no server anywhere.

use std::net::SocketAddr;

use http::StatusCode;
use weft_proxy::app::{self, RunningProxy};
use weft_proxy::config::{LocalService, ProxyConfig};

use crate::support::*;

async fn sidecar(name: &str, join: Option<SocketAddr>, app: Option<SocketAddr>) -> RunningProxy {
    let any = "127.0.0.1:0".parse().unwrap();
    let mut config = ProxyConfig::new(name);
    config.gossip = Some(any);
    config.join = join.iter().map(ToString::to_string).collect();
    if let Some(addr) = app {
        config.inbound = Some(any);
        config.services = vec![LocalService {
            rate_limit: None,
            name: "orders".to_owned(),
            addr,
            health_path: None,
            labels: Default::default(),
        }];
    }
    app::start(config).await.unwrap()
}

/// D05, D06: an app that dies behind its sidecar, and a sidecar that is drained, cost no request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_lose_no_request_when_an_app_dies_or_a_sidecar_is_drained() {
    let (mut a, b, c) = (Upstream::start("a").await, Upstream::start("b").await, Upstream::start("c").await);
    let first = sidecar("a", None, Some(a.addr)).await;
    let seed = first.addrs().gossip;
    let second = sidecar("b", seed, Some(b.addr)).await;
    let _third = sidecar("c", seed, Some(c.addr)).await;
    let caller = sidecar("caller", seed, None).await;
    let outbound = caller.addrs().outbound.unwrap();
    until("all three are called", || async {
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(get(outbound, "orders", "/").await.body);
        }
        seen.sort();
        if seen == ["a", "b", "c"] { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    a.kill().await;
    for i in 0..60 {
        let reply = get(outbound, "orders", "/").await;
        assert_eq!(reply.status, StatusCode::OK, "request {i} after the app died: {}", reply.body);
        assert_ne!(reply.body, "a");
    }
    let drained = tokio::spawn(second.drain_and_shutdown());
    let mut calls = 0;
    while !drained.is_finished() || calls < 60 {
        let reply = get(outbound, "orders", "/").await;
        assert_eq!(reply.status, StatusCode::OK, "request {calls} during the drain: {}", reply.body);
        calls += 1;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    drained.await.unwrap();
    assert_eq!(get(outbound, "orders", "/").await.body, "c");
    a.revive().await;
    until("the first app is called again", || async {
        match get(outbound, "orders", "/").await.body {
            body if body == "a" => Ok(()),
            body => Err(body),
        }
    })
    .await;
}
