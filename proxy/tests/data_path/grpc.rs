//! gRPC through the proxy: every kind of call, statuses, deadlines, and streams without an end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, channel::Channel};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use weft_proxy::app;

use crate::inbound::inbound;
use crate::support::*;

const HTTP2: &str = "    protocol: http2\n";

/// A message as it stands in a stream.
fn message(text: &str) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(text.len()).unwrap());
    bytes.put_slice(text.as_bytes());
    bytes.freeze()
}

/// Takes messages out of what came so far.
fn messages(bytes: &mut BytesMut) -> Vec<String> {
    let mut all = Vec::new();
    while bytes.len() >= 5 {
        let len = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
        if bytes.len() < 5 + len {
            break;
        }
        let message = bytes.split_to(5 + len);
        all.push(String::from_utf8(message[5..].to_vec()).unwrap());
    }
    all
}

fn status(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())])
}

/// A gRPC server. Each method does what it is called; `pushed` counts what `/endless` has given away.
async fn server(pushed: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let pushed = pushed.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| call(request, pushed.clone()));
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    addr
}

async fn call(
    request: Request<Incoming>,
    pushed: Arc<AtomicUsize>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let kind = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let response = Response::builder().header("content-type", "application/grpc");
    if kind == "Refuses" {
        let refused = response.header("grpc-status", "9").header("grpc-message", "not%20now");
        return Ok(refused.body(empty()).unwrap());
    }
    if kind == "Never" {
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
    let (mut sender, body) = Channel::<Bytes, std::convert::Infallible>::new(1);
    let mut incoming = request.into_body();
    tokio::spawn(async move {
        if kind == "Endless" {
            let piece = message(&"x".repeat(16 * 1024));
            while sender.send_data(piece.clone()).await.is_ok() {
                pushed.fetch_add(piece.len(), Ordering::SeqCst);
            }
            return;
        }
        if kind == "Stalls" {
            sender.send_data(message("one")).await.unwrap();
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        let (mut bytes, mut seen) = (BytesMut::new(), Vec::new());
        while let Some(Ok(frame)) = incoming.frame().await {
            bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
            for text in messages(&mut bytes) {
                if kind == "Both" {
                    sender.send_data(message(&format!("re: {text}"))).await.unwrap();
                }
                seen.push(text);
            }
        }
        match kind.as_str() {
            "Server" => {
                for i in 0..5 {
                    sender.send_data(message(&format!("{i} of {}", seen[0]))).await.unwrap();
                }
            }
            "Unary" | "Client" => sender.send_data(message(&seen.join("+"))).await.unwrap(),
            _ => {}
        }
        let _ = sender.send_trailers(status("0")).await;
    });
    let body = body.map_err(|never| match never {}).boxed();
    Ok(response.body(body).unwrap())
}

fn request(host: &str, method: &str, body: Body) -> Request<Body> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://{host}/shop.Orders/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

async fn all(client: &mut Client, method: &str, sent: &[&str]) -> (Vec<String>, HeaderMap) {
    let body = streamed(sent.iter().map(|text| message(text)).collect(), None);
    let answer = client.send(request("orders", method, body)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let answer = answer.into_body().collect().await.unwrap();
    let trailers = answer.trailers().cloned().expect("trailers");
    (messages(&mut BytesMut::from(&answer.to_bytes()[..])), trailers)
}

/// An app's client, two sidecars, an app's server.
async fn chain() -> (Proxy, app::RunningProxy, Arc<AtomicUsize>) {
    let pushed = Arc::new(AtomicUsize::new(0));
    let mut config = inbound(&[("orders", server(pushed.clone()).await)]);
    config.services[0].labels.insert("protocol".to_owned(), "grpc".to_owned());
    let server_side = app::start(config).await.unwrap();
    let client_side = proxy(&orders(&[server_side.addrs().inbound.unwrap()], HTTP2)).await;
    (client_side, server_side, pushed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_call_passes_two_sidecars() {
    let (near, _far, _) = chain().await;
    let mut client = Client::http2(near.outbound).await;
    for (method, sent, expected) in [
        ("Unary", &["a"][..], &["a"][..]),
        ("Client", &["a", "b", "c"], &["a+b+c"]),
        ("Server", &["x"], &["0 of x", "1 of x", "2 of x", "3 of x", "4 of x"]),
        ("Both", &["a", "b"], &["re: a", "re: b"]),
    ] {
        let (got, trailers) = all(&mut client, method, sent).await;
        assert_eq!(got, expected, "{method}");
        assert_eq!(trailers["grpc-status"], "0", "{method}");
    }
    let refused = client.call(request("orders", "Refuses", empty())).await.unwrap();
    assert_eq!((refused.header("grpc-status"), refused.header("grpc-message")), ("9", "not%20now"));
}

/// Each side hears the other while both still speak.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_goes_to_and_fro() {
    let (near, _far, _) = chain().await;
    let mut client = Client::http2(near.outbound).await;
    let (mut sender, body) = Channel::<Bytes, std::convert::Infallible>::new(1);
    let body = body.map_err(|never| match never {}).boxed();
    sender.send_data(message("0")).await.unwrap();
    let mut answer = client.send(request("orders", "Both", body)).await.unwrap().into_body();
    for i in 0..20 {
        let frame = tokio::time::timeout(Duration::from_secs(5), answer.frame()).await.unwrap().unwrap();
        assert_eq!(frame.unwrap().into_data().unwrap(), message(&format!("re: {i}")));
        sender.send_data(message(&format!("{}", i + 1))).await.unwrap();
    }
    drop(sender);
    let rest = answer.collect().await.unwrap();
    assert_eq!(rest.trailers().unwrap()["grpc-status"], "0");
}

/// What the proxy answers itself, a gRPC client understands, and others get as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_the_proxy_are_statuses_of_grpc_for_grpc_callers() {
    let yaml = format!(
        "clusters:\n  - {{name: orders, protocol: http2, endpoints: ['{}']}}\n  - {{name: down, protocol: http2, endpoints: ['{}']}}\n",
        server(Arc::default()).await,
        closed_port()
    );
    let proxy = proxy(&yaml).await;
    let mut client = Client::http2(proxy.outbound).await;
    for (host, fields, code, reason) in [
        ("shipping", &[][..], "12", "unknown-host"),
        ("down", &[], "14", "connect-failed"),
        ("orders", &[("grpc-timeout", "0m")], "4", "deadline"),
        ("orders", &[("grpc-timeout", "soon")], "13", "bad-deadline"),
        ("orders", &[("expect", "magic")], "2", "expectation"),
    ] {
        let mut request = request(host, "Unary", full(message("a")));
        for (name, value) in fields {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let reply = client.call(request).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{host} {fields:?}");
        assert_eq!(reply.header("grpc-status"), code, "{host} {fields:?}");
        assert_eq!(reply.header("x-weft-error"), reason);
        assert_eq!(reply.header("content-type"), "application/grpc");
        assert!(!reply.header("grpc-message").is_empty() && reply.body.is_empty());
    }
    let plain = client.get("shipping", "/").await;
    assert_eq!((plain.status, plain.header("grpc-status")), (StatusCode::NOT_FOUND, ""));
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    assert!(metrics.contains("flag=\"deadline\"} 1"), "counted for what they are: {metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_passes_is_deadline_exceeded_before_and_within_the_answer() {
    let (near, _far, _) = chain().await;
    let mut client = Client::http2(near.outbound).await;
    let with_deadline = |method| {
        let mut request = request("orders", method, full(message("a")));
        request.headers_mut().insert("grpc-timeout", "400m".parse().unwrap());
        request
    };
    let reply = client.call(with_deadline("Never")).await.unwrap();
    assert_eq!((reply.status, reply.header("grpc-status")), (StatusCode::OK, "4"), "{reply:?}");
    let reply = client.call(with_deadline("Stalls")).await.unwrap();
    let trailers = reply.trailers.expect("the answer ends with a status");
    assert_eq!(trailers["grpc-status"], "4");
    assert_eq!(trailers["x-weft-error"], "body-late");
    assert_eq!(reply.body.as_bytes(), message("one"), "what came before it is kept");
}

/// Memory holds windows, not streams: the server is stopped when nobody reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endless_stream_that_nobody_reads_is_held_up_at_its_source() {
    let (near, _far, pushed) = chain().await;
    let mut client = Client::http2(near.outbound).await;
    let mut answer = client.send(request("orders", "Endless", empty())).await.unwrap().into_body();
    let still = async || {
        let mut before = usize::MAX;
        while before != pushed.load(Ordering::SeqCst) {
            before = pushed.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        before
    };
    let first = still().await;
    // Windows of 256 KiB and send buffers on each of three hops, and what the kernel holds.
    assert!(first < 16 * 1024 * 1024, "{first} bytes");
    let mut read = 0;
    while read < 64 * 1024 * 1024 {
        read += answer.frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    let second = still().await;
    assert!(second - read < 16 * 1024 * 1024, "{second} bytes given away, {read} read");
}

/// An endpoint that says in gRPC that it is unavailable is ejected like one that says it in HTTP.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_answers_unavailable_in_grpc_is_an_outlier() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bad = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|_: Request<Incoming>| async {
                let answer = Response::builder().header("content-type", "application/grpc");
                Ok::<_, std::convert::Infallible>(answer.header("grpc-status", "14").body(empty()).unwrap())
            });
            let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
        }
    });
    let good = server(Arc::default()).await;
    let proxy = proxy(&orders(&[bad, good], HTTP2)).await;
    let mut client = Client::http2(proxy.outbound).await;
    for _ in 0..12 {
        client.call(request("orders", "Unary", full(message("a")))).await.unwrap();
    }
    let clusters = get(proxy.admin, "admin", "/clusters").await.body;
    assert!(clusters.contains("ejected"), "{clusters}");
    let (got, _) = all(&mut client, "Unary", &["a"]).await;
    assert_eq!(got, ["a"]);
}
