use proptest::prelude::*;

use super::*;

fn whole(bytes: &[u8]) -> Scanned {
    Scanner::new().scan(bytes)
}

/// Feeds pieces as the guard does: what is held comes again in front. Answers what was passed on.
fn fed(bytes: &[u8], mut cut: impl FnMut(usize) -> usize) -> (Vec<u8>, Option<Refused>) {
    let mut scanner = Scanner::new();
    let (mut passed, mut held, mut rest) = (Vec::new(), Vec::new(), bytes);
    while !rest.is_empty() {
        let (piece, later) = rest.split_at(cut(rest.len()).clamp(1, rest.len()));
        rest = later;
        held.extend_from_slice(piece);
        let scanned = scanner.scan(&held);
        passed.extend(held.drain(..scanned.passable));
        if scanned.refusal.is_some() {
            return (passed, scanned.refusal);
        }
        if scanner.is_opaque() {
            break;
        }
    }
    (passed, None)
}

const GOOD: &[&[u8]] = &[
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a/x?y HTTP/1.1\r\nhost:a\r\nAccept: */*\r\nX-Empty:\r\nX-Tab:\ta\tb \r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n5;ext=\"v\"\r\nhello\r\nA\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: a\r\nX-Latin: \xe9\r\nContent-Length: 4\r\n\r\n\r\n\r\n",
];

const BAD_HEADS: &[(&[u8], Refusal)] = &[
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        Refusal::LengthAndEncoding,
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        Refusal::LengthAndEncoding,
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        Refusal::SeveralLengths,
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        Refusal::SeveralLengths,
    ),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", Refusal::Length),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", Refusal::Length),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", Refusal::Length),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x5\r\n\r\nhello", Refusal::Length),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5 5\r\n\r\nhello", Refusal::Length),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", Refusal::Length),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", Refusal::Length),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent_Length: 5\r\n\r\nhello", Refusal::ImitatedFraming),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer_Encoding: chunked\r\n\r\n", Refusal::ImitatedFraming),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Refusal::Encoding),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n", Refusal::Encoding),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", Refusal::Encoding),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n", Refusal::Encoding),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n", Refusal::Encoding),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\r\n", Refusal::Encoding),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        Refusal::SeveralEncodings,
    ),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\ntransfer-encoding: x\r\n\r\n",
        Refusal::SeveralEncodings,
    ),
    (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::EncodingInHttp10),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n", Refusal::SpaceBeforeColon),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\t: chunked\r\n\r\n", Refusal::SpaceBeforeColon),
    (b"POST / HTTP/1.1\r\nHost: a\r\n Transfer-Encoding: chunked\r\n\r\n", Refusal::ObsFold),
    (b"POST / HTTP/1.1\r\n Host: a\r\n\r\n", Refusal::ObsFold),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\r\n\tchunked\r\n\r\n", Refusal::Encoding),
    (b"POST / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\t2\r\n\r\n", Refusal::ObsFold),
    (b"POST / HTTP/1.1\r\nHost: a\r\nX: y\rTransfer-Encoding: chunked\r\n\r\n", Refusal::BareCr),
    (b"POST / HTTP/1.1\r\nHost: a\r\nX: y\r\r\n\r\n", Refusal::BareCr),
    (b"POST / HTTP/1.1\r\nHost: a\r\nX: y\nTransfer-Encoding: chunked\r\n\r\n", Refusal::BareLf),
    (b"POST / HTTP/1.1\nHost: a\r\n\r\n", Refusal::BareLf),
    (b"POST / HTTP/1.1\r\nHost: a\r\n\n", Refusal::BareLf),
    (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::BareLf),
    (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", Refusal::FieldValue),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x7f\r\n\r\n", Refusal::FieldValue),
    (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n", Refusal::FieldValue),
    (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding\x0b: chunked\r\n\r\n", Refusal::FieldName),
    (b"GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", Refusal::FieldName),
    (b"GET / HTTP/1.1\r\nHost: a\r\nnonsense\r\n\r\n", Refusal::FieldName),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX\xc3: 1\r\n\r\n", Refusal::FieldName),
    (b"GET / HTTP/1.1\r\n\r\n", Refusal::NoHost),
    (b"GET http://a/ HTTP/1.1\r\n\r\n", Refusal::NoHost),
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Refusal::SeveralHosts),
    (b"GET\r\nHost: a\r\n\r\n", Refusal::RequestLine),
    (b"GET /\r\nHost: a\r\n\r\n", Refusal::RequestLine),
    (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
    (b"GET /  HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
    (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Refusal::RequestLine),
    (b"GET / http/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
    (b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
    (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
    (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
    (b"G(T / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
    (b"GET / HTTP/3.7\r\nHost: a\r\n\r\n", Refusal::Version),
    (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", Refusal::Version),
    (b"\x16\x03\x01\x02\x00\x01", Refusal::NotHttp(0x16)),
    (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::NotHttp(b' ')),
];

const BAD_BODIES: &[(&str, Refusal)] = &[
    ("ZZ\r\n", Refusal::Chunk),
    ("\r\n", Refusal::Chunk),
    (";x\r\n", Refusal::Chunk),
    ("5 \r\nhello\r\n0\r\n\r\n", Refusal::Chunk),
    (" 5\r\nhello\r\n0\r\n\r\n", Refusal::Chunk),
    ("0x5\r\nhello\r\n0\r\n\r\n", Refusal::Chunk),
    ("-1\r\n", Refusal::Chunk),
    ("5\nhello\r\n0\r\n\r\n", Refusal::Chunk),
    ("5\r\nhello0\r\n\r\n", Refusal::Chunk),
    ("5\r\nhello\n0\r\n\r\n", Refusal::Chunk),
    ("5\r\nhello\rx", Refusal::Chunk),
    ("5;a\nb\r\nhello\r\n0\r\n\r\n", Refusal::Chunk),
    ("5;a\rb\r\nhello\r\n0\r\n\r\n", Refusal::Chunk),
    ("1000000000000000\r\n", Refusal::Chunk),
    ("0000000000000005\r\nhello", Refusal::Chunk),
    ("0\r\nX: 1\n\r\n", Refusal::BareLf),
    ("0\r\nContent-Length: 3\r\n\r\n", Refusal::Trailer),
    ("0\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::Trailer),
    ("0\r\nX: 1\r\n folded\r\n\r\n", Refusal::ObsFold),
    ("0\r\nX : 1\r\n\r\n", Refusal::SpaceBeforeColon),
];

#[test]
fn ordinary_requests_pass_whole() {
    for bytes in GOOD {
        let text = String::from_utf8_lossy(bytes);
        assert_eq!(whole(bytes), Scanned { passable: bytes.len(), refusal: None }, "{text:?}");
    }
    let pipelined = GOOD.concat();
    assert_eq!(whole(&pipelined), Scanned { passable: pipelined.len(), refusal: None });
}

#[test]
fn smuggling_forms_are_refused_and_nothing_of_their_head_passes() {
    for (bytes, refusal) in BAD_HEADS {
        let text = String::from_utf8_lossy(bytes);
        let expected = Scanned { passable: 0, refusal: Some(Refused::Head(*refusal)) };
        assert_eq!(whole(bytes), expected, "{text:?}");
        let behind = [GOOD[5], *bytes].concat();
        assert_eq!(
            whole(&behind),
            Scanned { passable: GOOD[5].len(), ..expected },
            "behind another: {text:?}"
        );
    }
}

#[test]
fn bad_bodies_are_refused_at_the_fault() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (body, refusal) in BAD_BODIES {
        let scanned = whole(format!("{head}{body}").as_bytes());
        assert_eq!(scanned.refusal, Some(Refused::Body(*refusal)), "{body:?}");
        assert!((head.len()..head.len() + body.len()).contains(&scanned.passable), "{body:?}");
    }
}

#[test]
fn sizes_are_limited_before_the_line_ends() {
    let uri = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(URI_BYTES_MAX));
    assert_eq!(whole(uri.as_bytes()).refusal, Some(Refused::Head(Refusal::UriTooLong)));
    let endless = format!("GET /{}", "a".repeat(REQUEST_LINE_MAX));
    assert_eq!(whole(endless.as_bytes()).refusal, Some(Refused::Head(Refusal::UriTooLong)));
    let huge = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "a".repeat(HEAD_BYTES_MAX));
    assert_eq!(whole(huge.as_bytes()).refusal, Some(Refused::Head(Refusal::HeadTooLarge)));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(HEADERS_MAX));
    assert_eq!(whole(many.as_bytes()).refusal, Some(Refused::Head(Refusal::TooManyHeaders)));
    let extension = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;{}",
        "x".repeat(CHUNK_LINE_BYTES_MAX)
    );
    assert_eq!(whole(extension.as_bytes()).refusal, Some(Refused::Body(Refusal::Chunk)));
    let trailers = format!(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{}",
        "X: 1\r\n".repeat(TRAILER_BYTES_MAX / 6 + 1)
    );
    assert_eq!(whole(trailers.as_bytes()).refusal, Some(Refused::Body(Refusal::Trailer)));
}

#[test]
fn position_tells_idle_head_and_body_apart() {
    let mut scanner = Scanner::new();
    assert_eq!(scanner.position(false), Position::Idle);
    scanner.scan(b"GET / HT");
    assert_eq!(scanner.position(true), Position::Head);
    scanner.scan(b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nx");
    assert_eq!(scanner.position(false), Position::Body);
    scanner.scan(b"y");
    assert_eq!(scanner.position(false), Position::Idle);
}

proptest! {
    /// How the bytes are cut into reads changes neither what passes nor what is refused.
    #[test]
    fn cuts_change_nothing(
        picks in prop::collection::vec(0..GOOD.len() + BAD_HEADS.len(), 1..5),
        cuts in prop::collection::vec(1usize..40, 1..60),
    ) {
        let bytes: Vec<u8> = picks
            .iter()
            .flat_map(|i| if *i < GOOD.len() { GOOD[*i] } else { BAD_HEADS[*i - GOOD.len()].0 })
            .copied()
            .collect();
        let at_once = fed(&bytes, |n| n);
        let mut next = cuts.iter().cycle();
        let in_pieces = fed(&bytes, |_| *next.next().unwrap());
        prop_assert_eq!(&at_once.0, &in_pieces.0);
        prop_assert_eq!(at_once.1, in_pieces.1);
    }

    /// Any bytes: no panic, never more passed on than given.
    #[test]
    fn any_bytes_are_safe(bytes in prop::collection::vec(
        prop_oneof![Just(b'\r'), Just(b'\n'), Just(b' '), Just(b':'), Just(b'0'), any::<u8>()], 0..300,
    )) {
        let prefix = b"POST / HTTP/1.1\r\nHost: a\r\n";
        let all = [prefix.as_slice(), &bytes].concat();
        let scanned = whole(&all);
        prop_assert!(scanned.passable <= all.len());
        let (passed, _) = fed(&all, |n| n);
        prop_assert_eq!(passed.len(), scanned.passable);
    }
}

#[test]
fn what_follows_a_request_that_may_end_http_is_held_until_it_is_decided() {
    let next = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for asks in [
        &b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"[..],
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nContent-Length: 0\r\n\r\n",
    ] {
        let mut scanner = Scanner::new();
        let bytes = [asks, next].concat();
        assert_eq!(scanner.scan(&bytes), Scanned { passable: asks.len(), refusal: None });
        assert!(scanner.is_undecided() && scanner.heads() == 1);
        assert_eq!(scanner.position(false), Position::Body);
        assert_eq!(scanner.scan(next), Scanned { passable: 0, refusal: None });
        scanner.goes_on();
        assert_eq!(scanner.scan(next), Scanned { passable: next.len(), refusal: None });
        assert!(!scanner.is_undecided() && scanner.heads() == 2);
        scanner.goes_on();
        assert_eq!(scanner.position(false), Position::Idle);
    }
}

#[test]
fn upgrades_with_a_body_or_in_http_1_0_decide_nothing() {
    for asks in [
        &b"POST / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nContent-Length: 2\r\n\r\nhi"[..],
        b"POST / HTTP/1.1\r\nHost: a\r\nUpgrade: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.0\r\nUpgrade: x\r\n\r\n",
    ] {
        let mut scanner = Scanner::new();
        let bytes = [asks, asks].concat();
        assert_eq!(scanner.scan(&bytes), Scanned { passable: bytes.len(), refusal: None });
    }
}

#[test]
fn a_connect_with_a_body_is_refused() {
    for length in ["Content-Length: 1", "Transfer-Encoding: chunked"] {
        let bytes = format!("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n{length}\r\n\r\nx");
        assert_eq!(whole(bytes.as_bytes()).refusal, Some(Refused::Head(Refusal::ConnectBody)), "{length}");
    }
}
