//! The body of an answer, read as the client takes it.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::task::JoinHandle;

use super::{Error, Upload};
use crate::http1::body::{Framing, Left, Piece};
use crate::http1::{LARGE_READ_BYTES, READ_BYTES};
use crate::upstream::pool::{Lease, Patience};
use crate::upstream::stream::UpstreamStream;

/// See the module. At its end the connection goes back to the pool, if others may use it.
pub(crate) struct Answer {
    /// Until the end.
    lease: Option<Lease>,
    left: Left,
    /// Others may use the connection.
    keep: Option<Patience>,
    rest: Option<Rest>,
    /// How much to read at once: more, once much has come.
    room: usize,
}

/// The rest of the request's body, in a task: an endpoint may answer while it reads on, and the client send on without
/// taking the answer.
struct Rest {
    task: JoinHandle<Result<(), Error>>,
    written: Rc<Cell<bool>>,
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Answer {
    pub(super) fn new(lease: Lease, framing: Framing, keep: Option<Patience>, rest: Option<Upload>) -> Self {
        let rest = rest.map(|mut upload| {
            let (conn, written) = (lease.conn.clone(), Rc::new(Cell::new(false)));
            let done = written.clone();
            let task = tokio::task::spawn_local(async move {
                poll_fn(|cx| conn.borrow_mut().poll_upload(cx, &mut upload)).await?;
                done.set(true);
                Ok(())
            });
            Rest { task, written }
        });
        let mut answer = Self { lease: Some(lease), left: framing.into(), keep, rest, room: READ_BYTES };
        if answer.is_end_stream() {
            answer.end();
        }
        answer
    }

    /// The connection, which this answer has made free of HTTP, with what was read of it already. `None` if the request
    /// was still being sent.
    pub fn into_switched(mut self) -> Option<(UpstreamStream, Bytes)> {
        let lease = self.lease.take().filter(|_| self.rest.is_none())?;
        Some(Rc::try_unwrap(lease.conn).ok()?.into_inner().into_parts())
    }

    /// The whole answer was read. An endpoint that has answered before it took the whole request may never take it.
    fn end(&mut self) {
        let sent = self.rest.take().is_none_or(|rest| rest.written.get());
        if let Some(lease) = self.lease.take()
            && let Some(patience) = self.keep
            && sent
        {
            lease.give_back(patience);
        }
    }

    /// Fails when the rest of the request did, by the client's fault.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let Some(rest) = &mut self.rest else { return Ok(()) };
        let Poll::Ready(ended) = Pin::new(&mut rest.task).poll(cx) else { return Ok(()) };
        self.rest = None;
        match ended {
            Ok(Ok(())) => {}
            Ok(Err(error @ Error::Body(_))) => return Err(error),
            // The endpoint does not take the rest. Its answer is good all the same.
            Ok(Err(_)) | Err(_) => self.keep = None,
        }
        Ok(())
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Error>> {
        self.poll_rest(cx)?;
        let Some(lease) = &self.lease else { return Poll::Ready(Ok(None)) };
        let mut conn = lease.conn.borrow_mut();
        loop {
            match self.left.next(&mut conn.input).map_err(Error::Malformed)? {
                Piece::Data(data) => return Poll::Ready(Ok(Some(Frame::data(data)))),
                Piece::Trailers(trailers) => return Poll::Ready(Ok(Some(Frame::trailers(trailers)))),
                Piece::End => return Poll::Ready(Ok(None)),
                Piece::More => {}
            }
            match ready!(conn.poll_read(cx, self.room))? {
                0 if matches!(self.left, Left::UntilClose) => {
                    self.keep = None;
                    return Poll::Ready(Ok(None));
                }
                0 => return Poll::Ready(Err(Error::Closed)),
                n if n >= READ_BYTES / 2 => self.room = LARGE_READ_BYTES,
                _ => {}
            }
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        let piece = ready!(this.poll_piece(cx));
        match &piece {
            // Not to be used any more, for anything.
            Err(_) => this.lease = None,
            Ok(None) => this.end(),
            Ok(Some(_)) if this.is_end_stream() => this.end(),
            Ok(Some(_)) => {}
        }
        Poll::Ready(piece.transpose())
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_end() || self.lease.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.left {
            Left::Length(left) => SizeHint::with_exact(*left),
            _ => SizeHint::default(),
        }
    }
}
