//! WebSocket and other upgrades on HTTP/1.1: what becomes a tunnel, what does not, and how tunnels end.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use weft_proxy::app;

use crate::inbound::inbound;
use crate::support::*;

pub const ASK: &str = "GET /chat HTTP/1.1\r\nHost: orders\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";

const AGREE: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Agrees to every upgrade, says hello with the same write, and then sends back what it gets until that ends.
pub async fn echo() -> (SocketAddr, JoinHandle<()>) {
    raw_upstream(|mut stream, _| async move {
        let Some(head) = read_head(&mut stream).await else { return };
        assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
        stream.write_all(&[AGREE, b"hello "].concat()).await.unwrap();
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

/// A connection of which an upgrade was agreed.
pub async fn upgraded(addr: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(ASK.as_bytes()).await.unwrap();
    let head = read_head(&mut stream).await.unwrap().to_lowercase();
    for part in
        ["http/1.1 101 ", "upgrade: websocket\r\n", "connection: upgrade\r\n", "sec-websocket-accept: s3p"]
    {
        assert!(head.contains(part), "{part} in {head}");
    }
    assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
    stream
}

pub async fn read_exactly(stream: &mut TcpStream, expected: &str) {
    let mut seen = vec![0; expected.len()];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut seen)).await;
    read.expect("in time").unwrap();
    assert_eq!(String::from_utf8_lossy(&seen), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agreed_upgrade_is_a_tunnel_through_two_sidecars_and_half_closes() {
    let (app_itself, _task) = echo().await;
    let server_side = app::start(inbound(&[("orders", app_itself)])).await.unwrap();
    let client_side = proxy(&orders(&[server_side.addrs().inbound.unwrap()], "")).await;
    let mut stream = upgraded(client_side.outbound).await;
    read_exactly(&mut stream, "hello ").await;
    for word in ["\u{0}\u{1}binary", "GET / HTTP/1.1\r\n\r\n", "end"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        read_exactly(&mut stream, word).await;
    }
    for admin in [client_side.admin, server_side.addrs().admin] {
        // What has been passed on is counted just behind it.
        until("the tunnel and its bytes are counted", || async {
            let metrics = get(admin, "admin", "/metrics").await.body;
            let tunnels = ["weft_proxy_open_tunnels{", "service=\"orders\"} 1"];
            let all = [&tunnels[..], &["way=\"sent\"} 29", "way=\"received\"} 35"]].concat();
            if all.iter().all(|part| metrics.contains(part)) { Ok(()) } else { Err(metrics) }
        })
        .await;
        let clusters = get(admin, "admin", "/clusters").await.body;
        assert!(clusters.contains("active 1"), "a tunnel is a request under way: {clusters}");
    }
    stream.write_all(b"last").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "last", "the way back stays open until it ends by itself");
    until("nothing is under way", || async {
        let clusters = get(client_side.admin, "admin", "/clusters").await.body;
        if clusters.contains("active 0") { Ok(()) } else { Err(clusters) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_sends_too_early_goes_into_the_tunnel() {
    let (addr, _task) = echo().await;
    let proxy = proxy(&orders(&[addr], "")).await;
    let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
    // Neither what could never be a request, nor what could, is taken for one.
    let early = "\u{1}frame\r\nGET / HTTP/1.1\r\nHost: orders\r\n\r\n";
    stream.write_all(format!("{ASK}{early}").as_bytes()).await.unwrap();
    assert!(read_head(&mut stream).await.unwrap().starts_with("HTTP/1.1 101"));
    read_exactly(&mut stream, &format!("hello {early}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_passes_whole_both_ways_at_once() {
    let (addr, _task) = echo().await;
    let proxy = proxy(&orders(&[addr], "")).await;
    let mut stream = upgraded(proxy.outbound).await;
    read_exactly(&mut stream, "hello ").await;
    let (mut read, mut write) = stream.into_split();
    const PIECES: usize = 256;
    let writer = tokio::spawn(async move {
        for i in 0..PIECES {
            write.write_all(&[i as u8; 64 * 1024]).await.unwrap();
        }
        write.shutdown().await.unwrap();
    });
    let mut piece = vec![0; 64 * 1024];
    for i in 0..PIECES {
        read.read_exact(&mut piece).await.unwrap();
        assert!(piece.iter().all(|b| *b == i as u8), "piece {i}");
    }
    assert_eq!(read.read(&mut piece).await.unwrap(), 0);
    writer.await.unwrap();
}

/// The bytes behind a request for an upgrade are HTTP if it is not agreed, and are read as strictly as all others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_refused_upgrade_the_connection_goes_on_as_http() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let next = "GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";
    let answer = raw(proxy.outbound, format!("{ASK}{ASK}{next}").as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 3, "{answer}");
    // One after the other as well, with a pause in between.
    let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
    for _ in 0..3 {
        stream.write_all(ASK.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        read_exactly(&mut stream, "one").await;
    }
}

/// A tunnel that the client believes in, and the endpoint does not, must not carry requests past the guard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_smuggled_behind_a_refused_upgrade() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    for hidden in [
        "\u{1}\u{7}frame",
        "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: orders\r\nX : 1\r\n\r\n",
    ] {
        let served = upstream.served();
        let answer = raw(proxy.outbound, format!("{ASK}{hidden}").as_bytes()).await;
        let statuses: Vec<_> =
            answer.match_indices("HTTP/1.1 ").map(|(i, _)| &answer[i + 9..i + 12]).collect();
        assert_eq!(statuses, ["200", "400"], "{hidden:?}: {answer}");
        assert_eq!(upstream.served(), served + 1, "{hidden:?}");
    }
    // More than is held meanwhile.
    let flood = "x".repeat(1_000_000);
    let answer = raw(proxy.outbound, format!("{ASK}{flood}").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("HTTP/1.1 4"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_by_upgrade_and_upgrades_with_a_body_stay_ordinary_requests() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    for fields in [
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
        "Connection: Upgrade\r\nUpgrade: TLS/1.2, HTTP/2.0\r\n\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nhi",
        "Upgrade: websocket\r\n\r\n",
    ] {
        let bytes = format!(
            "GET /request HTTP/1.1\r\nHost: orders\r\n{fields}GET /request HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n"
        );
        let answer = raw(proxy.outbound, bytes.as_bytes()).await.to_lowercase();
        assert_eq!(answer.matches("http/1.1 200").count(), 2, "{fields:?}: {answer}");
        assert!(!answer.contains("upgrade: ") && !answer.contains("http2-settings"), "{fields:?}: {answer}");
    }
    let http10 = "GET /request HTTP/1.0\r\nHost: orders\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let answer = raw(proxy.outbound, http10.as_bytes()).await;
    assert!(answer.contains(" 200 ") && !answer.contains("upgrade: "), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_to_what_nobody_asked_for_is_no_answer() {
    let (addr, _task) = raw_upstream(|mut stream, _| async move {
        while read_head(&mut stream).await.is_some() {
            let answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n";
            stream.write_all(answer).await.unwrap();
        }
    })
    .await;
    let proxy = proxy(&orders(&[addr], "")).await;
    for ask in [ASK, "GET / HTTP/1.1\r\nHost: orders\r\n\r\n"] {
        let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
        stream.write_all(ask.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 502") && head.contains("upstream-invalid"), "{head}");
    }
}

/// A dead endpoint is noticed before anything was agreed, and the next one is asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_takes_another_endpoint_if_the_first_takes_no_connection() {
    let (addr, _task) = echo().await;
    let proxy = proxy(&orders(&[closed_port(), closed_port(), addr], "")).await;
    for _ in 0..6 {
        let mut stream = upgraded(proxy.outbound).await;
        read_exactly(&mut stream, "hello ").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_quiet_tunnels_and_waits_for_busy_ones_until_its_timeout() {
    let (addr, _task) = echo().await;
    let mut config = config(&orders(&[addr], ""));
    config.drain_timeout = Duration::from_secs(4);
    let proxy = start(config).await;
    let mut quiet = upgraded(proxy.outbound).await;
    read_exactly(&mut quiet, "hello ").await;
    let busy = upgraded(proxy.outbound).await;
    let started = Instant::now();
    let drained = tokio::spawn(proxy.running.drain_and_shutdown());
    let busy = tokio::spawn(async move {
        let (mut read, mut write) = busy.into_split();
        let reading = tokio::spawn(async move { tokio::io::copy(&mut read, &mut tokio::io::sink()).await });
        while write.write_all(b"more").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let _ = reading.await;
        started.elapsed()
    });
    assert_eq!(quiet.read(&mut [0; 10]).await.unwrap_or(0), 0);
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    let busy = busy.await.unwrap();
    assert!(busy > Duration::from_secs(4), "{busy:?}");
    drained.await.unwrap();
}

/// A client that goes away while its upgrade is being asked for takes the request with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_before_the_answer_is_noticed() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
    stream.write_all(ASK.replace("/chat", "/slow/20000").as_bytes()).await.unwrap();
    let active = async |n: &str| {
        until("so many are under way", || async {
            let clusters = get(proxy.admin, "admin", "/clusters").await.body;
            if clusters.contains(n) { Ok(()) } else { Err(clusters) }
        })
        .await;
    };
    active("active 1").await;
    drop(stream);
    active("active 0").await;
}
