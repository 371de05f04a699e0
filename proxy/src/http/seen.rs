//! What is noted of a request on its way, for those who are told of it when its answer is over. There is none while
//! nobody is: then it costs a look at an option.

use std::cell::{Cell, OnceCell};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};

use super::body::{BodyError, ResponseBody};
use super::rescue::X_WEFT_ERROR;
use crate::telemetry::access_log::{AccessLog, Entry};
use crate::telemetry::flag::{Flag, Flags};
use crate::telemetry::metrics::Direction;
use crate::telemetry::tap::Taps;
use crate::telemetry::trace::{SpanIds, Tracer, context};

/// Who is told.
#[derive(Debug)]
pub(crate) struct Observers {
    pub log: Option<Arc<AccessLog>>,
    pub tracer: Option<Arc<Tracer>>,
    /// Who looks on at the moment.
    pub taps: Arc<Taps>,
    /// Requests with [`WEFT_TIMING`] are told what took how long.
    pub timing: bool,
}

/// A request that has it wants to know where its time went.
pub(crate) const WEFT_TIMING: HeaderName = HeaderName::from_static("weft-timing");

/// The answer to that (W3C Server Timing).
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

impl Observers {
    /// Tells log and lookers of something that ended just now.
    pub fn tell(&self, entry: &Entry) -> Duration {
        let now = since_epoch();
        if let Some(log) = &self.log {
            log.log(entry, now);
        }
        if self.taps.any() {
            self.taps.tell(entry, now);
        }
        now
    }

    /// Whether anybody wants to know of connections.
    pub fn any(&self) -> bool {
        self.log.is_some() || self.taps.any()
    }
}

/// One request. It is told when it is dropped: with the end of its answer, or with the client.
pub(crate) struct Seen {
    observers: Arc<Observers>,
    /// Its span, if the trace is sampled, and what others say of the trace.
    span: Option<(SpanIds, String)>,
    trace_id: String,
    started: Instant,
    direction: Direction,
    client: SocketAddr,
    method: Method,
    host: String,
    path: String,
    protocol: Version,
    status: Cell<Option<StatusCode>>,
    head: Cell<Option<Duration>>,
    flags: Cell<Flags>,
    bytes: Cell<u64>,
    service: OnceCell<String>,
    route: OnceCell<String>,
    endpoint: Cell<Option<SocketAddr>>,
    tries: Cell<u32>,
    /// Its client wants to know what took how long.
    timing: bool,
    /// When the last try began, and when it had its connection.
    picked: Cell<Option<Duration>>,
    sent: Cell<Option<Duration>>,
}

impl Seen {
    /// None if nobody wants to know of it. Writes this hop's trace context into the request, if there is tracing.
    pub fn new<B>(
        observers: &Arc<Observers>,
        direction: Direction,
        client: SocketAddr,
        request: &mut Request<B>,
    ) -> Option<Rc<Self>> {
        let headers = request.headers_mut();
        let begin = |tracer: &Arc<Tracer>| tracer.begin(headers, || fastrand::u64(..));
        let span = observers.tracer.as_ref().and_then(begin);
        let timing = observers.timing && request.headers().contains_key(WEFT_TIMING);
        if span.is_none() && observers.log.is_none() && !timing && !observers.taps.any() {
            return None;
        }
        let span = span.map(|ids| (ids, context::state_of(request.headers())));
        let uri = request.uri();
        let host = match uri.authority() {
            Some(authority) => authority.as_str(),
            None => request.headers().get(HOST).and_then(|v| v.to_str().ok()).unwrap_or_default(),
        };
        Some(Rc::new(Self {
            observers: observers.clone(),
            span,
            trace_id: context::trace_id_of(request.headers()),
            started: Instant::now(),
            direction,
            client,
            method: request.method().clone(),
            host: host.to_owned(),
            path: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
            protocol: request.version(),
            status: Cell::default(),
            head: Cell::default(),
            flags: Cell::default(),
            bytes: Cell::default(),
            service: OnceCell::new(),
            route: OnceCell::new(),
            endpoint: Cell::default(),
            tries: Cell::default(),
            timing,
            picked: Cell::default(),
            sent: Cell::default(),
        }))
    }

    /// Something happened to it.
    pub fn flag(&self, flag: Flag) {
        self.flags.set(self.flags.get().with(flag));
    }

