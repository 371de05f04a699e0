use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use tokio::io::AsyncWriteExt;

use crate::support::*;

/// D05: a killed endpoint costs no request, is out at once, and is back once it listens again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_endpoint_costs_no_request_and_returns() {
    let mut dead = Upstream::start("dead").await;
    let alive = [Upstream::start("a").await, Upstream::start("b").await];
    let proxy = proxy(&orders(&[dead.addr, alive[0].addr, alive[1].addr], "")).await;
    for _ in 0..12 {
        assert_eq!(get(proxy.outbound, "orders", "/").await.status, StatusCode::OK);
    }
    dead.kill().await;
    let mut client = Client::http1(proxy.outbound).await;
    for i in 0..30 {
        let reply = client.get("orders", "/").await;
        assert_eq!(reply.status, StatusCode::OK, "request {i}: {}", reply.body);
        assert_ne!(reply.body, "dead");
    }
    let clusters = get(proxy.admin, "admin", "/clusters").await.body;
    assert!(clusters.contains("ejected connect-failure"), "{clusters}");
    dead.revive().await;
    until("the endpoint is back", || async {
        match get(proxy.outbound, "orders", "/").await.body {
            body if body == "dead" => Ok(()),
            body => Err(body),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_nobody_listens_for_is_named_with_its_counts() {
    let proxy = proxy(&orders(&[closed_port(), closed_port()], "")).await;
    for _ in 0..3 {
        let reply = get(proxy.outbound, "orders", "/").await;
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{}", reply.body);
        assert!(reply.body.contains("cluster orders") && reply.body.contains("of 2"), "{}", reply.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_ready_endpoint_is_503_with_the_counts() {
    let check = "    health-check: {interval: 100ms, unhealthy-threshold: 1}\n";
    let proxy = proxy(&orders(&[closed_port(), closed_port(), closed_port()], check)).await;
    until("all fail their checks", || async {
        let reply = get(proxy.outbound, "orders", "/").await;
        match reply.body.contains("no ready endpoint in cluster orders (3 failing checks of 3)") {
            true if reply.status == StatusCode::SERVICE_UNAVAILABLE => Ok(()),
            _ => Err(reply.body),
        }
    })
    .await;
}

/// SD-31: a failing check takes an endpoint out before a request has to find out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoint_that_fails_its_checks_gets_no_requests() {
    let good = Upstream::start("good").await;
    let (bad, _task) = raw_upstream(|mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            let status = if head.contains("weft-health") { "500 Bad" } else { "200 OK" };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 3\r\n\r\nbad");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    let check = "    health-check: {path: /, interval: 100ms}\n";
    let proxy = proxy(&orders(&[good.addr, bad], check)).await;
    until("the bad one is out", || async {
        let clusters = get(proxy.admin, "admin", "/clusters").await.body;
        if clusters.contains("failing-checks") { Ok(()) } else { Err(clusters) }
    })
    .await;
    for _ in 0..10 {
        assert_eq!(get(proxy.outbound, "orders", "/").await.body, "good");
    }
    let clusters = get(proxy.admin, "admin", "/clusters").await.body;
    assert!(clusters.contains("status 500"), "it says why: {clusters}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consecutive_5xx_eject_and_the_others_take_over() {
    let good = Upstream::start("good").await;
    let (bad, _task) = raw_upstream(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            let _ = stream.write_all(b"HTTP/1.1 500 Bad\r\nContent-Length: 3\r\n\r\nbad").await;
        }
    })
    .await;
    let proxy = proxy(&orders(&[good.addr, bad], "    outlier-detection: {consecutive-failures: 3}\n")).await;
    let mut failed = 0;
    for _ in 0..20 {
        failed += usize::from(get(proxy.outbound, "orders", "/").await.status != StatusCode::OK);
    }
    assert_eq!(failed, 3, "out after three in a row");
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    assert!(
        metrics.contains("weft_proxy_ejections_total{direction=\"outbound\",service=\"orders\"} 1"),
        "{metrics}"
    );
}

/// P42 and D08: a reused connection that closes before it answers costs an idempotent request nothing, and a
/// non-idempotent one is never sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stale_connection_is_retried_for_get_and_never_for_post() {
    let posts = Arc::new(AtomicUsize::new(0));
    let counter = posts.clone();
    let (addr, _task) = raw_upstream(move |mut stream, _| {
        let posts = counter.clone();
        async move {
            // Answers once and closes without an answer when it is asked again.
            let first = read_head(&mut stream).await.unwrap_or_default();
            posts.fetch_add(usize::from(first.starts_with("POST")), Ordering::SeqCst);
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            let second = read_head(&mut stream).await.unwrap_or_default();
            posts.fetch_add(usize::from(second.starts_with("POST")), Ordering::SeqCst);
        }
    })
    .await;
    let mut config = config(&orders(&[addr], "    outlier-detection: {consecutive-failures: 0}\n"));
    config.workers = 1;
    let proxy = start(config).await;
    let mut client = Client::http1(proxy.outbound).await;
    for i in 0..5 {
        assert_eq!(client.get("orders", "/").await.status, StatusCode::OK, "GET {i}");
    }
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    assert!(
        metrics.contains("weft_proxy_retries_total{direction=\"outbound\",service=\"orders\"} 4"),
        "{metrics}"
    );
    let post = client.request(Method::POST, "orders", "/", full("once"));
    let reply = client.call(post).await.unwrap();
    assert_eq!((reply.status, reply.header("x-weft-error")), (StatusCode::BAD_GATEWAY, "upstream-closed"));
    assert!(reply.body.contains(&addr.to_string()), "{}", reply.body);
    assert_eq!(posts.load(Ordering::SeqCst), 1, "sent once");
}

/// P42: whoever closes first loses no request, so it is us, also where the endpoint's patience is short. A POST could not be
/// sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_not_used_again_when_its_endpoint_is_about_to_close_it() {
    for (said, connections) in [("Keep-Alive: timeout=1\r\n", 2), ("", 1)] {
        let made = Arc::new(AtomicUsize::new(0));
        let counter = made.clone();
        let (addr, _task) = raw_upstream(move |mut stream, _| {
            counter.fetch_add(1, Ordering::SeqCst);
            async move {
                while read_head(&mut stream).await.is_some() {
                    let answer = format!("HTTP/1.1 200 OK\r\n{said}Content-Length: 2\r\n\r\nok");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        })
        .await;
        let mut config = config(&orders(&[addr], ""));
        config.workers = 1;
        let proxy = start(config).await;
        let mut client = Client::http1(proxy.outbound).await;
        assert_eq!(client.get("orders", "/").await.status, StatusCode::OK);
        tokio::time::sleep(Duration::from_millis(600)).await;
        let post = client.request(Method::POST, "orders", "/", empty());
        assert_eq!(client.call(post).await.unwrap().status, StatusCode::OK);
        assert_eq!(made.load(Ordering::SeqCst), connections, "{said:?}");
    }
}

/// A fresh connection that breaks is no stale one: even GET is not repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_on_a_fresh_connection_is_not_repeated() {
    let seen = Arc::new(AtomicUsize::new(0));
    let counter = seen.clone();
    let (addr, _task) = raw_upstream(move |mut stream, _| {
        let seen = counter.clone();
        async move {
            read_head(&mut stream).await;
            seen.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let proxy = proxy(&orders(&[addr], "")).await;
    let reply = get(proxy.outbound, "orders", "/").await;
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY, "{}", reply.body);
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_breaks_off_is_not_passed_on_as_complete() {
    let (addr, _task) = raw_upstream(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
    })
    .await;
    let proxy = proxy(&orders(&[addr], "")).await;
    let mut client = Client::http1(proxy.outbound).await;
    let request = client.request(Method::GET, "orders", "/", empty());
    let answer = client.send(request).await.unwrap();
    assert!(answer.into_body().collect().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_no_http_is_502() {
    let (addr, _task) = raw_upstream(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").await.unwrap();
    })
    .await;
    let proxy = proxy(&orders(&[addr], "")).await;
    let reply = get(proxy.outbound, "orders", "/").await;
    assert_eq!((reply.status, reply.header("x-weft-error")), (StatusCode::BAD_GATEWAY, "upstream-invalid"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_hosts_are_named_with_what_is_known() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    for host in ["ordres", "example.com", "127.0.0.1:80", "[::1]:80"] {
        let reply = get(proxy.outbound, host, "/").await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND, "{host}");
        assert!(reply.body.contains("known here are orders"), "{}", reply.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_control_plane_an_unknown_service_fails_in_time_with_the_reason() {
    let mut config = config("{}");
    config.servers = vec![closed_port()];
    let proxy = app_without_clusters(config).await;
    let started = std::time::Instant::now();
    let reply = get(proxy.outbound, "orders", "/").await;
    assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        reply.body.contains("no control plane reachable") && reply.body.contains("orders"),
        "{}",
        reply.body
    );
    assert!(started.elapsed() < std::time::Duration::from_secs(4));
    let ready = get(proxy.admin, "admin", "/ready").await;
    assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE, "{}", ready.body);
    assert!(ready.body.contains("no control plane"), "{}", ready.body);
}

async fn app_without_clusters(config: weft_proxy::config::ProxyConfig) -> Proxy {
    let running = weft_proxy::app::start(config).await.unwrap();
    let (outbound, admin) = (running.addrs().outbound.unwrap(), running.addrs().admin);
    Proxy { running, outbound, admin }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_one_clear_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = config("{}");
    config.outbound = Some(taken.local_addr().unwrap());
    let error = weft_proxy::app::start(config).await.err().unwrap().to_string();
    let port = taken.local_addr().unwrap().to_string();
    assert!(error.contains("outbound") && error.contains("in use") && error.contains(&port), "{error}");
}
