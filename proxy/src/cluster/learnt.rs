//! What a proxy has learnt of endpoints, for the process that takes its place: who is ejected or fails its checks, and how
//! fast they answer. Without it an upgrade would send requests to endpoints that are known to be bad.
//!
//! Times are relative: clocks of two processes need not agree.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use weft_xds_proto::resource::cluster::Cluster;

use super::check::{CheckState, CheckStatus};
use super::endpoint::EndpointState;
use super::outlier::{Cause, Ejection};

/// Of one address in one cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Learnt {
    pub service: String,
    pub address: SocketAddr,
    /// Why it is ejected, and for how much longer.
    ejected: Option<(Cause, Duration)>,
    /// Ejections in close succession, and how long ago the last of them was over.
    ejections: u32,
    returned: Option<Duration>,
    check: Checked,
    /// What an answer takes, in nanoseconds, where the balancing policy looks at it.
    latency: Option<f64>,
}

/// What active checks say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Checked {
    NotYet,
    Passes,
    Fails(String),
}

impl Learnt {
    /// What is worth telling of an endpoint at `now`, which is `now_nanos` of the clock of its latencies; `None` if nothing is.
    pub fn of(service: &str, endpoint: &EndpointState, now: Instant, now_nanos: u64) -> Option<Self> {
        let health = endpoint.health.lock();
        let (ejection, check) = (&health.ejection, &health.check);
        let check = match check.status() {
            CheckStatus::Unknown => Checked::NotYet,
            CheckStatus::Passing => Checked::Passes,
            CheckStatus::Failing => Checked::Fails(check.last_error().unwrap_or_default().to_owned()),
        };
        let latency = endpoint.latency.known(now_nanos);
        let nothing = ejection.times() == 0 && check == Checked::NotYet && latency.is_none();
        (!nothing).then(|| Self {
            service: service.to_owned(),
            address: endpoint.addr(),
            ejected: ejection.current().map(|(cause, until)| (cause, until.saturating_duration_since(now))),
            ejections: ejection.times(),
            returned: ejection.returned().map(|at| now.saturating_duration_since(at)),
            check,
            latency,
        })
    }

    /// Takes it up, in a process whose clock of latencies has just begun. The cluster's policies may be others by now: they
    /// bound how long an ejection lasts, and what checks said counts only where there are checks to take it back.
    pub fn take_up(&self, endpoint: &EndpointState, cluster: &Cluster, now: Instant) {
        let policy = &cluster.outlier_detection;
        let longest = policy.max_ejection_time.max(policy.base_ejection_time);
        let current = self.ejected.map(|(cause, left)| (cause, now + left.min(longest)));
        let returned = self.returned.and_then(|ago| now.checked_sub(ago));
        let mut health = endpoint.health.lock();
        health.ejection = Ejection::learnt(current, self.ejections, returned);
        if cluster.health_check.is_some() {
            health.check = match &self.check {
                Checked::NotYet => CheckState::default(),
                Checked::Passes => CheckState::learnt(Ok(())),
                Checked::Fails(why) => CheckState::learnt(Err(why.clone())),
            };
        }
        if let Some(latency) = self.latency {
            endpoint.latency.learnt(latency);
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_xds_proto::resource::cluster::HealthCheck;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MS: u64 = 1_000_000;

    fn endpoint() -> std::sync::Arc<EndpointState> {
        EndpointState::new("127.0.0.1:1".parse().unwrap())
    }

    fn cluster() -> Cluster {
        let mut cluster = Cluster::with_defaults("hello");
        cluster.outlier_detection.base_ejection_time = 10 * SECOND;
        cluster.outlier_detection.max_ejection_time = 60 * SECOND;
        cluster.health_check = Some(HealthCheck { healthy_threshold: 2, ..HealthCheck::default() });
        cluster
    }

    /// As it comes out of the other process, some time later by another clock.
    fn handed_over(endpoint: &EndpointState, now: Instant) -> Learnt {
        let learnt = Learnt::of("hello", endpoint, now, 1000 * MS).unwrap();
        serde_json::from_slice(&serde_json::to_vec(&learnt).unwrap()).unwrap()
    }

    #[test]
    fn an_endpoint_of_which_nothing_is_known_is_not_told_of() {
        assert_eq!(Learnt::of("hello", &endpoint(), Instant::now(), 0), None);
    }

    #[test]
    fn an_ejection_lasts_as_long_as_it_would_have_and_the_next_is_longer() {
        let (old, new, cluster, start) = (endpoint(), endpoint(), cluster(), Instant::now());
        let policy = &cluster.outlier_detection;
        old.health.lock().ejection.eject(start, Cause::Failures, policy);
        let learnt = handed_over(&old, start + 4 * SECOND);
        let other_clock = start + 500 * SECOND;
        learnt.take_up(&new, &cluster, other_clock);
        let mut health = new.health.lock();
        assert_eq!(health.ejection.current(), Some((Cause::Failures, other_clock + 6 * SECOND)));
        assert!(!health.ejection.expire(other_clock + 5 * SECOND));
        assert!(health.ejection.expire(other_clock + 6 * SECOND));
        health.ejection.eject(other_clock + 7 * SECOND, Cause::Failures, policy);
        assert_eq!(health.ejection.current().unwrap().1, other_clock + 27 * SECOND, "the second in a row");
    }

    #[test]
    fn an_ejection_never_lasts_longer_than_the_policy_of_the_new_process_allows() {
        let (old, new, mut cluster, start) = (endpoint(), endpoint(), cluster(), Instant::now());
        old.health.lock().ejection.eject(start, Cause::Connect, &cluster.outlier_detection);
        let learnt = handed_over(&old, start);
        cluster.outlier_detection.base_ejection_time = SECOND;
        cluster.outlier_detection.max_ejection_time = 2 * SECOND;
        learnt.take_up(&new, &cluster, start);
        assert_eq!(new.health.lock().ejection.current(), Some((Cause::Connect, start + 2 * SECOND)));
    }

    #[test]
    fn what_checks_said_goes_on_where_there_are_checks() {
        let (old, mut cluster, now) = (endpoint(), cluster(), Instant::now());
        let policy = cluster.health_check.clone().unwrap();
        old.health.lock().check.record(Err("status 503".to_owned()), &policy);
        let learnt = handed_over(&old, now);
        let (new, without) = (endpoint(), endpoint());
        learnt.take_up(&new, &cluster, now);
        let mut health = new.health.lock();
        assert_eq!(health.check.status(), CheckStatus::Failing);
        assert_eq!(health.check.last_error(), Some("status 503"));
        assert!(!health.check.record(Ok(()), &policy), "one that passes is not enough, as before");
        cluster.health_check = None;
        learnt.take_up(&without, &cluster, now);
        assert_eq!(without.health.lock().check.status(), CheckStatus::Unknown);
    }

    #[test]
    fn a_slow_endpoint_stays_known_as_slow() {
        let (old, new) = (endpoint(), endpoint());
        old.latency.observe(1000 * MS, 250 * MS);
        handed_over(&old, Instant::now()).take_up(&new, &cluster(), Instant::now());
        let cost = new.latency.cost(MS, 0) / MS as f64;
        assert!((249.0..=250.0).contains(&cost), "{cost} ms");
    }
}
