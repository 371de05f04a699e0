//! HTTP/2 by hand: what no client library would send.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::*;
use crate::wire::*;

/// What one stream, or the whole connection, came to.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum End {
    Status(u16),
    Reset(u32),
    GoAway(u32),
    Closed,
}

impl End {
    /// With 4xx or by an error of the protocol; never by taking it for good.
    fn is_refused(self) -> bool {
        match self {
            Self::Status(status) => (400..500).contains(&status),
            Self::Reset(_) | Self::Closed => true,
            Self::GoAway(code) => code != 0,
        }
    }
}

fn get_orders() -> Vec<u8> {
    fields(&[(":method", b"GET"), (":scheme", b"http"), (":path", b"/"), (":authority", b"orders")])
}

impl Wire {
    /// Until a stream ends, or the connection does.
    async fn end(&mut self) -> End {
        let read = async {
            loop {
                let Some((kind, _, payload)) = self.frame().await else { return End::Closed };
                match kind {
                    HEADERS => return End::Status(status(&payload)),
                    RST_STREAM => return End::Reset(number(&payload[..4])),
                    GOAWAY => return End::GoAway(number(&payload[4..8])),
                    _ => {}
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), read).await.expect("an answer or an end")
    }
}

/// The first field of an answer, in the forms that servers use for it.
fn status(block: &[u8]) -> u16 {
    let indexed = [200, 204, 206, 304, 400, 404, 500];
    match block[0] {
        at @ 0x88..=0x8e => indexed[usize::from(at - 0x88)],
        _ => {
            let coded = &block[2..2 + usize::from(block[1] & 0x7f)];
            if block[1] & 0x80 == 0 {
                return std::str::from_utf8(coded).unwrap().parse().unwrap();
            }
            let bits = coded.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
            let mut left = coded.len() * 8;
            (0..3).fold(0, |status, _| {
                let short = bits >> (left - 5) & 0x1f;
                let digit = if short <= 2 {
                    left -= 5;
                    short
                } else {
                    left -= 6;
                    (bits >> left & 0x3f) - 0x19 + 3
                };
                status * 10 + digit as u16
            })
        }
    }
}

/// Until so many of this kind are counted.
async fn until_counted(proxy: &Proxy, kind: &str, at_least: u64) {
    until(kind, || async {
        let metrics = get(proxy.admin, "admin", "/metrics").await.body;
        let series = format!("weft_proxy_refused_total{{kind=\"{kind}\"}} ");
        let counted = metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse::<u64>().ok());
        if counted >= Some(at_least) { Ok(()) } else { Err(metrics) }
    })
    .await;
}

