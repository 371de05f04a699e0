//! Heads of requests as bytes, and of answers from bytes.

use std::mem::MaybeUninit;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, Request, StatusCode, Version, response};
use httparse::Status;

use super::Error;
use crate::http::headers::{doubtful_framing, tokens};
use crate::http::present::Present;
use crate::http1::body::Framing;
use crate::http1::{head_end, write_field};
use crate::limits::HEADERS_MAX;
use crate::upstream::pool::Patience;
use crate::upstream::request_body::RequestBody;

/// An incomplete head up to this length is looked at with each read, so that what is no HTTP is noticed at once; a longer
/// one when it is complete, so that one that comes byte by byte costs no more than others.
const LOOKED_AT_EARLY: usize = 512;

/// How the body of an answer is framed (RFC 9112 §6.3).
///
/// # Errors
/// If others might find another end.
pub(super) fn framing_of(head: &response::Parts, to_head: bool) -> Result<Framing, &'static str> {
    let present = Present::of(&head.headers);
    let framed = present.any(Present::CONTENT_LENGTH | Present::TRANSFER_ENCODING);
    if framed && let Some(why) = doubtful_framing(&head.headers) {
        return Err(why);
    }
    if head.status == StatusCode::SWITCHING_PROTOCOLS {
        // What follows is no HTTP.
        return Ok(Framing::UntilClose);
    }
    let empty = to_head
        || head.status.is_informational()
        || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if empty {
        return Ok(Framing::Length(0));
    }
    if present.any(Present::TRANSFER_ENCODING) {
        if head.version == Version::HTTP_10 {
            return Err("it has Transfer-Encoding in HTTP/1.0");
        }
        return Ok(Framing::Chunked);
    }
    match head.headers.get(CONTENT_LENGTH).filter(|_| framed) {
        None => Ok(Framing::UntilClose),
        Some(length) => length
            .to_str()
            .ok()
            .and_then(|l| l.parse().ok())
            .map(Framing::Length)
            .ok_or("its Content-Length is out of range"),
    }
}

/// Whether further requests may be sent on the connection behind this answer, and then for how long it may be idle before.
pub(super) fn keeps_open(head: &response::Parts) -> Option<Patience> {
    let present = Present::of(&head.headers);
    let keeps = if present.any(Present::CONNECTION) {
        let says = |word: &[u8]| {
            head.headers.get_all(CONNECTION).iter().flat_map(tokens).any(|t| t.eq_ignore_ascii_case(word))
        };
        if head.version == Version::HTTP_10 {
            says(b"keep-alive") && !says(b"close")
        } else {
            !says(b"close")
        }
    } else {
        head.version != Version::HTTP_10
    };
    keeps.then(|| if present.any(Present::HOP_BY_HOP) { patience(&head.headers) } else { Patience::Unsaid })
}

/// What `Keep-Alive: timeout=5` says, as many servers do (RFC 2068 §19.7.1): they close first otherwise, while a request is
/// on its way (P42).
fn patience(headers: &HeaderMap) -> Patience {
    let fields = headers.get_all(KEEP_ALIVE).iter().filter_map(|value| value.to_str().ok());
    let seconds = fields.flat_map(|text| text.split(',')).find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("timeout").then(|| value.trim().parse::<u64>().ok()).flatten()
    });
    seconds.map_or(Patience::Unsaid, |seconds| Patience::Said(Duration::from_secs(seconds)))
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Writes the head of a request. Answers how its body is framed: its fields say so, or it has none.
pub(super) fn encode(request: &Request<RequestBody>, out: &mut Vec<u8>) -> Framing {
    let method = request.method();
    let target = request.uri().path_and_query().map_or("/", |path| path.as_str());
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let streams = request.body().streams();
    let mut framing = if streams { Framing::Chunked } else { Framing::Length(0) };
    let mut framed = false;
    for (name, value) in request.headers() {
        if *name == CONTENT_LENGTH {
            let length = value.to_str().ok().and_then(|l| l.parse().ok()).unwrap_or(0);
            // One without a body that says otherwise would make the next request its body.
            if framed || !streams && length != 0 {
                continue;
            }
            framing = Framing::Length(length);
            framed = true;
        } else if *name == TRANSFER_ENCODING {
            // It is said below, by what is done.
            continue;
        }
        write_field(out, name, value);
    }
    if streams && !framed {
        out.extend_from_slice(b"transfer-encoding: chunked\r\n");
    } else if !framed && matches!(*method, Method::POST | Method::PUT | Method::PATCH) {
        // RFC 9110 §8.6: of these methods, a body is expected.
        out.extend_from_slice(b"content-length: 0\r\n");
    }
    out.extend_from_slice(b"\r\n");
    framing
}

