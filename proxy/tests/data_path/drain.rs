use std::time::{Duration, Instant};

use http::StatusCode;
use tokio::net::TcpStream;

use crate::support::*;

/// D06: nothing in flight is lost, what comes during the drain is served, and then the port is closed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drain_finishes_requests_in_flight_and_then_refuses() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let (outbound, admin) = (proxy.outbound, proxy.admin);
    let mut idle = Client::http1(outbound).await;
    assert_eq!(idle.get("orders", "/").await.status, StatusCode::OK);
    let slow: Vec<_> = (0..4)
        .map(|i| {
            tokio::spawn(async move {
                let mut client =
                    if i % 2 == 0 { Client::http1(outbound).await } else { Client::http2(outbound).await };
                client.get("orders", "/slow/800").await
            })
        })
        .collect();
    until("the requests are in flight", || async {
        let clusters = get(admin, "admin", "/clusters").await.body;
        if clusters.contains("active 4") { Ok(()) } else { Err(clusters) }
    })
    .await;
    let started = Instant::now();
    let drained = tokio::spawn(proxy.running.drain_and_shutdown());
    until("it says that it is not ready", || async {
        let ready = get(admin, "admin", "/ready").await;
        if ready.body.contains("draining") { Ok(()) } else { Err(ready.body) }
    })
    .await;
    for reply in slow {
        let reply = reply.await.unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (StatusCode::OK, "one"));
    }
    drained.await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert!(TcpStream::connect(outbound).await.is_err(), "closed");
    assert!(TcpStream::connect(admin).await.is_err(), "closed");
}

/// Connections that come during a drain are served as long as the port is open. A port that is closed resets what
/// arrives in that very moment, once per worker at most: which is why peers and not the kernel learn of a drain first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_accepted_before_the_end_of_a_drain_are_answered() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let outbound = proxy.outbound;
    let load = tokio::spawn(async move {
        let (mut served, mut reset) = (0, Vec::new());
        loop {
            let Ok(stream) = TcpStream::connect(outbound).await else { return (served, reset) };
            let io = hyper_util::rt::TokioIo::new(stream);
            let (mut sender, task) = hyper::client::conn::http1::handshake::<_, Body>(io).await.unwrap();
            tokio::spawn(task);
            let request = http::Request::get("/").header("host", "orders").body(empty()).unwrap();
            match sender.send_request(request).await {
                Ok(reply) => assert_eq!(reply.status(), StatusCode::OK),
                Err(error) => reset.push(format!("after {served}: {error:?}")),
            }
            served += 1;
        }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    proxy.running.drain_and_shutdown().await;
    let (served, reset) = load.await.unwrap();
    assert!(served > 10 && reset.len() <= 2, "{served} served, {reset:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_finish_in_time_is_cut() {
    let upstream = Upstream::start("one").await;
    let mut config = config(&orders(&[upstream.addr], ""));
    config.drain_timeout = Duration::from_millis(300);
    let proxy = start(config).await;
    let outbound = proxy.outbound;
    let stuck = tokio::spawn(async move {
        let mut client = Client::http1(outbound).await;
        let request = client.request(http::Method::GET, "orders", "/slow/30000", empty());
        client.call(request).await.is_err()
    });
    until("the request is in flight", || async {
        let clusters = get(proxy.admin, "admin", "/clusters").await.body;
        if clusters.contains("active 1") { Ok(()) } else { Err(clusters) }
    })
    .await;
    let started = Instant::now();
    proxy.running.drain_and_shutdown().await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(stuck.await.unwrap());
}

/// Dropping a proxy without a drain leaves no thread that serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_proxy_stops() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let outbound = proxy.outbound;
    drop(proxy);
    until("the port is closed", || async {
        match TcpStream::connect(outbound).await {
            Ok(_) => Err("open".to_owned()),
            Err(_) => Ok(()),
        }
    })
    .await;
}
