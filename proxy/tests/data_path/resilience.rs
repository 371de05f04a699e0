//! Limits, budgets and deadlines over real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::{Request, StatusCode};

use crate::support::*;

fn overflow(reply: &Reply) -> bool {
    reply.status == StatusCode::SERVICE_UNAVAILABLE && reply.header("x-weft-error") == "overflow"
}

async fn metric(proxy: &Proxy, line: &str) {
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    assert!(metrics.contains(line), "{line} not in\n{metrics}");
}

/// Waits until the service has so many requests under way and waiting.
async fn under_way(proxy: &Proxy, requests: u64, pending: u64) {
    until("the requests are under way", || async {
        let clusters = get(proxy.admin, "admin", "/clusters?format=json").await.body;
        let json: serde_json::Value =
            serde_json::from_str(&clusters).map_err(|e| format!("{e}: {clusters}"))?;
        let now = &json["outbound"][0]["under_way"];
        if now["requests"] == requests && now["pending"] == pending { Ok(()) } else { Err(now.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_beyond_max_requests_is_answered_at_once_and_never_sent() {
    let upstream = Upstream::start("a").await;
    let proxy = proxy(&orders(&[upstream.addr], "    circuit-breaker: {max-requests: 1}\n")).await;
    let outbound = proxy.outbound;
    let slow = tokio::spawn(async move { get(outbound, "orders", "/slow/1500").await });
    under_way(&proxy, 1, 0).await;
    let reply = get(proxy.outbound, "orders", "/").await;
    assert!(overflow(&reply), "{reply:?}");
    assert!(reply.body.contains("circuit breaker of cluster orders") && reply.body.contains("(1)"));
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!(slow.await.unwrap().status, StatusCode::OK);
    assert_eq!(upstream.served(), 1);
    assert_eq!(get(proxy.outbound, "orders", "/").await.status, StatusCode::OK, "there is room again");
    let line = "weft_proxy_overflows_total{direction=\"outbound\",service=\"orders\",kind=\"requests\"} 1";
    metric(&proxy, line).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_wait_for_a_connection_in_a_queue_with_an_end_and_a_deadline() {
    let upstream = Upstream::start("a").await;
    let more = "    connect-timeout: 700ms\n    circuit-breaker: {max-connections: 1, max-pending: 1}\n";
    let proxy = proxy(&orders(&[upstream.addr], more)).await;
    let outbound = proxy.outbound;
    let send = |path: &'static str| tokio::spawn(async move { get(outbound, "orders", path).await });
    let first = send("/slow/400");
    under_way(&proxy, 1, 0).await;
    let waits = send("/");
    under_way(&proxy, 2, 1).await;
    let load = [("requests", 2, 16_384), ("pending", 1, 1), ("connections", 1, 1), ("retries", 0, 3)];
    for (kind, used, limit) in load {
        let labels = format!("{{direction=\"outbound\",service=\"orders\",kind=\"{kind}\"}}");
        metric(&proxy, &format!("weft_proxy_load{labels} {used}\n")).await;
        metric(&proxy, &format!("weft_proxy_load_limit{labels} {limit}\n")).await;
    }
    let reply = get(outbound, "orders", "/").await;
    assert!(overflow(&reply) && reply.body.contains("max-pending"), "{reply:?}");
    assert_eq!((first.await.unwrap().status, waits.await.unwrap().status), (StatusCode::OK, StatusCode::OK));
    // Longer than a request waits for a connection.
    let first = send("/slow/3000");
    under_way(&proxy, 1, 0).await;
    let reply = get(outbound, "orders", "/").await;
    assert!(overflow(&reply) && reply.body.contains("within 7"), "{reply:?}");
    first.abort();
}

fn with_deadline(field: &str, value: &str, path: &str) -> Request<Body> {
    Request::get(path).header("host", "orders").header(field, value).body(empty()).unwrap()
}

/// P41: nobody waits for the answer any more, so no endpoint is asked for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spent_deadline_is_answered_without_asking_an_endpoint() {
    let upstream = Upstream::start("a").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let mut client = Client::http1(proxy.outbound).await;
    for (field, value) in [("weft-deadline", "0"), ("grpc-timeout", "0m")] {
        let reply = client.call(with_deadline(field, value, "/")).await.unwrap();
        assert_eq!((reply.status, reply.header("x-weft-error")), (StatusCode::GATEWAY_TIMEOUT, "deadline"));
    }
    let reply = client.call(with_deadline("grpc-timeout", "soon", "/")).await.unwrap();
    assert_eq!((reply.status, reply.header("x-weft-error")), (StatusCode::BAD_REQUEST, "bad-deadline"));
    assert!(reply.body.contains("soon"), "{}", reply.body);
    assert_eq!(upstream.served(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_ends_the_request_is_passed_on_and_ejects_nobody() {
    let upstreams = [Upstream::start("a").await, Upstream::start("a").await];
    let addrs = upstreams.each_ref().map(|u| u.addr);
    let proxy = proxy(&orders(&addrs, "    outlier-detection: {consecutive-failures: 1}\n")).await;
    let mut client = Client::http1(proxy.outbound).await;
    let started = Instant::now();
    let reply = client.call(with_deadline("weft-deadline", "100", "/slow/20000")).await.unwrap();
    assert_eq!((reply.status, reply.header("x-weft-error")), (StatusCode::GATEWAY_TIMEOUT, "deadline"));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    let clusters = get(proxy.admin, "admin", "/clusters").await.body;
    assert!(clusters.contains("2 ready of 2"), "a caller in a hurry is no fault of an endpoint: {clusters}");

    let reply = client.call(with_deadline("grpc-timeout", "30S", "/request")).await.unwrap();
    let value = |field: &str| {
        let line = reply.body.lines().find_map(|l| l.strip_prefix(field)).unwrap_or_default();
        line.trim_end_matches('u').parse::<u64>().unwrap_or_else(|_| panic!("{field} in {}", reply.body))
    };
    let (weft, grpc) = (value("weft-deadline: "), value("grpc-timeout: "));
    assert!((10_000..=30_000).contains(&weft) && (10_000_000..=30_000_000).contains(&grpc), "{}", reply.body);
}

/// P41: the budget is a cluster's, so a service that fails as a whole does not get a multiple of its load.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_end_with_the_budget_of_their_cluster() {
    let upstream = Upstream::start("a").await;
    let route = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: orders}\nspec:\n  parentRefs: [{kind: Service, group: '', name: orders}]\n  rules:\n    - backendRefs: [{name: orders}]\n      retry: {codes: [503], attempts: 3, backoff: 1ms}\n";
    let no_ejection = "    outlier-detection: {consecutive-failures: 0}\n";
    let with =
        |budget: &str| format!("{}{route}", orders(&[upstream.addr], &format!("{no_ejection}{budget}")));
    let usual = proxy(&with("")).await;
    assert_eq!(get(usual.outbound, "orders", "/status/503").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(upstream.served(), 4, "three repetitions are within the budget of one request");
    let none = proxy(&with("    retry-budget: {percent: 0, min: 0}\n")).await;
    assert_eq!(get(none.outbound, "orders", "/status/503").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(upstream.served(), 5);
    let line = "weft_proxy_overflows_total{direction=\"outbound\",service=\"orders\",kind=\"retries\"} 1";
    metric(&none, line).await;
}

/// Whichever worker a request comes to, one limit holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_beyond_a_rate_are_answered_429_by_all_workers_together() {
    let upstream = Upstream::start("a").await;
    let more = "    rate-limit: {requests: 5, per: 1h, burst: 5}\n";
    let proxy = proxy(&orders(&[upstream.addr], more)).await;
    let mut passed = 0;
    let mut refused = Vec::new();
    for _ in 0..20 {
        // A connection each, so that both workers get some.
        let reply = get(proxy.outbound, "orders", "/").await;
        match reply.status {
            StatusCode::OK => passed += 1,
            _ => refused.push(reply),
        }
    }
    assert_eq!((passed, upstream.served()), (5, 5));
    for reply in &refused {
        assert_eq!(
            (reply.status, reply.header("x-weft-error")),
            (StatusCode::TOO_MANY_REQUESTS, "rate-limited")
        );
        assert_eq!((reply.header("x-ratelimit-limit"), reply.header("x-ratelimit-remaining")), ("5", "0"));
    }
    let number = |name: &str| refused[0].header(name).parse::<u64>().unwrap();
    assert!((700..=720).contains(&number("retry-after")), "a fifth of an hour: {:?}", refused[0]);
    assert!((3500..=3600).contains(&number("x-ratelimit-reset")), "{:?}", refused[0]);
    let line = "weft_proxy_flagged_requests_total{direction=\"outbound\",service=\"orders\",flag=\"rate-limited\"} 15";
    metric(&proxy, line).await;
}

/// A service whose answers come to take four times as long gets fewer at once; what is beyond is told at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_service_bears_at_once_is_found_out() {
    let slow = Arc::new(AtomicBool::new(false));
    let is_slow = slow.clone();
    let (addr, _task) = raw_upstream(move |mut stream, _| {
        let is_slow = is_slow.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                let takes = if is_slow.load(Ordering::Relaxed) { 200 } else { 50 };
                tokio::time::sleep(Duration::from_millis(takes)).await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                if tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let more =
        "    adaptive-concurrency: {min-requests: 1}\n    outlier-detection: {consecutive-failures: 0}\n";
    let proxy = proxy(&orders(&[addr], more)).await;
    let (outbound, stop) = (proxy.outbound, Arc::new(AtomicBool::new(false)));
    let client = |_| {
        let stop = stop.clone();
        tokio::spawn(async move {
            let mut client = Client::http1(outbound).await;
            let mut refused = 0;
            while !stop.load(Ordering::Relaxed) {
                let reply = client.get("orders", "/").await;
                if reply.status != StatusCode::OK {
                    assert!(overflow(&reply) && reply.body.contains("adaptive-concurrency"), "{reply:?}");
                    refused += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            refused
        })
    };
    let clients: Vec<_> = (0..20).map(client).collect();
    let limit = async || {
        let clusters = get(proxy.admin, "admin", "/clusters?format=json").await.body;
        let json: serde_json::Value = serde_json::from_str(&clusters).unwrap();
        json["outbound"][0]["adaptive_limit"].as_u64().unwrap()
    };
    // It begins with 32, looks with a quarter of that how long answers take without a queue, and goes on.
    until("it is known how long answers take", async || match limit().await {
        17..=31 | 33.. => Ok(()),
        limit => Err(limit.to_string()),
    })
    .await;
    slow.store(true, Ordering::Relaxed);
    until("fewer are let through, for longer than a look takes", async || {
        for _ in 0..20 {
            match limit().await {
                1..=12 => tokio::time::sleep(Duration::from_millis(50)).await,
                limit => return Err(limit.to_string()),
            }
        }
        Ok(())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let mut refused = 0;
    for client in clients {
        refused += client.await.unwrap();
    }
    assert!(refused > 0);
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    assert!(metrics.contains("service=\"orders\",kind=\"adaptive\"}"), "{metrics}");
}
