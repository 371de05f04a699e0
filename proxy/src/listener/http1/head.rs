//! Heads of requests from bytes, and of answers as bytes.

use std::io::Write;
use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{
    CONNECTION, CONTENT_LENGTH, DATE, EXPECT, HeaderMap, HeaderName, HeaderValue, TE, TRANSFER_ENCODING,
};
use http::{Method, Request, StatusCode, Uri, Version, request, response};
use http_body::Body;
use httparse::Status;

use crate::http::body::ResponseBody;
use crate::http::headers::{strip_hop_by_hop, tokens};
use crate::http::present::Present;
use crate::http1::body::Framing;
use crate::http1::write_field;
use crate::limits::HEADERS_MAX;

/// What is added to the fields of a request on its way, usually.
const ADDED_FIELDS: usize = 3;

/// What a request says of the connection, of its body and of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Served {
    http10: bool,
    to_head: bool,
    pub keep: bool,
    pub body: Framing,
    pub expects_continue: bool,
    pub takes_trailers: bool,
}

impl Served {
    /// Of a request that is refused.
    pub fn refused() -> Self {
        Self {
            http10: false,
            to_head: false,
            keep: false,
            body: Framing::Length(0),
            expects_continue: false,
            takes_trailers: false,
        }
    }

    fn of(head: &request::Parts) -> Self {
        let present = Present::of(&head.headers);
        let says = |name: HeaderName, word: &[u8]| {
            head.headers.get_all(name).iter().flat_map(tokens).any(|t| t.eq_ignore_ascii_case(word))
        };
        let http10 = head.version == Version::HTTP_10;
        let connection = present.any(Present::CONNECTION);
        let closes = connection && says(CONNECTION, b"close");
        let length = || head.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        Self {
            http10,
            to_head: head.method == Method::HEAD,
            keep: !closes && (!http10 || connection && says(CONNECTION, b"keep-alive")),
            // The guard has seen to it that there is no other way to read this.
            body: if present.any(Present::TRANSFER_ENCODING) {
                Framing::Chunked
            } else if present.any(Present::CONTENT_LENGTH) {
                Framing::Length(length().unwrap_or(0))
            } else {
                Framing::Length(0)
            },
            expects_continue: present.any(Present::EXPECT) && !http10 && says(EXPECT, b"100-continue"),
            takes_trailers: present.any(Present::HOP_BY_HOP) && says(TE, b"trailers"),
        }
    }

    /// Writes the head of an answer. `keep` says whether the connection is to be kept and `switched` whether HTTP ends with
    /// this answer. Tells whether it is kept, and how the body is framed.
    pub fn encode(
        &self,
        head: &response::Parts,
        body: &ResponseBody,
        (mut keep, switched): (bool, bool),
        date: [u8; 29],
        out: &mut Vec<u8>,
    ) -> (bool, Framing) {
        let without_body = switched
            || self.to_head
            || head.status.is_informational()
            || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = || head.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        let (framing, said) = if without_body {
            (Framing::Length(0), true)
        } else if let Some(length) = length() {
            (Framing::Length(length), true)
        } else if body.is_end_stream() {
            (Framing::Length(0), false)
        } else if let Some(length) = body.size_hint().exact() {
            (Framing::Length(length), false)
        } else if self.http10 {
            keep = false;
            (Framing::UntilClose, true)
        } else {
            (Framing::Chunked, false)
        };
        out.extend_from_slice(if self.http10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
        out.extend_from_slice(head.status.as_str().as_bytes());
        out.push(b' ');
        out.extend_from_slice(head.status.canonical_reason().unwrap_or_default().as_bytes());
        out.extend_from_slice(b"\r\n");
        let (mut dated, mut connection) = (false, false);
        for (name, value) in &head.headers {
            if *name == CONNECTION {
                connection = true;
                keep &= !tokens(value).any(|t| t.eq_ignore_ascii_case(b"close"));
            } else if *name == TRANSFER_ENCODING {
                continue;
            }
            dated |= *name == DATE;
            write_field(out, name, value);
        }
        match framing {
            _ if said => {}
            Framing::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            Framing::Length(length) => {
                // A Vec takes all.
                let _ = write!(out, "content-length: {length}\r\n");
            }
            Framing::UntilClose => {}
        }
        if !connection && !switched {
            match (keep, self.http10) {
                (false, false) => out.extend_from_slice(b"connection: close\r\n"),
                (true, true) => out.extend_from_slice(b"connection: keep-alive\r\n"),
                _ => {}
            }
        }
        if !dated {
            out.extend_from_slice(b"date: ");
            out.extend_from_slice(&date);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        (keep, framing)
    }
}

/// An interim answer (1xx), without what is for one hop only.
pub(in crate::listener) fn interim(mut head: response::Parts) -> Vec<u8> {
    strip_hop_by_hop(&mut head.headers);
    head.headers.remove(CONTENT_LENGTH);
    let reason = head.status.canonical_reason().unwrap_or_default();
    let mut out = format!("HTTP/1.1 {} {reason}\r\n", head.status.as_str()).into_bytes();
    head.headers.iter().for_each(|(name, value)| write_field(&mut out, name, value));
    out.extend_from_slice(b"\r\n");
    out
}

/// A head that the guard has let through. `None` if it is none all the same.
pub(super) fn parse(bytes: &Bytes) -> Option<(request::Parts, Served)> {
    let mut fields = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(Status::Complete(used)) if used == bytes.len() => {}
        _ => return None,
    }
    let mut head = Request::new(()).into_parts().0;
    head.method = Method::from_bytes(request.method?.as_bytes()).ok()?;
    head.uri = Uri::from_maybe_shared(bytes.slice_ref(request.path?.as_bytes())).ok()?;
    head.version = if request.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut headers = HeaderMap::with_capacity(request.headers.len() + ADDED_FIELDS);
    for field in request.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_maybe_shared(bytes.slice_ref(field.value)).ok()?);
    }
    head.headers = headers;
    let served = Served::of(&head);
    Some((head, served))
}

