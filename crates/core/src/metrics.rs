//! Metrics as Prometheus reads them. A handle is shared state behind an `Arc`: clone it freely, update it anywhere.
//!
//! Names are `weft_<area>_<noun>_<unit>`; the `_total` of counters is added here if the caller did not write it.
//! Registering a name a second time gives the same handle, so two parts of one process may share a metric.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::encoding::text;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::{counter, gauge, histogram};
use prometheus_client::registry;

use crate::limits::METRIC_SERIES_MAX;

/// `Content-Type` of [`Registry::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Buckets for times in seconds, from 0.5 ms to 10 s.
pub const SECONDS_BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Value that stands for all label values beyond [`METRIC_SERIES_MAX`].
pub const OTHER: &str = "other";

/// A count that only grows.
#[derive(Debug, Clone, Default)]
pub struct Counter(counter::Counter);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.0.inc();
    }

    /// Adds `n`.
    pub fn inc_by(&self, n: u64) {
        self.0.inc_by(n);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// A number that goes up and down.
#[derive(Debug, Clone, Default)]
pub struct Gauge(gauge::Gauge);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.set(value);
    }

    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.inc_by(n);
    }

    /// Adds one.
    pub fn inc(&self) {
        self.0.inc();
    }

    /// Subtracts one.
    pub fn dec(&self) {
        self.0.dec();
    }

    /// The number.
    pub fn get(&self) -> i64 {
        self.0.get()
    }
}

/// A distribution over fixed buckets.
#[derive(Debug, Clone)]
pub struct Histogram(histogram::Histogram);

impl Histogram {
    /// Counts one value.
    pub fn observe(&self, value: f64) {
        self.0.observe(value);
    }
}

type Labels = Vec<(&'static str, String)>;

/// Metrics of one name, told apart by the values of fixed labels.
#[derive(Debug)]
pub struct Labelled<M, C> {
    names: Arc<[&'static str]>,
    family: Family<Labels, M, C>,
    /// Number of label combinations made so far; guards [`METRIC_SERIES_MAX`].
    series: Arc<Mutex<usize>>,
}

impl<M, C: Clone> Clone for Labelled<M, C> {
    fn clone(&self) -> Self {
        Self { names: self.names.clone(), family: self.family.clone(), series: self.series.clone() }
    }
}

impl<M: Clone, C: MetricConstructor<M>> Labelled<M, C> {
    fn new(names: &[&'static str], constructor: C) -> Self {
        Self {
            names: names.into(),
            family: Family::new_with_constructor(constructor),
            series: Arc::default(),
        }
    }

    fn metric(&self, values: &[&str]) -> M {
        debug_assert_eq!(values.len(), self.names.len(), "one value a label");
        let labels = self.labels(values);
        // Each read ends before the next write: the family's lock is not reentrant.
        let known = self.family.get(&labels).map(|metric| metric.clone());
        if let Some(metric) = known {
            return metric;
        }
        let mut series = self.series.lock();
        if *series >= METRIC_SERIES_MAX {
            return self.family.get_or_create_owned(&self.labels(&vec![OTHER; self.names.len()]));
        }
        *series += 1;
        self.family.get_or_create_owned(&labels)
    }

    /// Forgets one combination, such as that of a member that is gone. Handles to it keep working unseen.
    pub fn remove(&self, values: &[&str]) {
        let mut series = self.series.lock();
        if self.family.remove(&self.labels(values)) {
            *series = series.saturating_sub(1);
        }
    }

    fn labels(&self, values: &[&str]) -> Labels {
        let values = values.iter().map(|v| (*v).to_owned());
        self.names.iter().copied().zip(values).collect()
    }
}

/// Counters told apart by labels.
pub type Counters = Labelled<counter::Counter, fn() -> counter::Counter>;
/// Gauges told apart by labels.
pub type Gauges = Labelled<gauge::Gauge, fn() -> gauge::Gauge>;
/// Histograms told apart by labels.
pub type Histograms = Labelled<histogram::Histogram, NewHistogram>;

impl Counters {
    /// The counter for these label values, in the order of the names. Keep the handle on a hot path.
    pub fn with(&self, values: &[&str]) -> Counter {
        Counter(self.metric(values))
    }
}

impl Gauges {
    /// The gauge for these label values, in the order of the names. Keep the handle on a hot path.
    pub fn with(&self, values: &[&str]) -> Gauge {
        Gauge(self.metric(values))
    }
}

impl Histograms {
    /// The histogram for these label values, in the order of the names. Keep the handle on a hot path.
    pub fn with(&self, values: &[&str]) -> Histogram {
        Histogram(self.metric(values))
    }
}

/// Makes histograms with the same buckets.
#[derive(Debug, Clone)]
pub struct NewHistogram(Arc<[f64]>);

impl MetricConstructor<histogram::Histogram> for NewHistogram {
    fn new_metric(&self) -> histogram::Histogram {
        histogram::Histogram::new(self.0.iter().copied())
    }
}

/// All metrics of a process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    registry: registry::Registry,
    known: HashMap<String, Known>,
    helps: BTreeMap<String, String>,
}

/// What a metric is, without its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// As it is scraped: counters with `_total`.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Names of its labels.
    pub labels: Vec<&'static str>,
    /// What it tells.
    pub help: String,
}

#[derive(Debug, Clone)]
enum Known {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
    Counters(Counters),
    Gauges(Gauges),
    Histograms(Histograms),
}

impl Known {
    fn kind(&self) -> &'static str {
        match self {
            Known::Counter(_) | Known::Counters(_) => "counter",
            Known::Gauge(_) | Known::Gauges(_) => "gauge",
            Known::Histogram(_) | Known::Histograms(_) => "histogram",
        }
    }

    fn labels(&self) -> &[&'static str] {
        match self {
            Known::Counter(_) | Known::Gauge(_) | Known::Histogram(_) => &[],
            Known::Counters(m) => &m.names,
            Known::Gauges(m) => &m.names,
            Known::Histograms(m) => &m.names,
        }
    }
}

