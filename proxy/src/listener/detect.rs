//! HTTP/1 or HTTP/2 with prior knowledge, by the first bytes (RFC 9113 §3.4).

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::Poll;

use tokio::io::{AsyncRead, ReadBuf};

use super::connection::Connection;
use super::scanner::Position;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detected {
    Http1,
    Http2,
}

/// Reads until the protocol is known. Answers it with all bytes read, or `None` if the client closed first, was too
/// slow, or the connection is to be closed.
pub(crate) async fn detect<S: AsyncRead + Unpin>(
    stream: &mut S,
    connection: &Connection,
) -> io::Result<Option<(Detected, Vec<u8>)>> {
    let mut seen = Vec::new();
    loop {
        let read = poll_fn(|cx| {
            // On the stack, so that a connection that waits has no room for it.
            let mut room = [0; 4096];
            let mut buf = ReadBuf::new(&mut room);
            // What has arrived is served, even while the worker closes its connections.
            if let Poll::Ready(read) = Pin::new(&mut *stream).poll_read(cx, &mut buf) {
                seen.extend_from_slice(buf.filled());
                return Poll::Ready(read.map(|()| buf.filled().len()));
            }
            if connection.is_closing() || connection.take_head_late() {
                return Poll::Ready(io::Result::Ok(0));
            }
            connection.remember(cx.waker());
            Poll::Pending
        })
        .await?;
        if read == 0 {
            return Ok(None);
        }
        connection.moved();
        match decide(&seen) {
            Some(detected) => return Ok(Some((detected, seen))),
            None => connection.at(Position::Head),
        }
    }
}

fn decide(seen: &[u8]) -> Option<Detected> {
    let common = seen.len().min(PREFACE.len());
    if seen[..common] != PREFACE[..common] {
        Some(Detected::Http1)
    } else if common == PREFACE.len() {
        Some(Detected::Http2)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_preface_is_http2() {
        assert_eq!(decide(b"GET / HTTP/1.1"), Some(Detected::Http1));
        assert_eq!(decide(b"PUT"), Some(Detected::Http1));
        assert_eq!(decide(b"PR"), None);
        assert_eq!(decide(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"), None);
        assert_eq!(decide(PREFACE), Some(Detected::Http2));
        assert_eq!(decide(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"), Some(Detected::Http1));
        assert_eq!(decide(&[PREFACE, b"frame"].concat()), Some(Detected::Http2));
    }
}
