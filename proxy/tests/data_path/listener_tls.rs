//! TLS on listeners of the proxy's file and on ports of single services, for clients that are no sidecars.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use weft_core::tls::{About, Identity, client_config_showing};

use crate::pki::Ca;
use crate::support::*;

const HTTP1: &[&[u8]] = &[b"http/1.1"];

/// What a client sees of a listener: the serial number of the certificate, and the answer.
async fn ask(addr: SocketAddr, name: &str, config: Arc<ClientConfig>) -> Result<(String, Reply), String> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let stream = TlsConnector::from(config).connect(name, stream).await.map_err(|e| e.to_string())?;
    let shown = About::of(&stream.get_ref().1.peer_certificates().unwrap()[0]).unwrap();
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    tokio::spawn(connection);
    let mut client = Client::Http1(sender);
    let mut request = client.request(Method::GET, "orders", "/request", empty());
    request.headers_mut().insert("x-forwarded-client-cert", "URI=spiffe://t/admin".parse().unwrap());
    let answer = client.call(request).await.map_err(|e| e.to_string())?;
    Ok((shown.serial, answer))
}

async fn listener(upstream: SocketAddr, tls: &str) -> (Proxy, SocketAddr) {
    let yaml = format!(
        "listeners: [{{name: web, address: \"127.0.0.1:0\", tls: {tls}}}]\n{}",
        orders(&[upstream], "")
    );
    let mut config = config(&yaml);
    config.outbound = None;
    let proxy = start(config).await;
    let addr = proxy.running.addrs().listeners[0].1;
    (proxy, addr)
}

fn pair(Identity { cert, key }: &Identity) -> String {
    format!("{{certificate-file: {}, key-file: {}}}", cert.display(), key.display())
}

