//! Endpoints that answer what they should not.

use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

const EJECTIONS: &str = "weft_proxy_ejections_total{direction=\"outbound\",service=\"orders\"} ";
const NEVER_EJECT: &str = "    outlier-detection: {consecutive-failures: 0}\n";

/// Answers every request on every connection with the same bytes.
async fn answering(answer: impl Into<Vec<u8>>) -> std::net::SocketAddr {
    let answer = answer.into();
    let (addr, _task) = raw_upstream(move |mut stream, _| {
        let answer = answer.clone();
        async move {
            while read_head(&mut stream).await.is_some() {
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    addr
}

/// RFC 9112 §6.3: what two readers could frame differently is an error, and not for the client to sort out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_whose_end_is_doubtful_is_502() {
    let chunked = "5\r\nhello\r\n0\r\n\r\n";
    for (what, fields, body) in [
        ("CL and TE", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", chunked),
        ("TE and CL", "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", chunked),
        ("another coding", "Transfer-Encoding: gzip, chunked\r\n", chunked),
        ("no chunked", "Transfer-Encoding: gzip\r\nConnection: close\r\n", "hello"),
        ("two codings", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", chunked),
        ("equal lengths", "Content-Length: 5\r\nContent-Length: 5\r\n", "hello"),
        ("length list", "Content-Length: 5, 5\r\n", "hello"),
        ("other lengths", "Content-Length: 5\r\nContent-Length: 3\r\n", "hello"),
        ("signed length", "Content-Length: +5\r\n", "hello"),
        ("folded field", "Content-Length: 5\r\nX: 1\r\n 2\r\n", "hello"),
        ("space before colon", "Content-Length : 5\r\n", "hello"),
        ("NUL", "Content-Length: 5\r\nX: a\0b\r\n", "hello"),
        ("bare CR", "Content-Length: 5\r\nX: a\rSet-Cookie: b\r\n", "hello"),
    ] {
        let addr = answering(format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}")).await;
        let proxy = proxy(&orders(&[addr], NEVER_EJECT)).await;
        let reply = get(proxy.outbound, "orders", "/").await;
        assert_eq!(
            (reply.status, reply.header("x-weft-error")),
            (StatusCode::BAD_GATEWAY, "upstream-invalid"),
            "{what}: {reply:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_heads_beyond_the_limits_are_502() {
    let huge = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: {}\r\n\r\n", "a".repeat(200_000));
    let many = format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{}\r\n", "X: 1\r\n".repeat(500));
    for head in [huge, many] {
        let proxy = proxy(&orders(&[answering(head).await], NEVER_EJECT)).await;
        let reply = get(proxy.outbound, "orders", "/").await;
        assert_eq!(reply.status, StatusCode::BAD_GATEWAY, "{}", reply.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_chunks_of_an_answer_break_it_off() {
    for body in ["ZZ\r\nhello", "5\r\nhelloXX0\r\n\r\n", "fffffffffffffffff\r\nx", "5\r\nhel"] {
        let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        let (addr, _task) = raw_upstream(move |mut stream, _| {
            let answer = answer.clone();
            async move {
                read_head(&mut stream).await;
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
        .await;
        let proxy = proxy(&orders(&[addr], NEVER_EJECT)).await;
        let mut client = Client::http1(proxy.outbound).await;
        let request = client.request(Method::GET, "orders", "/", empty());
        match client.send(request).await {
            Ok(answer) if answer.status() == StatusCode::OK => {
                assert!(answer.into_body().collect().await.is_err(), "{body:?}");
            }
            Ok(answer) => assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "{body:?}"),
            Err(_) => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn informational_answers_are_skipped_however_many_there_are() {
    let mut answer = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(5000);
    answer.push_str("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let proxy = proxy(&orders(&[answering(answer).await], "")).await;
    assert_eq!(get(proxy.outbound, "orders", "/").await.body, "ok");
}

/// What an endpoint sends unasked behind its answer must not answer the next request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_behind_an_answer_never_answer_another_request() {
    let answer =
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let mut config = config(&orders(&[answering(answer).await], NEVER_EJECT));
    config.workers = 1;
    let proxy = start(config).await;
    let mut client = Client::http1(proxy.outbound).await;
    for i in 0..20 {
        let reply = client.get("orders", "/").await;
        assert_eq!((reply.status, reply.body.as_str()), (StatusCode::OK, "ok"), "{i}");
    }
}

/// RFC 9110 §8.6: no length where there is no body, so that nobody waits for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_204_has_no_length() {
    let answer = "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n";
    let proxy = proxy(&orders(&[answering(answer).await], "")).await;
    let answer = raw(proxy.outbound, b"GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert!(!answer.to_lowercase().contains("content-length"), "{answer}");
}

/// A head that looks fine says nothing about a body that never arrives whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_breaks_off_its_answers_is_ejected() {
    let good = Upstream::start("good").await;
    let (bad, _task) = raw_upstream(|mut stream, _| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
    })
    .await;
    let proxy = proxy(&orders(&[good.addr, bad], "    outlier-detection: {consecutive-failures: 3}\n")).await;
    for _ in 0..12 {
        let mut client = Client::http1(proxy.outbound).await;
        let request = client.request(Method::GET, "orders", "/", empty());
        let _ = client.call(request).await;
    }
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    assert!(metrics.contains(&format!("{EJECTIONS}1")), "{metrics}");
}

/// Otherwise any client could take endpoints out of everyone's rotation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_is_not_ejected_for_what_a_client_breaks() {
    let (addr, _task) = raw_upstream(|mut stream, _| async move {
        read_head(&mut stream).await;
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
        let _ = stream.write_all(head).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let more = "    outlier-detection: {consecutive-failures: 1}\n";
    let proxy = proxy(&orders(&[addr, closed_port()], more)).await;
    for _ in 0..6 {
        let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
        let head = b"POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n";
        stream.write_all(head).await.unwrap();
        let mut seen = Vec::new();
        while !seen.windows(5).any(|w| w == b"hello") {
            let n = stream.read_buf(&mut seen).await.unwrap();
            assert!(n > 0, "{}", String::from_utf8_lossy(&seen));
        }
        stream.write_all(b"ZZ\r\n").await.unwrap();
        let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut seen)).await.unwrap();
    }
    let clusters = get(proxy.admin, "admin", "/clusters").await.body;
    assert!(!clusters.contains("consecutive-failures"), "{clusters}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_carry_no_fields_of_one_connection() {
    let answer = "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\
                  Connection: close\r\nKeep-Alive: timeout=5\r\nContent-Length: 9\r\nX-Sum: 42\r\n\r\n";
    let proxy = proxy(&orders(&[answering(answer).await], "")).await;
    let mut client = Client::http2(proxy.outbound).await;
    let mut request = client.request(Method::GET, "orders", "/", empty());
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    let reply = client.call(request).await.unwrap();
    let trailers = reply.trailers.unwrap();
    assert_eq!(trailers["x-sum"], "42");
    assert_eq!(trailers.len(), 1, "{trailers:?}");
}
