use std::net::SocketAddr;

use http::StatusCode;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use weft_core::tls::Identity;
use weft_proxy::app;
use weft_proxy::config::{LocalService, PortTls, ProxyConfig};
use weft_xds_proto::resource::cluster::RateLimit;

use crate::support::*;

pub fn inbound(services: &[(&str, SocketAddr)]) -> ProxyConfig {
    let mut config = ProxyConfig::new("test");
    config.outbound = None;
    config.inbound = Some("127.0.0.1:0".parse().unwrap());
    let service = |(name, addr): &(&str, SocketAddr)| LocalService {
        rate_limit: None,
        name: (*name).to_owned(),
        addr: *addr,
        health_path: None,
        labels: Default::default(),
    };
    config.services = services.iter().map(service).collect();
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_reach_the_local_service_of_their_host() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let proxy = app::start(inbound(&[("orders", a.addr), ("billing", b.addr)])).await.unwrap();
    let addr = proxy.addrs().inbound.unwrap();
    assert_eq!(get(addr, "orders", "/").await.body, "a");
    assert_eq!(get(addr, "billing.weft:80", "/").await.body, "b");
    let unknown = get(addr, "shipping", "/").await;
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert!(unknown.body.contains("billing, orders"), "{}", unknown.body);
    let seen = get(addr, "orders", "/request").await.body;
    assert!(
        seen.contains("x-forwarded-for: 127.0.0.1") && seen.contains("x-forwarded-proto: http"),
        "{seen}"
    );
    until("the local services pass", || async {
        let clusters = get(proxy.addrs().admin, "admin", "/clusters").await.body;
        if clusters.matches(" passing").count() >= 2 { Ok(()) } else { Err(clusters) }
    })
    .await;
    proxy.drain_and_shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn so_many_requests_pass_to_a_local_service_as_its_limit_says() {
    let upstream = Upstream::start("a").await;
    let mut config = inbound(&[("orders", upstream.addr)]);
    let limit = RateLimit { requests: 2, per: std::time::Duration::from_secs(60), burst: 2 };
    config.services[0].rate_limit = Some(limit);
    let proxy = app::start(config).await.unwrap();
    let addr = proxy.addrs().inbound.unwrap();
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(get(addr, "orders", "/").await.status.as_u16());
    }
    assert_eq!(statuses, [200, 200, 429]);
    proxy.drain_and_shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_local_service_gets_every_host_and_its_absence_is_told() {
    let mut app_itself = Upstream::start("a").await;
    let proxy = app::start(inbound(&[("orders", app_itself.addr)])).await.unwrap();
    let addr = proxy.addrs().inbound.unwrap();
    assert_eq!(get(addr, "whatever.example", "/").await.body, "a");
    app_itself.kill().await;
    let down = get(addr, "orders", "/").await;
    assert_eq!(
        (down.status, down.header("x-weft-error")),
        (StatusCode::SERVICE_UNAVAILABLE, "local-app-down")
    );
    assert!(down.body.contains("local service orders"), "{}", down.body);
    app_itself.revive().await;
    assert_eq!(get(addr, "orders", "/").await.status, StatusCode::OK, "it is asked again at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_terminated_for_http1_and_http2() {
    let upstream = Upstream::start("a").await;
    let (proxy, cert, _dir) = tls_proxy(upstream.addr).await;
    let addr = proxy.addrs().inbound.unwrap();
    for alpn in [&b"h2"[..], b"http/1.1"] {
        let connector = TlsConnector::from(weft_core::tls::client_config(Some(&cert), &[alpn]).unwrap());
        let tcp = TcpStream::connect(addr).await.unwrap();
        let tls = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(alpn));
        let io = TokioIo::new(tls);
        let mut client = if alpn == b"h2" {
            let (sender, task) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(task);
            Client::Http2(sender)
        } else {
            let (sender, task) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(task);
            Client::Http1(sender)
        };
        let seen = client.get("orders", "/request").await;
        assert_eq!(seen.status, StatusCode::OK);
        assert!(seen.body.contains("x-forwarded-proto: https"), "{}", seen.body);
    }
    // Plaintext on the TLS port gets no answer from the app.
    let mut plain = TcpStream::connect(addr).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut plain, b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut plain, &mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusable_inbound_settings_are_clear_errors() {
    let upstream: SocketAddr = closed_port();
    let mut config = inbound(&[("orders", upstream)]);
    config.inbound = Some("0.0.0.0:0".parse().unwrap());
    let error = app::start(config.clone()).await.err().unwrap().to_string();
    assert!(error.contains("advertise"), "{error}");
    config.inbound_tls = Some(PortTls::new(Identity {
        cert: "/nonexistent/cert.pem".into(),
        key: "/nonexistent/key.pem".into(),
    }));
    let error = app::start(config).await.err().unwrap().to_string();
    assert!(error.contains("/nonexistent/cert.pem"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sidecars_in_a_row_forward_and_name_both_hops() {
    let upstream = Upstream::start("a").await;
    let server_side = app::start(inbound(&[("orders", upstream.addr)])).await.unwrap();
    let client_side = proxy(&orders(&[server_side.addrs().inbound.unwrap()], "    protocol: http2\n")).await;
    let seen = get(client_side.outbound, "orders", "/request").await.body;
    assert_eq!(seen.matches("weft").count(), 2, "{seen}");
}

async fn tls_proxy(upstream: SocketAddr) -> (app::RunningProxy, std::path::PathBuf, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let pair = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let mut config = inbound(&[("orders", upstream)]);
    config.inbound_tls = Some(PortTls::new(Identity { cert: cert.clone(), key }));
    (app::start(config).await.unwrap(), cert, dir)
}

/// Without ALPN the first bytes tell the protocol, as without TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_without_alpn_serves_both_protocols_and_garbage_gets_nothing() {
    let upstream = Upstream::start("a").await;
    let (proxy, cert, _dir) = tls_proxy(upstream.addr).await;
    let addr = proxy.addrs().inbound.unwrap();
    let connect = async || {
        let connector = TlsConnector::from(weft_core::tls::client_config(Some(&cert), &[]).unwrap());
        let tcp = TcpStream::connect(addr).await.unwrap();
        TokioIo::new(connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap())
    };
    let (sender, task) = hyper::client::conn::http1::handshake(connect().await).await.unwrap();
    tokio::spawn(task);
    assert_eq!(Client::Http1(sender).get("orders", "/").await.body, "a");
    let (sender, task) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), connect().await).await.unwrap();
    tokio::spawn(task);
    assert_eq!(Client::Http2(sender).get("orders", "/").await.body, "a");
    let served = upstream.served();
    let mut hello = vec![0x16, 3, 1, 0x40, 0];
    hello.extend([0xff; 0x4000]);
    let zeros = [0; 20_000];
    for garbage in
        [&hello[..], &zeros, b"\x16\x03\x01\xff\xff", b"\x80\x2e\x01\x03\x01\x00", b"SSH-2.0-x\r\n"]
    {
        let answer = raw(addr, garbage).await;
        assert!(!answer.contains("HTTP"), "{answer:?}");
    }
    assert_eq!(upstream.served(), served);
}
