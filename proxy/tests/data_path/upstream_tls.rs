//! TLS to endpoints that are no sidecars.

use std::sync::Arc;

use http::StatusCode;
use weft_core::tls::ClientCerts;

use crate::pki::{Ca, terminate, tls_in_front};
use crate::support::*;

const HTTP1: &[&[u8]] = &[b"http/1.1"];

/// The cluster `orders` with these further keys of `tls`.
fn orders_over_tls(endpoint: std::net::SocketAddr, tls: &str, more: &str) -> String {
    orders(&[endpoint], &format!("    tls: {{{tls}}}\n{more}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_reach_an_endpoint_over_tls_in_http1_and_http2() {
    let (app, ca) = (Upstream::start("a").await, Ca::new("one"));
    let (addr, _task) = tls_in_front(
        app.addr,
        &ca.issue("server", "api.example"),
        &ClientCerts::Unasked,
        &[b"h2", b"http/1.1"],
    )
    .await;
    let tls = format!("hostname: api.example, ca-file: {}", ca.file().display());
    for protocol in ["http1", "http2"] {
        let proxy = proxy(&orders_over_tls(addr, &tls, &format!("    protocol: {protocol}\n"))).await;
        for _ in 0..3 {
            let seen = get(proxy.outbound, "orders", "/request").await;
            assert_eq!(seen.status, StatusCode::OK, "{protocol}: {}", seen.body);
        }
        let big = get(proxy.outbound, "orders", "/bytes/1048576").await;
        assert_eq!(big.body.len(), 1 << 20);
    }
}

/// What is recorded today must not be readable once somebody has a quantum computer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_agreed_on_with_a_post_quantum_share_first_and_sessions_are_resumed() {
    let (app, ca) = (Upstream::start("a").await, Ca::new("one"));
    let identity = ca.issue("server", "api.example");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let config = weft_core::tls::server_config(&identity.cert, &identity.key, HTTP1).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(config);
    let (send, mut seen) = tokio::sync::mpsc::channel(8);
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = acceptor.accept(stream).await.unwrap();
            let tls = stream.get_ref().1;
            let group = tls.negotiated_key_exchange_group().unwrap().name();
            send.send((group, tls.handshake_kind(), tls.server_name().map(str::to_owned))).await.unwrap();
            let mut far = tokio::net::TcpStream::connect(app.addr).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut far).await;
        }
    });
    let tls = format!("hostname: api.example, ca-file: {}", ca.file().display());
    let mut config = config_of(&orders_over_tls(addr, &tls, ""));
    config.workers = 1;
    let proxy = start(config).await;
    let ask = async || {
        // Each on a connection of its own to the endpoint.
        let mut client = Client::http1(proxy.outbound).await;
        let request = http::Request::builder().uri("/text").method("POST").header("host", "orders");
        let request = request.header("connection", "close").body(full("x")).unwrap();
        assert_eq!(client.call(request).await.unwrap().status, StatusCode::OK);
    };
    ask().await;
    let (group, kind, name) = seen.recv().await.unwrap();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(kind, Some(rustls::HandshakeKind::Full));
    assert_eq!(name.as_deref(), Some("api.example"));
    // The pool lets go of it after a while.
    tokio::time::sleep(weft_proxy::limits::UPSTREAM_IDLE_TIMEOUT + std::time::Duration::from_millis(1500))
        .await;
    ask().await;
    let (_, kind, _) = seen.recv().await.unwrap();
    assert_eq!(kind, Some(rustls::HandshakeKind::Resumed));
    task.abort();
}

fn config_of(yaml: &str) -> weft_proxy::config::ProxyConfig {
    config(yaml)
}