/// Finds heads of answers in what was read.
#[derive(Debug, Default)]
pub(super) struct Heads {
    /// No end of a head begins before this place.
    searched: usize,
}

impl Heads {
    /// The next head, if it is complete.
    ///
    /// # Errors
    /// If what is there is none.
    pub fn take(&mut self, input: &mut BytesMut) -> Result<Option<response::Parts>, Error> {
        let Some(end) = head_end(input, &mut self.searched) else {
            if !input.is_empty() && input.len() <= LOOKED_AT_EARLY {
                early(input)?;
            }
            return Ok(None);
        };
        self.searched = 0;
        parse(&input.split_to(end).freeze()).map(Some)
    }
}

/// What is wrong with the beginning of a head.
fn early(input: &[u8]) -> Result<(), Error> {
    let mut fields = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    parser.parse_response_with_uninit_headers(&mut answer, input, &mut fields).map_err(why)?;
    Ok(())
}

fn parse(head: &Bytes) -> Result<response::Parts, Error> {
    let mut fields = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut answer = httparse::Response::new(&mut []);
    let parser = httparse::ParserConfig::default();
    match parser.parse_response_with_uninit_headers(&mut answer, head, &mut fields) {
        Ok(Status::Complete(used)) if used == head.len() => {}
        Ok(_) => return Err(Error::Malformed("an empty line in its head")),
        Err(error) => return Err(why(error)),
    }
    let mut parts = http::Response::new(()).into_parts().0;
    parts.status = answer
        .code
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or(Error::Malformed("its status is out of range"))?;
    parts.version = if answer.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut headers = HeaderMap::with_capacity(answer.headers.len());
    for field in answer.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| Error::Malformed("the name of a field"))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
            .map_err(|_| Error::Malformed("the value of a field"))?;
        headers.append(name, value);
    }
    parts.headers = headers;
    Ok(parts)
}

