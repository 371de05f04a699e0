use std::time::Duration;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::*;

/// Each is answered once with its status, the connection is closed, and the upstream hears nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggling_forms_are_refused_and_never_forwarded() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let huge = format!("GET / HTTP/1.1\r\nHost: orders\r\nX: {}\r\n\r\n", "a".repeat(200_000));
    let many = format!("GET / HTTP/1.1\r\nHost: orders\r\n{}\r\n", "X: 1\r\n".repeat(500));
    let uri = format!("GET /{} HTTP/1.1\r\nHost: orders\r\n\r\n", "a".repeat(100_000));
    let inner = "GET /smuggled HTTP/1.1\r\nHost: orders\r\n\r\n";
    let cl_te = format!(
        "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}",
        inner.len() + 5
    );
    let te_cl = format!(
        "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n2b\r\n{inner}\r\n0\r\n\r\n"
    );
    let te_te = format!(
        "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n0\r\n\r\n{inner}"
    );
    let cl_cl =
        format!("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 0\r\nContent-Length: 43\r\n\r\n{inner}");
    let cases: &[(&str, &str, u16)] = &[
        ("CL.TE", &cl_te, 400),
        ("TE.CL", &te_cl, 400),
        ("TE.TE", &te_te, 400),
        ("CL.CL", &cl_cl, 400),
        (
            "equal lengths",
            "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            400,
        ),
        ("length list", "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 1, 1\r\n\r\nx", 400),
        ("signed length", "POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: +1\r\n\r\nx", 400),
        (
            "other coding",
            "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            501,
        ),
        (
            "odd coding",
            "POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            501,
        ),
        ("obs-fold", "GET / HTTP/1.1\r\nHost: orders\r\nX: 1\r\n 2\r\n\r\n", 400),
        ("space before colon", "GET / HTTP/1.1\r\nHost: orders\r\nX : 1\r\n\r\n", 400),
        ("bare CR", "GET / HTTP/1.1\r\nHost: orders\r\nX: 1\r2\r\n\r\n", 400),
        ("bare LF", "GET / HTTP/1.1\r\nHost: orders\nX: 1\r\n\r\n", 400),
        ("NUL", "GET / HTTP/1.1\r\nHost: orders\r\nX: 1\x002\r\n\r\n", 400),
        ("no host", "GET / HTTP/1.1\r\n\r\n", 400),
        ("two hosts", "GET / HTTP/1.1\r\nHost: orders\r\nHost: orders\r\n\r\n", 400),
        ("bad host", "GET / HTTP/1.1\r\nHost: or ders\r\nConnection: close\r\n\r\n", 400),
        ("user in host", "GET / HTTP/1.1\r\nHost: a@orders\r\nConnection: close\r\n\r\n", 400),
        ("request line", "GET\r\nHost: orders\r\n\r\n", 400),
        ("TLS", "\x16\x03\x01\x02\x00\x01\x00", 400),
        ("version", "GET / HTTP/3.7\r\nHost: orders\r\n\r\n", 505),
        ("HTTP/0.9", "GET /\r\n", 400),
        ("huge head", &huge, 431),
        ("many fields", &many, 431),
        ("long target", &uri, 414),
        (
            "tunnel with a body",
            "CONNECT orders:443 HTTP/1.1\r\nHost: orders:443\r\nContent-Length: 1\r\n\r\nx",
            400,
        ),
        (
            "tunnel to loopback",
            "CONNECT 127.0.0.1:443 HTTP/1.1\r\nHost: orders:443\r\n\r\nGET / HTTP/1.1\r\nHost: orders\r\n\r\n",
            403,
        ),
    ];
    for (what, bytes, status) in cases {
        let answer = raw(proxy.outbound, bytes.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{what}: one answer, then closed: {answer:?}");
        assert!(answer.contains("x-weft-error: "), "{what}: {answer:?}");
    }
    assert_eq!(upstream.served(), 0, "nothing of it reached the upstream");
    assert_eq!(get(proxy.outbound, "orders", "/").await.status, StatusCode::OK);
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    assert!(metrics.contains("weft_proxy_refused_total{kind=\"framing\"}"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_request_behind_good_ones_is_answered_in_its_turn() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let good = "GET /slow/200 HTTP/1.1\r\nHost: orders\r\n\r\n";
    let bad = "GET / HTTP/1.1\r\nHost: orders\r\nX : 1\r\n\r\nGET / HTTP/1.1\r\nHost: orders\r\n\r\n";
    let answer = raw(proxy.outbound, format!("{good}{good}{bad}").as_bytes()).await;
    let statuses: Vec<_> = answer.match_indices("HTTP/1.1 ").map(|(i, _)| &answer[i + 9..i + 12]).collect();
    assert_eq!(statuses, ["200", "200", "400"], "{answer}");
    assert_eq!(upstream.served(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_chunking_fails_the_request_and_what_follows_is_not_read() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let long_extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(100_000));
    for body in [
        "ZZ\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        // Sizes that overflow, that are signed or of another base.
        "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
        "10000000000000005\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        // A line that ends for one reader and goes on for another.
        "5\nhello\r\n0\r\n\r\n",
        "5;a=b\nhello\r\n0\r\n\r\n",
        "5;a=b\rhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        &long_extension,
        "0\r\nContent-Length: 1\r\n\r\n",
    ] {
        let bytes = format!(
            "POST /echo HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\n{body}GET /next HTTP/1.1\r\nHost: orders\r\n\r\n"
        );
        let answer = raw(proxy.outbound, bytes.as_bytes()).await;
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{body:?}: {answer:?}");
        assert!(!answer.ends_with("0\r\n\r\n"), "{body:?}: no complete answer: {answer:?}");
    }
    let slow = "POST /slow/3000 HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n";
    let answer = raw(proxy.outbound, slow.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("chunked"), "{answer:?}");
}

/// A head that comes byte by byte is one head.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_in_pieces_is_understood() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in b"POST /echo HTTP/1.1\r\nHost: orders\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    {
        stream.write_all(&[*byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
}

/// RFC 9113 §8.2.2: fields of one connection, and hosts that contradict each other, are malformed in HTTP/2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_with_fields_of_http1_connections_is_refused() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    for (name, value) in [
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("te", "gzip"),
        ("x-nul", "a\0b"),
        ("X-Upper", "1"),
    ] {
        let seen = h2_exchange(proxy.outbound, &[(name, value)]).await;
        assert!(seen.refused, "{name}: {seen:?}");
    }
    assert_eq!(upstream.served(), 0);
    let seen = h2_exchange(proxy.outbound, &[("x-fine", "1")]).await;
    assert!(!seen.refused && seen.answered, "{seen:?}");
    assert_eq!(upstream.served(), 1);
    let two_hosts = h2_exchange(proxy.outbound, &[("host", "other")]).await;
    assert!(two_hosts.answered || two_hosts.refused);
    assert_eq!(upstream.served(), 1, "not forwarded");
}

#[derive(Debug, Default)]
struct Seen {
    /// RST_STREAM or GOAWAY with an error.
    refused: bool,
    /// HEADERS.
    answered: bool,
}

/// One GET on a hand-made HTTP/2 connection with further fields, as they are.
async fn h2_exchange(addr: std::net::SocketAddr, fields: &[(&str, &str)]) -> Seen {
    let mut block = vec![0x82, 0x86, 0x84, 0x41, 6];
    block.extend(b"orders");
    for (name, value) in fields {
        block.push(0);
        block.push(u8::try_from(name.len()).unwrap());
        block.extend(name.as_bytes());
        block.push(u8::try_from(value.len()).unwrap());
        block.extend(value.as_bytes());
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // HEADERS with END_STREAM and END_HEADERS on stream 1.
    bytes.extend([0, 0, u8::try_from(block.len()).unwrap(), 1, 0x5, 0, 0, 0, 1]);
    bytes.extend(block);
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut seen = Seen::default();
    let frames = async {
        loop {
            let mut head = [0; 9];
            if stream.read_exact(&mut head).await.is_err() {
                return;
            }
            let len = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut payload = vec![0; len];
            if stream.read_exact(&mut payload).await.is_err() {
                return;
            }
            match head[3] {
                1 => seen.answered = true,
                3 => seen.refused = true,
                7 => seen.refused = payload[4..8] != [0, 0, 0, 0],
                _ => continue,
            }
            return;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), frames).await.expect("an answer or a refusal");
    seen
}

/// CL.0: what the proxy answers itself reads no body. The body must not be taken for the next request, in whatever pieces it
/// comes, and what is behind it must be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_nobody_reads_is_never_a_request() {
    let upstream = Upstream::start("one").await;
    let documents = "---\napiVersion: weft.dev/v1\nkind: HTTPRouteFilter\nmetadata: {name: gone}\n\
                     spec: {directResponse: {statusCode: 410, body: gone}}\n\
                     ---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: orders}\nspec:\n  \
                     parentRefs: [{kind: Service, group: \"\", name: orders}]\n  rules:\n  \
                     - matches: [{path: {value: /go}}]\n    filters: [{type: RequestRedirect, requestRedirect: {hostname: \
                     new.test, statusCode: 302}}]\n  \
                     - matches: [{path: {value: /gone}}]\n    filters: [{type: ExtensionRef, extensionRef: {group: weft.dev, \
                     kind: HTTPRouteFilter, name: gone}}]\n  \
                     - matches: [{path: {value: /app}}]\n    backendRefs: [{name: orders}]\n";
    let proxy = proxy(&format!("{}{documents}", orders(&[upstream.addr], ""))).await;
    let hidden = "GET /app/smuggled HTTP/1.1\r\nHost: orders\r\n\r\n";
    let next = "GET /app/next HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n";
    let mut served = 0;
    for (host, path, status) in
        [("orders", "/go", 302), ("orders", "/gone", 410), ("orders", "/none", 404), ("unknown", "/", 404)]
    {
        let fields = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n");
        let length = format!("{fields}Content-Length: {}\r\n\r\n", hidden.len());
        let chunked = format!("{fields}Transfer-Encoding: chunked\r\n\r\n");
        let chunk = format!("{:x}\r\n{hidden}\r\n0\r\n\r\n", hidden.len());
        for (head, body) in [(&length, hidden), (&chunked, chunk.as_str())] {
            // At once.
            let answers = raw(proxy.outbound, format!("{head}{body}{next}").as_bytes()).await;
            assert_eq!(statuses(&answers), [status, 200], "{path}: {answers}");
            served += 1;
            assert_eq!(upstream.served(), served, "{path}");
            // In pieces, and the answer is there before the body: the connection ends rather than that its place is guessed.
            let mut stream = TcpStream::connect(proxy.outbound).await.unwrap();
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answers = read_head(&mut stream).await.unwrap();
            let (begin, end) = body.split_at(body.len() / 2);
            for piece in [begin, end, next] {
                let _ = stream.write_all(piece.as_bytes()).await;
            }
            let mut rest = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut rest)).await;
            let _ = read.expect("closed");
            answers.push_str(&String::from_utf8_lossy(&rest));
            assert_eq!(statuses(&answers), [status], "{path}: {answers}");
            assert_eq!(upstream.served(), served, "{path}");
        }
    }
}

fn statuses(answers: &str) -> Vec<u16> {
    answers.match_indices("HTTP/1.1 ").map(|(i, _)| answers[i + 9..i + 12].parse().unwrap()).collect()
}
