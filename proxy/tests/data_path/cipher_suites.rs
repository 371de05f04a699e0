//! Which cipher suite is agreed on, with clients and with endpoints.

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{CipherSuite, ClientConfig, RootCertStore};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::pki::Ca;
use crate::support::*;

const AES_128: CipherSuite = CipherSuite::TLS13_AES_128_GCM_SHA256;
const AES_256: CipherSuite = CipherSuite::TLS13_AES_256_GCM_SHA384;
const OLD_AES_128: CipherSuite = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;
const OLD_AES_256: CipherSuite = CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384;
const OLD_CHACHA: CipherSuite = CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256;

/// A client that wants AES-256 most, as OpenSSL does.
fn client(ca: &Ca, suites: &[CipherSuite]) -> Arc<ClientConfig> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.retain(|suite| suites.contains(&suite.suite()));
    let mut roots = RootCertStore::empty();
    roots.add(weft_core::tls::certificates(&ca.file()).unwrap().remove(0)).unwrap();
    let versions: Vec<_> = [&rustls::version::TLS13, &rustls::version::TLS12]
        .into_iter()
        .filter(|version| provider.cipher_suites.iter().any(|suite| *suite.version() == **version))
        .collect();
    let config =
        ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&versions).unwrap();
    Arc::new(config.with_root_certificates(roots).with_no_client_auth())
}

async fn agreed(addr: SocketAddr, client: Arc<ClientConfig>) -> Option<CipherSuite> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from("a.example").unwrap();
    let stream = TlsConnector::from(client).connect(name, stream).await.ok()?;
    stream.get_ref().1.negotiated_cipher_suite().map(|suite| suite.suite())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_takes_the_first_of_its_suites_that_the_client_knows() {
    let (app, ca) = (Upstream::start("a").await, Ca::new("one"));
    let own = ca.issue("server", "a.example");
    let (new, old) = (&[AES_256, AES_128][..], &[OLD_AES_256, OLD_AES_128, OLD_CHACHA][..]);
    for (policy, offered, expected) in [
        ("", new, Some(AES_128)),
        ("", old, Some(OLD_AES_128)),
        ("TLS_AES_256_GCM_SHA384", new, Some(AES_256)),
        ("TLS_AES_256_GCM_SHA384", &[AES_128], None),
        ("TLS_AES_256_GCM_SHA384", old, Some(OLD_AES_128)),
        ("ECDHE-ECDSA-CHACHA20-POLY1305, ECDHE-ECDSA-AES256-GCM-SHA384", old, Some(OLD_CHACHA)),
        ("ECDHE-ECDSA-CHACHA20-POLY1305, ECDHE-ECDSA-AES256-GCM-SHA384", &[OLD_AES_128], None),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", new, Some(AES_128)),
    ] {
        let yaml = format!(
            "listeners:\n  - name: web\n    address: \"127.0.0.1:0\"\n    tls:\n      certificates: [{{certificate-file: {}, \
             key-file: {}}}]\n      cipher-suites: [{policy}]\n{}",
            own.cert.display(),
            own.key.display(),
            orders(&[app.addr], "")
        );
        let proxy = proxy(&yaml).await;
        let addr = proxy.running.addrs().listeners[0].1;
        assert_eq!(agreed(addr, client(&ca, offered)).await, expected, "[{policy}] for {offered:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_are_offered_the_suites_of_their_cluster_and_no_others() {
    let (app, ca) = (Upstream::start("a").await, Ca::new("one"));
    let own = ca.issue("server", "a.example");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let config = weft_core::tls::server_config(&own.cert, &own.key, &[b"http/1.1"]).unwrap();
    let (tell, mut told) = mpsc::channel(8);
    let to = app.addr;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, tell) = (TlsAcceptor::from(config.clone()), tell.clone());
            tokio::spawn(async move {
                let mut near = acceptor.accept(stream).await.unwrap();
                let _ =
                    tell.send(near.get_ref().1.negotiated_cipher_suite().map(|suite| suite.suite())).await;
                let mut far = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    for (policy, expected) in [("", AES_128), (", cipher-suites: [TLS_AES_256_GCM_SHA384]", AES_256)] {
        let tls = format!("    tls: {{hostname: a.example, ca-file: {}{policy}}}\n", ca.file().display());
        let proxy = proxy(&orders(&[addr], &tls)).await;
        assert_eq!(get(proxy.outbound, "orders", "/").await.status, StatusCode::OK);
        assert_eq!(told.recv().await, Some(Some(expected)), "{policy}");
    }
}
