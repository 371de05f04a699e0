//! The body of an answer on its way to the client.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::cached::Storing;
use super::compress::Compressing;
use super::forward::Exchange;
use super::rescue::X_WEFT_ERROR;
use super::seen::{Observed, Seen};
use super::{grpc_status, headers};
use crate::listener::connection::InFlight;
use crate::tcp::far_end::FarEnd;
use crate::telemetry::flag::Flag;
use crate::upstream::answer::{AnswerBody, UpstreamError};

/// One of the proxy's own, or an endpoint's as it streams.
pub(crate) enum ResponseBody {
    Own(Option<Bytes>),
    Upstream {
        incoming: AnswerBody,
        exchange: Option<Box<Exchange>>,
        /// When it is cut off.
        until: Option<Box<Until>>,
    },
    Compressed(Box<Compressing>),
    Storing(Box<Storing>),
    /// None: the answer ends HTTP on the connection, which leads there from then on.
    Switched(Option<Box<FarEnd>>),
    Observed(Box<Observed>),
}

/// The time that an answer has.
pub(crate) struct Until {
    /// For all of it.
    end: Option<Instant>,
    /// For the next piece of it, from when it is asked for: a client that takes nothing says nothing of the endpoint.
    idle: Option<Duration>,
    asked: Option<Instant>,
    sleep: Pin<Box<Sleep>>,
    /// Its caller takes the end of the time for an answer, if it is said in words of gRPC.
    grpc: bool,
}

impl Until {
    fn new(end: Option<Instant>, idle: Option<Duration>, grpc: bool) -> Self {
        let first = end.into_iter().chain(idle.map(|idle| Instant::now() + idle)).min();
        let sleep = Box::pin(tokio::time::sleep_until(first.unwrap_or_else(Instant::now)));
        Self { end, idle, asked: None, sleep, grpc }
    }

    /// Ready, with the reason, when nothing more is waited for. Its timer is not set anew for each piece: it goes off early,
    /// and then for what is left.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let asked = *self.asked.get_or_insert_with(Instant::now);
        let idle = self.idle.map(|idle| asked + idle);
        let Some(over) = idle.into_iter().chain(self.end).min() else { return Poll::Pending };
        if self.sleep.deadline() > over {
            self.sleep.as_mut().reset(over);
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            if Instant::now() >= over {
                let idle = self.idle.filter(|_| idle == Some(over));
                return Poll::Ready(idle.map_or(BodyError::Late, BodyError::Idle));
            }
            self.sleep.as_mut().reset(over);
        }
    }
}

/// Why an answer broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("the answer was not complete within the time of its route")]
    Late,
    #[error("nothing more of the answer came for {0:?}")]
    Idle(Duration),
}

impl BodyError {
    /// In one word.
    pub fn flag(&self) -> Flag {
        match self {
            Self::Upstream(_) => Flag::UpstreamReset,
            Self::Late => Flag::BodyLate,
            Self::Idle(_) => Flag::StreamIdle,
        }
    }
}

impl ResponseBody {
    pub fn text(text: String) -> Self {
        Self::Own(Some(text.into()))
    }

    /// The request is in flight until the answer ends.
    pub fn hold(&mut self, in_flight: InFlight) {
        match self {
            Self::Upstream { exchange: Some(exchange), .. } => exchange.hold(in_flight),
            Self::Compressed(compressing) => compressing.inner().hold(in_flight),
            Self::Storing(storing) => storing.inner().hold(in_flight),
            Self::Switched(Some(far_end)) => far_end.counted.hold(in_flight),
            Self::Observed(observed) => observed.inner().hold(in_flight),
            Self::Own(_) | Self::Upstream { .. } | Self::Switched(None) => {}
        }
    }

    /// Where the connection leads after this answer, if it ends HTTP there.
    pub fn take_far_end(&mut self) -> Option<Box<FarEnd>> {
        match self {
            Self::Switched(far_end) => far_end.take(),
            _ => None,
        }
    }

    /// Streams what an endpoint sends; the exchange ends with it.
    pub fn upstream(incoming: AnswerBody, exchange: Box<Exchange>) -> Self {
        if incoming.is_end_stream() {
            exchange.complete();
            return Self::Upstream { incoming, exchange: None, until: None };
        }
        Self::Upstream { incoming, exchange: Some(exchange), until: None }
    }

    /// Tells what becomes of it.
    pub fn observed(self, seen: Rc<Seen>) -> Self {
        Self::Observed(Box::new(Observed::new(self, seen)))
    }

    /// Cuts an endpoint's answer off at its end, or when nothing of it comes for so long; one of gRPC gets a status for it.
    pub fn limit(&mut self, end: Option<Instant>, idle: Option<Duration>, grpc: bool) {
        if let Self::Upstream { exchange: Some(_), until, .. } = self
            && (end.is_some() || idle.is_some())
        {
            *until = Some(Box::new(Until::new(end, idle, grpc)));
        }
    }
}

/// The trailers of an answer of gRPC that is cut off.
fn cut_off(why: &BodyError) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    let code = match why {
        BodyError::Late => grpc_status::DEADLINE_EXCEEDED,
        BodyError::Idle(_) | BodyError::Upstream(_) => grpc_status::UNAVAILABLE,
    };
    grpc_status::set(&mut trailers, code, &why.to_string());
    trailers.insert(X_WEFT_ERROR, HeaderValue::from_static(why.flag().word()));
    trailers
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        match this {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            Self::Compressed(compressing) => compressing.poll_frame(cx),
            Self::Storing(storing) => storing.poll_frame(cx),
            Self::Switched(_) => Poll::Ready(None),
            Self::Observed(observed) => observed.poll_frame(cx),
            Self::Upstream { incoming, exchange, until } => {
                let Poll::Ready(mut frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
                    let Some(limits) = until else { return Poll::Pending };
                    let why = ready!(limits.poll_over(cx));
                    let grpc = limits.grpc;
                    *until = None;
                    if let Some(exchange) = exchange.take() {
                        exchange.broke_off(why.flag());
                    }
                    if grpc {
                        *this = Self::Own(None);
                        return Poll::Ready(Some(Ok(Frame::trailers(cut_off(&why)))));
                    }
                    return Poll::Ready(Some(Err(why)));
                };
                if let Some(limits) = until {
                    limits.asked = None;
                }
                if let Some(trailers) = frame.as_mut().and_then(|f| f.as_mut().ok()?.trailers_mut()) {
                    headers::strip_trailers(trailers);
                }
                match &frame {
                    Some(Err(_)) => {
                        if let Some(exchange) = exchange.take() {
                            exchange.broke_off(Flag::UpstreamReset);
                        }
                    }
                    Some(Ok(_)) if !incoming.is_end_stream() => {}
                    _ => {
                        if let Some(exchange) = exchange.take() {
                            exchange.complete();
                        }
                    }
                }
                Poll::Ready(frame.map(|f| f.map_err(BodyError::Upstream)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Upstream { incoming, .. } => incoming.is_end_stream(),
            Self::Compressed(compressing) => compressing.is_end_stream(),
            Self::Storing(storing) => storing.body().is_end_stream(),
            Self::Switched(_) => true,
            Self::Observed(observed) => observed.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Upstream { incoming, .. } => incoming.size_hint(),
            Self::Compressed(_) => SizeHint::default(),
            Self::Switched(_) => SizeHint::with_exact(0),
            Self::Storing(storing) => storing.body().size_hint(),
            Self::Observed(observed) => observed.size_hint(),
        }
    }
}
