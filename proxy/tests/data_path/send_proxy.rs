//! The PROXY protocol to the endpoints of a cluster: whose a connection is stands in front of everything, and no other client's
//! request ever comes on it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Method, Response};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use weft_proxy::proxy_protocol::{Header, read};

use crate::pki::Ca;
use crate::support::*;

/// An endpoint that wants a PROXY header, then TLS if it has a certificate, and answers with the number of the connection and
/// who stands in its header.
async fn endpoint(http2: bool, tls: Option<TlsAcceptor>) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let connections = count.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let number = connections.fetch_add(1, Ordering::SeqCst);
            let tls = tls.clone();
            tokio::spawn(async move {
                let header = read(&mut stream).await.expect("a header comes first");
                match tls {
                    None => serve(stream, http2, number, header).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            serve(stream, http2, number, header).await;
                        }
                    }
                }
            });
        }
    });
    (addr, count)
}

async fn serve<S>(stream: S, http2: bool, number: usize, header: Header)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |_| async move {
        Ok::<_, Infallible>(Response::new(full(format!("{number} {}", shown(&header)))))
    });
    let io = TokioIo::new(stream);
    let _ = if http2 {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await
    } else {
        hyper::server::conn::http1::Builder::new().serve_connection(io, service).await
    };
}

fn shown(header: &Header) -> String {
    match header {
        Header::Client { source, destination } => format!("{source} > {destination}"),
        Header::Local => "local".to_owned(),
    }
}

/// A client whose address is known.
async fn client(addr: SocketAddr, http2: bool) -> (Client, SocketAddr) {
    let stream = TcpStream::connect(addr).await.unwrap();
    let own = stream.local_addr().unwrap();
    let io = TokioIo::new(stream);
    let client = if http2 {
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        Client::Http2(sender)
    } else {
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        Client::Http1(sender)
    };
    (client, own)
}

