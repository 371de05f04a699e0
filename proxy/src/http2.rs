//! Messages on streams of HTTP/2 (RFC 9113 §8), of which h2 makes frames: what the side of clients
//! ([`crate::listener::http2`]) and the side of endpoints ([`crate::upstream::http2`]) have in common.

mod incoming;
mod sending;
mod tunnel;

use http::response;

pub(crate) use incoming::Incoming;
pub(crate) use sending::{SendError, Sending};
pub(crate) use tunnel::Tunnel;

use crate::http::headers;

/// An interim answer (1xx, RFC 9110 §15.2) as the next hop may have it.
pub(crate) fn interim(mut head: response::Parts) -> http::Response<()> {
    headers::strip_hop_by_hop(&mut head.headers);
    head.headers.remove(http::header::CONTENT_LENGTH);
    head.version = http::Version::HTTP_2;
    head.extensions.clear();
    http::Response::from_parts(head, ())
}
