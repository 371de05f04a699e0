//! What is counted of a cluster, from its first request on.
//!
//! A sidecar may know thousands of services and use twenty. Each has about twenty series, which take some 5 KiB and a
//! place in what Prometheus reads: they exist from when a request, a tunnel or a check first counts something (P36).

use std::ops::Deref;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::StatusCode;
use weft_core::metrics::{Counter, Counters, Gauge, Gauges, Histograms, Registry, SECONDS_BUCKETS};

use super::answers::{Answers, CLASSES};
use super::flag::Flag;
use super::metrics::Direction;
use super::tunnels::{TunnelFamilies, TunnelMetrics};

/// What can be full, as labels.
const OVERFLOWS: [&str; 5] = ["requests", "pending", "wait", "retries", "adaptive"];

/// What is limited, as labels, in the order of [`ClusterMetrics::show_load`].
const LIMITED: [&str; 4] = ["requests", "pending", "connections", "retries"];

/// How much of something is in use, and how much may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// None: it is not counted.
    pub used: Option<u32>,
    /// None: there is none.
    pub limit: Option<u32>,
}

/// The series of all clusters.
#[derive(Debug)]
pub(crate) struct ClusterFamilies {
    requests: Counters,
    seconds: Histograms,
    retries: Counters,
    hedges: Counters,
    ejections: Counters,
    connects: Counters,
    connect_failures: Counters,
    overflows: Counters,
    endpoints: Gauges,
    load: Gauges,
    load_limits: Gauges,
    pub(super) tunnels: TunnelFamilies,
    pub(super) flagged: Counters,
}

impl ClusterFamilies {
    /// Registers them.
    pub fn new(r: &Registry) -> Self {
        let by_service: &[&'static str] = &["direction", "service"];
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
            hedges: r.counters(
                "weft_proxy_hedges_total",
                "Requests sent to a second endpoint because the first took long",
                by_service,
            ),
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
            load: r.gauges(
                "weft_proxy_load",
                "What a cluster has under way, by what its circuit breaker limits",
                &["direction", "service", "kind"],
            ),
            load_limits: r.gauges(
                "weft_proxy_load_limit",
                "How much of it may be under way now, where that is limited",
                &["direction", "service", "kind"],
            ),
            tunnels: TunnelFamilies::new(r),
            flagged: r.counters(
                "weft_proxy_flagged_requests_total",
                "Requests that the proxy answered itself, or that something happened to, by what; no service if none was found",
                &["direction", "service", "flag"],
            ),
        }
    }