impl Registry {
    /// Empty.
    pub fn new() -> Self {
        Self::default()
    }

    /// A count that only grows.
    pub fn counter(&self, name: &str, help: &str) -> Counter {
        self.add_counter(name, help, &Counter::default())
    }

    /// As [`Self::counter`], for a handle that exists already. Returns the one that the name now stands for.
    pub fn add_counter(&self, name: &str, help: &str, metric: &Counter) -> Counter {
        match self.add(bare(name), help, Known::Counter(metric.clone())) {
            Known::Counter(c) => c,
            _ => metric.clone(),
        }
    }

    /// A number that goes up and down.
    pub fn gauge(&self, name: &str, help: &str) -> Gauge {
        self.add_gauge(name, help, &Gauge::default())
    }

    /// As [`Self::gauge`], for a handle that exists already. Returns the one that the name now stands for.
    pub fn add_gauge(&self, name: &str, help: &str, metric: &Gauge) -> Gauge {
        match self.add(name, help, Known::Gauge(metric.clone())) {
            Known::Gauge(g) => g,
            _ => metric.clone(),
        }
    }

    /// A distribution over `buckets` (upper ends, ascending), such as [`SECONDS_BUCKETS`].
    pub fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let metric = Histogram(NewHistogram(buckets.into()).new_metric());
        match self.add(name, help, Known::Histogram(metric.clone())) {
            Known::Histogram(h) => h,
            _ => metric,
        }
    }

    /// Counters told apart by labels.
    pub fn counters(&self, name: &str, help: &str, labels: &[&'static str]) -> Counters {
        let metric = Counters::new(labels, counter::Counter::default);
        match self.add(bare(name), help, Known::Counters(metric.clone())) {
            Known::Counters(c) => c,
            _ => metric,
        }
    }

    /// Gauges told apart by labels.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&'static str]) -> Gauges {
        let metric = Gauges::new(labels, gauge::Gauge::default);
        match self.add(name, help, Known::Gauges(metric.clone())) {
            Known::Gauges(g) => g,
            _ => metric,
        }
    }

    /// Histograms told apart by labels.
    pub fn histograms(&self, name: &str, help: &str, buckets: &[f64], labels: &[&'static str]) -> Histograms {
        let metric = Histograms::new(labels, NewHistogram(buckets.into()));
        match self.add(name, help, Known::Histograms(metric.clone())) {
            Known::Histograms(h) => h,
            _ => metric,
        }
    }

    /// All metrics as text; its type is [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        let mut out = String::new();
        let inner = self.inner.lock();
        text::encode(&mut out, &inner.registry).expect("writing to a string does not fail");
        out
    }

    /// All metrics by name, those too that have no number yet: for documentation.
    pub fn described(&self) -> Vec<Described> {
        let inner = self.inner.lock();
        let all = inner.helps.iter().map(|(name, help)| {
            let known = &inner.known[name];
            let suffix = if known.kind() == "counter" { "_total" } else { "" };
            Described {
                name: format!("{name}{suffix}"),
                kind: known.kind(),
                labels: known.labels().to_vec(),
                help: help.clone(),
            }
        });
        all.collect()
    }

    /// The metric that the name stands for from now on. A name that another kind of metric has taken keeps the
    /// first one and the second is not shown: a mistake of ours, seen in debug builds.
    fn add(&self, name: &str, help: &str, new: Known) -> Known {
        let mut inner = self.inner.lock();
        if let Some(known) = inner.known.get(name) {
            debug_assert_eq!(
                std::mem::discriminant(known),
                std::mem::discriminant(&new),
                "metric {name} is registered as two kinds"
            );
            return known.clone();
        }
        let help = help.trim_end_matches('.');
        match new.clone() {
            Known::Counter(m) => inner.registry.register(name, help, m.0),
            Known::Gauge(m) => inner.registry.register(name, help, m.0),
            Known::Histogram(m) => inner.registry.register(name, help, m.0),
            Known::Counters(m) => inner.registry.register(name, help, m.family),
            Known::Gauges(m) => inner.registry.register(name, help, m.family),
            Known::Histograms(m) => inner.registry.register(name, help, m.family),
        }
        inner.known.insert(name.to_owned(), new.clone());
        inner.helps.insert(name.to_owned(), help.to_owned());
        new
    }
}

