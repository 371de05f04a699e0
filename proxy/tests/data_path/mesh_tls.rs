//! TLS between sidecars, by SPIFFE IDs.

use std::net::SocketAddr;

use http::StatusCode;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use weft_proxy::app::{self, RunningProxy};
use weft_proxy::tls::mesh::{MeshFiles, MeshMode};

use crate::inbound::inbound;
use crate::pki::Ca;
use crate::support::*;

const ORDERS: &str = "spiffe://mesh.example/ns/shop/sa/orders";
const WEB: &str = "spiffe://mesh.example/ns/shop/sa/web";

async fn server_side(app_addr: SocketAddr, mesh: MeshFiles) -> (RunningProxy, SocketAddr) {
    let mut config = inbound(&[("orders", app_addr)]);
    config.mesh = Some(mesh);
    let running = app::start(config).await.unwrap();
    let addr = running.addrs().inbound.unwrap();
    (running, addr)
}

async fn client_side(endpoint: SocketAddr, tls: &str, mesh: MeshFiles) -> Proxy {
    let mut config = config(&orders(&[endpoint], &format!("    tls: {tls}\n")));
    config.mesh = Some(mesh);
    start(config).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_sidecars_speak_http2_over_tls_with_certificates_of_both() {
    let (app_itself, ca) = (Upstream::start("a").await, Ca::new("mesh"));
    let (_server, addr) = server_side(app_itself.addr, ca.mesh("orders", ORDERS, MeshMode::Strict)).await;
    let client = client_side(addr, "{mode: mesh}", ca.mesh("web", WEB, MeshMode::Strict)).await;
    let seen = get(client.outbound, "orders", "/request").await;
    assert_eq!(seen.status, StatusCode::OK, "{}", seen.body);
    assert!(
        seen.body.contains("via: 2 weft") || seen.body.contains("2 weft"),
        "HTTP/2 in between: {}",
        seen.body
    );
    assert!(seen.body.contains("x-forwarded-proto: https"), "{}", seen.body);
}

/// Who may call whom is decided elsewhere; that somebody is of the mesh at all is decided here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_takes_neither_plaintext_nor_certificates_of_others() {
    let (app_itself, ca, other) = (Upstream::start("a").await, Ca::new("mesh"), Ca::new("other"));
    let (_server, addr) = server_side(app_itself.addr, ca.mesh("orders", ORDERS, MeshMode::Strict)).await;
    let plain = raw(addr, b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await;
    assert!(!plain.contains("HTTP/1.1"), "{plain}");
    let strange_domain = ca.issue("strange", "spiffe://other.example/ns/shop/sa/web");
    let no_workload = ca.issue("dns", "web.example");
    let other_ca = other.issue("web", WEB);
    for identity in [None, Some(&strange_domain), Some(&no_workload), Some(&other_ca)] {
        let config =
            weft_core::tls::client_config_showing(Some(&ca.file()), identity, &[b"http/1.1"]).unwrap();
        let stream = TcpStream::connect(addr).await.unwrap();
        let name = ServerName::from(addr.ip());
        // The chain is not looked at here, but by the server; it is the server's answer that counts.
        let mut config = (*config).clone();
        config.dangerous().set_certificate_verifier(
            weft_core::tls::server_verifier(
                weft_core::tls::roots_in(&ca.file(), ca.pem().as_bytes()).unwrap(),
                Vec::new(),
                Some(std::sync::Arc::new(|_| Ok(()))),
            )
            .unwrap(),
        );
        let connected = TlsConnector::from(std::sync::Arc::new(config)).connect(name, stream).await;
        let Ok(mut stream) = connected else { continue };
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let ask = b"GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";
        let _ = stream.write_all(ask).await;
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer).await;
        assert!(ended.is_err() && answer.is_empty(), "{identity:?}: {}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(app_itself.served(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permissive_takes_plaintext_on_the_same_port() {
    let (app_itself, ca) = (Upstream::start("a").await, Ca::new("mesh"));
    let (_server, addr) = server_side(app_itself.addr, ca.mesh("orders", ORDERS, MeshMode::Permissive)).await;
    assert_eq!(get(addr, "orders", "/").await.body, "a");
    assert_eq!(Client::http2(addr).await.get("orders", "/").await.body, "a");
    let client = client_side(addr, "{mode: mesh}", ca.mesh("web", WEB, MeshMode::Permissive)).await;
    let seen = get(client.outbound, "orders", "/request").await.body;
    assert!(seen.contains("x-forwarded-proto: https"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_refuses_a_workload_that_is_not_the_one_it_wants() {
    let (app_itself, ca) = (Upstream::start("a").await, Ca::new("mesh"));
    let (_server, addr) = server_side(app_itself.addr, ca.mesh("orders", ORDERS, MeshMode::Strict)).await;
    for (names, right) in [
        ("\"spiffe://mesh.example/ns/shop/*\"", true),
        ("\"spiffe://mesh.example/ns/shop/sa/orders\"", true),
        ("\"spiffe://mesh.example/ns/shop/sa/billing\"", false),
        ("\"spiffe://mesh.example/ns/bank/*\"", false),
    ] {
        let tls = format!("{{mode: mesh, subject-alt-names: [{names}]}}");
        let client = client_side(addr, &tls, ca.mesh("web", WEB, MeshMode::Strict)).await;
        let answer = get(client.outbound, "orders", "/").await;
        let expected = if right { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        assert_eq!(answer.status, expected, "{names}: {}", answer.body);
        assert!(
            right || answer.body.contains(&format!("its certificate is for {ORDERS}; wanted is")),
            "{}",
            answer.body
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_passes_between_sidecars() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (echo, _task) = raw_upstream(|mut stream, _| async move {
        // The checks of the sidecar connect and say nothing.
        let Some(head) = read_head(&mut stream).await else { return };
        assert!(head.to_lowercase().contains("upgrade: websocket"), "{head}");
        let answer = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        let mut seen = [0; 5];
        stream.read_exact(&mut seen).await.unwrap();
        stream.write_all(&seen).await.unwrap();
    })
    .await;
    let ca = Ca::new("mesh");
    let (_server, addr) = server_side(echo, ca.mesh("orders", ORDERS, MeshMode::Strict)).await;
    let client = client_side(addr, "{mode: mesh}", ca.mesh("web", WEB, MeshMode::Strict)).await;
    let mut stream = TcpStream::connect(client.outbound).await.unwrap();
    let ask = b"GET /chat HTTP/1.1\r\nHost: orders\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    let head = read_head(&mut stream).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    stream.write_all(b"hello").await.unwrap();
    let mut seen = [0; 5];
    stream.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"hello");
}

/// A sidecar whose certificate has just been renewed goes on; a certificate for somebody else is not taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_in_use_without_a_restart_and_another_name_is_not() {
    let (app_itself, ca) = (Upstream::start("a").await, Ca::new("mesh"));
    let (server, addr) = server_side(app_itself.addr, ca.mesh("orders", ORDERS, MeshMode::Strict)).await;
    let serial = async |wanted: &str| {
        until("the certificate is in use", || async {
            let certs = get(server.addrs().admin, "admin", "/certs").await.body;
            if certs.contains(wanted) { Ok(()) } else { Err(certs) }
        })
        .await;
    };
    serial("\"serial\": \"01\"").await;
    ca.issue_numbered("orders", ORDERS, 9);
    serial("\"serial\": \"09\"").await;
    ca.issue_numbered("orders", WEB, 10);
    serial("another name needs a restart").await;
    let client = client_side(addr, "{mode: mesh}", ca.mesh("web", WEB, MeshMode::Strict)).await;
    assert_eq!(get(client.outbound, "orders", "/").await.status, StatusCode::OK);
}

/// Each looks at the other's, with a list of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_whose_certificate_was_taken_back_is_refused_as_a_caller_and_as_an_endpoint() {
    let (app_itself, ca) = (Upstream::start("a").await, Ca::new("mesh"));
    let mesh = |file: &str, id: &str, serial: u64, crl| {
        let issued = ca.issue_numbered(file, id, serial);
        MeshFiles { cert: issued.cert, key: issued.key, ca: ca.file(), crl, mode: MeshMode::Strict }
    };
    let list = |name: &str, serials: &[u64]| {
        let path = ca.at(name);
        std::fs::copy(ca.revoke(serials), &path).unwrap();
        Some(path)
    };
    for (at_server, at_client, good) in [
        (None, None, true),
        (list("none.crl", &[5]), list("neither.crl", &[5]), true),
        (list("caller.crl", &[8]), None, false),
        (None, list("endpoint.crl", &[7]), false),
    ] {
        let (_server, addr) =
            server_side(app_itself.addr, mesh("orders", ORDERS, 7, at_server.clone())).await;
        let client = client_side(addr, "{mode: mesh}", mesh("web", WEB, 8, at_client.clone())).await;
        let answer = get(client.outbound, "orders", "/").await;
        assert_eq!(answer.status == StatusCode::OK, good, "{at_server:?} {at_client:?}: {}", answer.body);
    }
    assert_eq!(app_itself.served(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_without_a_usable_identity_does_not_start() {
    let (ca, other) = (Ca::new("mesh"), Ca::new("other"));
    let good = ca.mesh("orders", ORDERS, MeshMode::Strict);
    let foreign_key = MeshFiles { key: other.issue("x", WEB).key, ..good.clone() };
    let dns = ca.issue("dns", "web.example");
    let no_id = MeshFiles { cert: dns.cert, key: dns.key, ..good.clone() };
    let no_ca = MeshFiles { ca: "/nonexistent/ca.pem".into(), ..good.clone() };
    let bad_crl = MeshFiles { crl: Some(ca.file()), ..good };
    for (files, why) in [
        (foreign_key, "does not match the certificate"),
        (no_id, "names no URI"),
        (no_ca, "/nonexistent/ca.pem"),
        (bad_crl, "holds no revocation list"),
    ] {
        let mut config = inbound(&[("orders", closed_port())]);
        config.mesh = Some(files);
        let error = app::start(config).await.err().unwrap().to_string();
        assert!(error.starts_with("mesh TLS: ") && error.contains(why), "{error}");
    }
}

/// Nobody has configured anything but the identities: gossip tells who has one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_that_know_each_other_by_gossip_use_tls_by_themselves() {
    let (app_itself, ca) = (Upstream::start("a").await, Ca::new("mesh"));
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let mut server = inbound(&[("orders", app_itself.addr)]);
    server.gossip = Some(any);
    server.mesh = Some(ca.mesh("orders", ORDERS, MeshMode::Strict));
    let server = app::start(server).await.unwrap();
    let mut client = weft_proxy::config::ProxyConfig::new("web");
    client.gossip = Some(any);
    client.join = vec![server.addrs().gossip.unwrap().to_string()];
    client.mesh = Some(ca.mesh("web", WEB, MeshMode::Strict));
    let client = app::start(client).await.unwrap();
    until("orders is called over TLS", || async {
        let seen = get(client.addrs().outbound.unwrap(), "orders", "/request").await.body;
        if seen.contains("x-forwarded-proto: https") { Ok(()) } else { Err(seen) }
    })
    .await;
}
