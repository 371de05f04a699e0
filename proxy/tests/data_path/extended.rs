//! CONNECT on streams of HTTP/2: tunnels, and WebSocket by extended CONNECT (RFC 8441), from clients and to endpoints.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_proxy::app;
use weft_proxy::tls::mesh::MeshMode;

use crate::connect::greeter;
use crate::inbound::inbound;
use crate::pki::Ca;
use crate::support::*;
use crate::upgrade::{ASK, echo, read_exactly, upgraded};

/// An HTTP/2 app that agrees to WebSockets on `/chat`, says hello, and sends back what it gets until that ends; how many are
/// open. `/broken` breaks off after the first byte. All other requests are answered as by any app.
async fn app_with_websockets() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (addr, open) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = open.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let open = counted.clone();
            let service = service_fn(move |request| answer(request, open.clone()));
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .enable_connect_protocol()
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(serving);
        }
    });
    (addr, open)
}

async fn answer(
    mut request: Request<Incoming>,
    open: Arc<AtomicUsize>,
) -> Result<Response<Body>, std::convert::Infallible> {
    let path = request.uri().path().to_owned();
    let protocol = request.extensions().get::<Protocol>().map(|p| p.as_str().to_owned());
    if protocol.is_none() || path == "/forbidden" {
        let status = if protocol.is_some() { 403 } else { 200 };
        return Ok(Response::builder().status(status).body(full("an app")).unwrap());
    }
    assert_eq!((protocol.as_deref(), request.method()), (Some("websocket"), &Method::CONNECT));
    assert_eq!((request.uri().authority().unwrap().as_str(), path.is_empty()), ("orders", false));
    assert_eq!(request.headers()["sec-websocket-version"], "13");
    for gone in ["sec-websocket-key", "upgrade", "connection"] {
        assert!(!request.headers().contains_key(gone), "{gone}: {request:?}");
    }
    let stream = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut stream = TokioIo::new(stream.await.unwrap());
        open.fetch_add(1, Ordering::SeqCst);
        stream.write_all(b"hello ").await.unwrap();
        if path == "/broken" {
            let _ = stream.read_u8().await;
        } else {
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }
        open.fetch_sub(1, Ordering::SeqCst);
    });
    Ok(Response::builder().header("sec-websocket-protocol", "chat").body(empty()).unwrap())
}

/// Two sidecars between which a WebSocket goes over HTTP/2.
async fn through_two_sidecars(app_itself: SocketAddr) -> (app::RunningProxy, Proxy) {
    let mut config = inbound(&[("orders", app_itself)]);
    config.services[0].labels.insert("protocol".to_owned(), "http2".to_owned());
    let server_side = app::start(config).await.unwrap();
    let endpoint = server_side.addrs().inbound.unwrap();
    (server_side, proxy(&orders(&[endpoint], "    protocol: http2\n")).await)
}

async fn nothing_is_under_way(admin: SocketAddr) {
    until("nothing is under way", || async {
        let clusters = get(admin, "admin", "/clusters").await.body;
        if clusters.contains("active 0") { Ok(()) } else { Err(clusters) }
    })
    .await;
}

/// A client that has heard that extended CONNECT is understood.
async fn extended(addr: SocketAddr) -> hyper::client::conn::http2::SendRequest<Body> {
    let io = TokioIo::new(TcpStream::connect(addr).await.unwrap());
    let executor = TokioExecutor::new();
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    // With any answer the proxy's settings have come, among which it offers it.
    Client::Http2(sender.clone()).get("nobody", "/").await;
    sender
}

fn connect(protocol: &'static str) -> Request<Body> {
    connect_to("/chat", protocol)
}

fn connect_to(path: &str, protocol: &'static str) -> Request<Body> {
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://orders{path}"))
        .header("sec-websocket-version", "13")
        .body(empty())
        .unwrap();
    request.extensions_mut().insert(Protocol::from_static(protocol));
    request
}

