//! Interim answers (1xx): who gets them, in which order, and what becomes of the others.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use weft_proxy::app;

use crate::inbound::inbound;
use crate::support::*;

const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x-hop\r\nX-Hop: 1\r\nContent-Length: 5\r\n\r\n";
const PASSED: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n";
const FINAL: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Answers each request with what its path asks for: `/slow` gives the final answer when it is told to by the next bytes.
async fn app_with_hints() -> (SocketAddr, JoinHandle<()>) {
    raw_upstream(|mut stream, _| async move {
        while let Some(head) = read_head(&mut stream).await {
            let answer = match head.split(' ').nth(1).unwrap() {
                "/flood" => HINTS.repeat(1000) + FINAL,
                "/others" => {
                    let other = |status| format!("HTTP/1.1 {status} X\r\n\r\n");
                    other("100 Continue") + &other("102 Processing") + &other("199 Unknown") + FINAL
                }
                "/slow" => {
                    stream.write_all(HINTS.as_bytes()).await.unwrap();
                    // The body of the request, which its client sends once it has the hints.
                    assert_eq!(stream.read_u8().await.unwrap(), b'x');
                    FINAL.to_owned()
                }
                "/plain" => FINAL.to_owned(),
                _ => HINTS.to_owned() + FINAL,
            };
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn next_head(stream: &mut TcpStream) -> String {
    tokio::time::timeout(Duration::from_secs(5), read_head(stream)).await.expect("in time").unwrap()
}

/// Reads an answer of `ok`.
async fn final_answer(stream: &mut TcpStream) {
    let head = next_head(stream).await;
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    let mut body = [0; 2];
    stream.read_exact(&mut body).await.unwrap();
    assert_eq!(&body, b"ok");
}

fn ask(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: orders\r\n{more}\r\n")
}

const ROUTE: &str = "routes:\n  - host: orders\n    cluster: orders\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_come_before_the_answer_is_there_through_two_sidecars_and_a_route() {
    let (addr, _task) = app_with_hints().await;
    let server_side = app::start(inbound(&[("orders", addr)])).await.unwrap();
    let endpoint = server_side.addrs().inbound.unwrap();
    for more in ["", ROUTE] {
        let proxy = proxy(&orders(&[endpoint], more)).await;
        let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
        for _ in 0..3 {
            stream.write_all(ask("/slow", "Content-Length: 1\r\n").as_bytes()).await.unwrap();
            assert_eq!(next_head(&mut stream).await, PASSED);
            stream.write_all(b"x").await.unwrap();
            final_answer(&mut stream).await;
            // Both at once are in order too, and an answer without any has none.
            stream.write_all(ask("/", "").as_bytes()).await.unwrap();
            assert_eq!(next_head(&mut stream).await, PASSED);
            final_answer(&mut stream).await;
            stream.write_all(ask("/plain", "").as_bytes()).await.unwrap();
            final_answer(&mut stream).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_for_100_gets_hints_as_well() {
    let (addr, _task) = app_with_hints().await;
    let proxy = proxy(&orders(&[addr], "")).await;
    let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
    let more = "Content-Length: 1\r\nExpect: 100-continue\r\n";
    stream.write_all(ask("/slow", more).as_bytes()).await.unwrap();
    let mut heads = [next_head(&mut stream).await, next_head(&mut stream).await];
    heads.sort();
    assert_eq!(heads, ["HTTP/1.1 100 Continue\r\n\r\n", PASSED]);
    stream.write_all(b"x").await.unwrap();
    final_answer(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_but_100_pass_and_a_flood_is_cut_short() {
    let (addr, _task) = app_with_hints().await;
    let proxy = proxy(&orders(&[addr], "")).await;
    let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
    stream.write_all(ask("/others", "").as_bytes()).await.unwrap();
    assert_eq!(next_head(&mut stream).await, "HTTP/1.1 102 Processing\r\n\r\n");
    assert_eq!(next_head(&mut stream).await, "HTTP/1.1 199 \r\n\r\n");
    final_answer(&mut stream).await;
    stream.write_all(ask("/flood", "").as_bytes()).await.unwrap();
    for _ in 0..16 {
        assert_eq!(next_head(&mut stream).await, PASSED);
    }
    final_answer(&mut stream).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_http_1_0_get_the_final_answer_alone() {
    let (addr, _task) = app_with_hints().await;
    let proxy = proxy(&orders(&[addr], "")).await;
    let old = raw(proxy.outbound, b"GET / HTTP/1.0\r\nHost: orders\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 OK") && !old.contains("103"), "{old}");
}

/// A request over HTTP/2 that is being answered.
struct Asked {
    answer: h2::client::ResponseFuture,
    body: h2::SendStream<Bytes>,
}

impl Asked {
    async fn of(addr: SocketAddr, path: &str, length: usize, fields: &[(&str, &str)]) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut client = client.ready().await.unwrap();
        let mut request = Request::post(format!("http://orders{path}")).header("content-length", length);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let (answer, body) = client.send_request(request.body(()).unwrap(), length == 0).unwrap();
        Self { answer, body }
    }

    /// The next interim answer, as a line; none once there is the final one.
    async fn interim(&mut self) -> Option<String> {
        let interim = poll_fn(|cx| self.answer.poll_informational(cx));
        let interim = tokio::time::timeout(Duration::from_secs(5), interim).await.expect("in time")?.unwrap();
        let fields: Vec<_> =
            interim.headers().iter().map(|(n, v)| format!(" {n}: {}", v.to_str().unwrap())).collect();
        Some(format!("{}{}", interim.status().as_str(), fields.concat()))
    }

    async fn answered(self) -> (StatusCode, Bytes) {
        let answer =
            tokio::time::timeout(Duration::from_secs(5), self.answer).await.expect("in time").unwrap();
        let (head, mut body) = answer.into_parts();
        let body = body.data().await.map(Result::unwrap).unwrap_or_default();
        (head.status, body)
    }
}

const OK: (StatusCode, Bytes) = (StatusCode::OK, Bytes::from_static(b"ok"));

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_pass_over_http2_on_every_hop_before_the_answer_is_there() {
    let (addr, _task) = app_with_hints().await;
    let server_side = app::start(inbound(&[("orders", addr)])).await.unwrap();
    let endpoint = server_side.addrs().inbound.unwrap();
    for more in ["    protocol: http2\n", ""] {
        let proxy = proxy(&orders(&[endpoint], &format!("{more}{ROUTE}"))).await;
        let mut asked = Asked::of(proxy.outbound, "/slow", 1, &[]).await;
        assert_eq!(asked.interim().await.unwrap(), "103 link: </a.css>");
        asked.body.send_data(Bytes::from_static(b"x"), true).unwrap();
        assert_eq!(asked.interim().await, None);
        assert_eq!(asked.answered().await, OK);
        // Those that come with the answer, but for what is each hop's own; of a flood as many as pass.
        let mut asked = Asked::of(proxy.outbound, "/others", 0, &[]).await;
        assert_eq!([asked.interim().await.unwrap(), asked.interim().await.unwrap()], ["102", "199"]);
        assert_eq!(asked.interim().await, None);
        assert_eq!(asked.answered().await, OK);
        let mut asked = Asked::of(proxy.outbound, "/flood", 0, &[]).await;
        for _ in 0..16 {
            assert_eq!(asked.interim().await.unwrap(), "103 link: </a.css>");
        }
        assert_eq!(asked.interim().await, None);
        assert_eq!(asked.answered().await, OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http2_that_waits_for_100_gets_it_once_its_body_is_wanted() {
    let (addr, _task) = app_with_hints().await;
    let server_side = app::start(inbound(&[("orders", addr)])).await.unwrap();
    let endpoint = server_side.addrs().inbound.unwrap();
    for more in ["    protocol: http2\n", ""] {
        let proxy = proxy(&orders(&[endpoint], more)).await;
        let mut asked = Asked::of(proxy.outbound, "/slow", 1, &[("expect", "100-continue")]).await;
        let mut interim = [asked.interim().await.unwrap(), asked.interim().await.unwrap()];
        interim.sort();
        assert_eq!(interim, ["100", "103 link: </a.css>"]);
        asked.body.send_data(Bytes::from_static(b"x"), true).unwrap();
        assert_eq!(asked.answered().await, OK);
        // Who is refused need not send it.
        let fields = [("expect", "100-continue"), ("host", "nowhere")];
        let mut asked = Asked::of(proxy.outbound, "/", 1, &fields).await;
        assert_eq!(asked.interim().await, None);
        assert!(asked.answered().await.0.is_client_error());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_came_together_get_each_its_own() {
    let (addr, _task) = app_with_hints().await;
    let proxy = proxy(&orders(&[addr], "")).await;
    let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
    const REQUESTS: usize = 50;
    stream.write_all(ask("/", "").repeat(REQUESTS).as_bytes()).await.unwrap();
    for _ in 0..REQUESTS {
        assert_eq!(next_head(&mut stream).await, PASSED);
        final_answer(&mut stream).await;
    }
}
