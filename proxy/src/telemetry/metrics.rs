//! What the data path counts. Handles are looked up when a cluster appears, never by a request.
//!
//! Series are bounded: services in use times five classes, and times the flags that happened; no series per endpoint
//! (P36).

use std::time::Duration;

use http::StatusCode;

use weft_core::metrics::{
    Counter, Counters, Gauge, Gauges, Histogram, Histograms, Registry, SECONDS_BUCKETS,
};

use super::flag::Flag;
use super::tunnels::{TunnelFamilies, TunnelMetrics};

/// Which way a request passes the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the local app to a service.
    Outbound,
    /// From a peer to the local app.
    Inbound,
}

impl Direction {
    /// As label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// All metrics of a proxy.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    requests: Counters,
    seconds: Histograms,
    retries: Counters,
    ejections: Counters,
    connects: Counters,
    connect_failures: Counters,
    overflows: Counters,
    endpoints: Gauges,
    tunnels: TunnelFamilies,
    refused: Counters,
    flagged: Counters,
    /// Downstream connections open now.
    pub connections: Gauge,
    /// Downstream connections since start.
    pub connections_total: Counter,
    /// Spans that a collector has taken.
    pub spans_exported: Counter,
    /// Spans that were lost.
    pub spans_dropped: Counter,
    /// Calls to the collector that failed.
    pub span_exports_failed: Counter,
    /// Lines of the access log for which there was no room.
    pub log_lines_dropped: Counter,
    /// Copies for mirrors that were not made.
    pub mirrors_dropped: Counter,
    /// Active checks done.
    pub checks: Counter,
    /// Active checks failed.
    pub checks_failed: Counter,
}

