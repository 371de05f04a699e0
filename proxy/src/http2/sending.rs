//! A body on its way into a stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

/// Why a body was not sent to its end.
#[derive(Debug)]
pub(crate) enum SendError<E> {
    /// It broke off, so that its message cannot be ended as a whole one.
    Body(E),
    /// The other side wants no more of it, or is gone.
    Stream(h2::Error),
}

impl<E> From<h2::Error> for SendError<E> {
    fn from(error: h2::Error) -> Self {
        Self::Stream(error)
    }
}

/// A body until h2 has all of it. It is asked for more only once what it gave last has found room in the windows, which is
/// what holds back whoever sends it. Dropped before its end, the stream is reset.
#[derive(Debug)]
pub(crate) struct Sending<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// What it gave last and there is no room for yet, and whether its end is behind it.
    waits: Option<(Bytes, bool)>,
    pieces: u64,
}

impl<B: Body<Data = Bytes> + Unpin> Sending<B> {
    pub fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, waits: None, pieces: 0 }
    }

    /// Sends what can be sent now.
    ///
    /// # Errors
    /// See [`SendError`]; the message is not complete then.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError<B::Error>>> {
        let sent = self.poll_pieces(cx);
        // While nothing is to be sent, this is how it is learnt that nobody wants it any more.
        if sent.is_pending()
            && let Poll::Ready(reset) = self.stream.poll_reset(cx)
        {
            return Poll::Ready(Err(SendError::Stream(reset.map_or_else(|error| error, h2::Error::from))));
        }
        sent
    }

    fn poll_pieces(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SendError<B::Error>>> {
        loop {
            if let Some((data, last)) = self.waits.take() {
                if !data.is_empty()
                    && let Poll::Pending = self.poll_room(cx)?
                {
                    self.waits = Some((data, last));
                    return Poll::Pending;
                }
                // All of it: what the windows do not take yet is one piece, and h2 keeps it.
                self.stream.send_data(data, last)?;
                self.pieces += 1;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
                self.stream.send_data(Bytes::new(), true)?;
                return Poll::Ready(Ok(()));
            };
            match frame.map_err(SendError::Body)?.into_data() {
                Ok(data) => {
                    if !data.is_empty() {
                        // Asked for when there is something to send: room that a silent body holds is missing to other
                        // streams. One byte is enough to be in turn.
                        self.stream.reserve_capacity(1);
                    }
                    self.waits = Some((data, self.body.is_end_stream()));
                }
                Err(frame) => {
                    let Ok(trailers) = frame.into_trailers() else { continue };
                    self.stream.send_trailers(trailers)?;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while self.stream.capacity() == 0 {
            // None: the stream has ended, which its reset tells more of.
            match ready!(self.stream.poll_capacity(cx)) {
                Some(room) => room?,
                None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
            };
        }
        Poll::Ready(Ok(()))
    }

    /// How many pieces have been sent, if another one waits for room: it is the other side that is waited for.
    pub fn held_up_at(&self) -> Option<u64> {
        self.waits.is_some().then_some(self.pieces)
    }

    /// Tells the other side that this is not the whole.
    pub fn break_off(&mut self, reason: Reason) {
        self.stream.send_reset(reason);
    }
}
