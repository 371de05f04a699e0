//! The numbers on `/metrics`. What others own (raft, store, watches, gossip) is read at each scrape, by
//! the probes given to [`Telemetry::on_scrape`]; what happens by the request is counted as it happens.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Uri};
use parking_lot::{Mutex, RwLock};
use weft_core::metrics::{Counter, Counters, Gauge, Histogram, Histograms, OTHER, Registry, SECONDS_BUCKETS};

/// gRPC's code for success, as it is in a header.
const OK: &str = "0";

/// gRPC's code for a method that does not exist, as it is in a header.
const UNIMPLEMENTED: &str = "12";

/// Metrics of one server. Clones share them.
#[derive(Clone)]
pub struct Telemetry {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    http_requests: Counters,
    http_seconds: Histograms,
    grpc_seconds: Histograms,
    grpc_refused: Counters,
    /// Those of methods that exist, by path, so that a request costs one look-up.
    grpc_methods: RwLock<HashMap<String, Histogram>>,
    /// Run in order at each scrape. Held while they run, so that two scrapes do not count twice.
    probes: Mutex<Vec<Box<dyn Fn() + Send>>>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self::new()
    }
}

impl Telemetry {
    /// The counters of the HTTP port, and whatever is added.
    pub fn new() -> Self {
        let registry = Registry::new();
        let http_requests = registry.counters(
            "weft_http_requests",
            "Requests answered on the HTTP port, and by the JSON gateway on the gRPC port, by route and status",
            &["route", "status"],
        );
        let http_seconds = registry.histograms(
            "weft_http_request_duration_seconds",
            "Time from request head to response head, on the HTTP port and by the JSON gateway, by route",
            &SECONDS_BUCKETS,
            &["route"],
        );
        let grpc_seconds = registry.histograms(
            "weft_grpc_request_duration_seconds",
            "Time from request to the answer's head on the gRPC port, by method; of a stream, until it is open",
            &SECONDS_BUCKETS,
            &["method"],
        );
        let grpc_refused = registry.counters(
            "weft_grpc_requests_refused",
            "Requests on the gRPC port that were refused before an answer began, by gRPC code; 8 says that a limit was hit",
            &["code"],
        );
        let probes = Mutex::new(Vec::new());
        let grpc_methods = RwLock::default();
        Self {
            inner: Arc::new(Inner {
                registry,
                http_requests,
                http_seconds,
                grpc_seconds,
                grpc_refused,
                grpc_methods,
                probes,
            }),
        }
    }

    /// Where further metrics are registered.
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// Runs `probe` at each scrape, to set gauges from what it reads. It must not wait.
    pub fn on_scrape(&self, probe: impl Fn() + Send + 'static) {
        self.inner.probes.lock().push(Box::new(probe));
    }

    /// Forgets all probes, and with them whatever they keep alive.
    pub fn clear_probes(&self) {
        self.inner.probes.lock().clear();
    }

    /// One answered request.
    pub fn http_request(&self, route: &str, status: u16, took: Duration) {
        self.inner.http_requests.with(&[route, &status.to_string()]).inc();
        self.inner.http_seconds.with(&[route]).observe(took.as_secs_f64());
    }

    /// One request on the gRPC port. `known`: there is such a method; clients may name any.
    pub fn grpc_request(&self, path: &str, known: bool, took: Duration) {
        let method = if known { path } else { OTHER };
        let seconds = took.as_secs_f64();
        if let Some(histogram) = self.inner.grpc_methods.read().get(method) {
            return histogram.observe(seconds);
        }
        let histogram = self.inner.grpc_seconds.with(&[method.trim_start_matches('/')]);
        histogram.observe(seconds);
        self.inner.grpc_methods.write().insert(method.to_owned(), histogram);
    }

    /// One request on the gRPC port whose answer has begun.
    pub fn grpc_answer(&self, uri: &Uri, headers: &HeaderMap, took: Duration) {
        // A refusal has its status in its head, since no answer went before it.
        let status = headers.get("grpc-status").and_then(|status| status.to_str().ok());
        if let Some(code) = status.filter(|code| *code != OK) {
            self.inner.grpc_refused.with(&[code]).inc();
        }
        self.grpc_request(uri.path(), status != Some(UNIMPLEMENTED), took);
    }

    /// All metrics as text.
    pub fn scrape(&self) -> String {
        for probe in self.inner.probes.lock().iter() {
            probe();
        }
        self.inner.registry.encode()
    }
}

/// A gauge set from a number of any size.
pub fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// A counter brought up to a total that somebody else counts.
pub fn raise(counter: &Counter, total: u64) {
    counter.inc_by(total.saturating_sub(counter.get()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_route_and_status() {
        let telemetry = Telemetry::new();
        telemetry.http_request("/register", 400, Duration::from_millis(3));
        telemetry.http_request("/register", 400, Duration::from_millis(3));
        let text = telemetry.scrape();
        assert!(text.contains(r#"weft_http_requests_total{route="/register",status="400"} 2"#), "{text}");
        assert!(text.contains("# HELP weft_http_request_duration_seconds"), "{text}");
    }

    #[test]
    fn grpc_requests_are_counted_by_method_and_those_of_unknown_ones_together() {
        let telemetry = Telemetry::new();
        telemetry.grpc_request("/etcdserverpb.KV/Put", true, Duration::from_millis(3));
        telemetry.grpc_request("/etcdserverpb.KV/Put", true, Duration::from_millis(3));
        for i in 0..9 {
            telemetry.grpc_request(&format!("/no/{i}"), false, Duration::ZERO);
        }
        let text = telemetry.scrape();
        let count = |method: &str| format!("weft_grpc_request_duration_seconds_count{{method=\"{method}\"}}");
        assert!(text.contains(&format!("{} 2", count("etcdserverpb.KV/Put"))), "{text}");
        assert!(text.contains(&format!("{} 9", count("other"))), "{text}");
    }

    #[test]
    fn probes_run_at_each_scrape() {
        let telemetry = Telemetry::new();
        let counter = telemetry.registry().counter("weft_test_scrapes", "Scrapes");
        let probed = counter.clone();
        telemetry.on_scrape(move || raise(&probed, probed.get() + 1));
        telemetry.scrape();
        assert!(telemetry.scrape().contains("weft_test_scrapes_total 2"));
        telemetry.clear_probes();
        telemetry.scrape();
        assert_eq!(counter.get(), 2);
    }
}