async fn one(addr: SocketAddr, block: &[u8]) -> End {
    let mut wire = Wire::open(addr).await;
    wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, block)).await;
    wire.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_are_refused_and_never_forwarded() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let long = [b"/".as_slice(), &[b'a'; 10_000]].concat();
    let with = |more: &[(&str, &[u8])]| [get_orders(), fields(more)].concat();
    let path = |path: &[u8]| {
        fields(&[(":method", b"GET"), (":scheme", b"http"), (":path", path), (":authority", b"orders")])
    };
    let authority = |authority: &[u8]| {
        fields(&[(":method", b"GET"), (":scheme", b"http"), (":path", b"/"), (":authority", authority)])
    };
    let no_authority = fields(&[(":method", b"GET"), (":scheme", b"http"), (":path", b"/")]);
    for (what, block) in [
        ("no name", with(&[("", b"1")])),
        ("pseudo field behind others", with(&[("x", b"1"), (":path", b"/b")])),
        ("two paths", with(&[(":path", b"/b")])),
        ("unknown pseudo field", with(&[(":x", b"/b")])),
        ("upper case", with(&[("X-A", b"1")])),
        ("CR LF in a value", with(&[("x", b"a\r\nTransfer-Encoding: chunked")])),
        ("NUL in a value", with(&[("x", b"a\0")])),
        ("connection", with(&[("connection", b"x")])),
        ("keep-alive", with(&[("keep-alive", b"1")])),
        ("proxy-connection", with(&[("proxy-connection", b"1")])),
        ("upgrade", with(&[("upgrade", b"h2c")])),
        ("transfer-encoding", with(&[("transfer-encoding", b"chunked")])),
        ("te", with(&[("te", b"gzip")])),
        ("imitated length", with(&[("content_length", b"5")])),
        ("imitated coding", with(&[("transfer_encoding", b"chunked")])),
        ("a length without a body", with(&[("content-length", b"5")])),
        ("no number", with(&[("content-length", b"+0")])),
        ("two lengths", with(&[("content-length", b"0"), ("content-length", b"0")])),
        ("other lengths", with(&[("content-length", b"0"), ("content-length", b"5")])),
        ("no authority", no_authority),
        ("empty authority", authority(b"")),
        ("user in authority", authority(b"user@orders")),
        ("path in authority", authority(b"orders/x")),
        ("two hosts", with(&[("host", b"orders"), ("host", b"orders")])),
        ("another host", with(&[("host", b"other")])),
        ("empty path", path(b"")),
        ("space in path", path(b"/a b")),
        ("request in path", path(b"/ HTTP/1.1\r\nHost: evil\r\n\r\n")),
        ("path without slash", path(b"@evil/")),
        ("DEL in path", path(b"/\x7f")),
        ("bytes in path", path("/\u{e4}".as_bytes())),
        ("asterisk", path(b"*")),
        ("long path", path(&long)),
        (
            "bad method",
            fields(&[(":method", b"GE T"), (":scheme", b"http"), (":path", b"/"), (":authority", b"orders")]),
        ),
        (
            "long method",
            fields(&[
                (":method", &[b'A'; 100]),
                (":scheme", b"http"),
                (":path", b"/"),
                (":authority", b"orders"),
            ]),
        ),
        (
            "scheme",
            fields(&[(":method", b"GET"), (":scheme", b"ftp"), (":path", b"/"), (":authority", b"orders")]),
        ),
    ] {
        let end = one(proxy.outbound, &block).await;
        assert!(end.is_refused(), "{what}: {end:?}");
        assert_eq!(upstream.served(), 0, "{what}: {end:?}");
    }
    let connect = fields(&[(":method", b"CONNECT"), (":authority", b"127.0.0.1:80")]);
    assert_eq!(one(proxy.outbound, &connect).await, End::Status(403));
    let over_http1 = fields(&[(":method", b"CONNECT"), (":authority", b"orders:80"), (":path", b"/")]);
    assert!(matches!(one(proxy.outbound, &over_http1).await, End::Reset(_)));
    assert_eq!(one(proxy.outbound, &path(&long)).await, End::Status(414));
    assert_eq!(upstream.served(), 0);
    assert_eq!(one(proxy.outbound, &get_orders()).await, End::Status(200));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_fields_than_the_limit_are_431() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let many: Vec<u8> = (0..200).flat_map(|i| field(format!("x-{i}").as_bytes(), b"1")).collect();
    assert_eq!(one(proxy.outbound, &[get_orders(), many].concat()).await, End::Status(431));
    // Beyond what a frame holds.
    let mut wire = Wire::open(proxy.outbound).await;
    wire.send(&frame(HEADERS, END_STREAM, 1, &get_orders())).await;
    for i in 0..8 {
        let last = if i == 7 { END_HEADERS } else { 0 };
        let part = field(format!("x-{i}").as_bytes(), &[b'a'; 16_000]);
        wire.send(&frame(CONTINUATION, last, 1, &part)).await;
    }
    assert!(wire.end().await.is_refused());
    assert_eq!(upstream.served(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_differs_from_its_length_is_reset() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let head = |len: &[u8]| {
        fields(&[
            (":method", b"POST"),
            (":scheme", b"http"),
            (":path", b"/slow/2000"),
            (":authority", b"orders"),
            ("content-length", len),
        ])
    };
    for (len, body) in [(&b"3"[..], &b"hello"[..]), (b"9", b"hello")] {
        let mut wire = Wire::open(proxy.outbound).await;
        wire.send(&frame(HEADERS, END_HEADERS, 1, &head(len))).await;
        wire.send(&frame(DATA, END_STREAM, 1, body)).await;
        let end = wire.end().await;
        assert!(end.is_refused(), "{len:?}: {end:?}");
    }
}

/// Stopped by h2: a header block may have only so many frames.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_continuations_ends_the_connection() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let mut wire = Wire::open(proxy.outbound).await;
    wire.send(&frame(HEADERS, END_STREAM, 1, &get_orders())).await;
    let empty = frame(CONTINUATION, 0, 1, &[]).repeat(100);
    for _ in 0..1000 {
        if !wire.send(&empty).await {
            break;
        }
    }
    assert!(wire.end().await.is_refused());
    assert_eq!(upstream.served(), 0);
    until_counted(&proxy, "http2", 1).await;
}

