//! Other protocols on an HTTP/1.1 connection (RFC 9110 §7.8), such as WebSocket. [`super::extended`] has the same for
//! HTTP/2.
//!
//! A request that asks for one is passed on with what it asks for, and nothing else becomes of it unless the endpoint
//! answers 101 with one of the protocols that were asked for. Then both connections become a tunnel
//! ([`crate::tcp::relay`]). With any other answer it was an ordinary request. What the client sent behind it meanwhile
//! is not looked at before that is known ([`crate::listener::guard`]).

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue, UPGRADE};
use http::{Method, Response, StatusCode, Version, request};
use smallvec::SmallVec;

use super::body::ResponseBody;
use super::extended::Extended;
use super::headers::{self, tokens};
use crate::tcp::far_end::{Counted, FarEnd};
use crate::upstream::answer::AnswerBody;
use crate::upstream::stream::FarStream;

/// Never passed on: they would put HTTP where the proxy sees none of its requests, or TLS where it can see nothing.
const REFUSED: [&[u8]; 4] = [b"h2c", b"h2", b"http", b"tls"];

/// What a request asks to switch to, as one list; none if it asks for nothing that is passed on. A request with a body
/// stays HTTP: its body would have to be read before the switch.
pub(crate) fn asked(head: &request::Parts, has_body: bool) -> Option<HeaderValue> {
    if head.version == Version::HTTP_2 {
        return head.extensions.get::<Extended>().map(|Extended(protocol)| protocol.clone());
    }
    if !head.headers.contains_key(UPGRADE)
        || head.version != Version::HTTP_11
        || head.method == Method::CONNECT
        || has_body
        || !all(&head.headers, CONNECTION).any(|t| t.eq_ignore_ascii_case(b"upgrade"))
    {
        return None;
    }
    let mut list = Vec::new();
    for protocol in all(&head.headers, UPGRADE).filter(|p| !is_refused(p)) {
        if !list.is_empty() {
            list.extend_from_slice(b", ");
        }
        list.extend_from_slice(protocol);
    }
    HeaderValue::from_bytes(&list).ok().filter(|list| !list.is_empty())
}

/// What an answer of status 101 switches to, if it is what was asked for.
pub(crate) fn agreed(asked: &HeaderValue, answer: &HeaderMap) -> Option<HeaderValue> {
    let wanted: SmallVec<[&[u8]; 4]> = tokens(asked).collect();
    let mut fields = answer.get_all(UPGRADE).iter();
    let field = fields.next().filter(|_| fields.next().is_none())?;
    let mut named = tokens(field).peekable();
    named.peek()?;
    named.all(|name| wanted.iter().any(|w| w.eq_ignore_ascii_case(name))).then(|| field.clone())
}

/// Puts what is asked for on a request, or what was agreed on its answer.
pub(crate) fn announce(headers: &mut HeaderMap, protocol: HeaderValue) {
    let connection = match headers.get(CONNECTION) {
        Some(others) if others == "te" => "te, upgrade",
        _ => "upgrade",
    };
    headers.insert(CONNECTION, HeaderValue::from_static(connection));
    headers.insert(UPGRADE, protocol);
}

/// An endpoint's answer 101, or 200 to an extended CONNECT, with its connection or stream, which that has made free of HTTP.
pub(crate) struct Switched {
    headers: HeaderMap,
    stream: FarStream,
    seen: Bytes,
}

/// Takes the connection from HTTP. `None` if it cannot be had: the request was still being sent.
pub(crate) fn far_end(answer: Response<AnswerBody>) -> Option<Switched> {
    let (head, body) = answer.into_parts();
    let (stream, seen) = match body {
        AnswerBody::Http1(body) => {
            let (stream, seen) = body.into_switched()?;
            (FarStream::Left(stream), seen)
        }
        AnswerBody::Http2(body) => (FarStream::Right(body.into_tunnel()?), Bytes::new()),
    };
    Some(Switched { headers: head.headers, stream, seen })
}

impl Switched {
    /// The answer for the client; its connection leads there from then on.
    pub fn into_answer(self, protocol: HeaderValue, counted: Counted) -> Response<ResponseBody> {
        let Self { mut headers, stream, seen } = self;
        headers::strip_hop_by_hop(&mut headers);
        headers.remove(CONTENT_LENGTH);
        announce(&mut headers, protocol);
        let far_end = FarEnd { stream, seen, counted };
        let mut response = Response::new(ResponseBody::Switched(Some(Box::new(far_end))));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = headers;
        response
    }
}

fn all(headers: &HeaderMap, name: http::HeaderName) -> impl Iterator<Item = &[u8]> {
    headers.get_all(name).iter().flat_map(tokens)
}

/// By name, whatever the version behind the slash.
pub(crate) fn is_refused(protocol: &[u8]) -> bool {
    let name = protocol.split(|b| *b == b'/').next().unwrap_or_default();
    REFUSED.iter().any(|refused| refused.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(version: Version, fields: &[(&str, &str)]) -> request::Parts {
        let mut request = Request::builder().version(version).uri("/");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn what_is_asked_is_one_list_without_protocols_that_carry_http() {
        for (upgrade, expected) in [
            (&["websocket"][..], Some("websocket")),
            (&["WebSocket, foo/2"], Some("WebSocket, foo/2")),
            (&["h2c", "websocket"], Some("websocket")),
            (&["h2c"], None),
            (&["H2C, TLS/1.2, HTTP/2.0, h2"], None),
            (&[""], None),
        ] {
            let mut fields = vec![("connection", "keep-alive, Upgrade")];
            fields.extend(upgrade.iter().map(|u| ("upgrade", *u)));
            let asked = asked(&parts(Version::HTTP_11, &fields), false);
            assert_eq!(asked.as_ref().map(|v| v.to_str().unwrap()), expected, "{upgrade:?}");
        }
    }

    #[test]
    fn without_its_word_in_connection_or_with_a_body_or_in_http_1_0_nothing_is_asked() {
        let fields = [("connection", "upgrade"), ("upgrade", "websocket")];
        assert!(asked(&parts(Version::HTTP_11, &fields), false).is_some());
        assert!(asked(&parts(Version::HTTP_11, &fields), true).is_none());
        assert!(asked(&parts(Version::HTTP_10, &fields), false).is_none());
        assert!(asked(&parts(Version::HTTP_11, &fields[1..]), false).is_none());
        assert!(asked(&parts(Version::HTTP_11, &fields[..1]), false).is_none());
    }

    #[test]
    fn only_what_was_asked_for_is_agreed() {
        let asked = HeaderValue::from_static("websocket, foo/2");
        let agreed = |fields: &[(&str, &str)]| {
            agreed(&asked, &parts(Version::HTTP_11, fields).headers).map(|v| v.to_str().unwrap().to_owned())
        };
        assert_eq!(agreed(&[("upgrade", "WebSocket")]).as_deref(), Some("WebSocket"));
        assert_eq!(agreed(&[("upgrade", "foo/2, websocket")]).as_deref(), Some("foo/2, websocket"));
        assert_eq!(agreed(&[("upgrade", "h2c")]), None);
        assert_eq!(agreed(&[("upgrade", "websocket, h2c")]), None);
        assert_eq!(agreed(&[("upgrade", "websocket"), ("upgrade", "foo/2")]), None);
        assert_eq!(agreed(&[("upgrade", "")]), None);
        assert_eq!(agreed(&[]), None);
    }
}
