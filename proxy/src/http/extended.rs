//! CONNECT on one stream of an HTTP/2 connection: a tunnel (RFC 9113 §8.5), or another protocol such as WebSocket (extended
//! CONNECT, RFC 8441).
//!
//! Within, what asks for another protocol is the request that does so over HTTP/1.1, and its answer is 101. It is translated at
//! both ends: for clients ([`begin`], [`accept`]), and for endpoints that speak HTTP/2 ([`ask`]). Each of these gets it on a
//! connection of its own: a tunnel that stands still would take the window of all others on its connection.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use h2::ext::Protocol;
use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};

use super::body::ResponseBody;
use super::upgrade;
use crate::upstream::request_body::RequestBody;

const SEC_WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
pub(crate) const SEC_WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// What an extended CONNECT asks for, beside the request that it has become.
#[derive(Debug, Clone)]
pub(crate) struct Extended(pub HeaderValue);

/// Whether its stream may become a tunnel: a CONNECT. An extended one becomes the GET that asks for the same over HTTP/1.1. Not
/// so all other requests, and protocols that are not passed on.
pub(crate) fn begin<B>(request: &mut Request<B>) -> bool {
    if request.method() != Method::CONNECT {
        return false;
    }
    if let Some(protocol) = request.extensions().get::<Protocol>() {
        let protocol = HeaderValue::from_bytes(protocol.as_ref());
        let Ok(protocol) = protocol else { return false };
        if protocol.is_empty() || upgrade::is_refused(protocol.as_bytes()) {
            return false;
        }
        *request.method_mut() = Method::GET;
        request.extensions_mut().insert(Extended(protocol));
    }
    true
}

/// Whether what asks for a protocol over HTTP/1.1 can ask for the same by an extended CONNECT, which names one and has no
/// method. A WebSocket has a key that is to be answered, unless it came by HTTP/2 itself.
pub(crate) fn can_ask(request: &Request<RequestBody>, protocol: &HeaderValue, by_http2: bool) -> bool {
    let keys = request.headers().get_all(SEC_WEBSOCKET_KEY).iter();
    by_http2
        || request.method() == Method::GET
            && !protocol.as_bytes().contains(&b',')
            && (!is_websocket(protocol) || keys.count() == 1)
}

/// Makes it an extended CONNECT. Answers what the client's key is to be answered with (RFC 6455 §4.2.2), if it has one: the
/// endpoint does not get it (RFC 8441 §5).
pub(crate) fn ask(request: &mut Request<RequestBody>, protocol: &HeaderValue) -> Option<HeaderValue> {
    *request.method_mut() = Method::CONNECT;
    if let Ok(protocol) = protocol.to_str() {
        request.extensions_mut().insert(Protocol::from(protocol));
    }
    let key = request.headers_mut().remove(SEC_WEBSOCKET_KEY)?;
    let mut sha1 = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    sha1.update(key.as_bytes());
    sha1.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    HeaderValue::try_from(STANDARD.encode(sha1.finish())).ok()
}

fn is_websocket(protocol: &HeaderValue) -> bool {
    protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
}

/// Adds what the HTTP/1.1 form of a WebSocket request has and the HTTP/2 form has not (RFC 8441 §5): a key, of which the
/// endpoint's answer is a function that nobody here has a use for.
pub(crate) fn complete(fields: &mut HeaderMap, protocol: &HeaderValue, rng: &mut fastrand::Rng) {
    if is_websocket(protocol)
        && let Ok(key) = HeaderValue::try_from(STANDARD.encode(rng.u128(..).to_le_bytes()))
    {
        fields.insert(SEC_WEBSOCKET_KEY, key);
    }
}

/// Turns the answer 101, or 200 to a CONNECT, into that of HTTP/2. The tunnel begins once it is on its way.
pub(crate) fn accept(response: &mut Response<ResponseBody>) {
    *response.status_mut() = StatusCode::OK;
    for name in [UPGRADE, SEC_WEBSOCKET_ACCEPT, CONTENT_LENGTH] {
        response.headers_mut().remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 6455 §1.3.
    #[test]
    fn a_websocket_asks_without_its_key_which_is_answered_here() {
        let websocket = HeaderValue::from_static("websocket");
        let ask_with = |method: Method, keys: &[&str], asked: &HeaderValue, by_http2| {
            let mut request = Request::builder().method(method).uri("http://orders/chat");
            for key in keys {
                request = request.header(SEC_WEBSOCKET_KEY, *key);
            }
            let mut request = request.body(RequestBody::Empty).unwrap();
            can_ask(&request, asked, by_http2).then(|| (ask(&mut request, asked), request))
        };
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let (accept, request) = ask_with(Method::GET, &[key], &websocket, false).unwrap();
        assert_eq!(accept.unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(request.method() == Method::CONNECT && request.headers().is_empty(), "{request:?}");
        assert_eq!(request.extensions().get::<Protocol>().unwrap().as_str(), "websocket");
        let (accept, _) = ask_with(Method::GET, &[], &websocket, true).unwrap();
        assert_eq!(accept, None);
        for (method, keys, asked) in [
            (Method::GET, &[][..], "websocket"),
            (Method::GET, &[key, key], "websocket"),
            (Method::POST, &[key], "websocket"),
            (Method::GET, &[key], "websocket, foo"),
        ] {
            let asked = HeaderValue::from_static(asked);
            assert!(ask_with(method, keys, &asked, false).is_none(), "{keys:?} {asked:?}");
        }
    }

    #[test]
    fn a_key_is_the_base64_of_16_bytes_and_only_for_websocket() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut fields = HeaderMap::new();
        complete(&mut fields, &HeaderValue::from_static("WebSocket"), &mut rng);
        let first = fields[SEC_WEBSOCKET_KEY].clone();
        assert!(first.len() == 24 && first.as_bytes().ends_with(b"=="));
        complete(&mut fields, &HeaderValue::from_static("websocket"), &mut rng);
        assert_ne!(fields[SEC_WEBSOCKET_KEY], first);
        let mut fields = HeaderMap::new();
        complete(&mut fields, &HeaderValue::from_static("other"), &mut rng);
        assert!(fields.is_empty());
    }
}
