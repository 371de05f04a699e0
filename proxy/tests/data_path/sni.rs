//! TLS passed on unread, by the name that its client asks for.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::*;

/// A TLS server for these names that greets with its own name. Its certificate is what clients trust.
async fn tls_server(dir: &Path, name: &'static str, names: &[&str]) -> (SocketAddr, std::path::PathBuf) {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let pair = rcgen::generate_simple_self_signed(names).unwrap();
    let (cert, key) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    std::fs::write(&cert, pair.cert.pem()).unwrap();
    std::fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    let config = weft_core::tls::server_config(&cert, &key, &[b"weft-test"]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = TlsAcceptor::from(config.clone());
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(stream).await else { return };
                let _ = tls.write_all(name.as_bytes()).await;
                let _ = tls.shutdown().await;
            });
        }
    });
    (addr, cert)
}

async fn ask(addr: SocketAddr, cert: &Path, name: &str) -> std::io::Result<String> {
    let config: Arc<rustls::ClientConfig> =
        weft_core::tls::client_config(Some(cert), &[b"weft-test"]).unwrap();
    let tcp = TcpStream::connect(addr).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut tls = TlsConnector::from(config).connect(name, tcp).await?;
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"weft-test"[..]), "agreed with the endpoint itself");
    let mut said = String::new();
    tls.read_to_string(&mut said).await?;
    Ok(said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_goes_to_the_service_that_its_client_names_and_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let names =
        |service: &str| [service.to_owned(), format!("{service}.weft"), format!("{service}.apps.example")];
    let orders_names = names("orders");
    let billing_names = names("billing");
    let orders_names: Vec<&str> = orders_names.iter().map(String::as_str).collect();
    let billing_names: Vec<&str> = billing_names.iter().map(String::as_str).collect();
    let (a, orders_cert) = tls_server(dir.path(), "orders", &orders_names).await;
    let (b, billing_cert) = tls_server(dir.path(), "billing", &billing_names).await;
    let yaml = format!(
        "clusters:\n  - {{name: orders, endpoints: ['{a}']}}\n  - {{name: billing, endpoints: ['{b}']}}\n"
    );
    let mut config = config(&yaml);
    config.upstreams = ["127.0.0.1:0=*,protocol=tls", "127.0.0.1:0=*,protocol=tls,domain=apps.example"]
        .map(|text| text.parse().unwrap())
        .into();
    let proxy = start(config).await;
    let at = |i: usize| proxy.running.addrs().upstreams[i].address.parse::<SocketAddr>().unwrap();
    for (index, name, cert, expected) in [
        (0, "orders", &orders_cert, "orders"),
        (0, "billing.weft", &billing_cert, "billing"),
        (1, "orders.apps.example", &orders_cert, "orders"),
        (1, "billing.apps.example", &billing_cert, "billing"),
    ] {
        assert_eq!(ask(at(index), cert, name).await.unwrap(), expected, "{name}");
    }
    for (index, name) in [(0, "shipping"), (0, "orders.example"), (1, "orders"), (0, "127.0.0.1")] {
        let error = ask(at(index), &orders_cert, name).await.unwrap_err().to_string();
        assert!(error.to_lowercase().contains("unrecognisedname"), "{name}: {error}");
    }
    let mut plain = TcpStream::connect(at(0)).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 50], "an alert, and nothing else");
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    for part in ["tls-no-service\"} 2", "tls-no-name\"} 1", "tls-malformed\"} 1", "unknown-host\"} 1"] {
        assert!(metrics.contains(part), "{part}: {metrics}");
    }
}
