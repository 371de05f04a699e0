//! How HTTP and gRPC say of each other that something went wrong: gRPC's `http-grpc-status-mapping.md`, and back.
//!
//! A gRPC client expects `200` and a `grpc-status`; of other answers it knows only what their status roughly means. So
//! what the proxy answers itself is said in its words: headers alone, with the status in them ("trailers-only").

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use super::body::ResponseBody;

pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(crate) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Tries before this one (gRFC A6), for the server to see.
pub(crate) const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

const UNKNOWN: u32 = 2;
pub(crate) const DEADLINE_EXCEEDED: u32 = 4;
const PERMISSION_DENIED: u32 = 7;
const UNIMPLEMENTED: u32 = 12;
const INTERNAL: u32 = 13;
pub(crate) const UNAVAILABLE: u32 = 14;
const DATA_LOSS: u32 = 15;
const UNAUTHENTICATED: u32 = 16;

/// Longest text that a status carries, in bytes before it is encoded.
const MESSAGE_BYTES_MAX: usize = 1024;

/// Whether these are the fields of a gRPC message; gRPC-Web is HTTP with its status in the body.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(CONTENT_TYPE) else { return false };
    let rest = kind.as_bytes().strip_prefix(b"application/grpc");
    rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// What a status of HTTP means to a gRPC client.
pub(crate) fn code(status: StatusCode) -> u32 {
    match status.as_u16() {
        400 => INTERNAL,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => UNIMPLEMENTED,
        429 | 502 | 503 | 504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// The code in an answer's head, if it is a status alone; else it follows behind the messages.
pub(crate) fn of(fields: &HeaderMap) -> Option<u32> {
    fields.get(GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

/// What a server says of another try (gRFC A6): to wait for so long, or not to try at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushback {
    Wait(Duration),
    Never,
}

/// What it says in these fields, if it does. A number that is none, or a negative one, is a no.
pub(crate) fn pushback(fields: &HeaderMap) -> Option<Pushback> {
    let said = fields.get(PUSHBACK)?;
    let millis = said.to_str().ok().and_then(|text| text.parse().ok());
    Some(millis.map_or(Pushback::Never, |millis| Pushback::Wait(Duration::from_millis(millis))))
}

/// What an answer says of the endpoint: an endpoint that answers gRPC calls with "unavailable" is as good as one that
/// answers 503. Only what stands in its head is known by then.
pub(crate) fn meant<B>(answer: &Response<B>) -> StatusCode {
    match of(answer.headers()) {
        Some(UNAVAILABLE) => StatusCode::SERVICE_UNAVAILABLE,
        Some(UNKNOWN | INTERNAL | DATA_LOSS) => StatusCode::INTERNAL_SERVER_ERROR,
        _ => answer.status(),
    }
}

/// An answer that consists of a status.
pub(crate) fn answer(code: u32, message: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Own(None));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    set(headers, code, message);
    response
}

/// Puts a status into headers or trailers.
pub(crate) fn set(fields: &mut HeaderMap, code: u32, message: &str) {
    fields.insert(GRPC_STATUS, HeaderValue::from(code));
    if let Ok(message) = HeaderValue::try_from(encoded(message)) {
        fields.insert(GRPC_MESSAGE, message);
    }
}

/// Percent-encoding of what is not printable ASCII, and of `%` itself (gRPC over HTTP/2, "Responses").
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes().take(MESSAGE_BYTES_MAX) {
        match byte {
            b' '..=b'~' if byte != b'%' => encoded.push(char::from(byte)),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_known_by_its_content_type() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(is_grpc(&headers), expected, "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn statuses_are_mapped_as_grpc_says() {
        for (status, expected) in [
            (400, 13),
            (401, 16),
            (403, 7),
            (404, 12),
            (429, 14),
            (502, 14),
            (503, 14),
            (504, 14),
            (500, 2),
            (408, 2),
        ] {
            assert_eq!(code(StatusCode::from_u16(status).unwrap()), expected, "{status}");
        }
    }

    #[test]
    fn an_endpoint_that_says_unavailable_or_broken_in_grpc_is_taken_for_that() {
        let meant = |code: u32| super::meant(&answer(code, "")).as_u16();
        assert_eq!((meant(14), meant(13), meant(2), meant(15)), (503, 500, 500, 500));
        assert_eq!((meant(0), meant(4), meant(5), meant(7)), (200, 200, 200, 200));
        assert_eq!(super::meant(&Response::new(())).as_u16(), 200);
    }

    #[test]
    fn messages_are_encoded_and_bounded() {
        let answer = answer(5, "50 % of \"ä\"\n");
        assert_eq!(answer.headers()[GRPC_MESSAGE], "50 %25 of \"%C3%A4\"%0A");
        assert!(encoded(&"x".repeat(10_000)).len() <= MESSAGE_BYTES_MAX);
    }
}