fn trusting(ca: &Ca, identity: Option<&Identity>) -> Arc<ClientConfig> {
    client_config_showing(Some(&ca.file()), identity, HTTP1).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_shown_the_certificate_for_the_name_that_it_asks_for_and_its_successor() {
    let (app, ca) = (Upstream::start("a").await, Ca::new("one"));
    let first = ca.issue_numbered("first", "a.example", 1);
    let star = ca.issue_numbered("star", "*.shop.example", 2);
    let (proxy, addr) =
        listener(app.addr, &format!("{{certificates: [{}, {}]}}", pair(&first), pair(&star))).await;
    for (name, expected) in [("a.example", "01"), ("one.shop.example", "02"), ("two.shop.example", "02")] {
        let (serial, answer) = ask(addr, name, trusting(&ca, None)).await.unwrap();
        assert_eq!((serial.as_str(), answer.status), (expected, StatusCode::OK), "{name}");
        assert!(answer.body.contains("x-forwarded-proto: https"), "{}", answer.body);
    }
    for name in ["other.example", "a.b.shop.example"] {
        let why = ask(addr, name, trusting(&ca, None)).await.unwrap_err();
        assert!(why.contains("not valid for name"), "{name} gets the first: {why}");
    }
    assert!(!raw(addr, b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.starts_with("HTTP"), "plaintext");

    let certs = get(proxy.admin, "admin", "/certs").await.body;
    for part in ["\"used_for\": \"listener web\"", "a.example", "*.shop.example"] {
        assert!(certs.contains(part), "{certs}");
    }
    ca.issue_numbered("star", "*.shop.example", 3);
    until("the renewed certificate is shown", || async {
        let (serial, _) = ask(addr, "one.shop.example", trusting(&ca, None)).await?;
        if serial == "03" { Ok(()) } else { Err(serial) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_show_certificates_of_the_ca_where_that_is_wanted() {
    let (app, ca, other) = (Upstream::start("a").await, Ca::new("one"), Ca::new("other"));
    let own = pair(&ca.issue("server", "a.example"));
    let (good, strange) = (ca.issue("client", "c.example"), other.issue("client", "c.example"));
    for (mode, without) in
        [("", false), (", client-certificates: required", false), (", client-certificates: optional", true)]
    {
        let tls = format!("{{certificates: [{own}], client-ca: {}{mode}}}", ca.file().display());
        let (_proxy, addr) = listener(app.addr, &tls).await;
        let let_in =
            async |identity: Option<&Identity>| ask(addr, "a.example", trusting(&ca, identity)).await.is_ok();
        assert!(let_in(Some(&good)).await, "{mode}");
        assert_eq!(let_in(None).await, without, "{mode}");
        assert!(!let_in(Some(&strange)).await, "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_whose_certificates_were_taken_back_are_let_in_no_longer_once_the_list_says_so() {
    let (app, ca) = (Upstream::start("a").await, Ca::new("one"));
    let own = pair(&ca.issue("server", "a.example"));
    let (good, bad) = (ca.issue_numbered("good", "c.example", 6), ca.issue_numbered("bad", "c.example", 7));
    let list = ca.revoke(&[5]);
    for mode in ["required", "optional"] {
        ca.revoke(&[5]);
        let tls = format!(
            "{{certificates: [{own}], client-ca: {}, client-crl: {}, client-certificates: {mode}}}",
            ca.file().display(),
            list.display()
        );
        let (_proxy, addr) = listener(app.addr, &tls).await;
        let let_in = async |who: &Identity| ask(addr, "a.example", trusting(&ca, Some(who))).await.is_ok();
        assert!(let_in(&bad).await, "{mode}: it was not taken back yet");
        ca.revoke(&[5, 7]);
        until("it is refused", || async { if let_in(&bad).await { Err(mode.to_owned()) } else { Ok(()) } })
            .await;
        assert!(let_in(&good).await, "{mode}");
    }
}

/// RFC 8446 §4.6.1; and no recording of today can be read by the quantum computers of later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_resumed_and_keys_agreed_on_by_x25519mlkem768() {
    let (app, ca) = (Upstream::start("a").await, Ca::new("one"));
    let own = pair(&ca.issue("server", "a.example"));
    let (_proxy, addr) = listener(app.addr, &format!("{{certificates: [{own}]}}")).await;
    let client = trusting(&ca, None);
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let stream = TcpStream::connect(addr).await.unwrap();
        let name = ServerName::try_from("a.example").unwrap();
        let mut stream = TlsConnector::from(client.clone()).connect(name, stream).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").await.unwrap();
        // Tickets come behind the handshake.
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let session = stream.get_ref().1;
        assert_eq!(
            session.negotiated_key_exchange_group().map(|group| group.name()),
            Some(rustls::NamedGroup::X25519MLKEM768)
        );
        kinds.push(session.handshake_kind().unwrap());
    }
    assert_eq!(kinds, [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_versions_than_the_least_one_are_refused() {
    let (app, ca) = (Upstream::start("a").await, Ca::new("one"));
    let own = pair(&ca.issue("server", "a.example"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(weft_core::tls::certificates(&ca.file()).unwrap().remove(0)).unwrap();
    let old = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12]);
    let old = Arc::new(old.with_root_certificates(roots).with_no_client_auth());
    for (min, taken) in [("", true), (", min-version: \"1.2\"", true), (", min-version: \"1.3\"", false)] {
        let (_proxy, addr) = listener(app.addr, &format!("{{certificates: [{own}]{min}}}")).await;
        assert_eq!(ask(addr, "a.example", old.clone()).await.is_ok(), taken, "{min}");
        assert!(ask(addr, "a.example", trusting(&ca, None)).await.is_ok(), "{min}");
    }
}

#[test]
fn mistakes_in_tls_of_a_listener_are_named_with_their_keys() {
    let one = "certificates: [{certificate-file: /a, key-file: /b}]";
    for (tls, why) in [
        (
            "certificates: []".to_owned(),
            "listener web: listeners[0].tls.certificates: none; at least one is needed",
        ),
        (format!("{one}, client-certificates: optional"), "tls.client-certificates: needs client-ca"),
        (
            format!("{one}, client-ca: /c, client-certificates: none"),
            "tls.client-certificates: \"none\"; allowed are required, optional",
        ),
        (format!("{one}, client-crl: /c"), "tls.client-crl: needs client-ca"),
        (format!("{one}, min-version: \"1.1\""), "tls.min-version: \"1.1\"; allowed are 1.2, 1.3"),
        (
            format!("{one}, cipher-suites: [RC4]"),
            "cipher-suites: \"RC4\" is unknown or too weak; allowed are TLS_AES",
        ),
    ] {
        let yaml = format!("listeners: [{{name: web, address: \"127.0.0.1:0\", tls: {{{tls}}}}}]\n");
        let problems = config(&yaml).static_config.unwrap().problems().join("\n");
        assert!(problems.contains(why), "{tls}: {problems}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_whose_certificates_cannot_be_used_does_not_start() {
    let yaml = "listeners: [{name: web, address: \"127.0.0.1:0\", tls: {certificates: [{certificate-file: /nonexistent, key-file: /b}]}}]\n";
    let why = weft_proxy::app::start(config(yaml)).await.err().unwrap().to_string();
    assert!(why.contains("listener TLS: web: cannot read /nonexistent"), "{why}");
}

/// A port of one service, with certificates as options of its text.
async fn upstream(
    app: SocketAddr,
    options: &str,
    identities: &[&Identity],
    ca: Option<&Ca>,
) -> (Proxy, SocketAddr) {
    let mut text = format!("127.0.0.1:0=orders{options}");
    for Identity { cert, key } in identities {
        text.push_str(&format!(",cert={},key={}", cert.display(), key.display()));
    }
    if let Some(ca) = ca {
        text.push_str(&format!(",client-ca={}", ca.file().display()));
    }
    let mut config = config(&orders(&[app], ""));
    config.upstreams = vec![text.parse().unwrap()];
    let proxy = start(config).await;
    let addr = proxy.running.addrs().upstreams[0].address.parse().unwrap();
    (proxy, addr)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_of_one_service_ends_tls_as_a_listener_does() {
    let (app, ca, other) = (Upstream::start("a").await, Ca::new("one"), Ca::new("other"));
    let first = ca.issue_numbered("first", "a.example", 1);
    let star = ca.issue_numbered("star", "*.shop.example", 2);
    let (good, strange) = (ca.issue("client", "c.example"), other.issue("client", "c.example"));
    let (proxy, addr) = upstream(app.addr, "", &[&first, &star], Some(&ca)).await;
    for (name, expected) in [("a.example", "01"), ("one.shop.example", "02")] {
        let (serial, answer) = ask(addr, name, trusting(&ca, Some(&good))).await.unwrap();
        assert_eq!((serial.as_str(), answer.status), (expected, StatusCode::OK), "{name}");
    }
    for identity in [None, Some(&strange)] {
        assert!(ask(addr, "a.example", trusting(&ca, identity)).await.is_err());
    }
    assert!(!raw(addr, b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.starts_with("HTTP"), "plaintext");
    let certs = get(proxy.admin, "admin", "/certs").await.body;
    assert!(certs.contains("\"used_for\": \"upstream 127.0.0.1:0=orders\""), "{certs}");

    let (_proxy, addr) = upstream(app.addr, ",min-version=1.3", &[&first], None).await;
    assert!(ask(addr, "a.example", trusting(&ca, None)).await.is_ok());
    let mut config = config(&orders(&[app.addr], ""));
    config.upstreams = vec!["127.0.0.1:0=orders,cert=/nonexistent,key=/b".parse().unwrap()];
    let why = weft_proxy::app::start(config).await.err().unwrap().to_string();
    assert!(why.contains("upstream TLS: 127.0.0.1:0=orders: cannot read /nonexistent"), "{why}");
}

/// Clients of other protocols may offer them by ALPN; none is chosen for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_come_out_of_tls_as_they_went_in() {
    let (app, _task) = raw_upstream(|mut stream, _| async move {
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await;
    let ca = Ca::new("one");
    let own = ca.issue("server", "a.example");
    let (_proxy, addr) = upstream(app, ",protocol=tcp", &[&own], None).await;
    let alpn: [&[&[u8]]; 2] = [&[], &[b"postgresql"]];
    for alpn in alpn {
        let config = client_config_showing(Some(&ca.file()), None, alpn).unwrap();
        let stream = TcpStream::connect(addr).await.unwrap();
        let name = ServerName::try_from("a.example").unwrap();
        let mut stream = TlsConnector::from(config).connect(name, stream).await.unwrap();
        stream.write_all(b"bytes").await.unwrap();
        let mut seen = [0; 5];
        stream.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"bytes");
    }
}

/// What the app is told of who came, by the line of it.
async fn told(addr: SocketAddr, config: Arc<ClientConfig>) -> Vec<String> {
    let (_, answer) = ask(addr, "a.example", config).await.unwrap();
    let lines = answer.body.lines().filter(|line| line.starts_with("x-forwarded-client-cert: "));
    lines.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_app_hears_whose_certificate_a_client_has_shown_and_no_lies_of_it() {
    let (app, ca) = (Upstream::start("a").await, Ca::new("one"));
    let own = ca.issue("server", "a.example");
    let (named, workload) = (ca.issue("one, two", "c.example"), ca.issue("w", "spiffe://t/a"));
    let hash = |identity: &Identity| {
        let der = weft_core::tls::certificates(&identity.cert).unwrap().remove(0);
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der);
        hash.as_ref().iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    let line = |identity, rest| format!("x-forwarded-client-cert: Hash={};{rest}", hash(identity));
    let tls = format!(
        "{{certificates: [{}], client-ca: {}, client-certificates: optional}}",
        pair(&own),
        ca.file().display()
    );
    let (_listener, web) = listener(app.addr, &tls).await;
    let (_upstream, one) = upstream(app.addr, ",client-certificates=optional", &[&own], Some(&ca)).await;
    for addr in [web, one] {
        let shown = told(addr, trusting(&ca, Some(&named))).await;
        assert_eq!(shown, [line(&named, "Subject=\"CN=one\\2C two\";DNS=c.example")]);
        let shown = told(addr, trusting(&ca, Some(&workload))).await;
        assert_eq!(shown, [line(&workload, "Subject=\"CN=w\";URI=spiffe://t/a")]);
        assert_eq!(told(addr, trusting(&ca, None)).await, [""; 0], "who shows none is nobody");
    }
}
