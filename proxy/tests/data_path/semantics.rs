//! What RFC 9110, 9112 and 9113 say of messages, over every pair of protocols: HTTP/1 and HTTP/2 in front, HTTP/1 and HTTP/2
//! behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

const HTTP2: &str = "    protocol: http2\n";

/// A proxy before an upstream, and a client of it, for each pair.
async fn pairs(upstream: &Upstream) -> Vec<(&'static str, Proxy, Client)> {
    let mut all = Vec::new();
    for (behind, protocol) in [("HTTP/1", ""), ("HTTP/2", HTTP2)] {
        for front in ["HTTP/1", "HTTP/2"] {
            let proxy = proxy(&orders(&[upstream.addr], protocol)).await;
            let client = match front {
                "HTTP/1" => Client::http1(proxy.outbound).await,
                _ => Client::http2(proxy.outbound).await,
            };
            let name = match (front, behind) {
                ("HTTP/1", "HTTP/1") => "1 to 1",
                ("HTTP/1", _) => "1 to 2",
                (_, "HTTP/1") => "2 to 1",
                _ => "2 to 2",
            };
            all.push((name, proxy, client));
        }
    }
    all
}

/// RFC 9110 §9.3.2, §15.3.5, §15.4.5: they have no body, whatever their fields say, and what follows is not taken for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_have_no_body_end_with_their_head() {
    let upstream = Upstream::start("one").await;
    for (pair, _proxy, mut client) in pairs(&upstream).await {
        for _ in 0..2 {
            let head = client.request(Method::HEAD, "orders", "/", empty());
            let reply = client.call(head).await.unwrap_or_else(|error| panic!("{pair}: {error:?}"));
            let seen = (reply.status, reply.header("content-length"), reply.body.as_str());
            assert_eq!(seen, (StatusCode::OK, "3", ""), "{pair}");
            let none = client.get("orders", "/status/204").await;
            assert_eq!((none.status, none.header("content-length")), (StatusCode::NO_CONTENT, ""), "{pair}");
            let same = client.get("orders", "/status/304").await;
            assert_eq!((same.status, same.header("etag")), (StatusCode::NOT_MODIFIED, "\"1\""), "{pair}");
            assert_eq!(client.get("orders", "/").await.body, "one", "{pair}");
        }
    }
}

/// RFC 9110 §9.3.2: also what the proxy itself has to say.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_is_told_to_head_without_its_text() {
    let upstream = Upstream::start("one").await;
    for (pair, _proxy, mut client) in pairs(&upstream).await {
        for _ in 0..2 {
            let head = client.request(Method::HEAD, "nowhere", "/", empty());
            let reply = client.call(head).await.unwrap_or_else(|error| panic!("{pair}: {error:?}"));
            assert!(reply.status.is_client_error() && reply.body.is_empty(), "{pair}: {reply:?}");
            assert!(!reply.header("x-weft-error").is_empty() && !reply.header("date").is_empty(), "{pair}");
        }
    }
}

/// RFC 9110 §7.6.1, RFC 9113 §8.2.2: fields of one connection end with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_of_the_endpoints_connection_do_not_reach_the_client() {
    let (addr, _task) = raw_upstream(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, x-hop\r\nKeep-Alive: timeout=5\r\n\
                          X-Hop: 1\r\nX-End: 2\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\n\r\nok";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = proxy(&orders(&[addr], "")).await;
    for mut client in [Client::http1(proxy.outbound).await, Client::http2(proxy.outbound).await] {
        for _ in 0..2 {
            let reply = client.get("orders", "/").await;
            assert_eq!((reply.body.as_str(), reply.header("x-end")), ("ok", "2"));
            for gone in ["keep-alive", "x-hop", "proxy-connection", "upgrade", "connection"] {
                assert_eq!(reply.header(gone), "", "{gone}: {reply:?}");
            }
        }
    }
}

