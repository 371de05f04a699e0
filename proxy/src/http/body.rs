//! The body of an answer on its way to the client.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::forward::Exchange;
use super::headers;
use crate::listener::connection::InFlight;

/// One of the proxy's own, or an endpoint's as it streams.
pub(crate) enum ResponseBody {
    Own(Option<Bytes>),
    Upstream { incoming: Incoming, exchange: Option<Box<Exchange>> },
}

impl ResponseBody {
    pub fn text(text: String) -> Self {
        Self::Own(Some(text.into()))
    }

    /// The request is in flight until the answer ends.
    pub fn hold(&mut self, in_flight: InFlight) {
        if let Self::Upstream { exchange: Some(exchange), .. } = self {
            exchange.hold(in_flight);
        }
    }

    /// Streams what an endpoint sends; the exchange ends with it.
    pub fn upstream(incoming: Incoming, exchange: Box<Exchange>) -> Self {
        if incoming.is_end_stream() {
            exchange.complete();
            return Self::Upstream { incoming, exchange: None };
        }
        Self::Upstream { incoming, exchange: Some(exchange) }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Upstream { incoming, exchange, .. } => {
                let mut frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
                if let Some(trailers) = frame.as_mut().and_then(|f| f.as_mut().ok()?.trailers_mut()) {
                    headers::strip_trailers(trailers);
                }
                match &frame {
                    Some(Err(_)) => {
                        if let Some(exchange) = exchange.take() {
                            exchange.broke_off();
                        }
                    }
                    Some(Ok(_)) if !incoming.is_end_stream() => {}
                    _ => {
                        if let Some(exchange) = exchange.take() {
                            exchange.complete();
                        }
                    }
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Upstream { incoming, .. } => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Upstream { incoming, .. } => incoming.size_hint(),
        }
    }
}
