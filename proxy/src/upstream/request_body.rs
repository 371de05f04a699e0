//! The body of a forwarded request, as it streams from the client to an endpoint.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use super::replay::Replay;
use crate::limits::MIRROR_FRAMES_MAX;
use crate::listener::http1::body::{ClientBody, ClientBodyError};

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
    Streaming(ClientBody, Rc<Progress>, CleanTrailers),
    /// The same, with copies of its data for others.
    Copying(Box<Copying>),
    /// A copy of another.
    Copied(mpsc::Receiver<Bytes>),
    /// One that can be sent again.
    Replay(Replay),
}

/// A body of which others get copies. One that does not keep up gets no more of it.
#[derive(Debug)]
pub(crate) struct Copying {
    incoming: ClientBody,
    progress: Rc<Progress>,
    clean: CleanTrailers,
    copies: Vec<mpsc::Sender<Bytes>>,
}

/// Why a body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestBodyError {
    #[error(transparent)]
    Client(#[from] ClientBodyError),
    #[error("the mirror did not keep up, or the request broke off")]
    Behind,
}

impl RequestBody {
    pub fn new(incoming: ClientBody, clean: CleanTrailers) -> (Self, Option<Rc<Progress>>) {
        if incoming.is_end_stream() {
            return (Self::Empty, None);
        }
        let progress = Rc::new(Progress::default());
        (Self::Streaming(incoming, progress.clone(), clean), Some(progress))
    }

    /// A body with the data of this one, for another endpoint.
    pub fn copied(&mut self) -> Self {
        match std::mem::replace(self, Self::Empty) {
            Self::Streaming(incoming, progress, clean) => {
                let (copy, receiver) = mpsc::channel(MIRROR_FRAMES_MAX);
                *self = Self::Copying(Box::new(Copying { incoming, progress, clean, copies: vec![copy] }));
                Self::Copied(receiver)
            }
            Self::Copying(mut copying) => {
                let (copy, receiver) = mpsc::channel(MIRROR_FRAMES_MAX);
                copying.copies.push(copy);
                *self = Self::Copying(copying);
                Self::Copied(receiver)
            }
            Self::Empty | Self::Copied(_) | Self::Replay(_) => Self::Empty,
        }
    }

    /// Whether nothing of it is kept.
    pub fn is_sent_once(&self) -> bool {
        matches!(self, Self::Streaming(..) | Self::Copying(_) | Self::Copied(_))
    }

    /// Whether it comes piece by piece.
    pub fn streams(&self) -> bool {
        !matches!(self, Self::Empty)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let (incoming, progress, clean, copies) = match self.get_mut() {
            Self::Empty => return Poll::Ready(None),
            Self::Streaming(incoming, progress, clean) => (incoming, progress, clean, None),
            Self::Copying(c) => (&mut c.incoming, &mut c.progress, &mut c.clean, Some(&mut c.copies)),
            Self::Replay(replay) => return Pin::new(replay).poll_frame(cx),
            Self::Copied(receiver) => {
                // The end is said by an empty piece; without it, the copy is not whole.
                return Poll::Ready(match ready!(receiver.poll_recv(cx)) {
                    Some(data) if data.is_empty() => None,
                    Some(data) => Some(Ok(Frame::data(data))),
                    None => Some(Err(RequestBodyError::Behind)),
                });
            }
        };
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
        if let Some(copies) = copies {
            let data = frame.as_ref().and_then(|f| f.as_ref().ok()?.data_ref()).filter(|d| !d.is_empty());
            copies.retain(|copy| data.is_none_or(|data| copy.try_send(data.clone()).is_ok()));
            if progress.is_finished() {
                for copy in copies.drain(..) {
                    // One whose queue is full has not kept up.
                    let _ = copy.try_send(Bytes::new());
                }
            } else if progress.has_failed() {
                copies.clear();
            }
        }
        Poll::Ready(frame.map(|f| f.map_err(RequestBodyError::Client)))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Streaming(incoming, ..) => incoming.is_end_stream(),
            Self::Copying(copying) => copying.incoming.is_end_stream(),
            Self::Copied(_) => false,
            Self::Replay(replay) => replay.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Streaming(incoming, ..) => incoming.size_hint(),
            Self::Copying(copying) => copying.incoming.size_hint(),
            Self::Copied(_) => SizeHint::default(),
            Self::Replay(replay) => replay.size_hint(),
        }
    }
}