/// RFC 9110 §7.5 and §15: an answer may come before the request has ended; it is not held back, and neither side is left
/// hanging.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_before_the_end_of_its_request_arrives() {
    let (addr, _task) = raw_upstream(|mut stream, _| async move {
        read_head(&mut stream).await;
        let answer = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno";
        stream.write_all(answer).await.unwrap();
        // Reads on, as RFC 9112 §9.6 asks for, so that the answer is not lost by a reset.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let proxy = proxy(&orders(&[addr], "")).await;
    for mut client in [Client::http1(proxy.outbound).await, Client::http2(proxy.outbound).await] {
        let (sender, receiver) =
            tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::convert::Infallible>>(1);
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let body = StreamBody::new(stream).map_err(|never| match never {}).boxed();
        sender.send(Ok(Frame::data(Bytes::from_static(b"begin")))).await.unwrap();
        let request = client.request(Method::POST, "orders", "/", body);
        let reply = tokio::time::timeout(Duration::from_secs(5), client.call(request)).await;
        let reply = reply.expect("not held back").unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (StatusCode::PAYLOAD_TOO_LARGE, "no"));
        drop(sender);
    }
}

/// RFC 9110 §10.1.1: 100 says that the body is wanted, whatever is spoken behind, and the expectation ends here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_for_100_is_answered_before_both_kinds_of_endpoints() {
    let upstream = Upstream::start("one").await;
    for protocol in ["", HTTP2] {
        let proxy = proxy(&orders(&[upstream.addr], protocol)).await;
        let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
        let head = b"POST /echo HTTP/1.1\r\nHost: orders\r\nExpect: 100-Continue\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
        stream.write_all(head).await.unwrap();
        let mut seen = [0; 25];
        tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut seen)).await.unwrap().unwrap();
        assert_eq!(&seen, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"2\r\nhi\r\n0\r\n\r\n").await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert!(
            rest.starts_with("HTTP/1.1 200") && rest.contains("hi") && !rest.contains("expect"),
            "{rest}"
        );
    }
}

/// RFC 9110 §6.5: trailers pass to whoever takes them, and a client of HTTP/1 that does not say so is sent none it would
/// not know.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_without_te_do_not_break_an_http1_client() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], HTTP2)).await;
    let request = b"POST /echo HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\nConnection: close\r\n\r\n\
                    2\r\nhi\r\n0\r\nx-sum: 42\r\n\r\n";
    let answer = raw(proxy.outbound, request).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("2\r\nhi\r\n0\r\n\r\n"), "{answer}");
}

/// Back-pressure from end to end: what a client does not read is not fetched from the endpoint, over every pair.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_answer_that_nobody_reads_is_held_up_at_its_source() {
    let pushed = Arc::new(AtomicUsize::new(0));
    let counter = pushed.clone();
    let (addr, _task) = raw_upstream(move |mut stream, _| {
        let counter = counter.clone();
        async move {
            if read_head(&mut stream).await.is_none() {
                return;
            }
            let piece = [b'x'; 16 * 1024];
            if stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").await.is_err() {
                return;
            }
            while stream.write_all(&piece).await.is_ok() {
                counter.fetch_add(piece.len(), Ordering::Relaxed);
            }
        }
    })
    .await;
    let proxy = proxy(&orders(&[addr], "")).await;
    for mut client in [Client::http1(proxy.outbound).await, Client::http2(proxy.outbound).await] {
        pushed.store(0, Ordering::Relaxed);
        let request = client.request(Method::GET, "orders", "/", empty());
        let mut answer = client.send(request).await.unwrap().into_body();
        answer.frame().await.unwrap().unwrap();
        let before = std::cell::Cell::new(0);
        until("the source is held up", || {
            let now = pushed.load(Ordering::Relaxed);
            let last = before.replace(now);
            let still = now > 0 && now == last;
            let seen = format!("{now} after {last}");
            std::future::ready(if still { Ok(()) } else { Err(seen) })
        })
        .await;
        // Buffers of the kernel on both sides, and windows.
        let held = pushed.load(Ordering::Relaxed);
        assert!(held < 32 * 1024 * 1024, "{held} bytes under way");
        let mut read = 0;
        while read < held + 1024 * 1024 {
            read += answer.frame().await.unwrap().unwrap().into_data().unwrap().len();
        }
        drop(answer);
    }
}