fn why(error: httparse::Error) -> Error {
    Error::Malformed(match error {
        httparse::Error::HeaderName => "the name of a field",
        httparse::Error::HeaderValue => "the value of a field",
        httparse::Error::NewLine => "the end of a line",
        httparse::Error::Status => "its status",
        httparse::Error::Token => "its first line",
        httparse::Error::TooManyHeaders => "too many fields",
        httparse::Error::Version => "its version",
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn take(text: &[u8]) -> Result<Option<response::Parts>, Error> {
        Heads::default().take(&mut BytesMut::from(text))
    }

    fn framing(text: &str, to_head: bool) -> Result<Framing, &'static str> {
        framing_of(&take(text.as_bytes()).unwrap().unwrap(), to_head)
    }

    #[test]
    fn the_end_of_an_answer_is_found_as_rfc_9112_says_or_the_answer_refused() {
        let (plain, chunked) = ("HTTP/1.1 200 OK\r\n", "Transfer-Encoding: chunked\r\n");
        for (head, expected) in [
            (format!("{plain}Content-Length: 5\r\n\r\n"), Ok(Framing::Length(5))),
            (format!("{plain}{chunked}\r\n"), Ok(Framing::Chunked)),
            (format!("{plain}\r\n"), Ok(Framing::UntilClose)),
            ("HTTP/1.1 204 \r\nContent-Length: 5\r\n\r\n".to_owned(), Ok(Framing::Length(0))),
            (format!("HTTP/1.1 304 Not Modified\r\n{chunked}\r\n"), Ok(Framing::Length(0))),
            (
                format!("{plain}Content-Length: 99999999999999999999\r\n\r\n"),
                Err("its Content-Length is out of range"),
            ),
            (format!("HTTP/1.0 200 OK\r\n{chunked}\r\n"), Err("it has Transfer-Encoding in HTTP/1.0")),
        ] {
            assert_eq!(framing(&head, false), expected, "{head:?}");
        }
        for doubtful in [
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: +5",
            "Transfer-Encoding: gzip, chunked",
        ] {
            assert!(framing(&format!("{plain}{doubtful}\r\n\r\n"), false).is_err(), "{doubtful}");
        }
        assert_eq!(framing(&format!("{plain}Content-Length: 5\r\n\r\n"), true), Ok(Framing::Length(0)));
    }

    #[test]
    fn a_connection_stays_open_unless_one_of_both_says_otherwise() {
        let (unsaid, said) = (Some(Patience::Unsaid), |n| Some(Patience::Said(Duration::from_secs(n))));
        for (head, expected) in [
            ("HTTP/1.1 200 OK\r\n\r\n", unsaid),
            ("HTTP/1.1 200 OK\r\nConnection: x, Close\r\n\r\n", None),
            ("HTTP/1.0 200 OK\r\n\r\n", None),
            ("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n", unsaid),
            ("HTTP/1.1 200 OK\r\nKeep-Alive: max=100, Timeout=5\r\n\r\n", said(5)),
            ("HTTP/1.1 200 OK\r\nKeep-Alive: timeout=soon\r\n\r\n", unsaid),
            ("HTTP/1.1 200 OK\r\nConnection: close\r\nKeep-Alive: timeout=5\r\n\r\n", None),
        ] {
            assert_eq!(keeps_open(&take(head.as_bytes()).unwrap().unwrap()), expected, "{head:?}");
        }
    }

    #[test]
    fn what_is_no_answer_is_refused_as_soon_as_that_is_known() {
        for (text, expected) in [
            ("SSH-2.0-x", "its version"),
            ("HTTP/2.0 200", "its version"),
            ("HTTP/1.1 2x0 ", "its status"),
            ("HTTP/1.1 099 No\r\n\r\n", "its status is out of range"),
            ("HTTP/1.1 200 OK\r\nA B: c\r\n\r\n", "the name of a field"),
            ("HTTP/1.1 200 OK\r\nA : c\r\n\r\n", "the name of a field"),
            ("HTTP/1.1 200 OK\r\nA: c\r\n d\r\n\r\n", "the name of a field"),
            ("HTTP/1.1 200 OK\r\nA: \0\r\n\r\n", "the value of a field"),
        ] {
            let error = take(text.as_bytes()).unwrap_err().to_string();
            assert_eq!(error, format!("the answer is no HTTP/1.1: {expected}"), "{text:?}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert!(take(many.as_bytes()).unwrap_err().to_string().ends_with("too many fields"));
    }

    #[test]
    fn a_request_is_framed_by_what_its_body_is() {
        let lines = |request: Request<RequestBody>| {
            let mut out = Vec::new();
            let framing = encode(&request, &mut out);
            (String::from_utf8(out).unwrap(), framing)
        };
        let request = |method: &str| Request::builder().method(method).uri("/a?b").header("host", "x");
        let get = request("GET").body(RequestBody::Empty).unwrap();
        assert_eq!(lines(get), ("GET /a?b HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), Framing::Length(0)));
        let post = request("POST").body(RequestBody::Empty).unwrap();
        assert!(lines(post).0.ends_with("\r\ncontent-length: 0\r\n\r\n"));
        // D02: what has no body must not say that it has one.
        let lying = request("GET").header("content-length", "5").header("transfer-encoding", "chunked");
        let (text, framing) = lines(lying.body(RequestBody::Empty).unwrap());
        assert_eq!((text.as_str(), framing), ("GET /a?b HTTP/1.1\r\nhost: x\r\n\r\n", Framing::Length(0)));
        let streaming = || RequestBody::Copied(tokio::sync::mpsc::channel(1).1);
        let chunked = request("POST").header("transfer-encoding", "chunked").body(streaming()).unwrap();
        let (text, framing) = lines(chunked);
        assert_eq!((text.matches("chunked").count(), framing), (1, Framing::Chunked));
        let known = request("POST").header("content-length", "5").body(streaming()).unwrap();
        let (text, framing) = lines(known);
        assert!(!text.contains("chunked") && framing == Framing::Length(5));
    }

    proptest! {
        #[test]
        fn heads_are_found_however_they_arrive(cuts in proptest::collection::vec(1usize..40, 1..20), bare: bool) {
            let one = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nA: b\r\nC: d\r\n\r\nbody";
            let text = if bare { one.replace('\r', "") } else { one.to_owned() };
            let (mut rest, mut input, mut heads, mut found) = (text.as_bytes(), BytesMut::new(), Heads::default(), Vec::new());
            for cut in cuts.into_iter().chain([text.len()]) {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                input.extend_from_slice(now);
                rest = later;
                while found.len() < 2 && let Some(head) = heads.take(&mut input).unwrap() {
                    found.push((head.status.as_u16(), head.headers.len()));
                }
            }
            prop_assert_eq!(found, [(103, 1), (200, 2)]);
            prop_assert_eq!(&input[..], b"body");
        }

        #[test]
        fn any_bytes_are_a_head_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = take(&bytes);
            let _ = take(&[b"HTTP/1.1 200 OK\r\n", &bytes[..], b"\r\n\r\n"].concat());
        }
    }
}
