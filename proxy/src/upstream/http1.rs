//! HTTP/1.1 to endpoints (RFC 9112), one exchange at a time on a connection.
//!
//! The task that serves the client drives the connection to the endpoint as well: nothing is handed from task to task, and
//! an idle connection has no task at all. Whether it is still open is asked when it is to be used. Only a request
//! whose answer has begun before its body has ended gets a task, for the rest of that body.
//!
//! ```text
//!   encode the head ─▶ write it and the body ─┬─▶ head of the answer ─▶ body as it is asked for ─▶ back to the pool
//!                      read ──────────────────┘   1xx are told
//! ```

mod answer;
mod head;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use futures::task::noop_waker_ref;
use http::{Method, Request, Response, StatusCode, response};
use tokio::io::AsyncWrite;

pub(crate) use answer::Answer;

use self::head::Heads;
use super::pool::Lease;
use super::request_body::{RequestBody, RequestBodyError};
use super::stream::UpstreamStream;
use crate::http1::sending::{Output, SendError, Sending};
use crate::http1::{READ_BYTES, poll_read};
use crate::limits::{INTERIM_ANSWERS_MAX, READ_BUFFER_BYTES_MAX};

/// Why an exchange failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The endpoint's fault.
    #[error("the answer is no HTTP/1.1: {0}")]
    Malformed(&'static str),
    #[error("connection closed before the answer was complete")]
    Closed,
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The client's fault.
    #[error(transparent)]
    Body(#[from] RequestBodyError),
    #[error("{0}")]
    Length(&'static str),
}

impl From<SendError<RequestBodyError>> for Error {
    fn from(error: SendError<RequestBodyError>) -> Self {
        match error {
            SendError::Io(error) => Self::Io(error),
            SendError::Body(error) => Self::Body(error),
            SendError::Length(why) => Self::Length(why),
        }
    }
}

/// A connection to an endpoint.
pub(crate) struct Conn {
    io: UpstreamStream,
    /// Read and not used yet.
    input: BytesMut,
    output: Output,
}

/// The body of a request until it has been written.
type Upload = Sending<RequestBody>;

/// Shared with the task that sends the rest of a body, if there is one.
pub(crate) type Shared = Rc<RefCell<Conn>>;

impl Conn {
    pub fn new(io: UpstreamStream) -> Shared {
        Rc::new(RefCell::new(Self { io, input: BytesMut::new(), output: Output::default() }))
    }

    /// Whether an idle connection may be used: the endpoint has not closed it, nor said anything unasked. It costs a
    /// system call only if something has arrived.
    pub fn is_open(&mut self) -> bool {
        let mut cx = Context::from_waker(noop_waker_ref());
        self.input.is_empty() && self.poll_read(&mut cx, READ_BYTES).is_pending()
    }

    /// Says goodbye, where the protocol below has a word for it, without waiting.
    pub fn close(&mut self) {
        // The connection ends anyway.
        let _ = Pin::new(&mut self.io).poll_shutdown(&mut Context::from_waker(noop_waker_ref()));
    }

    /// What is below, with what was read already.
    pub fn into_parts(self) -> (UpstreamStream, Bytes) {
        (self.io, self.input.freeze())
    }

    /// Reads more; 0 at the end of the stream.
    fn poll_read(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        poll_read(Pin::new(&mut self.io), cx, &mut self.input, room)
    }

    fn poll_upload(&mut self, cx: &mut Context<'_>, upload: &mut Upload) -> Poll<Result<(), Error>> {
        upload.poll(cx, &mut self.output, Pin::new(&mut self.io)).map_err(Error::from)
    }

    /// Reads until a head is complete. `write_failed` is what is said if none comes.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        heads: &mut Heads,
        write_failed: &mut Option<io::Error>,
    ) -> Poll<Result<response::Parts, Error>> {
        loop {
            if let Some(head) = heads.take(&mut self.input)? {
                return Poll::Ready(Ok(head));
            }
            if self.input.len() > READ_BUFFER_BYTES_MAX {
                return Poll::Ready(Err(Error::Malformed("its head is too large")));
            }
            if ready!(self.poll_read(cx, READ_BYTES))? == 0 {
                return Poll::Ready(Err(write_failed.take().map_or(Error::Closed, Error::Io)));
            }
        }
    }
}

/// Sends a request and waits for the head of its answer. The head of the request stays whole, so that it can be sent
/// again; its body is used up. Interim answers (RFC 9110 §15.2) are told: but for 100, which nobody is asked for, and those
/// beyond [`INTERIM_ANSWERS_MAX`].
///
/// # Errors
/// If there is no answer; the connection is closed then, as it is if this is dropped.
pub(crate) async fn send(
    lease: Lease,
    request: &mut Request<RequestBody>,
    inform: &dyn Fn(response::Parts),
) -> Result<Response<Answer>, Error> {
    let framing = head::encode(request, lease.conn.borrow_mut().output.bytes());
    let body = std::mem::replace(request.body_mut(), RequestBody::Empty);
    let mut sending = Some(Upload::new(body, framing));
    let (mut heads, mut write_failed, mut told) = (Heads::default(), None, 0);
    let head = poll_fn(|cx| {
        let mut conn = lease.conn.borrow_mut();
        if let Some(upload) = &mut sending
            && write_failed.is_none()
        {
            match conn.poll_upload(cx, upload) {
                Poll::Ready(Ok(())) => sending = None,
                // It may have answered before it stopped to listen.
                Poll::Ready(Err(Error::Io(error))) => write_failed = Some(error),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        loop {
            let head = ready!(conn.poll_head(cx, &mut heads, &mut write_failed))?;
            if !head.status.is_informational() || head.status == StatusCode::SWITCHING_PROTOCOLS {
                return Poll::Ready(Ok(head));
            }
            if head.status != StatusCode::CONTINUE && told < INTERIM_ANSWERS_MAX {
                told += 1;
                inform(head);
            }
        }
    })
    .await?;
    let framing = head::framing_of(&head, request.method() == Method::HEAD).map_err(Error::Malformed)?;
    let keep = head::keeps_open(&head).filter(|_| write_failed.is_none());
    let rest = sending.filter(|_| write_failed.is_none());
    Ok(Response::from_parts(head, Answer::new(lease, framing, keep, rest)))
}
