//! The body of an answer, compressed as it streams. Memory holds the encoder and what one read gave; what the service
//! has sent is not held back when it pauses.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http_body::{Body, Frame};

use super::body::{BodyError, ResponseBody};

/// Fast: most of the gain for a part of the time.
const LEVEL: u32 = 3;

/// Compressed bytes that are sent on at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// See the module.
pub(crate) struct Compressing {
    inner: ResponseBody,
    encoder: Option<GzEncoder<Vec<u8>>>,
    /// The encoder holds data that has not come out.
    held: bool,
    trailers: Option<HeaderMap>,
}

impl Compressing {
    pub fn new(inner: ResponseBody) -> Self {
        let encoder = GzEncoder::new(Vec::new(), Compression::new(LEVEL));
        Self { inner, encoder: Some(encoder), held: false, trailers: None }
    }

    pub fn inner(&mut self) -> &mut ResponseBody {
        &mut self.inner
    }

    pub fn is_end_stream(&self) -> bool {
        self.encoder.is_none() && self.trailers.is_none()
    }

    pub fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let Some(encoder) = &mut self.encoder else {
                return Poll::Ready(self.trailers.take().map(|t| Ok(Frame::trailers(t))));
            };
            // Writing to a vector does not fail.
            match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Pending => {
                    if !std::mem::take(&mut self.held) {
                        return Poll::Pending;
                    }
                    let _ = encoder.flush();
                    return match taken(encoder) {
                        Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
                        None => Poll::Pending,
                    };
                }
                Poll::Ready(Some(Err(error))) => {
                    self.encoder = None;
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        let _ = encoder.write_all(&data);
                        self.held = true;
                        if encoder.get_ref().len() >= CHUNK_BYTES
                            && let Some(data) = taken(encoder)
                        {
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                    }
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
                Poll::Ready(None) => {
                    let rest = self.encoder.take().map(GzEncoder::finish);
                    if let Some(Ok(rest)) = rest {
                        return Poll::Ready(Some(Ok(Frame::data(rest.into()))));
                    }
                }
            }
        }
    }
}

fn taken(encoder: &mut GzEncoder<Vec<u8>>) -> Option<Bytes> {
    let data = std::mem::take(encoder.get_mut());
    (!data.is_empty()).then(|| data.into())
}