/// h2 holds one answer of each kind, and reads no further until it is out: memory does not grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_pings_and_settings_is_answered_or_ended() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    for flood in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[]), frame(DATA, 0, 1, &[])] {
        let mut wire = Wire::open(proxy.outbound).await;
        // Nothing is read meanwhile, so that answers have nowhere to go.
        let many = flood.repeat(20_000);
        let _ = tokio::time::timeout(Duration::from_secs(2), wire.send(&many)).await;
        assert_eq!(one(proxy.outbound, &get_orders()).await, End::Status(200), "others are served");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_beyond_the_limit_are_refused() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let slow = fields(&[
        (":method", b"GET"),
        (":scheme", b"http"),
        (":path", b"/slow/3000"),
        (":authority", b"orders"),
    ]);
    let mut wire = Wire::open(proxy.outbound).await;
    // After the settings that name the limit.
    wire.frame().await.unwrap();
    for i in 0..400 {
        wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, 2 * i + 1, &slow)).await;
    }
    let end = wire.end().await;
    assert!(matches!(end, End::Reset(7) | End::GoAway(_)), "{end:?}");
    assert!(upstream.served() <= 256, "{}", upstream.served());
}

/// CVE-2023-44487. Resets that reach h2 before a request was taken on are counted there; those that come just after
/// are counted here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_are_reset_as_soon_as_they_are_made_end_the_connection() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let slow = fields(&[
        (":method", b"GET"),
        (":scheme", b"http"),
        (":path", b"/slow/10000"),
        (":authority", b"orders"),
    ]);
    let mut wire = Wire::open(proxy.outbound).await;
    let mut made = 0;
    for i in 0..4000u32 {
        let stream = 2 * i + 1;
        if !wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, stream, &slow)).await {
            break;
        }
        // Enough for the request to be taken on.
        tokio::time::sleep(Duration::from_micros(300)).await;
        if !wire.send(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])).await {
            break;
        }
        made += 1;
    }
    assert!(made < 3000, "{made} requests made and reset");
    until_counted(&proxy, "rapid_reset", 1).await;
    until("nothing is left of them", || async {
        let clusters = get(proxy.admin, "admin", "/clusters").await.body;
        if clusters.contains("active 0") { Ok(()) } else { Err(clusters) }
    })
    .await;
}

/// Sends frames on a connection of their own, and then a request. Answers what the connection came to before that.
async fn refused(proxy: &Proxy, what: &str, frames: &[u8]) {
    let mut wire = Wire::open(proxy.outbound).await;
    wire.send(frames).await;
    let end = wire.end().await;
    assert!(end.is_refused(), "{what}: {end:?}");
}

/// RFC 9113 §6.5.2, §6.9: a window has a size, and no client may make it more, or have it opened by nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn games_with_windows_and_settings_end_the_connection() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let open = |by: u32| frame(WINDOW_UPDATE, 0, 0, &by.to_be_bytes());
    for (what, frames) in [
        ("opened by nothing", open(0)),
        ("opened beyond its largest size", [open(0x7fff_ffff), open(0x7fff_ffff)].concat()),
        ("an update of five bytes", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1, 0])),
        ("an update of a stream that is not there", frame(WINDOW_UPDATE, 0, 7, &[0, 0, 0, 1])),
        ("a first window beyond the largest", setting(4, 0x8000_0000)),
        ("frames smaller than the smallest", setting(5, 1)),
        ("frames larger than the largest", setting(5, 0x0100_0000)),
        ("push that is neither on nor off", setting(2, 2)),
        ("settings in part", frame(SETTINGS, 0, 0, &[0; 5])),
        ("settings of a stream", frame(SETTINGS, 0, 1, &[])),
        ("an acknowledgement that says something", frame(SETTINGS, ACK, 0, &[0; 6])),
    ] {
        refused(&proxy, what, &frames).await;
    }
    until_counted(&proxy, "http2", 11).await;
    assert_eq!(upstream.served(), 0);
    assert_eq!(one(proxy.outbound, &get_orders()).await, End::Status(200), "others are served");
}

