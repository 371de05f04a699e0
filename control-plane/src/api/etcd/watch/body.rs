//! The body of a watch's answer: the frames of its session, and how it ended.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame};
use tonic::Status;

use super::frames::Frames;
use super::session::Session;

/// Asks its session for more whenever HTTP/2 has room for more.
pub struct WatchBody {
    /// None once it has ended.
    session: Option<Box<Session>>,
    /// What the session said and was not taken yet.
    frames: Frames,
    ended: Option<Status>,
}

impl WatchBody {
    pub fn new(session: Session) -> Self {
        WatchBody { session: Some(Box::new(session)), frames: Frames::default(), ended: None }
    }
}

impl Body for WatchBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        loop {
            if let Some(chunk) = this.frames.pop() {
                return Poll::Ready(Some(Ok(Frame::data(chunk))));
            }
            if let Some(status) = this.ended.take() {
                let mut trailers = HeaderMap::new();
                // Fails only for a status with metadata that is no header, and ours have none.
                return Poll::Ready(Some(
                    status.add_header(&mut trailers).map(|()| Frame::trailers(trailers)),
                ));
            }
            let Some(session) = &mut this.session else { return Poll::Ready(None) };
            match session.poll(cx, &mut this.frames) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {}
                Poll::Ready(Some(status)) => {
                    this.ended = Some(status);
                    this.session = None; // closes the watchers
                }
            }
        }
    }
}
