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
use crate::http::headers::tokens;
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
