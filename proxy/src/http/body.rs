//! The body of an answer on its way to the client.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::forward::Exchange;

/// One of the proxy's own, or an endpoint's as it streams.
pub(crate) enum ResponseBody {
    Own(Option<Bytes>),
    Upstream { incoming: Incoming, exchange: Option<Box<Exchange>>, _in_flight: InFlight },
}

impl ResponseBody {
    pub fn text(text: String) -> Self {
        Self::Own(Some(text.into()))
    }

    /// Streams what an endpoint sends; the exchange ends with it.
    pub fn upstream(incoming: Incoming, exchange: Box<Exchange>, in_flight: InFlight) -> Self {
        if incoming.is_end_stream() {
            exchange.complete();
            return Self::Upstream { incoming, exchange: None, _in_flight: in_flight };
        }
        Self::Upstream { incoming, exchange: Some(exchange), _in_flight: in_flight }
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
                let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
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

/// Counts a request of one worker until its answer is gone.
pub(crate) struct InFlight(Rc<Cell<usize>>);

impl InFlight {
    pub fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(count.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