/// RFC 9113 §5.1, §6: frames that have no place where they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_out_of_place_end_the_connection() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let head = get_orders();
    let whole = END_STREAM | END_HEADERS;
    for (what, frames) in [
        ("data of the connection", frame(DATA, 0, 0, b"x")),
        ("data of a stream that is not there", frame(DATA, 0, 1, b"x")),
        ("a request on the server's stream", frame(HEADERS, whole, 2, &head)),
        ("a request on the connection", frame(HEADERS, whole, 0, &head)),
        ("the end of a stream that is not there", frame(RST_STREAM, 0, 1, &[0; 4])),
        (
            "an end of three bytes",
            [frame(HEADERS, END_HEADERS, 1, &head), frame(RST_STREAM, 0, 1, &[0; 3])].concat(),
        ),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &head)),
        (
            "something else within a head",
            [frame(HEADERS, END_STREAM, 1, &head), frame(PING, 0, 0, &[0; 8])].concat(),
        ),
        (
            "a head that goes on in another stream",
            [frame(HEADERS, END_STREAM, 1, &head), frame(CONTINUATION, END_HEADERS, 3, &[])].concat(),
        ),
        ("a promise of a client", frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2], &head[..]].concat())),
        ("a ping of seven bytes", frame(PING, 0, 0, &[0; 7])),
        ("a ping of a stream", frame(PING, 0, 1, &[0; 8])),
        ("a priority of four bytes", frame(PRIORITY, 0, 1, &[0; 4])),
        ("more padding than frame", frame(HEADERS, whole | PADDED, 1, &[&[255], &head[..]].concat())),
        ("a frame beyond the limit", frame(HEADERS, whole, 1, &vec![0; 20_000])),
    ] {
        refused(&proxy, what, &frames).await;
    }
    assert_eq!(upstream.served(), 0, "nothing of it reached the upstream");
    assert_eq!(one(proxy.outbound, &get_orders()).await, End::Status(200), "others are served");
}

/// RFC 7541: what cannot be decoded ends the connection, and what decodes to far more than was sent is counted as what it
/// decodes to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_compression_is_no_lever() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let head = get_orders();
    let with = |more: &[u8]| frame(HEADERS, END_STREAM | END_HEADERS, 1, &[&head[..], more].concat());
    // Into the table once, and out of it many times: 4 KiB and a byte each.
    let mut bomb = field(b"x", &[b'a'; 3900]);
    bomb[0] = 0x40;
    bomb.extend([0xbe; 4000]);
    for (what, frames) in [
        ("a field of no number", with(&[0x80])),
        ("a field beyond the table", with(&[0xff, 0xff, 0x7f])),
        (
            "a number without an end",
            with(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]),
        ),
        ("a table beyond the limit", with(&[0x3f, 0xff, 0xff, 0x7f])),
        ("a text longer than its frame", with(&[0, 1, b'x', 100, b'y'])),
        ("a Huffman code that is none", with(&[0, 1, b'x', 0x84, 0xff, 0xff, 0xff, 0xff])),
        ("a field without a name", with(&field(b"", b"x"))),
        ("a bomb", with(&bomb)),
    ] {
        refused(&proxy, what, &frames).await;
    }
    assert_eq!(upstream.served(), 0);
    assert_eq!(one(proxy.outbound, &head).await, End::Status(200), "others are served");
}

/// A client that opens its window by a byte at a time gets a byte at a time, and costs nobody else anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_next_to_nothing_is_held_with_little() {
    let upstream = Upstream::start("one").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    let large = fields(&[
        (":method", b"GET"),
        (":scheme", b"http"),
        (":path", b"/bytes/104857600"),
        (":authority", b"orders"),
    ]);
    let mut wire = Wire::open(proxy.outbound).await;
    wire.send(&setting(4, 0)).await;
    for i in 0..50 {
        wire.send(&frame(HEADERS, END_STREAM | END_HEADERS, 2 * i + 1, &large)).await;
    }
    let mut got = 0;
    for i in 0..50u32 {
        wire.send(&frame(WINDOW_UPDATE, 0, 2 * i + 1, &[0, 0, 0, 1])).await;
    }
    while got < 50 {
        let frame = tokio::time::timeout(Duration::from_secs(10), wire.frame()).await.expect("an answer");
        let (kind, _, payload) = frame.expect("it goes on");
        if kind == DATA {
            assert!(payload.len() <= 1, "{} bytes", payload.len());
            got += payload.len();
        }
    }
    assert_eq!(one(proxy.outbound, &get_orders()).await, End::Status(200), "others are served");
}
