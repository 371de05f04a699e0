//! Endpoints of HTTP/2 that refuse streams (RFC 9113 §8.7), say goodbye (§6.8), or break an answer off.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Method, Response, StatusCode};
use tokio::net::TcpListener;

use crate::support::*;

/// Refuses so many streams, then answers. Tells how many it has seen.
async fn endpoint(refuses: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, seen) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
    let all = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let all = all.clone();
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    if all.fetch_add(1, Ordering::SeqCst) < refuses {
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                    } else {
                        let _ = respond.send_response(Response::new(()), true);
                    }
                }
            });
        }
    });
    (addr, seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_a_body_is_asked_again_whatever_its_method_and_one_with_a_body_is_not() {
    for (method, body, refuses, status, expected) in [
        (Method::GET, "", 1, StatusCode::OK, 2),
        (Method::POST, "", 1, StatusCode::OK, 2),
        (Method::POST, "order", 1, StatusCode::BAD_GATEWAY, 1),
    ] {
        // A first request, so that the connection is one that was used.
        let (addr, seen) = endpoint(refuses + 1).await;
        let proxy = proxy(&orders(&[addr], "    protocol: http2\n")).await;
        let mut client = Client::http1(proxy.outbound).await;
        seen.store(refuses + 1, Ordering::SeqCst);
        let warm = client.request(Method::GET, "orders", "/", empty());
        assert_eq!(client.call(warm).await.unwrap().status, StatusCode::OK);
        seen.store(1, Ordering::SeqCst);
        let body = if body.is_empty() { empty() } else { full(body) };
        let request = client.request(method.clone(), "orders", "/", body);
        let answer = client.call(request).await.unwrap();
        assert_eq!(answer.status, status, "{method}: {}", answer.body);
        assert_eq!(seen.load(Ordering::SeqCst) - 1, expected, "{method}");
    }
}

/// An endpoint that answers a request by what its path asks for, one connection after the other. Tells how many connections
/// there were.
async fn ending() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, seen) = (listener.local_addr().unwrap(), Arc::<AtomicUsize>::default());
    let all = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            all.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let reason = match request.uri().path() {
                        "/cancel" => h2::Reason::CANCEL,
                        "/no-error" => h2::Reason::NO_ERROR,
                        "/goodbye" => {
                            let _ = respond.send_response(Response::new(()), true);
                            connection.graceful_shutdown();
                            continue;
                        }
                        _ => {
                            let _ = respond.send_response(Response::new(()), true);
                            continue;
                        }
                    };
                    let mut body = respond.send_response(Response::new(()), false).unwrap();
                    body.send_data("half of it".into(), false).unwrap();
                    tokio::spawn(async move {
                        // Once the half has gone out.
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                        body.send_reset(reason);
                    });
                }
            });
        }
    });
    (addr, seen)
}

/// D02: half an answer is not passed on as a whole one, whatever its endpoint says when it stops.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_reset_before_its_end_breaks_off() {
    let (addr, _) = ending().await;
    let proxy = proxy(&orders(&[addr], "    protocol: http2\n")).await;
    for path in ["/cancel", "/no-error"] {
        for mut client in [Client::http1(proxy.outbound).await, Client::http2(proxy.outbound).await] {
            let request = client.request(Method::GET, "orders", path, empty());
            let error = client.call(request).await.err();
            assert!(error.is_some(), "{path} is taken for a whole answer");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_goodbye_requests_go_on_a_new_connection_and_none_fails() {
    let (addr, connections) = ending().await;
    let proxy = proxy(&orders(&[addr], "    protocol: http2\n")).await;
    let mut client = Client::http1(proxy.outbound).await;
    for round in 1..=5 {
        for path in ["/", "/goodbye"] {
            let request = client.request(Method::POST, "orders", path, empty());
            assert_eq!(client.call(request).await.unwrap().status, StatusCode::OK);
        }
        assert_eq!(connections.load(Ordering::SeqCst), round);
    }
}
