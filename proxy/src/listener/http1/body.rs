//! The body of a request, read as it is asked for.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::{fmt, io};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Conn;
use crate::http1::body::{Framing, Left, Piece};
use crate::http1::{LARGE_READ_BYTES, READ_BYTES};
use crate::http2::Incoming;
use crate::listener::http2::stream::Expectation;

/// The body of a client's request, whatever it speaks.
#[derive(Debug)]
pub(crate) enum ClientBody {
    Empty,
    Http1(RequestStream),
    /// Its client may wait until it is asked for.
    Http2(Incoming, Option<Rc<Expectation>>),
}

/// Why a client's body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientBodyError {
    #[error("connection closed before the body was complete")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("malformed body: {0}")]
    Malformed(&'static str),
    #[error(transparent)]
    Http2(#[from] h2::Error),
}

/// A body that is read from the connection that its request came on.
pub(crate) struct RequestStream {
    conn: Rc<RefCell<dyn Source>>,
    left: Left,
    /// The client waits for "100 Continue" before it sends it (RFC 9110 §10.1.1).
    expects: bool,
    room: usize,
    failed: bool,
}

/// What a body needs of its connection, whatever that stands on.
trait Source {
    /// The next piece.
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        left: &mut Left,
        room: &mut usize,
    ) -> Poll<Result<Piece, ClientBodyError>>;

    /// Asks the client to send it, unless the answer has begun or the body has.
    fn poll_continue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Nobody reads it any more; this is left of it.
    fn leave(&mut self, left: Left);
}

impl<S: AsyncRead + AsyncWrite + Unpin> Source for Conn<S> {
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        left: &mut Left,
        room: &mut usize,
    ) -> Poll<Result<Piece, ClientBodyError>> {
        loop {
            match left.next(&mut self.input).map_err(ClientBodyError::Malformed)? {
                Piece::More => {}
                piece => return Poll::Ready(Ok(piece)),
            }
            match ready!(self.poll_read(cx, *room))? {
                0 => return Poll::Ready(Err(ClientBodyError::Closed)),
                n if n >= READ_BYTES / 2 => *room = LARGE_READ_BYTES,
                _ => {}
            }
        }
    }

    fn poll_continue(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unanswered && self.input.is_empty() {
            self.output.bytes().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            // Once.
            self.unanswered = false;
        }
        self.poll_write(cx)
    }

    fn leave(&mut self, left: Left) {
        self.has_body = false;
        self.unread = (!left.is_end()).then_some(left);
    }
}

impl RequestStream {
    pub(super) fn new<S>(conn: Rc<RefCell<Conn<S>>>, framing: Framing, expects: bool) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        Self { conn, left: framing.into(), expects, room: READ_BYTES, failed: false }
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, ClientBodyError>> {
        let mut conn = self.conn.borrow_mut();
        if self.expects {
            ready!(conn.poll_continue(cx))?;
            self.expects = false;
        }
        conn.poll_piece(cx, &mut self.left, &mut self.room)
    }
}

impl fmt::Debug for RequestStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestStream").field("left", &self.left).finish_non_exhaustive()
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        // One that broke off leaves nothing that could be passed over.
        if !self.failed
            && let Ok(mut conn) = self.conn.try_borrow_mut()
        {
            conn.leave(std::mem::replace(&mut self.left, Left::Length(0)));
        }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = ClientBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ClientBodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Http2(body, expects) => {
                if let Some(expects) = expects.take() {
                    expects.want();
                }
                Pin::new(body).poll_frame(cx).map_err(ClientBodyError::Http2)
            }
            Self::Http1(stream) => Poll::Ready(match ready!(stream.poll_piece(cx)) {
                Ok(Piece::Data(data)) => Some(Ok(Frame::data(data))),
                Ok(Piece::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
                Ok(Piece::End | Piece::More) => None,
                Err(error) => {
                    stream.failed = true;
                    Some(Err(error))
                }
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Http1(stream) => stream.left.is_end(),
            Self::Http2(body, _) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Http1(RequestStream { left: Left::Length(left), .. }) => SizeHint::with_exact(*left),
            Self::Http1(_) => SizeHint::default(),
            Self::Http2(body, _) => body.size_hint(),
        }
    }
}
