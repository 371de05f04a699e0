use std::{fs, path::Path, sync::Arc};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::net::TcpListener;
use weft_core::{net::Listener, tls::Identity};

use super::*;

const TOKEN: &str = "00000000000000000000000000000001";

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::new(Vec::new()).expect("names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed")
}

/// Files of a server: a certificate of `ca` for `name`, and `trusted` as what it trusts.
fn files(folder: &Path, ca: &Ca, name: &str, trusted: &Ca) -> PeerTlsFiles {
    let mut params = CertificateParams::new(vec![name.to_owned()]).expect("names");
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().expect("a key");
    let cert = params.signed_by(&key, ca).expect("signed");
    let at = |file: &str, content: String| {
        let path = folder.join(file);
        weft_core::fsio::write_atomic(&path, content.as_bytes()).expect("written");
        path
    };
    PeerTlsFiles {
        identity: Identity { cert: at("cert.pem", cert.pem()), key: at("key.pem", key.serialize_pem()) },
        ca: at("ca.pem", trusted.pem()),
    }
}

fn gate(token: &str, tls: Option<PeerTls>) -> Arc<Gate> {
    Arc::new(Gate::new(Tokens::given(token).expect("a token"), tls))
}

fn tls(ca: &Ca, name: &str, trusted: &Ca) -> PeerTls {
    let folder = tempfile::tempdir().expect("a folder");
    let load = PeerTls::load(files(folder.path(), ca, name, trusted));
    load.expect("usable")
}

async fn port() -> (Listener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("is bound");
    (listener.into(), addr)
}

/// What both ends say of a connection.
async fn meet(connecting: &Gate, accepting: &Gate) -> (Result<(), Unreached>, Result<(), Refused>) {
    let (mut listener, addr) = port().await;
    let accepted = async {
        let (stream, _) = listener.accept().await.expect("accepts");
        // Kept open until the other end has heard the answer.
        accepting.accept(stream).await
    };
    let (connected, accepted) = tokio::join!(connecting.connect(addr, None), accepted);
    (connected.map(drop), accepted.map(drop))
}

#[tokio::test]
async fn servers_of_one_ca_and_one_token_meet_with_tls_and_without() {
    let ours = ca();
    for server in [|_: &Ca| None, |ca: &Ca| Some(tls(ca, PEER_NAME, ca))] {
        let (one, other) = (gate(TOKEN, server(&ours)), gate(TOKEN, server(&ours)));
        let (connected, accepted) = meet(&one, &other).await;
        assert!(connected.is_ok() && accepted.is_ok(), "{connected:?} {accepted:?}");
    }
}

#[tokio::test]
async fn another_token_is_refused_with_tls_and_without() {
    let ours = ca();
    for server in [|_: &Ca| None, |ca: &Ca| Some(tls(ca, PEER_NAME, ca))] {
        let (one, other) = (gate(TOKEN, server(&ours)), gate(&"x".repeat(32), server(&ours)));
        let (connected, accepted) = meet(&one, &other).await;
        assert!(matches!(connected, Err(Unreached::TokenRefused)), "{connected:?}");
        assert_eq!(accepted, Err(Refused::WrongToken));
    }
}

