//! What happens at limits of the proxy itself.

use http::StatusCode;

use crate::inbound::inbound;
use crate::support::*;

/// Those beyond it wait in the kernel's queue and are served in their turn; nothing is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limit_wait_until_others_have_left_and_are_counted() {
    let upstream = Upstream::start("a").await;
    let mut config = config(&orders(&[upstream.addr], ""));
    (config.workers, config.connections_max) = (1, 2);
    let proxy = start(config).await;
    let (mut first, mut second) = (Client::http1(proxy.outbound).await, Client::http1(proxy.outbound).await);
    for client in [&mut first, &mut second] {
        let request = client.request(http::Method::GET, "orders", "/", empty());
        assert_eq!(client.call(request).await.unwrap().status, StatusCode::OK);
    }
    let third = tokio::spawn(get(proxy.outbound, "orders", "/"));
    until("it is counted that one waits", || async {
        assert!(!third.is_finished(), "two are open");
        let metrics = get(proxy.admin, "admin", "/metrics").await.body;
        let counted = metrics.lines().find_map(|l| l.strip_prefix("weft_proxy_accept_pauses_total "));
        if counted.is_some_and(|n| n != "0") { Ok(()) } else { Err(metrics) }
    })
    .await;
    let runtime = get(proxy.admin, "admin", "/runtime").await.body;
    assert!(runtime.contains("\"max\": 2"), "{runtime}");
    drop(first);
    assert_eq!(third.await.unwrap().status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_peers_leaves_room_for_the_app() {
    let upstream = Upstream::start("a").await;
    let mut config = config(&orders(&[upstream.addr], ""));
    config.inbound = Some("127.0.0.1:0".parse().unwrap());
    config.services = inbound(&[("billing", upstream.addr)]).services;
    (config.workers, config.connections_max) = (1, 8);
    let proxy = start(config).await;
    let peers = proxy.running.addrs().inbound.unwrap();
    let mut flood = Vec::new();
    for _ in 0..20 {
        flood.push(tokio::net::TcpStream::connect(peers).await.unwrap());
    }
    until("no more of them are taken", || async {
        let runtime = get(proxy.admin, "admin", "/runtime").await.body;
        if runtime.contains("\"open\": 7") { Ok(()) } else { Err(runtime) }
    })
    .await;
    assert_eq!(get(proxy.outbound, "orders", "/").await.body, "a");
    drop(flood);
    assert_eq!(get(peers, "billing", "/").await.body, "a");
}

#[tokio::test]
async fn a_limit_that_leaves_a_worker_without_connections_is_refused() {
    let mut config = config("");
    (config.workers, config.connections_max) = (4, 3);
    let why = weft_proxy::app::start(config).await.err().unwrap().to_string();
    assert!(why.contains("max-connections and workers: 3 is not enough for 4"), "{why}");
}