/// Two clients that ask by turns: each has one connection to the endpoint, with its own address in front.
async fn two_clients_never_share(version: &str, http2: bool, tls: bool) {
    let ca = Ca::new("one");
    let identity = ca.issue("server", "api.example");
    let alpn: &[&[u8]] = if http2 { &[b"h2"] } else { &[b"http/1.1"] };
    let acceptor = tls.then(|| {
        TlsAcceptor::from(weft_core::tls::server_config(&identity.cert, &identity.key, alpn).unwrap())
    });
    let (addr, connections) = endpoint(http2, acceptor).await;
    let mut more = format!("    send-proxy: {version}\n    health-check: {{interval: 1h}}\n");
    if http2 {
        more.push_str("    protocol: http2\n");
    }
    if tls {
        more.push_str(&format!("    tls: {{hostname: api.example, ca-file: {}}}\n", ca.file().display()));
    }
    let mut config = config(&orders(&[addr], &more));
    config.workers = 1;
    let proxy = start(config).await;
    // The first check has its own.
    until("the endpoint is checked", || async {
        if connections.load(Ordering::SeqCst) == 1 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    for of_http2 in [false, true] {
        let (mut one, first) = client(proxy.outbound, of_http2).await;
        let (mut two, second) = client(proxy.outbound, of_http2).await;
        let mut answers = Vec::new();
        for (client, own) in [(&mut one, first), (&mut two, second)] {
            let answer = client.get("orders", "/").await.body;
            let (_, told) = answer.split_once(' ').unwrap();
            assert_eq!(told, format!("{own} > {}", proxy.outbound), "{version} {http2} {tls}");
            answers.push(answer.clone());
        }
        assert_ne!(answers[0], answers[1]);
        for _ in 0..3 {
            assert_eq!(one.get("orders", "/").await.body, answers[0], "its own connection is used again");
            assert_eq!(two.get("orders", "/").await.body, answers[1]);
        }
    }
    assert_eq!(connections.load(Ordering::SeqCst), 5, "a check, and four clients");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_client_has_connections_of_its_own_to_an_endpoint_of_http1() {
    two_clients_never_share("v1", false, false).await;
    two_clients_never_share("v2", false, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_client_has_a_connection_of_its_own_to_an_endpoint_of_http2() {
    two_clients_never_share("v2", true, false).await;
    two_clients_never_share("v1", true, true).await;
}

/// Whoever comes later, from the same machine, is another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_a_client_has_left_is_nobodys() {
    let (addr, _) = endpoint(false, None).await;
    let policy = "---\napiVersion: weft.dev/v1\nkind: TrafficPolicy\nmetadata: {name: orders}\n\
                  spec: {targetRef: {kind: Service, name: orders}, sendProxy: v1}\n";
    let mut config = config(&format!("{}{policy}", orders(&[addr], "")));
    config.workers = 1;
    let proxy = start(config).await;
    for _ in 0..4 {
        let (mut client, own) = client(proxy.outbound, false).await;
        let seen = client.get("orders", "/").await.body;
        assert!(seen.ends_with(&format!("{own} > {}", proxy.outbound)), "{seen} for {own}");
    }
}

/// The endpoint refuses connections without a header, so its checks have one too, which names nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_say_that_they_are_the_proxys_own() {
    for (version, by) in [("v1", "path: /health, "), ("v2", "path: /health, "), ("v1", ""), ("v2", "")] {
        let (seen, mut heads) = tokio::sync::mpsc::channel(16);
        let (addr, _task) = raw_upstream(move |mut stream, _| {
            let seen = seen.clone();
            async move {
                let header = read(&mut stream).await.unwrap();
                let _ = seen.send(header).await;
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
        })
        .await;
        let more = format!("    send-proxy: {version}\n    health-check: {{{by}interval: 100ms}}\n");
        let _proxy = proxy(&orders(&[addr], &more)).await;
        for _ in 0..2 {
            assert_eq!(heads.recv().await, Some(Header::Local), "{version} {by}");
        }
    }
}

/// A listener's own wish gives way to that of the service: an endpoint takes one header, and a second one for bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_and_bytes_begin_with_one_header() {
    let (addr, _task) = raw_upstream(|mut stream, _| async move {
        let header = read(&mut stream).await.unwrap();
        let mut rest = [0; 5];
        stream.read_exact(&mut rest).await.unwrap();
        let text = format!("{} {}", shown(&header), String::from_utf8_lossy(&rest));
        stream.write_all(text.as_bytes()).await.unwrap();
    })
    .await;
    let mut config = config(&orders(&[addr], "    send-proxy: v2\n"));
    config.upstreams = ["", ",send-proxy=v1"]
        .map(|option| format!("127.0.0.1:0=orders,protocol=tcp{option}").parse().unwrap())
        .to_vec();
    let proxy = start(config).await;
    for listener in &proxy.running.addrs().upstreams {
        let at: SocketAddr = listener.address.parse().unwrap();
        let mut stream = TcpStream::connect(at).await.unwrap();
        let own = stream.local_addr().unwrap();
        stream.write_all(b"bytes").await.unwrap();
        let mut seen = String::new();
        stream.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, format!("{own} > {at} bytes"));
    }
    let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
    let own = stream.local_addr().unwrap();
    stream.write_all(b"CONNECT orders:80 HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
    assert!(read_head(&mut stream).await.unwrap().starts_with("HTTP/1.1 200"));
    stream.write_all(b"bytes").await.unwrap();
    let mut seen = String::new();
    stream.read_to_string(&mut seen).await.unwrap();
    assert_eq!(seen, format!("{own} > {} bytes", proxy.outbound));
}

/// Copies are sent in the name of whose request it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_is_told_of_the_same_client() {
    let app = Upstream::start("a").await;
    let (seen, mut heads) = tokio::sync::mpsc::channel(16);
    let (addr, _task) = raw_upstream(move |mut stream, _| {
        let seen = seen.clone();
        async move {
            let header = read(&mut stream).await.unwrap();
            if header != Header::Local {
                seen.send(header).await.unwrap();
            }
        }
    })
    .await;
    let route = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: orders}\nspec:\n  \
                 parentRefs: [{kind: Service, group: \"\", name: orders}]\n  rules:\n  - filters: [{type: RequestMirror, \
                 requestMirror: {backendRef: {name: copy}}}]\n    backendRefs: [{name: orders}]\n";
    let clusters = format!(
        "clusters:\n  - {{name: orders, endpoints: [\"{}\"]}}\n  - {{name: copy, endpoints: [\"{addr}\"], send-proxy: v2}}\n",
        app.addr
    );
    let proxy = proxy(&format!("{clusters}{route}")).await;
    let (mut client, source) = client(proxy.outbound, false).await;
    let request = client.request(Method::GET, "orders", "/", empty());
    client.call(request).await.unwrap();
    let destination = proxy.outbound;
    assert_eq!(heads.recv().await, Some(Header::Client { source, destination }));
}
