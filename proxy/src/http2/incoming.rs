//! A body as it arrives on a stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

/// See the module. A stream that is reset before its end is a body that broke off, whatever the reset's reason: what has
/// come of it is not the whole (D02).
#[derive(Debug)]
pub(crate) struct Incoming {
    stream: RecvStream,
    /// Of what its Content-Length says, this has not come yet. h2 sees to it that it is true.
    left: Option<u64>,
    data_ended: bool,
}

impl Incoming {
    /// Of a message with these fields.
    pub fn new(stream: RecvStream, fields: &HeaderMap) -> Self {
        let length = || fields.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok();
        // An answer to HEAD has a length, and no body.
        let left = if stream.is_end_stream() { Some(0) } else { length() };
        Self { stream, left, data_ended: false }
    }

    /// The stream itself, of which nothing was read.
    pub fn into_stream(self) -> RecvStream {
        self.stream
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_ended {
            if let Some(data) = ready!(self.stream.poll_data(cx)?) {
                // Whoever asks for it has room for it. It fails only for a stream that is gone.
                let _ = self.stream.flow_control().release_capacity(data.len());
                if let Some(left) = &mut self.left {
                    *left = left.saturating_sub(data.len() as u64);
                }
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            self.data_ended = true;
        }
        let trailers = ready!(self.stream.poll_trailers(cx))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
