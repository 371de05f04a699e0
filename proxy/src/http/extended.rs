//! Extended CONNECT (RFC 8441): another protocol, such as WebSocket, on one stream of an HTTP/2 connection.
//!
//! It goes on as the request that asks for the same over HTTP/1.1, by the same routes, and the endpoint's 101 becomes 200
//! here. The stream and the endpoint's connection are a tunnel from then on. An endpoint that speaks HTTP/2 gets none.

use std::rc::Rc;

use http::header::{CONTENT_LENGTH, HeaderName, HeaderValue, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::body::ResponseBody;
use super::context::Context;
use super::upgrade;
use crate::listener::connection::Connection;
use crate::tcp::far_end::FarEnd;

const SEC_WEBSOCKET_KEY: HeaderName = HeaderName::from_static("sec-websocket-key");
const SEC_WEBSOCKET_ACCEPT: HeaderName = HeaderName::from_static("sec-websocket-accept");

/// What an extended CONNECT asks for, beside the request that it has become.
#[derive(Debug, Clone)]
pub(crate) struct Extended(pub HeaderValue);

/// Makes an extended CONNECT the GET that asks for the same over HTTP/1.1, and answers its stream. None for all other
/// requests, and for protocols that are not passed on.
pub(crate) fn begin(request: &mut Request<Incoming>) -> Option<OnUpgrade> {
    if request.method() != Method::CONNECT {
        return None;
    }
    let protocol = HeaderValue::from_bytes(request.extensions().get::<Protocol>()?.as_ref()).ok()?;
    if protocol.is_empty() || upgrade::is_refused(protocol.as_bytes()) {
        return None;
    }
    let stream = hyper::upgrade::on(&mut *request);
    *request.method_mut() = Method::GET;
    request.extensions_mut().insert(Extended(protocol));
    Some(stream)
}

/// Adds what the HTTP/1.1 form of a WebSocket request has and the HTTP/2 form has not (RFC 8441 §5): a key, of which the
/// endpoint's answer is a function that nobody here has a use for.
pub(crate) fn complete(fields: &mut HeaderMap, protocol: &HeaderValue, rng: &mut fastrand::Rng) {
    if protocol.as_bytes().eq_ignore_ascii_case(b"websocket") {
        // Base64 of 16 bytes: the last letter stands for two bits.
        let mut key: String = (0..21).map(|_| char::from(*rng.choice(LETTERS).unwrap_or(&b'A'))).collect();
        key.push(char::from(*rng.choice(b"AQgw").unwrap_or(&b'A')));
        key.push_str("==");
        if let Ok(key) = HeaderValue::try_from(key) {
            fields.insert(SEC_WEBSOCKET_KEY, key);
        }
    }
}

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Turns the answer 101 into that of HTTP/2. The tunnel begins once it is on its way; the worker's runtime ends what is
/// left of it. It counts as a connection of its own: the one that its stream belongs to goes on with others.
pub(crate) fn accept(
    ctx: &Rc<Context>,
    connection: &Connection,
    stream: OnUpgrade,
    far_end: Box<FarEnd>,
    response: &mut Response<ResponseBody>,
) {
    *response.status_mut() = StatusCode::OK;
    for name in [UPGRADE, SEC_WEBSOCKET_ACCEPT, CONTENT_LENGTH] {
        response.headers_mut().remove(name);
    }
    let (ctx, peer, tls) = (ctx.clone(), connection.peer, connection.is_tls());
    tokio::task::spawn_local(async move {
        // It fails if the client has taken its stream back.
        let Ok(stream) = stream.await else { return };
        let open = ctx.connections.open(peer, tls);
        let ended = far_end
            .tunnel(TokioIo::new(stream), Vec::new(), open.shared(), ctx.timeouts.tunnel, &Default::default())
            .await;
        if let Err(error) = ended {
            tracing::debug!(%peer, error = %error, "tunnel ended");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

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
