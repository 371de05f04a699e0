//! PROXY protocol on the way in, from trusted sources only, and on the way out.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_proxy::app;
use weft_proxy::config::ProxyConfig;
use weft_proxy::proxy_protocol::{Version, write};

use crate::inbound::inbound;
use crate::support::*;

const CLIENT: &str = "203.0.113.7:4711";

fn header(version: Version) -> Vec<u8> {
    write(version, CLIENT.parse().unwrap(), "198.51.100.1:443".parse().unwrap())
}

/// A sidecar of `orders` behind a load balancer with an address in this network.
async fn behind(app_itself: SocketAddr, network: &str) -> (app::RunningProxy, SocketAddr) {
    let mut config = inbound(&[("orders", app_itself)]);
    config.inbound_accept_proxy = vec![network.parse().unwrap()];
    let proxy = app::start(config).await.unwrap();
    let addr = proxy.addrs().inbound.unwrap();
    (proxy, addr)
}

const REQUEST: &[u8] = b"GET /request HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_that_a_trusted_load_balancer_names_is_the_client() {
    let upstream = Upstream::start("one").await;
    let (_proxy, addr) = behind(upstream.addr, "127.0.0.0/8").await;
    for version in [Version::V1, Version::V2] {
        let seen = raw(addr, &[&header(version)[..], REQUEST].concat()).await;
        assert!(seen.contains("x-forwarded-for: 203.0.113.7\n"), "{seen}");
    }
    // LOCAL: the load balancer's own check.
    let local = [b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", REQUEST].concat();
    let seen = raw(addr, &local).await;
    assert!(seen.contains("x-forwarded-for: 127.0.0.1\n"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_a_trusted_source_nothing_but_a_header_begins_a_connection() {
    let upstream = Upstream::start("one").await;
    let (proxy, addr) = behind(upstream.addr, "127.0.0.1").await;
    let huge = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".as_slice(), &[0; 5000]].concat();
    let bad: [&[u8]; 5] = [
        REQUEST,
        b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n",
        b"PROXY TCP4 1.1.1.1",
        b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\0",
        &huge,
    ];
    for bytes in bad {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await;
        let _ = read.expect("closed");
        assert!(answer.is_empty(), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(upstream.served(), 0);
    let metrics = get(proxy.addrs().admin, "admin", "/metrics").await.body;
    assert!(metrics.contains("weft_proxy_refused_total{kind=\"proxy_protocol\"} 5"), "{metrics}");
}

/// Whoever may not say whose connection it is cannot, and is served as itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_from_an_untrusted_source_is_no_http_and_refused() {
    let upstream = Upstream::start("one").await;
    let (_proxy, addr) = behind(upstream.addr, "10.0.0.0/8").await;
    for version in [Version::V1, Version::V2] {
        let answer = raw(addr, &[&header(version)[..], REQUEST].concat()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    assert_eq!(upstream.served(), 0);
    let seen = raw(addr, REQUEST).await;
    assert!(seen.contains("x-forwarded-for: 127.0.0.1\n"), "{seen}");
}

/// In by version 1, out by version 2 and the other way round: the endpoint hears of the first client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_of_bytes_are_told_who_the_client_is() {
    let (addr, _task) = raw_upstream(|mut stream, _| async move {
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).await.unwrap();
        stream.write_all(&seen).await.unwrap();
    })
    .await;
    for (send, version) in [("v1", Version::V1), ("v2", Version::V2)] {
        let mut config: ProxyConfig = config(&orders(&[addr], ""));
        let listener =
            format!("127.0.0.1:0=orders,protocol=tcp,accept-proxy=127.0.0.1+::1,send-proxy={send}");
        let plain = format!("127.0.0.1:0=orders,protocol=tcp,send-proxy={send}");
        config.upstreams = vec![listener.parse().unwrap(), plain.parse().unwrap()];
        let proxy = start(config).await;
        let at = |i: usize| proxy.running.addrs().upstreams[i].address.parse::<SocketAddr>().unwrap();
        for incoming in [Version::V1, Version::V2] {
            let mut stream = TcpStream::connect(at(0)).await.unwrap();
            stream.write_all(&[&header(incoming)[..], b"bytes"].concat()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut seen = Vec::new();
            stream.read_to_end(&mut seen).await.unwrap();
            assert_eq!(seen, [&header(version)[..], b"bytes"].concat(), "{send}");
        }
        let mut stream = TcpStream::connect(at(1)).await.unwrap();
        let itself = write(version, stream.local_addr().unwrap(), at(1));
        stream.write_all(b"bytes").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut seen = Vec::new();
        stream.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, [&itself[..], b"bytes"].concat(), "{send}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_of_a_file_take_headers_too() {
    let upstream = Upstream::start("one").await;
    let listeners = "listeners: [{name: web, address: '127.0.0.1:0', accept-proxy: [127.0.0.0/8]}]\n";
    let mut config = config(&format!("{listeners}{}", orders(&[upstream.addr], "")));
    config.outbound = None;
    let proxy = start(config).await;
    let seen = raw(proxy.outbound, &[&header(Version::V2)[..], REQUEST].concat()).await;
    assert!(seen.contains("x-forwarded-for: 203.0.113.7\n"), "{seen}");
}
