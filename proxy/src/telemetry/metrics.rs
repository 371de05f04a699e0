//! What the data path counts. Handles are looked up by the first request to a cluster, and not again.
//!
//! Series are bounded: services in use times five classes, and times the flags that happened; no series per endpoint
//! (P36).

use std::sync::Arc;

use weft_core::metrics::{Counter, Counters, Gauge, Registry};

use super::answers::Answers;
use super::cluster_metrics::{ClusterFamilies, ClusterMetrics};
use super::flag::Flag;
use super::route_metrics::RouteFamilies;
use super::tunnels::TunnelMetrics;

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
    clusters: Arc<ClusterFamilies>,
    routes: Arc<RouteFamilies>,
    refused: Counters,
    /// Downstream connections open now.
    pub connections: Gauge,
    /// Downstream connections since start.
    pub connections_total: Counter,
    /// Times that a worker took none for a moment: the limit was reached, or there was no file descriptor.
    pub accept_pauses: Counter,
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
        let r = &registry;
        Self {
            clusters: Arc::new(ClusterFamilies::new(r)),
            routes: Arc::new(RouteFamilies::new(r)),
            refused: r.counters(
                "weft_proxy_refused_total",
                "Requests and connections ended for what their clients did, by kind",
                &["kind"],
            ),
            connections: r.gauge("weft_proxy_open_connections", "Downstream connections open now"),
            connections_total: r.counter("weft_proxy_connections_total", "Downstream connections accepted"),
            accept_pauses: r.counter(
                "weft_proxy_accept_pauses_total",
                "Times that a worker took no connections for 50 ms: --max-connections, or no file descriptor",
            ),
            spans_exported: r
                .counter("weft_proxy_spans_exported_total", "Spans that the collector of traces has taken"),
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

    /// Where others register theirs.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The text that Prometheus reads.
    pub fn encode(&self) -> String {
        self.registry.encode()
    }

    /// Handles for one cluster, whose series exist once they are used.
    pub fn cluster(&self, direction: Direction, service: &str) -> ClusterMetrics {
        ClusterMetrics::new(self.clusters.clone(), direction, service)
    }

    /// Connections that were on their way to no service.
    pub(crate) fn passed_through(&self) -> TunnelMetrics {
        self.clusters.tunnels.cluster(Direction::Outbound.as_str(), "")
    }

    /// Handles for one route.
    pub fn route(&self, name: &str) -> Answers {
        self.routes.route(name)
    }

    /// Forgets a cluster that is gone.
    pub fn forget(&self, direction: Direction, service: &str) {
        self.clusters.forget(direction, service);
    }

    /// Counts a malformed request.
    pub fn refused(&self, kind: &'static str) {
        self.refused.with(&[kind]).inc();
    }

    /// Counts what happened to a request; without a service if none was found for it. Such requests are rare, or
    /// answered at once.
    pub fn flagged(&self, direction: Direction, service: &str, flag: Flag) {
        self.clusters.flagged.with(&[direction.as_str(), service, flag.word()]).inc();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

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

    #[test]
    fn the_documentation_has_every_metric_with_its_kind_and_labels_and_no_others() {
        let metrics = Metrics::new(Registry::new());
        crate::telemetry::jwks_metrics::JwksMetrics::new(metrics.registry());
        let there_are = metrics.registry().described().into_iter().map(|metric| {
            let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            [format!("`{}`", metric.name), metric.kind.to_owned(), labels.join(", ")]
        });
        // Not the folder that this was built in: clones that share a build cache share its binaries.
        let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it for tests");
        let path = std::path::Path::new(&package).join("../docs/proxy-metrics.md");
        let text = std::fs::read_to_string(path).expect("the documentation is there");
        let rows = text.lines().filter_map(|line| line.strip_prefix("| `weft_proxy_"));
        let documented = rows.map(|row| {
            let mut cells = row.split('|').map(str::trim);
            let mut cell = || cells.next().unwrap_or_default().to_owned();
            [format!("`weft_proxy_{}", cell()), cell(), cell()]
        });
        let sorted = |mut all: Vec<[String; 3]>| {
            all.sort();
            all
        };
        assert_eq!(sorted(documented.collect()), sorted(there_are.collect()));
    }
}
