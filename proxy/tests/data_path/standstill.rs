//! Answers and tunnels in which nothing moves any more.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use weft_proxy::config::ClientTimeouts;

use crate::support::*;

const LONG: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_stands_still_is_cut_off_and_one_that_trickles_is_not() {
    let (addr, _task) = raw_upstream(|mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n").await.unwrap();
            let (pieces, pause) = if head.starts_with("GET /trickle") { (8, 100) } else { (4, 0) };
            for _ in 0..pieces {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                if stream.write_all(b"x").await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let proxy = proxy(&orders(&[addr], "    timeouts: {stream-idle: 400ms}\n")).await;
    for mut client in [Client::http1(proxy.outbound).await, Client::http2(proxy.outbound).await] {
        assert_eq!(client.get("orders", "/trickle").await.body, "xxxxxxxx");
        let started = Instant::now();
        let request = client.request(Method::GET, "orders", "/half", empty());
        client.call(request).await.unwrap_err();
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(400) && took < LONG, "{took:?}");
    }
    let flagged = "flagged_requests_total{direction=\"outbound\",service=\"orders\",flag=\"stream-idle\"} 2";
    until("both are counted", || async {
        let metrics = get(proxy.admin, "admin", "/metrics").await.body;
        if metrics.contains(flagged) { Ok(()) } else { Err(metrics) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_answer_stands_still_ends_with_a_status() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = h2::server::handshake(stream).await.unwrap();
        let mut open = Vec::new();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut body = respond.send_response(head, false).unwrap();
            body.send_data(Bytes::from_static(&[0, 0, 0, 0, 1, b'x']), false).unwrap();
            open.push(body);
        }
    });
    let proxy = proxy(&orders(&[addr], "    protocol: http2\n    timeouts: {stream-idle: 300ms}\n")).await;
    let mut client = Client::http2(proxy.outbound).await;
    let mut request = client.request(Method::POST, "orders", "/a.B/Watch", full("message"));
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let reply = client.call(request).await.unwrap();
    let trailers = reply.trailers.unwrap();
    assert_eq!(
        (&trailers["grpc-status"], &trailers["x-weft-error"]),
        (&"14".parse().unwrap(), &"stream-idle".parse().unwrap())
    );
    assert_eq!(reply.body.len(), 6, "what came was passed on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_of_a_service_ends_after_its_own_time() {
    let (addr, _task) = raw_upstream(|mut stream, _| async move {
        let Some(_) = read_head(&mut stream).await else { return };
        let switch = b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello";
        stream.write_all(switch).await.unwrap();
        let _ = stream.read_u8().await;
    })
    .await;
    let proxy = proxy(&orders(&[addr], "    timeouts: {tunnel-idle: 1s}\n")).await;
    let mut stream = tokio::net::TcpStream::connect(proxy.outbound).await.unwrap();
    let ask = b"GET / HTTP/1.1\r\nHost: orders\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    stream.write_all(ask).await.unwrap();
    assert!(read_head(&mut stream).await.unwrap().starts_with("HTTP/1.1 101"));
    let started = Instant::now();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(LONG, stream.read_to_end(&mut rest)).await.expect("it ends");
    assert!(ended.is_err() || rest == b"hello", "{rest:?}");
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_may_take_as_long_as_the_sidecar_is_told() {
    let (addr, _task) = raw_upstream(|mut stream, _| async move {
        // It answers when it has the whole request.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let mut config = config(&orders(&[addr], ""));
    let second = Duration::from_secs(1);
    config.client_timeouts = ClientTimeouts { head: second, idle: second, stall: second };
    let proxy = start(config).await;
    for (sent, answer) in [
        ("GET / HT", "HTTP/1.1 408"),
        ("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\n\r\nx", "HTTP/1.1 408"),
        ("", ""),
    ] {
        let started = Instant::now();
        let mut stream = tokio::net::TcpStream::connect(proxy.outbound).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut seen = Vec::new();
        tokio::time::timeout(LONG, stream.read_to_end(&mut seen)).await.expect("in time").unwrap();
        assert!(seen.starts_with(answer.as_bytes()), "{sent:?}: {}", String::from_utf8_lossy(&seen));
        assert!(started.elapsed() >= second - Duration::from_millis(600), "{sent:?}");
    }
}

#[tokio::test]
async fn times_of_clients_that_cannot_be_meant_are_refused() {
    let mut config = config("");
    config.client_timeouts.head = Duration::from_millis(15);
    config.client_timeouts.stall = Duration::from_secs(3601);
    let why = weft_proxy::app::start(config).await.err().unwrap().to_string();
    for part in ["client-head-timeout: 15ms is not between 1s and 1h", "client-stall-timeout: 3601s"] {
        assert!(why.contains(part), "{why}");
    }
}

/// Its connection is alive, and other streams of it move.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_client_makes_no_room_is_reset_and_the_others_go_on() {
    let upstream = Upstream::start("a").await;
    let mut config = config(&orders(&[upstream.addr], ""));
    config.client_timeouts.stall = Duration::from_secs(1);
    let proxy = start(config).await;
    let stream = tokio::net::TcpStream::connect(proxy.outbound).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut ask = |path: &str| {
        let request = http::Request::get(format!("http://orders{path}")).body(()).unwrap();
        client.send_request(request, true).unwrap().0
    };
    // More than its window and what the sidecar holds.
    let stuck = ask("/bytes/1000000").await.unwrap().into_body();
    let (mut stuck, started) = (stuck, Instant::now());
    let reset = async {
        loop {
            // Nothing is given back of what was taken.
            match stuck.data().await {
                Some(Ok(_)) => {}
                other => return other.expect("it does not end").unwrap_err(),
            }
        }
    };
    let error = tokio::time::timeout(LONG * 2, reset).await.expect("in time");
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
    assert!(started.elapsed() >= Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(ask("/").await.unwrap().status(), 200);
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    assert!(metrics.contains("weft_proxy_refused_total{kind=\"stalled\"} 1"), "{metrics}");
}
