//! What happens at limits of the proxy itself.

use http::StatusCode;

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

#[tokio::test]
async fn a_limit_that_leaves_a_worker_without_connections_is_refused() {
    let mut config = config("");
    (config.workers, config.connections_max) = (4, 3);
    let why = weft_proxy::app::start(config).await.err().unwrap().to_string();
    assert!(why.contains("max-connections and workers: 3 is not enough for 4"), "{why}");
}