fn bare(counter: &str) -> &str {
    counter.strip_suffix("_total").unwrap_or(counter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_help_type_and_value_of_each_metric() {
        let registry = Registry::new();
        registry.counter("weft_a_requests_total", "Requests.").inc_by(3);
        registry.gauge("weft_a_connections", "Open now").set(-2);
        registry.histogram("weft_a_wait_seconds", "Waits", &[0.1, 1.0]).observe(0.5);
        let text = registry.encode();
        for line in [
            "# HELP weft_a_requests Requests.",
            "# TYPE weft_a_requests counter",
            "weft_a_requests_total 3",
            "weft_a_connections -2",
            "weft_a_wait_seconds_bucket{le=\"0.1\"} 0",
            "weft_a_wait_seconds_bucket{le=\"1.0\"} 1",
            "weft_a_wait_seconds_count 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
    }

    #[test]
    fn metrics_are_described_before_they_have_numbers() {
        let registry = Registry::new();
        registry.counters("weft_a", "A.", &["method"]);
        registry.gauge("weft_b", "B");
        let described = |name: &str, kind, labels: &[&'static str], help: &str| Described {
            name: name.into(),
            kind,
            labels: labels.to_vec(),
            help: help.into(),
        };
        assert_eq!(
            registry.described(),
            [described("weft_a_total", "counter", &["method"], "A"), described("weft_b", "gauge", &[], "B"),]
        );
    }

    #[test]
    fn a_name_registered_twice_is_one_metric() {
        let registry = Registry::new();
        registry.counter("weft_a", "A").inc();
        registry.counter("weft_a_total", "A").inc();
        let own = Counter::default();
        own.inc();
        assert_eq!(registry.add_counter("weft_a", "A", &own).get(), 2);
        assert_eq!(registry.encode().matches("weft_a_total").count(), 1);
    }

    #[test]
    fn labels_tell_metrics_apart() {
        let registry = Registry::new();
        let requests = registry.counters("weft_a", "A", &["method", "code"]);
        requests.with(&["GET", "200"]).inc();
        requests.with(&["GET", "200"]).inc();
        requests.with(&["PUT", "500"]).inc();
        registry.gauges("weft_b", "B", &["x"]).with(&["1"]).inc();
        registry.histograms("weft_c", "C", &SECONDS_BUCKETS, &["x"]).with(&["1"]).observe(1.0);
        let text = registry.encode();
        assert!(text.contains("weft_a_total{method=\"GET\",code=\"200\"} 2"), "{text}");
        assert!(text.contains("weft_a_total{method=\"PUT\",code=\"500\"} 1"), "{text}");
        requests.remove(&["GET", "200"]);
        assert!(!registry.encode().contains("GET"));
    }

    #[test]
    fn label_values_beyond_the_limit_are_counted_as_other() {
        let registry = Registry::new();
        let requests = registry.counters("weft_a", "A", &["path"]);
        for i in 0..METRIC_SERIES_MAX + 5 {
            requests.with(&[&i.to_string()]).inc();
        }
        let text = registry.encode();
        assert!(text.contains("weft_a_total{path=\"other\"} 5"));
        assert_eq!(text.matches("weft_a_total{").count(), METRIC_SERIES_MAX + 1);
    }
}