    /// It goes to this service.
    pub fn service(&self, name: &str) {
        // Said once: a request has one service.
        let _ = self.service.set(name.to_owned());
    }

    /// It took this route.
    pub fn route(&self, name: &str) {
        let _ = self.route.set(name.to_owned());
    }

    /// It is sent to this endpoint now.
    pub fn tried(&self, endpoint: SocketAddr) {
        self.endpoint.set(Some(endpoint));
        self.tries.set(self.tries.get() + 1);
        self.picked.set(Some(self.started.elapsed()));
    }

    /// It has a connection there.
    pub fn sending(&self) {
        self.sent.set(Some(self.started.elapsed()));
    }

    /// What took how long until the head of the answer, for a client that asked: before the last try, for its connection,
    /// and until the endpoint answered. A sidecar further on has said the same of its own.
    pub fn timing(&self) -> Option<HeaderValue> {
        let head = self.head.get().filter(|_| self.timing)?;
        let millis = |t: Duration| t.as_secs_f64() * 1000.0;
        let mut text = format!("weft-{};dur={:.3}", self.direction.as_str(), millis(head));
        if let (Some(picked), Some(sent)) = (self.picked.get(), self.sent.get()) {
            let parts = [
                ("wait", picked),
                ("connect", sent.saturating_sub(picked)),
                ("endpoint", head.saturating_sub(sent)),
            ];
            for (name, took) in parts {
                text.push_str(&format!(", {name};dur={:.3}", millis(took)));
            }
            text.push_str(&format!(", tries;desc={}", self.tries.get()));
        }
        HeaderValue::try_from(text).ok()
    }

    /// The answer is this endpoint's.
    pub fn taken(&self, endpoint: SocketAddr) {
        self.endpoint.set(Some(endpoint));
    }

    /// There is an answer, whose body follows.
    pub fn answered(&self, status: StatusCode) {
        self.status.set(Some(status));
        self.head.set(Some(self.started.elapsed()));
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        if self.status.get().is_none() {
            self.flag(Flag::ClientGone);
        }
        let entry = Entry {
            direction: self.direction,
            client: self.client,
            method: std::mem::take(&mut self.method),
            host: std::mem::take(&mut self.host),
            path: std::mem::take(&mut self.path),
            protocol: Some(self.protocol),
            status: self.status.get(),
            flags: self.flags.get(),
            bytes: self.bytes.get(),
            took: self.started.elapsed(),
            head: self.head.get(),
            service: self.service.take().unwrap_or_default(),
            route: self.route.take().unwrap_or_default(),
            endpoint: self.endpoint.get(),
            tries: self.tries.get(),
            trace_id: std::mem::take(&mut self.trace_id),
        };
        let now = self.observers.tell(&entry);
        if let (Some(tracer), Some((ids, state))) = (&self.observers.tracer, self.span.take()) {
            tracer.end(ids, state, &entry, now);
        }
    }
}

/// The time stamps of logs and spans are those of the wall clock.
#[allow(clippy::disallowed_methods)]
fn since_epoch() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}

/// The body of an answer that is counted.
pub(crate) struct Observed {
    body: ResponseBody,
    seen: Rc<Seen>,
    ended: bool,
}

impl Observed {
    pub fn new(body: ResponseBody, seen: Rc<Seen>) -> Self {
        // Nobody reads the body of an answer to HEAD.
        let ended = body.is_end_stream() || seen.method == Method::HEAD;
        Self { body, seen, ended }
    }

    pub fn inner(&mut self) -> &mut ResponseBody {
        &mut self.body
    }

    pub fn poll_frame(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.seen.bytes.set(self.seen.bytes.get() + length);
                if let Some(word) = frame.trailers_ref().and_then(|t| t.get(&X_WEFT_ERROR)) {
                    let flags = [Flag::BodyLate, Flag::StreamIdle];
                    flags
                        .into_iter()
                        .filter(|flag| word == flag.word())
                        .for_each(|flag| self.seen.flag(flag));
                }
                self.ended = self.body.is_end_stream();
            }
            Poll::Ready(Some(Err(error))) => {
                self.seen.flag(error.flag());
                self.ended = true;
            }
            Poll::Ready(None) => self.ended = true,
            Poll::Pending => {}
        }
        polled
    }

    pub fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if !self.ended {
            self.seen.flag(Flag::ClientGone);
        }
    }
}
