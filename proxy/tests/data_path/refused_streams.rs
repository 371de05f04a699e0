//! Endpoints of HTTP/2 that refuse streams (RFC 9113 §8.7).

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
