//! Listeners of single services: HTTP on ports and Unix sockets, and bytes as they are.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use weft_proxy::app;
use weft_proxy::config::{LocalService, ProxyConfig};

use crate::support::*;

/// With listeners for the cluster `orders` of these endpoints.
fn with(endpoints: &[SocketAddr], more: &str, listeners: &[&str]) -> ProxyConfig {
    let mut config = config(&orders(endpoints, more));
    config.upstreams = listeners.iter().map(|text| text.parse().unwrap()).collect();
    config
}

fn address(proxy: &Proxy, index: usize) -> SocketAddr {
    proxy.running.addrs().upstreams[index].address.parse().unwrap()
}

/// Says hello first, then sends back what it gets until that ends, and then says goodbye.
pub async fn greeter(name: &'static str) -> (SocketAddr, JoinHandle<()>) {
    raw_upstream(move |mut stream, _| async move {
        stream.write_all(format!("hello from {name}\n").as_bytes()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.write_all(b" goodbye").await;
        let _ = write.shutdown().await;
    })
    .await
}

/// Hears the greeting before it says anything, speaks, ends its side and reads the rest.
pub async fn converse<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, greeting: &str) {
    let mut seen = vec![0; greeting.len()];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut seen)).await;
    read.expect("the server speaks first").unwrap();
    assert_eq!(String::from_utf8_lossy(&seen), greeting);
    stream.write_all(b"\0\xffnot HTTP").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"\0\xffnot HTTP goodbye");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_on_a_port_of_a_service_go_to_it_whatever_their_host() {
    let upstream = Upstream::start("one").await;
    let proxy = start(with(&[upstream.addr], "", &["127.0.0.1:0=orders", "[::1]:0=orders"])).await;
    for index in [0, 1] {
        let addr = address(&proxy, index);
        for host in ["billing", "127.0.0.1:9191", "orders"] {
            for mut client in [Client::http1(addr).await, Client::http2(addr).await] {
                let reply = client.get(host, "/request").await;
                assert!(reply.body.contains("host: orders\n"), "{host}: {}", reply.body);
            }
        }
        let answer = raw(addr, b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(answer.contains(" 200 ") && answer.ends_with("one"), "no host at all: {answer}");
        let answer = raw(addr, b"GET / HTTP/1.1\r\nHost: or ders\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400"), "a malformed one is still refused: {answer}");
        let answer = raw(addr, b"CONNECT orders:1 HTTP/1.1\r\nHost: orders:1\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 501"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_socket_serves_requests_and_bytes_and_goes_with_the_proxy() {
    let upstream = Upstream::start("one").await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orders.sock");
    // Left behind by a process that is gone.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let listener = format!("unix:{}=orders,mode=0600", path.display());
    let proxy = start(with(&[upstream.addr], "", &[&listener])).await;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // Both workers have a handle.
    for _ in 0..20 {
        let io = TokioIo::new(UnixStream::connect(&path).await.unwrap());
        let (sender, task) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(task);
        assert_eq!(Client::Http1(sender).get("anything", "/").await.body, "one");
    }
    let again = app::start(with(&[upstream.addr], "", &[&listener])).await.err().unwrap().to_string();
    assert!(again.contains("orders.sock") && again.contains("answers there"), "{again}");
    proxy.running.drain_and_shutdown().await;
    assert!(!path.exists());
}

/// P43: the proxy connects at once and does not wait for the client to speak.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_pass_as_they_are_and_the_server_may_speak_first() {
    let (addr, _task) = greeter("db").await;
    let dir = tempfile::tempdir().unwrap();
    let unix = format!("unix:{}/db.sock=orders,protocol=tcp", dir.path().display());
    let listeners = ["127.0.0.1:0=orders,protocol=tcp", "[::1]:0=orders,protocol=tcp", &unix];
    let proxy = start(with(&[closed_port(), addr], "", &listeners)).await;
    for _ in 0..4 {
        converse(TcpStream::connect(address(&proxy, 0)).await.unwrap(), "hello from db\n").await;
        converse(TcpStream::connect(address(&proxy, 1)).await.unwrap(), "hello from db\n").await;
        converse(UnixStream::connect(dir.path().join("db.sock")).await.unwrap(), "hello from db\n").await;
    }
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    assert!(
        metrics.contains("weft_proxy_ejections_total{direction=\"outbound\",service=\"orders\"} 1"),
        "{metrics}"
    );
    assert!(metrics.contains(&format!("way=\"sent\"}} {}", 12 * 10)), "{metrics}");
    let dump = get(proxy.admin, "admin", "/config_dump").await.body;
    assert!(dump.contains("\"protocol\": \"tcp\"") || dump.contains("\"protocol\":\"tcp\""), "{dump}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_of_bytes_are_balanced_and_count_as_active() {
    let (a, _task) = greeter("a").await;
    let (b, _task) = greeter("b").await;
    let more = "    load-balancing: least-connections\n";
    let proxy = start(with(&[a, b], more, &["127.0.0.1:0=orders,protocol=tcp"])).await;
    let mut held = Vec::new();
    let mut names = Vec::new();
    for _ in 0..6 {
        let mut stream = TcpStream::connect(address(&proxy, 0)).await.unwrap();
        let mut greeting = [0; 13];
        stream.read_exact(&mut greeting).await.unwrap();
        names.push(greeting[11]);
        held.push(stream);
    }
    assert_eq!(names.iter().filter(|n| **n == b'a').count(), 3, "{names:?}");
    let clusters = get(proxy.admin, "admin", "/clusters").await.body;
    assert_eq!(clusters.matches("active 3").count(), 2, "{clusters}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_endpoint_or_beyond_the_breaker_the_connection_is_closed_and_counted() {
    let (addr, _task) = greeter("db").await;
    let more = "    connect-timeout: 300ms\n    circuit-breaker: {max-connections: 1, max-pending: 1}\n";
    let listeners = ["127.0.0.1:0=orders,protocol=tcp", "127.0.0.1:0=nobody,protocol=tcp"];
    let proxy = start(with(&[addr], more, &listeners)).await;
    let mut first = TcpStream::connect(address(&proxy, 0)).await.unwrap();
    first.read_exact(&mut [0; 14]).await.unwrap();
    for index in [0, 1] {
        let mut refused = TcpStream::connect(address(&proxy, index)).await.unwrap();
        let read = tokio::time::timeout(Duration::from_secs(5), refused.read(&mut [0; 10])).await;
        assert_eq!(read.expect("closed soon").unwrap_or(0), 0);
    }
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    for part in ["kind=\"wait\"} 1", "flag=\"unknown-host\"} 1"] {
        assert!(metrics.contains(part), "{part}: {metrics}");
    }
    drop(first);
    until("the place is free again", || async {
        let mut stream = TcpStream::connect(address(&proxy, 0)).await.unwrap();
        match stream.read(&mut [0; 14]).await {
            Ok(14) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

fn database(addr: SocketAddr, inbound_tcp: &str) -> ProxyConfig {
    let mut config = ProxyConfig::new("test");
    config.outbound = None;
    config.services = vec![LocalService {
        rate_limit: None,
        name: "db".to_owned(),
        addr,
        health_path: None,
        labels: [("protocol".to_owned(), "tcp".to_owned())].into(),
    }];
    config.inbound_tcp = if inbound_tcp.is_empty() { vec![] } else { vec![inbound_tcp.parse().unwrap()] };
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_reach_a_local_service_that_speaks_no_http_through_both_sidecars() {
    let (addr, _task) = greeter("db").await;
    let server_side = app::start(database(addr, "127.0.0.1:0=db,protocol=tcp")).await.unwrap();
    let inbound: SocketAddr = server_side.addrs().inbound_tcp[0].address.parse().unwrap();
    let client_side = start(with(&[inbound], "", &["127.0.0.1:0=orders,protocol=tcp"])).await;
    converse(TcpStream::connect(address(&client_side, 0)).await.unwrap(), "hello from db\n").await;
    server_side.drain_and_shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unusable_listeners_are_clear_errors() {
    let refused = async |config: ProxyConfig| app::start(config).await.err().unwrap().to_string();
    let mut config = database(closed_port(), "");
    config.inbound = Some("127.0.0.1:0".parse().unwrap());
    let error = refused(config).await;
    assert!(error.contains("speaks no HTTP") && error.contains("--inbound-tcp IP:PORT=db"), "{error}");
    let error = refused(database(closed_port(), "127.0.0.1:0=other,protocol=tcp")).await;
    assert!(error.contains("no service \"other\""), "{error}");
    let error =
        refused(with(&[closed_port()], "", &["127.0.0.1:7=orders", "127.0.0.1:7=orders,protocol=tcp"])).await;
    assert!(error.contains("127.0.0.1:7 is given twice"), "{error}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let listener = format!("unix:{}=orders", file.path().display());
    let error = refused(with(&[closed_port()], "", &[&listener])).await;
    assert!(error.contains("other than a socket"), "{error}");
}
