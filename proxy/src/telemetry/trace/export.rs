//! The task that sends spans: in batches, one call at a time, over a connection that is made when it is needed.

use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;
use weft_core::backoff::Backoff;
use weft_core::metrics::Counter;

use super::otlp::{
    EXPORT, ExportRequest, ExportResponse, KeyValue, Resource, ResourceSpans, Scope, ScopeSpans, Span,
};
use crate::telemetry::metrics::Metrics;

/// Spans of one call.
const BATCH_MAX: usize = 512;
/// How long spans wait for others.
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// For one call, making the connection included (OTLP's default).
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls for one batch.
const TRIES_MAX: u32 = 4;
const RETRY_WAIT_BASE: Duration = Duration::from_millis(250);
const RETRY_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long a proxy that ends waits for what is left to be sent.
pub const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Who sends.
#[derive(Debug, Clone)]
pub struct Exporter {
    channel: Channel,
    resource: Resource,
    counts: Counts,
}

#[derive(Debug, Clone)]
struct Counts {
    exported: Counter,
    dropped: Counter,
    failed: Counter,
}

impl Exporter {
    /// For the process of this name. Call it within a runtime.
    ///
    /// # Errors
    /// If there is no such endpoint.
    pub fn new(
        endpoint: &http::Uri,
        name: &str,
        instance: &str,
        metrics: &Metrics,
    ) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(endpoint.to_string())?;
        let endpoint = endpoint.timeout(CALL_TIMEOUT).connect_timeout(CALL_TIMEOUT);
        let attributes = vec![
            KeyValue::text("service.name", name),
            KeyValue::text("service.instance.id", instance),
            KeyValue::text("telemetry.sdk.name", "weft"),
            KeyValue::text("telemetry.sdk.language", "rust"),
            KeyValue::text("telemetry.sdk.version", env!("CARGO_PKG_VERSION")),
        ];
        Ok(Self {
            channel: endpoint.connect_lazy(),
            resource: Resource { attributes },
            counts: Counts {
                exported: metrics.spans_exported.clone(),
                dropped: metrics.spans_dropped.clone(),
                failed: metrics.span_exports_failed.clone(),
            },
        })
    }

    /// Sends until the last [`super::Tracer`] is gone, and then what is left. Whoever waits for its end does so for
    /// [`END_TIMEOUT`]: a collector that hangs holds it up for longer.
    pub async fn run(self, mut queue: mpsc::Receiver<Span>) {
        let mut told = false;
        loop {
            let mut batch = Vec::with_capacity(BATCH_MAX);
            // Only waiting for the first one may take for ever.
            if queue.recv_many(&mut batch, BATCH_MAX).await == 0 {
                return;
            }
            let full = async {
                while batch.len() < BATCH_MAX {
                    let room = BATCH_MAX - batch.len();
                    if queue.recv_many(&mut batch, room).await == 0 {
                        return;
                    }
                }
            };
            // The time is over, or the batch is full, or there will be no more.
            let _ = tokio::time::timeout(BATCH_WAIT, full).await;
            match self.send(batch).await {
                Ok(()) => told = false,
                Err(code) if !told => {
                    tracing::warn!(?code, "the collector of traces takes no spans; they are dropped");
                    told = true;
                }
                Err(_) => {}
            }
        }
    }

    /// Counts what became of the spans.
    async fn send(&self, spans: Vec<Span>) -> Result<(), Code> {
        let count = spans.len() as u64;
        let scope = Scope { name: "weft-proxy".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let request = ExportRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans }],
            }],
        };
        let mut backoff = Backoff::new(RETRY_WAIT_BASE, RETRY_WAIT_MAX);
        let mut tries = 1;
        let code = loop {
            match self.call(request.clone()).await {
                Ok(rejected) => {
                    let rejected = rejected.min(count);
                    self.counts.exported.inc_by(count - rejected);
                    self.counts.dropped.inc_by(rejected);
                    return Ok(());
                }
                Err(code) if is_transient(code) && tries < TRIES_MAX => {
                    self.counts.failed.inc();
                    tries += 1;
                    tokio::time::sleep(backoff.next(fastrand::f64())).await;
                }
                Err(code) => break code,
            }
        };
        self.counts.failed.inc();
        self.counts.dropped.inc_by(count);
        Err(code)
    }

    /// One call. Answers how many spans the collector did not take.
    async fn call(&self, request: ExportRequest) -> Result<u64, Code> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client.ready().await.map_err(|_| Code::Unavailable)?;
        let codec = ProstCodec::<ExportRequest, ExportResponse>::default();
        let path = PathAndQuery::from_static(EXPORT);
        let answer =
            client.unary(Request::new(request), path, codec).await.map_err(|status| status.code())?;
        let partial = answer.into_inner().partial_success;
        Ok(partial.map_or(0, |p| u64::try_from(p.rejected_spans).unwrap_or(0)))
    }
}

/// After which OTLP lets a client try again (OTLP specification, "Failures").
fn is_transient(code: Code) -> bool {
    matches!(
        code,
        Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            | Code::ResourceExhausted
    )
}
