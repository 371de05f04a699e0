//! A body that is kept as it is read, so that it can be sent again.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

use super::request_body::{RequestBody, RequestBodyError};
use crate::limits::REPLAY_BYTES_MAX;

/// The body of a request with what was read of it. Once that is more than [`REPLAY_BYTES_MAX`] nothing is kept, and it goes
/// on as any other: to whom has had all of it so far.
#[derive(Debug)]
pub(crate) struct Kept {
    body: Box<RequestBody>,
    /// None: too much.
    pieces: Option<Vec<Bytes>>,
    bytes: usize,
    trailers: Option<HeaderMap>,
}

/// One sending of it; one at a time.
#[derive(Debug)]
pub(crate) struct Replay {
    kept: Rc<RefCell<Kept>>,
    /// Pieces of it that this one has given.
    given: usize,
    gave_trailers: bool,
}

/// Keeps a body.
pub(crate) fn keep(body: RequestBody) -> Rc<RefCell<Kept>> {
    let body = Box::new(body);
    Rc::new(RefCell::new(Kept { body, pieces: Some(Vec::new()), bytes: 0, trailers: None }))
}

impl Kept {
    /// Whether it can still be sent from its beginning.
    pub fn is_whole(&self) -> bool {
        self.pieces.is_some()
    }

    fn note(&mut self, data: &Bytes) {
        // What stands for a piece counts, so that many small ones are not kept for nothing.
        self.bytes += data.len() + size_of::<Bytes>();
        match &mut self.pieces {
            Some(pieces) if self.bytes <= REPLAY_BYTES_MAX => pieces.push(data.clone()),
            pieces => *pieces = None,
        }
    }
}

impl Replay {
    /// From its beginning. It is whole.
    pub fn new(kept: &Rc<RefCell<Kept>>) -> Self {
        debug_assert!(kept.borrow().is_whole(), "whoever sends it again has asked");
        Self { kept: kept.clone(), given: 0, gave_trailers: false }
    }
}

impl Body for Replay {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let this = &mut *self;
        let mut kept = this.kept.borrow_mut();
        if let Some(piece) = kept.pieces.as_ref().and_then(|pieces| pieces.get(this.given)) {
            this.given += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if let Some(trailers) = kept.trailers.clone() {
            let given = std::mem::replace(&mut this.gave_trailers, true);
            return Poll::Ready((!given).then(|| Ok(Frame::trailers(trailers))));
        }
        if kept.body.is_end_stream() {
            return Poll::Ready(None);
        }
        let Some(frame) = ready!(Pin::new(&mut *kept.body).poll_frame(cx)?) else { return Poll::Ready(None) };
        if let Some(data) = frame.data_ref() {
            kept.note(data);
            this.given += 1;
        } else if let Some(trailers) = frame.trailers_ref() {
            kept.trailers = Some(trailers.clone());
            this.gave_trailers = true;
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        let kept = self.kept.borrow();
        let given = kept.pieces.as_ref().is_none_or(|pieces| self.given == pieces.len());
        given && (kept.trailers.is_none() || self.gave_trailers) && kept.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let kept = self.kept.borrow();
        let again =
            kept.pieces.iter().flatten().skip(self.given).map(|piece| piece.len() as u64).sum::<u64>();
        kept.body
            .size_hint()
            .exact()
            .map_or_else(SizeHint::default, |left| SizeHint::with_exact(left + again))
    }
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker_ref;
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::*;

    /// Reads until nothing more comes, or so many pieces.
    fn read(replay: &mut Replay, at_most: usize) -> Vec<u8> {
        let (mut cx, mut all) = (Context::from_waker(noop_waker_ref()), Vec::new());
        for _ in 0..at_most {
            match Pin::new(&mut *replay).poll_frame(&mut cx) {
                Poll::Ready(Some(Ok(frame))) => all.extend_from_slice(&frame.into_data().unwrap()),
                _ => break,
            }
        }
        all
    }

    proptest! {
        /// D08: each sending is the same from its beginning, however far the last one came.
        #[test]
        fn every_sending_is_the_whole_body(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..20),
            tries in proptest::collection::vec(0usize..25, 0..5),
        ) {
            let (sender, receiver) = mpsc::channel(pieces.len() + 1);
            for piece in &pieces {
                sender.try_send(Bytes::from(piece.clone())).unwrap();
            }
            sender.try_send(Bytes::new()).unwrap();
            let kept = keep(RequestBody::Copied(receiver));
            for given in tries {
                let seen = read(&mut Replay::new(&kept), given);
                prop_assert_eq!(seen, pieces[..given.min(pieces.len())].concat());
            }
            prop_assert_eq!(read(&mut Replay::new(&kept), usize::MAX), pieces.concat());
        }
    }

    #[test]
    fn a_body_that_is_too_large_is_sent_once_to_its_end_and_not_kept() {
        let piece = Bytes::from(vec![b'x'; REPLAY_BYTES_MAX / 2]);
        let (sender, receiver) = mpsc::channel(4);
        for piece in [&piece, &piece, &piece, &Bytes::new()] {
            sender.try_send(piece.clone()).unwrap();
        }
        let kept = keep(RequestBody::Copied(receiver));
        let mut replay = Replay::new(&kept);
        assert_eq!(read(&mut replay, 1).len(), piece.len());
        assert!(kept.borrow().is_whole());
        assert_eq!(read(&mut replay, usize::MAX).len(), 2 * piece.len());
        assert!(!kept.borrow().is_whole() && kept.borrow().pieces.is_none());
    }
}
