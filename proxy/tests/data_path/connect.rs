//! CONNECT: tunnels to services, and nowhere else.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_proxy::app;

use crate::inbound::inbound;
use crate::support::*;

async fn connect(addr: std::net::SocketAddr, target: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let ask = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nProxy-Connection: keep-alive\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await.unwrap();
    (stream, head)
}

/// A server that speaks first, and then sends back what it gets.
pub async fn greeter() -> (std::net::SocketAddr, tokio::task::JoinHandle<()>) {
    raw_upstream(|mut stream, _| async move {
        stream.write_all(b"220 ready\r\n").await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_to_a_service_carries_any_protocol_and_half_closes() {
    let (addr, _task) = greeter().await;
    let proxy = proxy(&orders(&[closed_port(), addr], "")).await;
    for target in ["orders:443", "ORDERS.weft:1", "orders:443"] {
        let (mut stream, head) = connect(proxy.outbound, target).await;
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let lower = head.to_lowercase();
        assert!(!lower.contains("content-length") && !lower.contains("transfer-encoding"), "{head}");
        let mut greeting = [0; 11];
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut greeting)).await;
        read.expect("it speaks first").unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
        stream.write_all(b"\x16\x03\x01 anything").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"\x16\x03\x01 anything");
    }
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    for part in ["weft_proxy_open_tunnels", "way=\"received\"} 69", "class=\"2xx\"} 3"] {
        assert!(metrics.contains(part), "{part}: {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_no_service_is_refused_and_counted() {
    let (addr, _task) = greeter().await;
    let proxy = proxy(&orders(&[addr], "")).await;
    for (target, status, reason) in [
        (addr.to_string().as_str(), 403, "connect-refused"),
        ("localhost:80", 403, "connect-refused"),
        ("[::1]:80", 403, "connect-refused"),
        ("169.254.169.254:80", 403, "connect-refused"),
        ("10.1.2.3:22", 403, "connect-refused"),
        ("example.com:443", 403, "connect-refused"),
        ("billing:443", 404, "unknown-host"),
        ("orders", 400, "connect-target"),
    ] {
        let (mut stream, head) = connect(proxy.outbound, target).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{target}: {head}");
        assert!(head.contains(reason), "{target}: {head}");
        // What the client believed to be in the tunnel is no tunnel's: it is refused, or the connection is closed.
        stream.write_all(b"\x16\x03\x01\x00").await.unwrap();
        let mut rest = String::new();
        let _ = stream.read_to_string(&mut rest).await;
        assert!(!rest.contains("220 ready"), "{target}: {rest}");
    }
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    assert!(metrics.contains("weft_proxy_flagged_requests_total{direction=\"outbound\",service=\"\",flag=\"connect-refused\"} 6"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_get_no_tunnel_past_the_requests_of_the_inbound_port() {
    let (addr, _task) = greeter().await;
    let proxy = app::start(inbound(&[("orders", addr)])).await.unwrap();
    let (_, head) = connect(proxy.addrs().inbound.unwrap(), "orders:443").await;
    assert!(head.starts_with("HTTP/1.1 501") && head.contains("x-weft-error: connect"), "{head}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_endpoint_that_takes_connections_there_is_no_tunnel_and_http_goes_on() {
    let proxy = proxy(&orders(&[closed_port(), closed_port()], "")).await;
    let (mut stream, head) = connect(proxy.outbound, "orders:1").await;
    assert!(head.starts_with("HTTP/1.1 503") && head.contains("connect-failed"), "{head}");
    let length = head.to_lowercase();
    let length: usize =
        length.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
    stream.read_exact(&mut vec![0; length]).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: billing\r\n\r\n").await.unwrap();
    let head = read_head(&mut stream).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
}
