//! Hosts, targets and forwarding fields that want to be taken for something else.

use std::time::Duration;

use http::{Method, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn targets_that_name_no_single_host_are_refused() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    for request in [
        // The form of CONNECT: others route by Host here (RFC 9112 §3.2.3).
        "GET evil HTTP/1.1\r\nHost: orders\r\n",
        "GET orders:80 HTTP/1.1\r\nHost: other\r\n",
        "GET * HTTP/1.1\r\nHost: orders\r\n",
        "GET http://user@orders/ HTTP/1.1\r\nHost: orders\r\n",
        "GET http://user:pass@orders/ HTTP/1.1\r\nHost: orders\r\n",
        "GET http:///x HTTP/1.1\r\nHost: orders\r\n",
        "GET http://orders:x/ HTTP/1.1\r\nHost: orders\r\n",
        "GET http://orders:99999/ HTTP/1.1\r\nHost: orders\r\n",
        "GET http://[::1/ HTTP/1.1\r\nHost: orders\r\n",
        "GET http://orders\\@evil/ HTTP/1.1\r\nHost: orders\r\n",
        "GET ftp://orders/ HTTP/1.1\r\nHost: orders\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n",
        "GET / HTTP/1.1\r\nHost: \u{f6}rders\r\n",
        "GET / HTTP/1.1\r\nHost: orders/x\r\n",
        "GET / HTTP/1.1\r\nHost: orders#x\r\n",
        "GET / HTTP/1.1\r\nHost: user@orders\r\n",
        "GET / HTTP/1.1\r\nHost: [zz]\r\n",
        "GET / HTTP/1.1\r\nHost: [::1%25eth0]\r\n",
        "GET / HTTP/1.1\r\nHost: orders:-1\r\n",
        "GET / HTTP/1.0\r\n",
    ] {
        let answer = raw(proxy.outbound, format!("{request}Connection: close\r\n\r\n").as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 400 ") || answer.starts_with("HTTP/1.0 400 "),
            "{request}: {answer}"
        );
    }
    assert_eq!(upstream.served(), 0);
    let asterisk = b"OPTIONS * HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";
    assert!(raw(proxy.outbound, asterisk).await.starts_with("HTTP/1.1 200 "));
}

/// P36: series are per service, and a client cannot make services.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_hosts_make_no_metrics() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let mut client = Client::http1(proxy.outbound).await;
    assert_eq!(client.get("unknown", "/").await.status, StatusCode::NOT_FOUND);
    let series = || async { get(proxy.admin, "admin", "/metrics").await.body.lines().count() };
    let before = series().await;
    for i in 0..300 {
        assert_eq!(client.get(&format!("random-{i}"), "/").await.status, StatusCode::NOT_FOUND);
    }
    assert_eq!(series().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_that_connection_names_are_removed_beside_one_that_is_no_text() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let request = b"GET /request HTTP/1.0\r\nHost: orders\r\nX-Mine: 1\r\nConnection: x-mine, \xff\r\n\r\n";
    let answer = raw(proxy.outbound, request).await;
    assert!(answer.contains(" 200 OK") && !answer.contains("x-mine"), "{answer}");
}

/// A client that is still sending reads why it was refused, and is not cut by a reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_before_the_end_of_an_upload_is_not_lost_by_a_reset() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: nobody\r\nContent-Length: 500000\r\n\r\n").await.unwrap();
    for piece in 0..5 {
        tokio::time::sleep(Duration::from_millis(30)).await;
        stream.write_all(&[b'x'; 100_000]).await.unwrap_or_else(|e| panic!("piece {piece}: {e}"));
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admin_port_refuses_what_is_malformed_and_stays_up() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let huge = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(100_000));
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"GET\r\n\r\n", b"\0\0\0\0\r\n\r\n", huge.as_bytes()]
    {
        let answer = raw(proxy.admin, bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let mut client = Client::http1(proxy.admin).await;
    let delete = client.request(Method::DELETE, "admin", "/clusters", full("x".repeat(100_000)));
    assert_eq!(client.call(delete).await.unwrap().status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(get(proxy.admin, "admin", "/ready?format=json&format").await.status, StatusCode::OK);
}

/// Visitors who never leave do not lock others out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn admin_port_answers_while_many_connections_are_held_open() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(TcpStream::connect(proxy.admin).await.unwrap());
    }
    let ready = tokio::time::timeout(Duration::from_secs(5), get(proxy.admin, "admin", "/ready"));
    assert_eq!(ready.await.expect("an answer").status, StatusCode::OK);
}
