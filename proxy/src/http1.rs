//! HTTP/1.1 messages as bytes (RFC 9112): what the side of clients ([`crate::listener::http1`]) and the side of endpoints
//! ([`crate::upstream::http1`]) have in common.

pub(crate) mod body;
mod chunked;
pub(crate) mod sending;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use http::header::{HeaderName, HeaderValue};
use memchr::memchr_iter;
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

/// Where the empty line behind a head ends. A line may end without CR (RFC 9112 §2.2). Nothing before `searched` is looked
/// at again.
pub(crate) fn head_end(input: &[u8], searched: &mut usize) -> Option<usize> {
    for lf in memchr_iter(b'\n', &input[*searched..]) {
        let next = *searched + lf + 1;
        match &input[next..] {
            [b'\n', ..] => return Some(next + 1),
            [b'\r', b'\n', ..] => return Some(next + 2),
            _ => {}
        }
    }
    // What is missing may be two bytes behind an end of a line.
    *searched = input.len().saturating_sub(2);
    None
}

/// Room for one read of what is usually small.
pub(crate) const READ_BYTES: usize = 8 * 1024;

/// Room for one read of a body, once a read has filled half of the smaller one.
pub(crate) const LARGE_READ_BYTES: usize = 64 * 1024;

/// Reads more behind what was read before; 0 at the end of the stream.
pub(crate) fn poll_read<R: AsyncRead>(
    io: Pin<&mut R>,
    cx: &mut Context<'_>,
    input: &mut BytesMut,
    room: usize,
) -> Poll<io::Result<usize>> {
    if input.capacity() - input.len() < room / 4 {
        input.reserve(room);
    }
    poll_read_buf(io, cx, input)
}

/// Writes one field.
pub(crate) fn write_field(out: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}
