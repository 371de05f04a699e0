//! Distributed traces: each sidecar is a span of the trace that a caller's `traceparent` names, sent to a collector by
//! OTLP. Off by default; then the fields of callers pass as they came.
//!
//! - [`context`]: W3C Trace Context. Pure.
//! - [`otlp`]: the messages of OTLP that spans need.
//! - [`export`]: the one task that sends. Requests never wait for it: spans for which there is no room are dropped and
//!   counted.
//!
//! The spans are made by hand and not by a tracing library: a request that is not sampled costs its context and
//! nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::sync::mpsc;
use weft_core::metrics::Counter;

use super::access_log::Entry;
use super::metrics::{Direction, Metrics};
use context::{Incoming, TraceContext};

pub mod context;
pub mod export;
pub mod otlp;

/// Spans that wait to be sent; of about half a KiB each.
pub const SPANS_WAITING_MAX: usize = 4096;

/// Traces as they are configured.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceConfig {
    /// Collector that speaks OTLP over gRPC, such as `http://127.0.0.1:4317`.
    pub endpoint: http::Uri,
    /// Share of the traces that begin here which are sampled, in percent. Of others their callers have decided.
    pub sample_percent: f64,
}

/// A request's place in its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanIds {
    /// What is told to the next hop.
    pub context: TraceContext,
    /// The caller's span; none if the trace begins here.
    pub parent: Option<[u8; 8]>,
}

/// Decides which requests are sampled, and takes their spans. Shared by all workers.
#[derive(Debug)]
pub struct Tracer {
    /// Of random numbers, those below it are sampled.
    threshold: u64,
    spans: mpsc::Sender<otlp::Span>,
    dropped: Counter,
}

impl Tracer {
    /// With the queue that [`export::Exporter::run`] empties.
    pub fn new(config: &TraceConfig, metrics: &Metrics) -> (Arc<Self>, mpsc::Receiver<otlp::Span>) {
        let (spans, queue) = mpsc::channel(SPANS_WAITING_MAX);
        let share = (config.sample_percent / 100.0).clamp(0.0, 1.0);
        // A conversion to integers saturates: the whole is all.
        let threshold = (share * u64::MAX as f64) as u64;
        (Arc::new(Self { threshold, spans, dropped: metrics.spans_dropped.clone() }), queue)
    }

    /// Reads the caller's context, makes this hop's and writes it into the request. Answers it if its span is wanted.
    ///
    /// A caller's decision holds (parent-based sampling). A trace that nobody wants is passed on as it came; one that
    /// begins here and is not sampled is told to the next hop all the same, so that all decide alike.
    pub fn begin(&self, headers: &mut HeaderMap, random: impl FnMut() -> u64) -> Option<SpanIds> {
        let mut random = random;
        match context::read(headers) {
            Incoming::Valid(parent) if !parent.sampled => None,
            Incoming::Valid(parent) => {
                let context = TraceContext { span_id: context::span_id(&mut random), ..parent };
                context::write(headers, &context);
                Some(SpanIds { context, parent: Some(parent.span_id) })
            }
            Incoming::None => {
                let trace_id = context::trace_id(&mut random);
                let sampled = self.threshold == u64::MAX || random() < self.threshold;
                let context =
                    TraceContext { trace_id, span_id: context::span_id(&mut random), sampled, random: true };
                context::write(headers, &context);
                sampled.then_some(SpanIds { context, parent: None })
            }
        }
    }

    /// Takes the span of a request that is over. `now` is since the epoch.
    pub fn end(&self, ids: SpanIds, state: String, entry: &Entry, now: Duration) {
        if self.spans.try_send(span(ids, state, entry, now)).is_err() {
            self.dropped.inc();
        }
    }
}

/// The names are those of OpenTelemetry's semantic conventions for HTTP spans, and our own under `weft.`.
fn span(ids: SpanIds, state: String, e: &Entry, now: Duration) -> otlp::Span {
    use otlp::KeyValue as Kv;
    let mut attributes = vec![
        Kv::text("http.request.method", e.method.as_str()),
        Kv::text("url.path", e.path.split('?').next().unwrap_or_default()),
        Kv::text("server.address", host(&e.host)),
        Kv::text("client.address", &e.client.ip().to_string()),
        Kv::text("weft.direction", e.direction.as_str()),
    ];
    if let Some(status) = e.status {
        attributes.push(Kv::number("http.response.status_code", i64::from(status.as_u16())));
    }
    if let Some(endpoint) = e.endpoint {
        attributes.push(Kv::text("network.peer.address", &endpoint.ip().to_string()));
        attributes.push(Kv::number("network.peer.port", i64::from(endpoint.port())));
    }
    if e.tries > 1 {
        attributes.push(Kv::number("http.request.resend_count", i64::from(e.tries - 1)));
    }
    for (key, value) in [("weft.service", &e.service), ("weft.route", &e.route)] {
        if !value.is_empty() {
            attributes.push(Kv::text(key, value));
        }
    }
    let flags = e.flags.to_string();
    let (kind, failed) = match e.direction {
        Direction::Outbound => (otlp::CLIENT, e.status.is_none_or(|s| s.as_u16() >= 400)),
        Direction::Inbound => (otlp::SERVER, e.status.is_none_or(|s| s.is_server_error())),
    };
    if flags != "-" {
        attributes.push(Kv::text("weft.flags", &flags));
        if failed {
            attributes.push(Kv::text("error.type", &flags));
        }
    }
    let name =
        if e.service.is_empty() { e.method.to_string() } else { format!("{} {}", e.method, e.service) };
    let nanos = |t: Duration| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX);
    otlp::Span {
        trace_id: ids.context.trace_id.to_vec(),
        span_id: ids.context.span_id.to_vec(),
        trace_state: state,
        parent_span_id: ids.parent.map(|id| id.to_vec()).unwrap_or_default(),
        name,
        kind,
        start_time_unix_nano: nanos(now.saturating_sub(e.took)),
        end_time_unix_nano: nanos(now),
        attributes,
        status: failed.then(|| otlp::Status { message: String::new(), code: otlp::ERROR }),
        flags: u32::from(ids.context.flags()),
    }
}

/// Without its port.
fn host(authority: &str) -> &str {
    match authority.parse::<SocketAddr>() {
        Ok(_) => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
        Err(_) => authority.split(':').next().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