/// RFC 8441 in, RFC 6455 out: several on one connection, beside ordinary requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websocket_over_http2_becomes_a_tunnel_to_an_http1_endpoint() {
    let (app_itself, _task) = echo().await;
    let server_side = app::start(inbound(&[("orders", app_itself)])).await.unwrap();
    let proxy = proxy(&orders(&[server_side.addrs().inbound.unwrap()], "")).await;
    let mut sender = extended(proxy.outbound).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let answer = sender.send_request(connect("websocket")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        for gone in ["upgrade", "connection", "sec-websocket-accept", "content-length"] {
            assert!(!answer.headers().contains_key(gone), "{gone}: {answer:?}");
        }
        streams.push(TokioIo::new(hyper::upgrade::on(answer).await.unwrap()));
    }
    for (i, stream) in streams.iter_mut().enumerate() {
        let text = format!("from {i} {}", "x".repeat(100_000));
        let expected = format!("hello {text}");
        let (mut read, mut write) = tokio::io::split(stream);
        let writer = async {
            write.write_all(text.as_bytes()).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut seen = String::new();
        let reader = tokio::time::timeout(Duration::from_secs(5), read.read_to_string(&mut seen));
        let ((), read) = tokio::join!(writer, reader);
        read.expect("both ways end").unwrap();
        assert!(seen == expected, "{} bytes of {}", seen.len(), expected.len());
    }
    let plain = Client::Http2(sender).get("shipping", "/").await;
    assert_eq!(plain.status, StatusCode::NOT_FOUND, "the connection goes on");
    nothing_is_under_way(proxy.admin).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extended_connect_that_nobody_agrees_to_is_answered_in_its_stream() {
    let upstream = Upstream::start("one").await;
    let over_http1 = proxy(&orders(&[upstream.addr], "")).await;
    let mut sender = extended(over_http1.outbound).await;
    // The app does not switch, and 200 would say that it did.
    let answer = sender.send_request(connect("websocket")).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["x-weft-error"]),
        (502, &"upstream-invalid".parse().unwrap())
    );
    let answer = sender.send_request(connect("h2c")).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["x-weft-error"]),
        (501, &"connect".parse().unwrap())
    );
    assert_eq!(upstream.served(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websocket_of_an_http1_client_reaches_an_http2_app_through_two_sidecars() {
    let (app_itself, open) = app_with_websockets().await;
    let (server_side, client_side) = through_two_sidecars(app_itself).await;
    // The answer to its key is made here: the app does not get it.
    let mut stream = upgraded(client_side.outbound).await;
    read_exactly(&mut stream, "hello ").await;
    for word in ["\u{0}\u{1}binary", "GET / HTTP/1.1\r\n\r\n", "end"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        read_exactly(&mut stream, word).await;
    }
    assert_eq!(open.load(Ordering::SeqCst), 1);
    stream.write_all(b"last").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "last", "the way back stays open until it ends by itself");
    nothing_is_under_way(client_side.admin).await;
    nothing_is_under_way(server_side.addrs().admin).await;

    // What the app says instead is an ordinary answer, and the connection goes on.
    let mut stream = TcpStream::connect(client_side.outbound).await.unwrap();
    for _ in 0..2 {
        stream.write_all(ASK.replace("/chat", "/forbidden").as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 403"), "{head}");
        read_exactly(&mut stream, "an app").await;
    }
    // Without a key it is no WebSocket, and a request like all others.
    let keyless = ASK.replace("Sec-WebSocket-Key", "X-Key");
    stream.write_all(keyless.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websocket_over_http2_stays_http2_and_one_stream_ends_without_the_others() {
    let (app_itself, open) = app_with_websockets().await;
    let (_server_side, client_side) = through_two_sidecars(app_itself).await;
    let mut sender = extended(client_side.outbound).await;
    let mut streams = Vec::new();
    for path in ["/chat", "/chat", "/broken"] {
        let answer = sender.send_request(connect_to(path, "websocket")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{answer:?}");
        assert_eq!(answer.headers()["sec-websocket-protocol"], "chat");
        assert!(!answer.headers().contains_key("sec-websocket-accept"), "{answer:?}");
        let mut stream = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        let mut hello = [0; 6];
        stream.read_exact(&mut hello).await.unwrap();
        assert_eq!(&hello, b"hello ");
        streams.push(stream);
    }
    let (mut broken, reset, mut goes_on) =
        (streams.pop().unwrap(), streams.pop().unwrap(), streams.pop().unwrap());
    // One is broken off by the app, one taken back by the client, and both end at the other side.
    broken.write_all(b"x").await.unwrap();
    let end = tokio::time::timeout(Duration::from_secs(5), broken.read(&mut [0; 8])).await;
    assert!(matches!(end.expect("it ends"), Ok(0) | Err(_)));
    drop((broken, reset));
    until("two have ended", || async {
        let open = open.load(Ordering::SeqCst);
        if open == 1 { Ok(()) } else { Err(format!("{open} are open")) }
    })
    .await;
    let big = vec![b'x'; 2_000_000];
    let (mut read, mut write) = tokio::io::split(&mut goes_on);
    let writer = async {
        write.write_all(&big).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut seen = Vec::new();
    let reader = tokio::time::timeout(Duration::from_secs(20), read.read_to_end(&mut seen));
    let ((), read) = tokio::join!(writer, reader);
    read.expect("both ways end").unwrap();
    assert!(seen == big, "{} bytes of {}", seen.len(), big.len());
    let plain = Client::Http2(sender).get("orders", "/").await;
    assert_eq!((plain.status, plain.body.as_str()), (StatusCode::OK, "an app"), "the connection goes on");
    nothing_is_under_way(client_side.admin).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_endpoint_that_does_not_offer_extended_connect_gets_none() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "    protocol: http2\n")).await;
    let mut sender = extended(proxy.outbound).await;
    for _ in 0..10 {
        let answer = sender.send_request(connect("websocket")).await.unwrap();
        let error = answer.headers()["x-weft-error"].to_str().unwrap();
        assert_eq!((answer.status().as_u16(), error), (501, "connect"));
    }
    let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
    stream.write_all(ASK.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 501") && head.contains("x-weft-error: connect"), "{head}");
    // Nor is it ejected for that.
    assert_eq!(Client::Http2(sender).get("orders", "/").await.body, "one");
    assert_eq!(upstream.served(), 1);
}

/// It closes before it has said what it takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_closes_at_once_is_replaced_by_another() {
    let (closes, _task) = raw_upstream(|stream, _| async move { drop(stream) }).await;
    let (app_itself, _open) = app_with_websockets().await;
    let proxy = proxy(&orders(&[closes, app_itself, closed_port()], "    protocol: http2\n")).await;
    for _ in 0..3 {
        let mut stream = upgraded(proxy.outbound).await;
        read_exactly(&mut stream, "hello ").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websocket_to_an_http2_app_passes_between_sidecars_with_certificates() {
    let (app_itself, _open) = app_with_websockets().await;
    let ca = Ca::new("mesh");
    let mut config = inbound(&[("orders", app_itself)]);
    config.services[0].labels.insert("protocol".to_owned(), "http2".to_owned());
    config.mesh = Some(ca.mesh("orders", "spiffe://mesh.example/ns/shop/sa/orders", MeshMode::Strict));
    let server_side = app::start(config).await.unwrap();
    let endpoint = server_side.addrs().inbound.unwrap();
    for protocol in ["http1", "http2"] {
        let more = format!("    protocol: {protocol}\n    tls: {{mode: mesh}}\n");
        let mut config = self::config(&orders(&[endpoint], &more));
        config.mesh = Some(ca.mesh("web", "spiffe://mesh.example/ns/shop/sa/web", MeshMode::Strict));
        let client_side = start(config).await;
        let mut stream = upgraded(client_side.outbound).await;
        read_exactly(&mut stream, "hello ").await;
        stream.write_all(b"again").await.unwrap();
        read_exactly(&mut stream, "again").await;
    }
}

/// A CONNECT as a proxy gets it: for a target, and nothing else.
fn tunnel_to(target: &str) -> Request<Body> {
    Request::builder().method(Method::CONNECT).uri(target).body(empty()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_over_http2_carry_any_protocol_and_end_one_by_one() {
    let (addr, _task) = greeter().await;
    let proxy = proxy(&orders(&[closed_port(), addr], "")).await;
    let mut sender = extended(proxy.outbound).await;
    let mut streams = Vec::new();
    for target in ["orders:443", "ORDERS.weft:1", "orders:443"] {
        let answer = sender.send_request(tunnel_to(target)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{target}: {answer:?}");
        let mut stream = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        let mut greeting = [0; 11];
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut greeting)).await;
        read.expect("it speaks first").unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
        streams.push(stream);
    }
    // Taken back by the client.
    drop(streams.pop());
    for stream in &mut streams {
        stream.write_all(b"\x16\x03\x01 anything").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
        read.expect("the way back ends by itself").unwrap();
        assert_eq!(rest, b"\x16\x03\x01 anything");
    }
    let plain = Client::Http2(sender).get("nobody", "/").await;
    assert_eq!(plain.status, StatusCode::NOT_FOUND, "the connection goes on");
    nothing_is_under_way(proxy.admin).await;
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    assert!(metrics.contains("class=\"2xx\"} 3"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_over_http2_is_refused_as_over_http1() {
    let (addr, _task) = greeter().await;
    let outbound = proxy(&orders(&[addr], "")).await;
    let nobody = proxy(&orders(&[closed_port()], "")).await;
    let server_side = app::start(inbound(&[("orders", addr)])).await.unwrap();
    let inbound = server_side.addrs().inbound.unwrap();
    for (at, target, status, reason) in [
        (outbound.outbound, addr.to_string().as_str(), 403, "connect-refused"),
        (outbound.outbound, "localhost:80", 403, "connect-refused"),
        (outbound.outbound, "169.254.169.254:80", 403, "connect-refused"),
        (outbound.outbound, "billing:443", 404, "unknown-host"),
        (outbound.outbound, "orders", 400, "connect-target"),
        (nobody.outbound, "orders:1", 503, "connect-failed"),
        (inbound, "orders:443", 501, "connect"),
    ] {
        let mut sender = extended(at).await;
        for _ in 0..2 {
            let answer = sender.send_request(tunnel_to(target)).await.unwrap();
            let error = answer.headers()["x-weft-error"].to_str().unwrap();
            assert_eq!((answer.status().as_u16(), error), (status, reason), "{target}");
        }
    }
}

/// Bytes of a tunnel are no content: whoever forwarded the request by its length would take them for its body, and what
/// follows for another request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connect_that_says_how_long_its_content_is_is_refused() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let stream = TcpStream::connect(proxy.outbound).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    // The settings, which allow an extended CONNECT, have come with the first answer.
    let first = Request::get("http://orders/").body(()).unwrap();
    let (answer, _) = client.send_request(first, true).unwrap();
    assert_eq!(answer.await.unwrap().status(), StatusCode::OK);
    let mut request = Request::builder().method(Method::CONNECT).uri("http://orders/chat");
    request = request.header("content-length", "5").extension(h2::ext::Protocol::from("websocket"));
    let (answer, mut body) = client.send_request(request.body(()).unwrap(), false).unwrap();
    body.send_data(bytes::Bytes::from_static(b"GET /"), true).unwrap();
    let error = answer.await.unwrap_err();
    assert_eq!(error.reason(), Some(h2::Reason::PROTOCOL_ERROR));
    assert_eq!(upstream.served(), 1);
}