    fn handles(&self, direction: Direction, service: &str) -> ClusterHandles {
        let labels = [direction.as_str(), service];
        ClusterHandles {
            answers: Answers::new(
                |class| self.requests.with(&[direction.as_str(), service, class]),
                self.seconds.with(&labels),
            ),
            retries: self.retries.with(&labels),
            hedges: self.hedges.with(&labels),
            ejections: self.ejections.with(&labels),
            connects: self.connects.with(&labels),
            connect_failures: self.connect_failures.with(&labels),
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

    /// Forgets a cluster that is gone.
    pub fn forget(&self, direction: Direction, service: &str) {
        let labels = [direction.as_str(), service];
        for class in CLASSES {
            self.requests.remove(&[direction.as_str(), service, class]);
        }
        self.seconds.remove(&labels);
        self.tunnels.forget(direction.as_str(), service);
        for family in [&self.retries, &self.hedges, &self.ejections, &self.connects, &self.connect_failures] {
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
        for kind in LIMITED {
            for family in [&self.load, &self.load_limits] {
                family.remove(&[direction.as_str(), service, kind]);
            }
        }
    }
}

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
#[derive(Debug)]
pub struct ClusterHandles {
    answers: Answers,
    /// Further tries of a request.
    pub retries: Counter,
    /// Second tries beside a first.
    pub hedges: Counter,
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
    endpoints: Gauge,
    usable: Gauge,
}

/// What a cluster counts. Reads like its [`ClusterHandles`], which the first reader makes.
#[derive(Debug)]
pub struct ClusterMetrics {
    families: Arc<ClusterFamilies>,
    direction: Direction,
    service: Box<str>,
    /// All and usable ones.
    endpoints: [AtomicI64; 2],
    handles: OnceLock<Box<ClusterHandles>>,
}

impl Deref for ClusterMetrics {
    type Target = ClusterHandles;

    fn deref(&self) -> &ClusterHandles {
        match self.handles.get() {
            Some(handles) => handles,
            None => self.begin(),
        }
    }
}

impl ClusterMetrics {
    pub(super) fn new(families: Arc<ClusterFamilies>, direction: Direction, service: &str) -> Self {
        let endpoints = Default::default();
        Self { families, direction, service: service.into(), endpoints, handles: OnceLock::new() }
    }

    /// Counts for nobody, in tests.
    pub fn detached() -> Self {
        let families = Arc::new(ClusterFamilies::new(&Registry::new()));
        Self::new(families, Direction::Outbound, "detached")
    }

    #[cold]
    fn begin(&self) -> &ClusterHandles {
        let make = || Box::new(self.families.handles(self.direction, &self.service));
        let handles = self.handles.get_or_init(make);
        // After the handles can be seen: whoever has new numbers meanwhile finds the handles, or we find the numbers.
        self.show_endpoints(handles);
        handles
    }

    fn show_endpoints(&self, handles: &ClusterHandles) {
        let [all, usable] = &self.endpoints;
        handles.endpoints.set(all.load(Ordering::SeqCst));
        handles.usable.set(usable.load(Ordering::SeqCst));
    }

    /// How many endpoints there are, and how many of them are in rotation.
    pub fn set_endpoints(&self, all: usize, usable: usize) {
        for (cell, count) in self.endpoints.iter().zip([all, usable]) {
            cell.store(i64::try_from(count).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
        if let Some(handles) = self.handles.get() {
            self.show_endpoints(handles);
        }
    }

    /// Brings up to date what is in use of requests, of places in the queue for a connection, of connections and of
    /// retries, if anything was ever counted. Read when it is asked for, so that requests pay nothing.
    pub(crate) fn show_load(&self, load: impl FnOnce() -> [Share; LIMITED.len()]) {
        if self.handles.get().is_none() {
            return;
        }
        for (kind, share) in LIMITED.iter().zip(load()) {
            let labels = [self.direction.as_str(), &self.service, kind];
            let both = [(&self.families.load, share.used), (&self.families.load_limits, share.limit)];
            for (family, number) in both {
                match number {
                    Some(number) => family.with(&labels).set(number.into()),
                    None => family.remove(&labels),
                }
            }
        }
    }

    /// Counts what happened to a request. Looked up each time: most flags never are.
    pub fn flagged(&self, flag: Flag) {
        self.families.flagged.with(&[self.direction.as_str(), &self.service, flag.word()]).inc();
    }

    /// Counts an answer.
    pub fn answered(&self, status: StatusCode, took: Duration) {
        self.answers.answered(status, took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::metrics::Metrics;

    /// P36: what is known and not used costs no series.
    #[test]
    fn a_cluster_has_series_from_its_first_use_on_and_they_tell_its_endpoints() {
        let metrics = Metrics::new(Registry::new());
        let hello = metrics.cluster(Direction::Outbound, "hello");
        hello.set_endpoints(3, 2);
        assert!(!metrics.encode().contains("hello"));
        hello.answered(StatusCode::OK, Duration::from_millis(3));
        let endpoints = |kind, count| {
            format!(
                "weft_proxy_endpoints{{direction=\"outbound\",service=\"hello\",kind=\"{kind}\"}} {count}\n"
            )
        };
        let text = metrics.encode();
        assert!(text.contains(&endpoints("all", 3)) && text.contains(&endpoints("usable", 2)), "{text}");
        hello.set_endpoints(3, 1);
        assert!(metrics.encode().contains(&endpoints("usable", 1)));
    }

    #[test]
    fn load_is_told_of_clusters_in_use_with_the_limits_there_are_and_until_they_are_gone() {
        let metrics = Metrics::new(Registry::new());
        let hello = metrics.cluster(Direction::Outbound, "hello");
        let share = |used, limit| Share { used, limit };
        let limited = [share(Some(3), Some(9)); LIMITED.len()];
        hello.show_load(|| limited);
        assert!(!metrics.encode().contains("hello"));
        hello.answered(StatusCode::OK, Duration::from_millis(3));
        hello.show_load(|| limited);
        let line = |name, kind, n| {
            format!("{name}{{direction=\"outbound\",service=\"hello\",kind=\"{kind}\"}} {n}\n")
        };
        let text = metrics.encode();
        for kind in LIMITED {
            let both = [line("weft_proxy_load", kind, 3), line("weft_proxy_load_limit", kind, 9)];
            assert!(both.iter().all(|line| text.contains(line)), "{text}");
        }
        hello.show_load(|| [share(Some(4), None); LIMITED.len()]);
        let text = metrics.encode();
        assert!(text.contains(&line("weft_proxy_load", "pending", 4)), "{text}");
        assert!(!text.contains("weft_proxy_load_limit{"), "a limit that was taken away: {text}");
        hello.show_load(|| limited);
        metrics.forget(Direction::Outbound, "hello");
        assert!(!metrics.encode().contains("hello"));
    }
}