impl Metrics {
    /// Registers all of them.
    pub fn new(registry: Registry) -> Self {
        let by_service: &[&'static str] = &["direction", "service"];
        let r = &registry;
        Self {
            requests: r.counters(
                "weft_proxy_requests_total",
                "Requests answered, by class of the answer's status",
                &["direction", "service", "class"],
            ),
            seconds: r.histograms(
                "weft_proxy_request_duration_seconds",
                "From a request's head to the head of its answer",
                &SECONDS_BUCKETS,
                by_service,
            ),
            retries: r.counters("weft_proxy_retries_total", "Further tries of a request", by_service),
            ejections: r.counters(
                "weft_proxy_ejections_total",
                "Endpoints left out for failing requests",
                by_service,
            ),
            connects: r.counters(
                "weft_proxy_upstream_connects_total",
                "Connections made to endpoints",
                by_service,
            ),
            connect_failures: r.counters(
                "weft_proxy_upstream_connect_failures_total",
                "Connections to endpoints that failed",
                by_service,
            ),
            overflows: r.counters(
                "weft_proxy_overflows_total",
                "Requests and retries refused by a cluster's circuit breaker, by what was full",
                &["direction", "service", "kind"],
            ),
            endpoints: r.gauges(
                "weft_proxy_endpoints",
                "Endpoints of a cluster, all and those in rotation",
                &["direction", "service", "kind"],
            ),
            tunnels: TunnelFamilies::new(r),
            refused: r.counters("weft_proxy_refused_total", "Malformed requests refused, by kind", &["kind"]),
            flagged: r.counters(
                "weft_proxy_flagged_requests_total",
                "Requests that the proxy answered itself, or that something happened to, by what; no service if none was found",
                &["direction", "service", "flag"],
            ),
            connections: r.gauge("weft_proxy_open_connections", "Downstream connections open now"),
            connections_total: r.counter("weft_proxy_connections_total", "Downstream connections accepted"),
            spans_exported: r.counter("weft_proxy_spans_exported_total", "Spans that the collector of traces has taken"),
            spans_dropped: r.counter(
                "weft_proxy_spans_dropped_total",
                "Spans that were lost: too many waited, or the collector took them not",
            ),
            span_exports_failed: r.counter(
                "weft_proxy_span_exports_failed_total",
                "Calls to the collector of traces that failed; some are tried again",
            ),
            log_lines_dropped: r.counter(
                "weft_proxy_access_log_lines_dropped_total",
                "Lines of the access log that were not written, because the disk or the reader is too slow",
            ),
            mirrors_dropped: r.counter(
                "weft_proxy_mirrors_dropped_total",
                "Copies of requests that were not made, because too many are under way",
            ),
            checks: r.counter("weft_proxy_health_checks_total", "Active checks of endpoints"),
            checks_failed: r
                .counter("weft_proxy_health_check_failures_total", "Active checks of endpoints that failed"),
            registry,
        }
    }

    /// The text that Prometheus reads.
    pub fn encode(&self) -> String {
        self.registry.encode()
    }

    /// Handles for one cluster.
    pub fn cluster(&self, direction: Direction, service: &str) -> ClusterMetrics {
        let labels = [direction.as_str(), service];
        ClusterMetrics {
            classes: CLASSES.map(|class| self.requests.with(&[direction.as_str(), service, class])),
            seconds: self.seconds.with(&labels),
            retries: self.retries.with(&labels),
            ejections: self.ejections.with(&labels),
            connects: self.connects.with(&labels),
            connect_failures: self.connect_failures.with(&labels),
            flagged: (self.flagged.clone(), direction, service.to_owned()),
            overflows: {
                let [requests, pending, wait, retries, adaptive] =
                    OVERFLOWS.map(|kind| self.overflows.with(&[direction.as_str(), service, kind]));
                Overflows { requests, pending, wait, retries, adaptive }
            },
            tunnels: self.tunnels.cluster(direction.as_str(), service),
            endpoints: self.endpoints.with(&[direction.as_str(), service, "all"]),
            usable: self.endpoints.with(&[direction.as_str(), service, "usable"]),
        }
    }

    /// Connections that were on their way to no service.
    pub(crate) fn passed_through(&self) -> TunnelMetrics {
        self.tunnels.cluster(Direction::Outbound.as_str(), "")
    }

    /// Forgets a cluster that is gone.
    pub fn forget(&self, direction: Direction, service: &str) {
        let labels = [direction.as_str(), service];
        for class in CLASSES {
            self.requests.remove(&[direction.as_str(), service, class]);
        }
        self.seconds.remove(&labels);
        self.tunnels.forget(direction.as_str(), service);
        for family in [&self.retries, &self.ejections, &self.connects, &self.connect_failures] {
            family.remove(&labels);
        }
        for kind in OVERFLOWS {
            self.overflows.remove(&[direction.as_str(), service, kind]);
        }
        for flag in Flag::ALL {
            self.flagged.remove(&[direction.as_str(), service, flag.word()]);
        }
        for kind in ["all", "usable"] {
            self.endpoints.remove(&[direction.as_str(), service, kind]);
        }
    }

    /// Counts a malformed request.
    pub fn refused(&self, kind: &'static str) {
        self.refused.with(&[kind]).inc();
    }

    /// Counts what happened to a request; without a service if none was found for it. Such requests are rare, or
    /// answered at once.
    pub fn flagged(&self, direction: Direction, service: &str, flag: Flag) {
        self.flagged.with(&[direction.as_str(), service, flag.word()]).inc();
    }
}

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// What can be full, as labels.
const OVERFLOWS: [&str; 5] = ["requests", "pending", "wait", "retries", "adaptive"];

/// What a cluster's circuit breaker refused.
#[derive(Debug, Clone)]
pub struct Overflows {
    /// Too many requests under way.
    pub requests: Counter,
    /// Too many wait for a connection.
    pub pending: Counter,
    /// No connection became free in time.
    pub wait: Counter,
    /// Repetitions beyond the budget.
    pub retries: Counter,
    /// More requests than the service bears at present.
    pub adaptive: Counter,
}

/// Handles of one cluster.
#[derive(Debug, Clone)]
pub struct ClusterMetrics {
    classes: [Counter; 5],
    seconds: Histogram,
    /// Further tries of a request.
    pub retries: Counter,
    /// Endpoints ejected.
    pub ejections: Counter,
    /// Connections made.
    pub connects: Counter,
    /// Connections that failed.
    pub connect_failures: Counter,
    /// Refused by the circuit breaker.
    pub overflows: Overflows,
    /// Tunnels.
    pub tunnels: TunnelMetrics,
    /// Looked up when it is used: most flags never are.
    flagged: (Counters, Direction, String),
    /// Endpoints known.
    pub endpoints: Gauge,
    /// Endpoints in rotation.
    pub usable: Gauge,
}

impl ClusterMetrics {
    /// Counts for nobody, in tests.
    pub fn detached() -> Self {
        Metrics::new(Registry::new()).cluster(Direction::Outbound, "detached")
    }

    /// Counts what happened to a request.
    pub fn flagged(&self, flag: Flag) {
        let (counters, direction, service) = &self.flagged;
        counters.with(&[direction.as_str(), service, flag.word()]).inc();
    }

    /// Counts an answer.
    pub fn answered(&self, status: StatusCode, took: Duration) {
        let class = usize::from(status.as_u16() / 100).clamp(1, CLASSES.len());
        self.classes[class - 1].inc();
        self.seconds.observe(took.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_class_and_forgotten_with_their_cluster() {
        let metrics = Metrics::new(Registry::new());
        let hello = metrics.cluster(Direction::Outbound, "hello");
        hello.answered(StatusCode::OK, Duration::from_millis(3));
        hello.answered(StatusCode::BAD_GATEWAY, Duration::from_millis(3));
        hello.flagged(Flag::Overflow);
        let text = metrics.encode();
        let line = "weft_proxy_requests_total{direction=\"outbound\",service=\"hello\",class=\"5xx\"} 1";
        assert!(text.contains(line), "{text}");
        metrics.forget(Direction::Outbound, "hello");
        assert!(!metrics.encode().contains("hello"));
    }
}
