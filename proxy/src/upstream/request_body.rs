//! The body of a forwarded request, as it streams from the client to an endpoint.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

/// What the forwarding side wants to know of a body that it gave away.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    finished: Cell<bool>,
    failed: Cell<bool>,
    touched: Cell<bool>,
    waiting: Cell<bool>,
    frames: Cell<u64>,
}

impl Progress {
    /// The whole body has been read from the client.
    pub fn is_finished(&self) -> bool {
        self.finished.get()
    }

    /// The client's side broke: not the endpoint's fault.
    pub fn has_failed(&self) -> bool {
        self.failed.get()
    }

    /// Pieces read so far.
    pub fn frames(&self) -> u64 {
        self.frames.get()
    }

    /// The endpoint wants more, and the client has not sent it yet.
    pub fn waits_for_client(&self) -> bool {
        self.waiting.get()
    }

    /// Some of it was read, so the request cannot be sent again.
    pub fn is_touched(&self) -> bool {
        self.touched.get()
    }
}

/// Takes out of a trailer section what must not be passed on.
pub(crate) type CleanTrailers = fn(&mut HeaderMap);

/// See the module.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// Most requests.
    Empty,
    /// Streams; memory holds no more than what one read gave.
    Streaming(Incoming, Rc<Progress>, CleanTrailers),
}

impl RequestBody {
    pub fn new(incoming: Incoming, clean: CleanTrailers) -> (Self, Option<Rc<Progress>>) {
        if incoming.is_end_stream() {
            return (Self::Empty, None);
        }
        let progress = Rc::new(Progress::default());
        (Self::Streaming(incoming, progress.clone(), clean), Some(progress))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Self::Streaming(incoming, progress, clean) = self.get_mut() else { return Poll::Ready(None) };
        progress.touched.set(true);
        progress.waiting.set(true);
        let mut frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        progress.waiting.set(false);
        progress.frames.set(progress.frames.get() + 1);
        if let Some(trailers) = frame.as_mut().and_then(|f| f.as_mut().ok()?.trailers_mut()) {
            clean(trailers);
        }
        match &frame {
            Some(Err(_)) => progress.failed.set(true),
            None => progress.finished.set(true),
            Some(Ok(_)) if incoming.is_end_stream() => progress.finished.set(true),
            Some(Ok(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streaming(incoming, ..) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streaming(incoming, ..) => incoming.size_hint(),
        }
    }
}
