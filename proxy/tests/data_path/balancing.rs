//! Balancing policies over real sockets; their distributions are tested beside them.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use http::{Request, StatusCode};

use crate::support::*;

struct Three {
    upstreams: [Upstream; 3],
    proxy: Proxy,
}

async fn three(policy: &str) -> Three {
    let upstreams = [Upstream::start("a").await, Upstream::start("b").await, Upstream::start("c").await];
    let more = format!("    load-balancing: '{policy}'\n");
    let proxy = proxy(&orders(&upstreams.each_ref().map(|u| u.addr), &more)).await;
    Three { upstreams, proxy }
}

async fn call(client: &mut Client, path: &str, field: Option<(&str, &str)>) -> Reply {
    let mut request = Request::get(path).header("host", "orders");
    if let Some((name, value)) = field {
        request = request.header(name, value);
    }
    let reply = client.call(request.body(empty()).unwrap()).await.unwrap();
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
    reply
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_header_values_stick_to_one_endpoint_and_move_only_when_it_dies() {
    for policy in ["maglev:header=x-user", "ring-hash:header=x-user"] {
        let mut three = three(policy).await;
        let mut client = Client::http1(three.proxy.outbound).await;
        let users: Vec<String> = (0..24).map(|n| format!("user-{n}")).collect();
        let mut homes = Vec::new();
        for user in &users {
            homes.push(call(&mut client, "/", Some(("x-user", user))).await.body);
        }
        assert_eq!(homes.iter().collect::<HashSet<_>>().len(), 3, "{policy}: {homes:?}");
        for (user, home) in users.iter().zip(&homes) {
            assert_eq!(&call(&mut client, "/", Some(("x-user", user))).await.body, home);
        }
        three.upstreams[0].kill().await;
        let mut moved = 0;
        for (user, home) in users.iter().zip(&homes) {
            let now = call(&mut client, "/", Some(("x-user", user))).await.body;
            assert_ne!(now, "a");
            moved += usize::from(&now != home && home != "a");
        }
        assert!(moved <= 3, "{policy}: {moved} of 24 moved whose endpoint lives");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_given_a_cookie_and_stays_where_it_was() {
    let three = three("ring-hash:cookie=SID").await;
    let mut client = Client::http1(three.proxy.outbound).await;
    let first = call(&mut client, "/", None).await;
    let cookie = first.header("set-cookie").split(';').next().unwrap().to_owned();
    assert!(cookie.starts_with("SID=") && first.header("set-cookie").contains("HttpOnly"), "{first:?}");
    for _ in 0..10 {
        let next = call(&mut client, "/", Some(("cookie", &cookie))).await;
        assert_eq!((next.body.as_str(), next.header("set-cookie")), (first.body.as_str(), ""));
    }
    let mut seen = HashSet::new();
    for _ in 0..60 {
        seen.insert(call(&mut client, "/", None).await.body);
    }
    assert_eq!(seen.len(), 3, "clients without one are spread");
}

/// Whatever the port, and over either protocol. Endpoints have any ports here, so any two clients may share one, but not
/// all of so many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_address_sticks_to_one_endpoint_and_others_to_others() {
    for policy in ["maglev:source", "ring-hash:source"] {
        let mut three = three(policy).await;
        let outbound = three.proxy.outbound;
        let sources: Vec<_> = (1..=16).map(|n| IpAddr::from([127, 0, 0, n])).collect();
        let mut homes = Vec::new();
        for source in &sources {
            let home = Client::http1_from(*source, outbound).await.get("orders", "/").await.body;
            for _ in 0..4 {
                let again = Client::http1_from(*source, outbound).await.get("orders", "/").await.body;
                assert_eq!(again, home, "{policy}: {source} on a connection of its own");
            }
            homes.push(home);
        }
        assert_eq!(Client::http2(outbound).await.get("orders", "/").await.body, homes[0], "{policy}");
        assert!(homes.iter().collect::<HashSet<_>>().len() > 1, "{policy}: {homes:?}");

        // Those of an endpoint that dies go to others, and nobody else moves but a few.
        let gone = homes[1].clone();
        let at = three.upstreams.iter().position(|u| u.name() == gone).unwrap();
        three.upstreams[at].kill().await;
        let mut moved = 0;
        for (source, home) in sources.iter().zip(&homes) {
            let now = Client::http1_from(*source, outbound).await.get("orders", "/").await.body;
            assert_ne!(now, gone, "{policy}: {source}");
            moved += usize::from(*home != gone && now != *home);
        }
        assert!(moved <= 4, "{policy}: {moved} of 16 moved whose endpoint lives");
    }
}

/// One endpoint that takes long gets few requests, by what it takes or by what it has under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_endpoint_gets_few_requests() {
    for policy in ["peak-ewma", "least-request"] {
        let (slow, _task) = raw_upstream(|mut stream, _| async move {
            while read_head(&mut stream).await.is_some() {
                tokio::time::sleep(Duration::from_millis(300)).await;
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow";
                if tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.is_err() {
                    return;
                }
            }
        })
        .await;
        let fast = [Upstream::start("a").await, Upstream::start("b").await];
        let more = format!("    load-balancing: {policy}\n");
        let proxy = proxy(&orders(&[fast[0].addr, fast[1].addr, slow], &more)).await;
        let outbound = proxy.outbound;
        let clients: Vec<_> = (0..6)
            .map(|_| {
                tokio::spawn(async move {
                    let mut client = Client::http1(outbound).await;
                    let mut slow = 0;
                    for _ in 0..30 {
                        slow += usize::from(call(&mut client, "/", None).await.body == "slow");
                    }
                    slow
                })
            })
            .collect();
        let mut to_slow = 0;
        for client in clients {
            to_slow += client.await.unwrap();
        }
        assert!(to_slow < 45, "{policy}: {to_slow} of 180, where a third would be 60");
    }
}

/// Answers each second request badly: never enough failures in a row.
async fn half_bad() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    raw_upstream(move |mut stream, _| {
        let count = count.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                let bad = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst).is_multiple_of(2);
                let status = if bad { "500 Bad" } else { "200 OK" };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 3\r\n\r\nbad");
                if tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_fails_more_than_the_others_is_ejected() {
    let (bad, _task) = half_bad().await;
    let good = [Upstream::start("a").await, Upstream::start("b").await];
    let rule = "failure-percentage: {threshold: 40, min-hosts: 3, min-requests: 5}";
    let more = format!("    outlier-detection: {{interval: 1s, base-ejection-time: 60s, {rule}}}\n");
    let proxy = proxy(&orders(&[good[0].addr, good[1].addr, bad], &more)).await;
    until("it is out", || async {
        for _ in 0..30 {
            get(proxy.outbound, "orders", "/").await;
        }
        let clusters = get(proxy.admin, "admin", "/clusters").await.body;
        if clusters.contains("ejected failure-percentage") { Ok(()) } else { Err(clusters) }
    })
    .await;
    for _ in 0..20 {
        assert_eq!(get(proxy.outbound, "orders", "/").await.status, StatusCode::OK);
    }
}

/// P40: what happens when few endpoints are left is for the operator to say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn panic_spreads_or_fails_as_configured() {
    let failing_checks = |panic: &str| {
        format!("    health-check: {{path: /status/500, interval: 100ms, unhealthy-threshold: 1}}\n{panic}")
    };
    let upstreams = [Upstream::start("a").await, Upstream::start("b").await];
    let addrs = upstreams.each_ref().map(|u| u.addr);
    let spread = proxy(&orders(&addrs, &failing_checks("    panic: {policy: spread}\n"))).await;
    let fail = proxy(&orders(&addrs, &failing_checks("    panic: {policy: fail}\n"))).await;
    for (proxy, text) in [(&spread, "panic: spread below 50 %"), (&fail, "panic: fail below 50 %")] {
        until(text, || async {
            let clusters = get(proxy.admin, "admin", "/clusters").await.body;
            if clusters.contains(text) { Ok(()) } else { Err(clusters) }
        })
        .await;
    }
    assert_eq!(get(spread.outbound, "orders", "/").await.status, StatusCode::OK);
    let reply = get(fail.outbound, "orders", "/").await;
    assert_eq!(
        (reply.status, reply.header("x-weft-error")),
        (StatusCode::SERVICE_UNAVAILABLE, "no-endpoint")
    );
    assert!(reply.body.contains("panic: fail below 50 %"), "{}", reply.body);
}