#[tokio::test]
async fn tls_on_one_side_only_is_named_on_both() {
    let ours = ca();
    let (with, without) = (gate(TOKEN, Some(tls(&ours, PEER_NAME, &ours))), gate(TOKEN, None));
    let (connected, accepted) = meet(&with, &without).await;
    assert!(connected.is_err_and(|e| e.to_string().contains("does not speak TLS")));
    assert_eq!(accepted, Err(Refused::TlsHere));
    let (connected, accepted) = meet(&without, &with).await;
    assert!(matches!(connected, Err(Unreached::TlsThere)), "{connected:?}");
    assert_eq!(accepted, Err(Refused::NoTls));
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused_and_both_sides_say_whose() {
    let (ours, theirs) = (ca(), ca());
    // The one that connects trusts both; the one that accepts does not know its CA.
    let stranger = gate(TOKEN, Some(tls(&theirs, PEER_NAME, &ours)));
    let server = gate(TOKEN, Some(tls(&ours, PEER_NAME, &ours)));
    let (connected, accepted) = meet(&stranger, &server).await;
    assert!(
        connected.as_ref().is_err_and(|e| e.to_string().contains("refuses our certificate")),
        "{connected:?}"
    );
    let accepted = accepted.expect_err("refused").to_string();
    assert!(accepted.contains("its certificate was not signed by the CA"), "{accepted}");
    let (connected, _) = meet(&server, &stranger).await;
    let connected = connected.expect_err("refused").to_string();
    assert!(connected.contains("its certificate was not signed by the CA"), "{connected}");
}

#[tokio::test]
async fn a_certificate_of_our_ca_for_something_else_is_no_servers() {
    let ours = ca();
    let folder = tempfile::tempdir().expect("a folder");
    let refused = PeerTls::load(files(folder.path(), &ours, "orders.example", &ours)).expect_err("refused");
    assert!(refused.to_string().contains(PEER_NAME), "{refused}");

    let orders = files(folder.path(), &ours, "orders.example", &ours);
    let config =
        weft_core::tls::client_config_showing(Some(&orders.ca), Some(&orders.identity), &[b"weft-peer/1"])
            .expect("usable");
    let server = gate(TOKEN, Some(tls(&ours, PEER_NAME, &ours)));
    let (mut listener, addr) = port().await;
    let accepted = async { server.accept(listener.accept().await.expect("accepts").0).await.map(drop) };
    let connected = async {
        let stream = TcpStream::connect(addr).await.expect("connects");
        let name = PEER_NAME.try_into().expect("a name");
        let mut stream =
            tokio_rustls::TlsConnector::from(config).connect(name, stream).await.expect("TLS is agreed on");
        let tokens = Tokens::given(TOKEN).expect("a token").current();
        handshake::connect(&mut stream, &tokens, &[], handshake::system_random).await
    };
    let (connected, accepted) = tokio::join!(connected, accepted);
    assert!(matches!(connected, Err(Unreached::NoServer)), "{connected:?}");
    assert_eq!(accepted, Err(Refused::NoServer));
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_without_a_restart() {
    let (old, new) = (ca(), ca());
    let folder = TempDir::new().expect("a folder");
    let server =
        gate(TOKEN, Some(PeerTls::load(files(folder.path(), &old, PEER_NAME, &old)).expect("usable")));
    let renewed = gate(TOKEN, Some(tls(&new, PEER_NAME, &new)));
    assert!(meet(&renewed, &server).await.0.is_err());
    files(folder.path(), &new, PEER_NAME, &new);
    let mut tries = 0;
    // The files are looked at once a second.
    while meet(&renewed, &server).await.0.is_err() {
        tries += 1;
        assert!(tries < 100, "the old certificate is still shown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The clock is paused: it moves when nothing else is left to do.
#[tokio::test(start_paused = true)]
async fn whoever_says_nothing_is_closed() {
    let server = gate(TOKEN, None);
    let (mut listener, addr) = port().await;
    let mut silent = TcpStream::connect(addr).await.expect("connects");
    let (stream, from) = listener.accept().await.expect("accepts");
    assert!(server.let_in(stream, from).await.is_none());
    assert_eq!(silent.read(&mut [0]).await.expect("ends"), 0);
}

#[tokio::test]
async fn strangers_hold_no_more_places_than_there_are_and_fill_no_log() {
    let server = gate(TOKEN, None);
    let (mut listener, addr) = port().await;
    let mut waiting = Vec::new();
    for _ in 0..PENDING_MAX {
        let stream = TcpStream::connect(addr).await.expect("connects");
        let (accepted, from) = listener.accept().await.expect("accepts");
        let server = server.clone();
        waiting.push((stream, tokio::spawn(async move { server.let_in(accepted, from).await.is_some() })));
    }
    while server.pending.available_permits() > 0 {
        tokio::task::yield_now().await;
    }
    let mut further = TcpStream::connect(addr).await.expect("connects");
    let (accepted, from) = listener.accept().await.expect("accepts");
    assert!(server.let_in(accepted, from).await.is_none());
    assert_eq!(further.read(&mut [0]).await.expect("ends"), 0, "closed at once");
    for (mut stream, answer) in waiting {
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
        assert!(!answer.await.expect("ends"));
    }
    assert_eq!(server.refused.lock().len(), 1, "one address, one reason");
}

#[tokio::test]
async fn a_token_file_that_changes_is_in_use_without_a_restart() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join("token");
    let write = |text: &str| weft_core::fsio::write_atomic_private(&path, text.as_bytes()).expect("written");
    let (old, new) = (TOKEN, "n".repeat(32));
    write(old);
    let tokens = Tokens::find(&TokenSource::File(path.clone()), folder.path(), false).expect("found");
    let server = Arc::new(Gate::new(tokens, None));
    let replaced = gate(&new, None);
    assert!(meet(&replaced, &server).await.0.is_err());
    write(&format!("{old}\n{new}\n"));
    let mut tries = 0;
    while meet(&replaced, &server).await.0.is_err() {
        tries += 1;
        assert!(tries < 100, "the new token is not accepted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(meet(&gate(old, None), &server).await.0.is_ok(), "the old one still is");
    fs::remove_file(&path).expect("removed");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(meet(&gate(old, None), &server).await.0.is_ok(), "what was loaded stays in use");
}
