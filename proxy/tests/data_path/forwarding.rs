use std::time::Duration;

use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

const HTTP2: &str = "    protocol: http2\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_spelling_of_a_host_reaches_its_service() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    for host in ["orders", "orders:80", "orders.weft", "ORDERS", "orders.", "Orders.Weft.:8080"] {
        for mut client in [Client::http1(proxy.outbound).await, Client::http2(proxy.outbound).await] {
            let reply = client.get(host, "/").await;
            assert_eq!((reply.status, reply.body.as_str()), (StatusCode::OK, "one"), "{host}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absolute_form_wins_over_host_and_is_forwarded_in_origin_form() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let answer = raw(
        proxy.outbound,
        b"GET http://orders:80/request?a=b HTTP/1.1\r\nHost: other\r\nProxy-Connection: keep-alive\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.contains("GET /request?a=b\n") && answer.contains("host: orders:80\n"), "{answer}");
    assert!(!answer.to_lowercase().contains("proxy-connection"), "{answer}");
    let bare =
        raw(proxy.outbound, b"GET http://orders HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").await;
    assert!(bare.starts_with("HTTP/1.1 200"), "{bare}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hop_by_hop_fields_stay_behind_and_via_is_added() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let mut client = Client::http1(proxy.outbound).await;
    let mut request = client.request(Method::GET, "orders", "/request", empty());
    for (name, value) in [
        ("connection", "x-mine, close"),
        ("x-mine", "1"),
        ("keep-alive", "timeout=5"),
        ("upgrade", "h2c"),
        ("te", "trailers"),
        ("proxy-authorization", "Basic eDp5"),
        ("x-kept", "1"),
    ] {
        request.headers_mut().append(name, value.parse().unwrap());
    }
    let seen = client.call(request).await.unwrap().body;
    for gone in ["x-mine", "keep-alive", "upgrade", "proxy-authorization"] {
        assert!(!seen.contains(gone), "{gone}: {seen}");
    }
    for kept in ["x-kept: 1", "via: 1.1 weft", "te: trailers"] {
        assert!(seen.contains(kept), "{kept}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_and_trailers_pass_both_ways_over_every_pair_of_protocols() {
    let upstream = Upstream::start("one").await;
    for protocol in ["", HTTP2] {
        let proxy = proxy(&orders(&[upstream.addr], protocol)).await;
        for mut client in [Client::http1(proxy.outbound).await, Client::http2(proxy.outbound).await] {
            let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())]);
            let chunks: Vec<_> = (0..20).map(|i| vec![b'a' + i; 40_000].into()).collect();
            let expected: String =
                (0..20u8).map(|i| String::from((b'a' + i) as char).repeat(40_000)).collect();
            let mut request =
                client.request(Method::POST, "orders", "/echo", streamed(chunks, Some(trailers)));
            request.headers_mut().insert("trailer", "x-sum".parse().unwrap());
            request.headers_mut().insert("te", "trailers".parse().unwrap());
            let reply = client.call(request).await.unwrap();
            assert_eq!(reply.status, StatusCode::OK);
            assert!(reply.body == expected, "the body is the same");
            assert_eq!(reply.trailers.expect("trailers")["x-sum"], "42", "upstream {protocol:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_get_with_a_body_of_unknown_length_keeps_it() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let answer = raw(
        proxy.outbound,
        b"GET /echo HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("hello"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_stream_while_the_request_still_does() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let (sender, body) = http_body_util::channel::Channel::<bytes::Bytes, std::convert::Infallible>::new(4);
    let mut sender = sender;
    let mut client = Client::http1(proxy.outbound).await;
    let request =
        client.request(Method::POST, "orders", "/echo", body.map_err(|never| match never {}).boxed());
    sender.send_data("ping".into()).await.unwrap();
    let mut answer = client.send(request).await.unwrap().into_body();
    for word in ["ping", "pong", "pang"] {
        let frame = answer.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), word);
        if word != "pang" {
            sender.send_data(if word == "ping" { "pong" } else { "pang" }.into()).await.unwrap();
        }
    }
    drop(sender);
    assert!(answer.frame().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_a_body_leave_the_connection_usable() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let mut client = Client::http1(proxy.outbound).await;
    for _ in 0..3 {
        let head = client.request(Method::HEAD, "orders", "/", empty());
        let reply = client.call(head).await.unwrap();
        assert_eq!(
            (reply.status, reply.header("content-length"), reply.body.as_str()),
            (StatusCode::OK, "3", "")
        );
        assert_eq!(client.get("orders", "/status/204").await.status, StatusCode::NO_CONTENT);
        let not_modified = client.get("orders", "/status/304").await;
        assert_eq!((not_modified.status, not_modified.header("etag")), (StatusCode::NOT_MODIFIED, "\"1\""));
        assert_eq!(client.get("orders", "/").await.body, "one");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expect_continue_is_answered_and_others_are_refused() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
    let head = b"POST /echo HTTP/1.1\r\nHost: orders\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut seen = [0; 25];
    stream.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hi").await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 200") && rest.ends_with("hi"), "{rest}");
    let refused = raw(
        proxy.outbound,
        b"POST /echo HTTP/1.1\r\nHost: orders\r\nExpect: magic\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(refused.starts_with("HTTP/1.1 417"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_to_an_unfinished_upload_arrives() {
    let (addr, _task) = raw_upstream(|mut stream, _| async move {
        read_head(&mut stream).await;
        stream
            .write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
    })
    .await;
    let proxy = proxy(&orders(&[addr], "")).await;
    let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 1000000\r\n\r\nsome")
        .await
        .unwrap();
    let mut seen = vec![0; 4096];
    let n = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut seen)).await.unwrap().unwrap();
    let seen = String::from_utf8_lossy(&seen[..n]);
    assert!(seen.starts_with("HTTP/1.1 403"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_answers_pass_whole() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let bytes = 64 * 1024 * 256;
    for mut client in [Client::http1(proxy.outbound).await, Client::http2(proxy.outbound).await] {
        assert_eq!(client.get("orders", &format!("/bytes/{bytes}")).await.body.len(), bytes);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstream_connections_are_used_again() {
    let upstream = Upstream::start("one").await;
    let mut config = config(&orders(&[upstream.addr], ""));
    config.workers = 1;
    let proxy = start(config).await;
    for _ in 0..20 {
        assert_eq!(get(proxy.outbound, "orders", "/").await.status, StatusCode::OK);
    }
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    let line = "weft_proxy_upstream_connects_total{direction=\"outbound\",service=\"orders\"} 1";
    assert!(metrics.contains(line), "{metrics}");
    let line = "weft_proxy_requests_total{direction=\"outbound\",service=\"orders\",class=\"2xx\"} 20";
    assert!(metrics.contains(line), "{metrics}");
}

/// SD-12: exact over all workers and connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotation_is_exact_over_workers() {
    let upstreams = [Upstream::start("a").await, Upstream::start("b").await, Upstream::start("c").await];
    let proxy = proxy(&orders(&upstreams.each_ref().map(|u| u.addr), "")).await;
    let mut seen = Vec::new();
    for _ in 0..9 {
        seen.push(get(proxy.outbound, "orders", "/").await.body);
    }
    assert!(seen.windows(4).all(|w| w[0] == w[3] && w[0] != w[1] && w[1] != w[2]), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_choose_by_host_and_path() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let yaml = format!(
        "
listeners: [{{name: web, address: '127.0.0.1:0'}}]
routes:
  - {{host: shop.example, cluster: a}}
  - {{host: shop.example, path-prefix: /b, cluster: b}}
clusters:
  - {{name: a, endpoints: ['{}']}}
  - {{name: b, endpoints: ['{}']}}
",
        a.addr, b.addr
    );
    let mut config = config(&yaml);
    config.outbound = None;
    let proxy = start(config).await;
    assert_eq!(get(proxy.outbound, "shop.example", "/").await.body, "a");
    assert_eq!(get(proxy.outbound, "Shop.Example:80", "/b/x").await.body, "b");
    assert_eq!(get(proxy.outbound, "b", "/").await.body, "b", "a cluster answers to its name");
    let unknown = get(proxy.outbound, "other.example", "/").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    for part in ["other.example", "shop.example", "a, b"] {
        assert!(unknown.body.contains(part), "{}", unknown.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_1_0_is_answered_and_closed() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let answer = raw(proxy.outbound, b"GET / HTTP/1.0\r\nHost: orders\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("one"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_goes_in_a_circle_is_stopped() {
    let placeholder = closed_port();
    let yaml = format!(
        "listeners: [{{name: loop, address: '{placeholder}'}}]\n{}",
        orders(&[placeholder], "    outlier-detection: {consecutive-failures: 0}\n")
    );
    let proxy = proxy(&yaml).await;
    let reply = get(proxy.outbound, "orders", "/").await;
    assert_eq!(
        (reply.status, reply.header("x-weft-error")),
        (StatusCode::LOOP_DETECTED, "loop"),
        "{}",
        reply.body
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admin_paths_answer_and_others_list_them() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    assert_eq!(get(proxy.admin, "admin", "/ready").await.status, StatusCode::OK);
    let clusters = get(proxy.admin, "admin", "/clusters").await.body;
    for part in
        ["orders round-robin", "1 ready of 1", &upstream.addr.to_string(), "source static", "active 0"]
    {
        assert!(clusters.contains(part), "{clusters}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&get(proxy.admin, "admin", "/clusters?format=json").await.body).unwrap();
    assert_eq!(json["outbound"][0]["endpoints"][0]["status"], "ready");
    let dump: serde_json::Value =
        serde_json::from_str(&get(proxy.admin, "admin", "/config_dump").await.body).unwrap();
    assert_eq!(dump["snapshot"]["clusters"][0]["cluster"]["name"], "orders");
    let unknown = get(proxy.admin, "admin", "/nothing").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert!(unknown.body.contains("/config_dump"), "{}", unknown.body);
    let mut client = Client::http1(proxy.admin).await;
    let post = Request::post("/ready").header("host", "admin").body(empty()).unwrap();
    assert_eq!(client.call(post).await.unwrap().status, StatusCode::METHOD_NOT_ALLOWED);
}