/// Each of these would be somebody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_name_or_signer_gets_nothing() {
    let (app, ca, other) = (Upstream::start("a").await, Ca::new("one"), Ca::new("other"));
    let unasked = &ClientCerts::Unasked;
    let (named, _a) = tls_in_front(app.addr, &ca.issue("server", "api.example"), unasked, HTTP1).await;
    let (workload, _b) =
        tls_in_front(app.addr, &ca.issue("app", "spiffe://t/ns/shop/sa/a"), unasked, HTTP1).await;
    let (trusted, strange) = (ca.file().display().to_string(), other.file().display().to_string());
    for (addr, tls, refusal) in [
        (named, format!("hostname: api.example, ca-file: {trusted}"), None),
        (named, format!("hostname: other.example, ca-file: {trusted}"), Some("is for another name")),
        (named, format!("hostname: api.example, ca-file: {strange}"), Some("was not signed by the CA")),
        (
            named,
            format!("hostname: api.example, subject-alt-names: [b.example], ca-file: {trusted}"),
            Some("wanted is b.example"),
        ),
        (named, format!("hostname: x.example, subject-alt-names: [api.example], ca-file: {trusted}"), None),
        (named, "hostname: api.example".to_owned(), Some("was not signed by the CA")),
        (workload, format!("subject-alt-names: [\"spiffe://t/ns/shop/*\"], ca-file: {trusted}"), None),
        (workload, format!("subject-alt-names: [\"spiffe://t/ns/shop/sa/a\"], ca-file: {trusted}"), None),
        (
            workload,
            format!("subject-alt-names: [\"spiffe://t/ns/shop/sa\"], ca-file: {trusted}"),
            Some("it is for spiffe://t/ns/shop/sa/a; wanted is"),
        ),
    ] {
        let proxy = proxy(&orders_over_tls(addr, &tls, "")).await;
        let served = app.served();
        let answer = get(proxy.outbound, "orders", "/").await;
        match refusal {
            None => assert_eq!(answer.status, StatusCode::OK, "{tls}: {}", answer.body),
            Some(why) => {
                assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{tls}");
                assert_eq!(answer.header("x-weft-error"), "connect-failed");
                assert!(answer.body.contains(why), "{tls}: {}", answer.body);
                assert_eq!(app.served(), served);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_shown_to_an_endpoint_that_requires_one_and_renewed_from_its_file() {
    let (app, ca) = (Upstream::start("a").await, Ca::new("one"));
    let clients = ClientCerts::Required(ca.file());
    let (addr, _task) = tls_in_front(app.addr, &ca.issue("server", "api.example"), &clients, HTTP1).await;
    let other = Ca::new("other");
    let wrong = other.issue("client", "client.example");
    let (cert, key) = (ca.at("client.pem"), ca.at("client.key"));
    std::fs::copy(&wrong.cert, &cert).unwrap();
    std::fs::copy(&wrong.key, &key).unwrap();
    let tls = format!(
        "hostname: api.example, ca-file: {}, certificate-file: {}, key-file: {}, min-version: \"1.3\"",
        ca.file().display(),
        cert.display(),
        key.display()
    );
    let proxy = proxy(&orders_over_tls(addr, &tls, "")).await;
    assert_eq!(get(proxy.outbound, "orders", "/").await.status, StatusCode::BAD_GATEWAY);
    ca.issue("client", "client.example");
    until("the renewed certificate is shown", || async {
        let answer = get(proxy.outbound, "orders", "/").await;
        if answer.status == StatusCode::OK { Ok(()) } else { Err(answer.body) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_was_taken_back_is_refused_once_the_list_says_so() {
    let (app, ca) = (Upstream::start("a").await, Ca::new("one"));
    let identity = ca.issue_numbered("server", "api.example", 7);
    let (addr, _task) = tls_in_front(app.addr, &identity, &ClientCerts::Unasked, HTTP1).await;
    let list = ca.revoke(&[6]);
    let tls =
        format!("hostname: api.example, ca-file: {}, crl-file: {}", ca.file().display(), list.display());
    let proxy = proxy(&orders_over_tls(addr, &tls, "")).await;
    assert_eq!(get(proxy.outbound, "orders", "/").await.status, StatusCode::OK);
    ca.revoke(&[6, 7]);
    until("the certificate is refused", || async {
        let answer = get(proxy.outbound, "orders", "/").await;
        if answer.body.contains("Revoked") || answer.body.contains("revoked") {
            Ok(())
        } else {
            Err(answer.body)
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_checks_go_over_tls_and_see_what_is_wrong_with_it() {
    let (app, ca) = (Upstream::start("a").await, Ca::new("one"));
    let identity = ca.issue("server", "api.example");
    let (addr, _task) = tls_in_front(app.addr, &identity, &ClientCerts::Unasked, HTTP1).await;
    let check = "    health-check: {path: /health, interval: 100ms}\n";
    for (name, healthy) in [("api.example", true), ("other.example", false)] {
        let tls = format!("hostname: {name}, ca-file: {}", ca.file().display());
        let proxy = proxy(&orders_over_tls(addr, &tls, check)).await;
        until("the check has an opinion", || async {
            let clusters = get(proxy.admin, "admin", "/clusters").await.body;
            let failing = clusters.contains("another name");
            if (app.served() > 0 && healthy && !failing) || (!healthy && failing) {
                Ok(())
            } else {
                Err(clusters)
            }
        })
        .await;
    }
}

/// WebSocket and the like: the connection leaves HTTP, and TLS stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_to_an_endpoint_goes_over_tls() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (echo, _task) = raw_upstream(|mut stream, _| async move {
        let mut seen = [0; 5];
        stream.read_exact(&mut seen).await.unwrap();
        stream.write_all(&seen).await.unwrap();
    })
    .await;
    let ca = Ca::new("one");
    let identity = ca.issue("server", "db.example");
    let config =
        Arc::unwrap_or_clone(weft_core::tls::server_config(&identity.cert, &identity.key, &[]).unwrap());
    let (addr, _tls) = terminate(echo, Arc::new(config)).await;
    let tls = format!("hostname: db.example, ca-file: {}", ca.file().display());
    let proxy = proxy(&orders_over_tls(addr, &tls, "")).await;
    let mut stream = tokio::net::TcpStream::connect(proxy.outbound).await.unwrap();
    stream.write_all(b"CONNECT orders:1 HTTP/1.1\r\nHost: orders:1\r\n\r\n").await.unwrap();
    assert!(read_head(&mut stream).await.unwrap().starts_with("HTTP/1.1 200"));
    stream.write_all(b"hello").await.unwrap();
    let mut seen = [0; 5];
    stream.read_exact(&mut seen).await.unwrap();
    assert_eq!(&seen, b"hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_speaks_an_older_version_than_the_least_one_is_refused() {
    let (app, ca) = (Upstream::start("a").await, Ca::new("one"));
    let own = ca.issue("server", "api.example");
    let old = rustls::ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS12]);
    let chain = weft_core::tls::certificates(&own.cert).unwrap();
    let key = weft_core::tls::private_key(&own.key).unwrap();
    let old = old.with_no_client_auth().with_single_cert(chain, key).unwrap();
    let (addr, _task) = terminate(app.addr, Arc::new(old)).await;
    for (min, status) in [("1.2", StatusCode::OK), ("1.3", StatusCode::SERVICE_UNAVAILABLE)] {
        let tls = format!("hostname: api.example, ca-file: {}, min-version: \"{min}\"", ca.file().display());
        let proxy = proxy(&orders_over_tls(addr, &tls, "")).await;
        let answer = get(proxy.outbound, "orders", "/").await;
        assert_eq!(answer.status, status, "{min}: {}", answer.body);
    }
}

#[test]
fn mistakes_in_tls_are_named_with_their_keys() {
    let ca = "-----BEGIN CERTIFICATE-----";
    for (tls, why) in [
        ("{}", "neither hostname nor subject"),
        ("{hostname: \"*.example\"}", "allowed is a DNS name without wildcards"),
        ("{hostname: a, ca-file: ca.pem}", "absolute path"),
        ("{hostname: a, certificate-file: /a}", "without keyFile"),
        ("{hostname: a, min-version: \"1.1\"}", "allowed are 1.2, 1.3"),
        ("{hostname: a, subject-alt-names: [\"*.a\"]}", "with * at its end alone"),
        ("{mode: mesh, hostname: a}", "given with mode mesh"),
        ("{mode: mesh, cipher-suites: [TLS_AES_256_GCM_SHA384]}", "given with mode mesh"),
        ("{hostname: a, cipher-suites: [AES128-SHA]}", "forward secrecy"),
        (
            "{hostname: a, min-version: \"1.3\", cipher-suites: [ECDHE-RSA-AES256-GCM-SHA384]}",
            "\"ECDHE-RSA-AES256-GCM-SHA384\" is for TLS 1.2, and the oldest",
        ),
        ("{hostname: a, sni: b}", "unknown key"),
        (&format!("{{hostname: a, ca-file: /a, ca-certificates: \"{ca}\"}}"), "one of the two"),
    ] {
        let yaml = format!("clusters:\n  - name: orders\n    endpoints: [\"127.0.0.1:1\"]\n    tls: {tls}\n");
        let problems = config(&yaml).static_config.unwrap().problems().join("\n");
        assert!(problems.contains(why), "{tls}: {problems}");
    }
}