#[cfg(test)]
mod tests {
    use http::Response;
    use proptest::prelude::*;

    use super::*;

    const THEN: [u8; 29] = *b"Thu, 01 Jan 1970 00:00:00 GMT";

    fn parsed(text: &str) -> Option<(request::Parts, Served)> {
        parse(&Bytes::copy_from_slice(text.as_bytes()))
    }

    fn served(text: &str) -> Served {
        parsed(text).unwrap().1
    }

    #[test]
    fn a_connection_is_kept_as_both_versions_have_it() {
        for (head, expected) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, Close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
            ("GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", false),
        ] {
            assert_eq!(served(head).keep, expected, "{head:?}");
        }
    }

    #[test]
    fn a_body_is_asked_for_only_in_the_version_that_knows_how() {
        let head = |version| {
            format!("PUT / HTTP/{version}\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n")
        };
        let (now, before) = (served(&head("1.1")), served(&head("1.0")));
        assert!(now.expects_continue && !before.expects_continue);
        assert_eq!((now.body, before.body), (Framing::Length(3), Framing::Length(3)));
        assert_eq!(served("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").body, Framing::Chunked);
    }

    #[test]
    fn targets_of_every_form_are_understood_and_others_are_none() {
        for target in ["/a?b", "*", "http://a/b", "a:80", "/%ff//..;x"] {
            let (head, _) = parsed(&format!("OPTIONS {target} HTTP/1.1\r\n\r\n")).unwrap();
            assert_eq!(head.uri.to_string(), target);
        }
        for none in ["http://[::1/", "http://", "a b", "://"] {
            assert!(parsed(&format!("GET {none} HTTP/1.1\r\n\r\n")).is_none(), "{none}");
        }
    }

    /// What is written of an answer to this request.
    fn answer(
        request: &str,
        response: http::response::Builder,
        body: &str,
        keep: bool,
    ) -> (String, bool, Framing) {
        let body =
            if body.is_empty() { ResponseBody::Own(None) } else { ResponseBody::text(body.to_owned()) };
        let (head, body) = response.body(body).unwrap().into_parts();
        let mut out = Vec::new();
        let (keep, framing) = served(request).encode(&head, &body, (keep, false), THEN, &mut out);
        (String::from_utf8(out).unwrap(), keep, framing)
    }

    #[test]
    fn the_end_of_an_answer_is_said_by_its_head() {
        let (get, head) = ("GET / HTTP/1.1\r\n\r\n", "HEAD / HTTP/1.1\r\n\r\n");
        let date = "date: Thu, 01 Jan 1970 00:00:00 GMT\r\n";
        let (text, keep, framing) = answer(get, Response::builder(), "hi", true);
        assert_eq!(text, format!("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n{date}\r\n"));
        assert!(keep && framing == Framing::Length(2));
        let (text, ..) = answer(get, Response::builder().status(404), "", true);
        assert_eq!(text, format!("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n{date}\r\n"));
        let known = || Response::builder().header("content-length", "5").header("date", "now");
        let (text, _, framing) = answer(head, known(), "", true);
        assert_eq!(text, "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ndate: now\r\n\r\n");
        assert_eq!(framing, Framing::Length(0), "to HEAD there is no body");
        let (text, ..) = answer(get, Response::builder().status(204).header("date", "now"), "", true);
        assert_eq!(text, "HTTP/1.1 204 No Content\r\ndate: now\r\n\r\n");
        assert_eq!(answer(get, known().status(304), "", true).2, Framing::Length(0));
    }

    #[test]
    fn the_end_of_a_connection_is_said_once() {
        let (now, before) = ("GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
        let (text, keep, _) = answer(now, Response::builder().header("connection", "close"), "", true);
        assert!(!keep && text.matches("close").count() == 1, "{text}");
        let (text, keep, _) = answer(now, Response::builder(), "", false);
        assert!(!keep && text.contains("\r\nconnection: close\r\n"), "{text}");
        let (text, keep, _) = answer(before, Response::builder(), "", true);
        assert!(
            keep && text.starts_with("HTTP/1.0 200 OK\r\n") && text.contains("connection: keep-alive"),
            "{text}"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_head_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&Bytes::from(bytes.clone()));
            let _ = parse(&Bytes::from([b"GET / HTTP/1.1\r\n", &bytes[..], b"\r\n\r\n"].concat()));
        }
    }
}
