//! Requests that take too long, and those that are too many: hedging, times of a service, rate limits of routes and of
//! local services, overload of the proxy itself.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use weft_proxy::policy::overload::Limits;

use crate::support::*;

/// Routes of `orders` with a filter document.
fn with_filter(cluster: &str, filter: &str) -> String {
    format!(
        "{cluster}---
apiVersion: weft.dev/v1
kind: HTTPRouteFilter
metadata: {{name: f}}
spec: {{{filter}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r}}
spec:
  parentRefs: [{{kind: Service, group: '', name: orders}}]
  rules:
    - matches: [{{path: {{value: /free}}}}]
      backendRefs: [{{name: orders}}]
    - name: spared
      filters: [{{type: ExtensionRef, extensionRef: {{group: weft.dev, kind: HTTPRouteFilter, name: f}}}}]
      backendRefs: [{{name: orders}}]
"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_request_is_sent_to_a_second_endpoint_and_the_first_answer_is_taken() {
    let (slow, _task) = raw_upstream(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow";
            if tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.is_err() {
                return;
            }
        }
    })
    .await;
    let fast = Upstream::start("fast").await;
    let yaml = with_filter(&orders(&[slow, fast.addr], ""), "hedge: {after: 50ms}");
    let proxy = proxy(&yaml).await;
    let mut client = Client::http1(proxy.outbound).await;
    for _ in 0..6 {
        let begun = Instant::now();
        assert_eq!(client.get("orders", "/").await.body, "fast");
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    let hedges = metrics.lines().find(|l| l.starts_with("weft_proxy_hedges_total{")).unwrap();
    let hedges: u32 = hedges.rsplit(' ').next().unwrap().parse().unwrap();
    assert!((3..=6).contains(&hedges), "those that came to the slow one: {hedges}");
    // D08: what is not safe is sent once.
    let mut slow_ones = 0;
    for _ in 0..2 {
        let request = client.request(Method::POST, "orders", "/", empty());
        slow_ones += usize::from(client.call(request).await.unwrap().body == "slow");
    }
    assert_eq!(slow_ones, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_has_a_rate_limit_of_its_own() {
    let upstream = Upstream::start("a").await;
    let yaml = with_filter(&orders(&[upstream.addr], ""), "rateLimit: {requests: 2, per: 1m}");
    let proxy = proxy(&yaml).await;
    let mut client = Client::http1(proxy.outbound).await;
    for _ in 0..2 {
        assert_eq!(client.get("orders", "/").await.status, StatusCode::OK);
    }
    let refused = client.get("orders", "/").await;
    assert_eq!(
        (refused.status, refused.header("x-weft-error"), refused.header("x-ratelimit-limit")),
        (StatusCode::TOO_MANY_REQUESTS, "rate-limited", "2")
    );
    assert!(refused.body.contains("rate limit of route r/spared: 2 requests in 60s"), "{}", refused.body);
    assert_eq!(client.get("orders", "/free").await.status, StatusCode::OK, "others are not concerned");
    assert_eq!(upstream.served(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_has_times_for_requests_whose_route_says_none() {
    let upstream = Upstream::start("a").await;
    let proxy = proxy(&orders(&[upstream.addr], "    timeouts: {request: 200ms}\n")).await;
    let mut client = Client::http1(proxy.outbound).await;
    let late = client.get("orders", "/slow/3000").await;
    assert_eq!((late.status, late.header("x-weft-error")), (StatusCode::GATEWAY_TIMEOUT, "upstream-timeout"));
    assert_eq!(client.get("orders", "/slow/10").await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_without_memory_refuses_instead_of_dying() {
    let upstream = Upstream::start("a").await;
    let mut config = config(&orders(&[upstream.addr], ""));
    // Any process has more.
    config.overload = Limits { memory: Some(1 << 20), queue: Some(Duration::from_secs(5)) };
    let proxy = start(config).await;
    until("requests are refused", async || {
        let refused = get(proxy.outbound, "orders", "/").await;
        let seen = (refused.status.as_u16(), refused.header("x-weft-error"), refused.header("retry-after"));
        if seen == (503, "overloaded", "1") { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    assert_eq!(get(proxy.admin, "admin", "/clusters").await.status, StatusCode::OK, "it can be looked at");
}
