//! A cluster as requests see it, and what of it survives updates.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use weft_xds_proto::resource::cluster::{Protocol, SubsetFallback};
use weft_xds_proto::resource::subset::Subset;

use super::breaker::Load;
use super::check::{CheckState, CheckStatus};
use super::compare;
use super::endpoint::EndpointState;
use super::endpoint_set::{EndpointSet, Rules};
use super::gradient::Gradient;
use super::levels::Levels;
use super::outlier::{Cause, Outcome, may_eject};
use super::rotation::Rotations;
use super::security::Security;
use super::zones::Surroundings;
use crate::config_snapshot::ClusterConfig;
use crate::policy::gate::Gate;
use crate::policy::rate_limit::Bucket;
use crate::proxy_protocol::{Announced, Client};
use crate::telemetry::cluster_metrics::ClusterMetrics;
use crate::upstream::connect;

/// A cluster at one moment. Immutable.
#[derive(Debug)]
pub struct Cluster {
    /// What the mesh says.
    pub config: Arc<ClusterConfig>,
    /// Its endpoints.
    pub endpoints: EndpointSet,
    /// What old and new versions share.
    pub shared: Arc<ClusterShared>,
    /// How connections to them are protected.
    security: Security,
    /// What is asked of those who call it, if anything is.
    pub(crate) gate: Option<Arc<Gate>>,
}

/// What survives updates of a cluster.
#[derive(Debug)]
pub struct ClusterShared {
    /// Places in the rotations.
    pub rotations: Rotations,
    /// Where this proxy stands.
    around: Arc<Surroundings>,
    /// What is under way.
    pub load: Load,
    /// What is left of its rate limit.
    pub bucket: Bucket,
    /// What it bears at once, as far as that is found out.
    pub gradient: Gradient,
    /// When endpoints were compared last. Only the control runtime locks it.
    compared: Mutex<Option<Instant>>,
    /// Its counters.
    pub metrics: ClusterMetrics,
    /// Milliseconds of the process clock at which discovery was last told that it is in use.
    touched: AtomicU64,
}

/// Between two reminders that a cluster is in use.
const TOUCH_MILLIS: u64 = 1000;

impl ClusterShared {
    /// `phase` as in [`Rotations::new`]; `around` is where this proxy stands.
    pub fn new(phase: u64, around: Arc<Surroundings>, metrics: ClusterMetrics) -> Self {
        Self {
            rotations: Rotations::new(phase),
            around,
            load: Load::default(),
            bucket: Bucket::default(),
            gradient: Gradient::default(),
            compared: Mutex::default(),
            metrics,
            touched: AtomicU64::new(0),
        }
    }

    /// Whether a request has ever asked for it.
    pub fn is_used(&self) -> bool {
        self.touched.load(Ordering::Relaxed) != 0
    }

    /// Whether discovery should be told again that the cluster is in use; at most once a second for all workers.
    pub fn touch(&self, now_millis: u64) -> bool {
        let last = self.touched.load(Ordering::Relaxed);
        // 0 means never.
        (last == 0 || now_millis >= last + TOUCH_MILLIS)
            && self
                .touched
                .compare_exchange(last, now_millis.max(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

impl Cluster {
    /// The first version of a cluster.
    pub fn new(config: Arc<ClusterConfig>, shared: Arc<ClusterShared>, security: Security) -> Self {
        Self::with_states(config, shared, security, &HashMap::new())
    }

    /// The next version, with what the mesh says now. Endpoints that stay keep their state.
    pub fn updated(&self, config: Arc<ClusterConfig>, security: Security) -> Self {
        if self.config.cluster.health_check.is_some() && config.cluster.health_check.is_none() {
            // Nobody would ever take back what the last check said.
            for view in self.endpoints.endpoints() {
                view.state.health.lock().check = CheckState::default();
            }
        }
        let states = self.endpoints.endpoints().iter().map(|v| (v.state.addr(), v.state.clone())).collect();
        Self::with_states(config, self.shared.clone(), security, &states).gated(self.gate.clone())
    }

    /// The next version, after the health of an endpoint changed.
    pub fn refreshed(&self) -> Self {
        self.updated(self.config.clone(), self.security.clone())
    }

    fn with_states(
        config: Arc<ClusterConfig>,
        shared: Arc<ClusterShared>,
        security: Security,
        states: &HashMap<SocketAddr, Arc<EndpointState>>,
    ) -> Self {
        let endpoints = config.endpoints.iter().map(|endpoint| {
            let state = states.get(&endpoint.address).cloned();
            (endpoint.clone(), state.unwrap_or_else(|| EndpointState::new(endpoint.address)))
        });
        let endpoints = EndpointSet::new(endpoints, rules(&config, &shared), &shared.rotations);
        Self { config, endpoints, shared, security, gate: None }
    }

    /// The same, with this asked of those who call it.
    pub(crate) fn gated(self, gate: Option<Arc<Gate>>) -> Self {
        Self { gate, ..self }
    }

    /// How connections to its endpoints are protected.
    pub fn security(&self) -> &Security {
        &self.security
    }

    /// What is spoken to its endpoints; an `upgrade` needs HTTP/1.1, which sidecars take as well.
    pub(crate) fn hop(&self, upgrade: bool) -> Protocol {
        let own = self.config.cluster.protocol;
        if self.security.is_all_peers() && !upgrade { Protocol::Http2 } else { own }
    }

    /// Whether endpoints are servers of TLS, and no sidecars.
    pub(crate) fn originates_tls(&self) -> bool {
        self.security.is_all_originated()
    }

    /// An endpoint with what a connection to it needs, for a client or for this proxy itself.
    ///
    /// # Errors
    /// If certificates cannot be used, or it takes no TLS and must.
    pub(crate) fn place(&self, addr: SocketAddr, client: Option<Client>) -> Result<connect::Place, String> {
        let announced = self.config.cluster.send_proxy.map(|version| Announced { version, client });
        Ok(connect::Place { announced, ..self.security.place(addr)? })
    }

    /// Service name.
    pub fn name(&self) -> &str {
        &self.config.cluster.name
    }

    /// Chooses among the instances of a subset.
    pub fn subset(&self, subset: &Arc<Subset>) -> Arc<Levels> {
        self.endpoints.subset(subset, rules(&self.config, &self.shared), &self.shared.rotations)
    }

    /// The same, or what takes its place if none of them is usable; none: all instances do.
    pub fn subset_or_fallback(&self, subset: Arc<Subset>) -> Option<(Arc<Subset>, Arc<Levels>)> {
        let levels = self.subset(&subset);
        if !levels.is_empty() {
            return Some((subset, levels));
        }
        match &self.config.cluster.subsets.fallback {
            SubsetFallback::None => Some((subset, levels)),
            SubsetFallback::Any => None,
            SubsetFallback::Default(default) => Some((default.clone(), self.subset(default))),
        }
    }

    /// Counts the outcome of a request. Answers the cause if the endpoint should be ejected.
    pub fn record(&self, endpoint: &EndpointState, outcome: Outcome) -> Option<Cause> {
        let policy = &self.config.cluster.outlier_detection;
        if policy.compares() {
            endpoint.window.count(outcome != Outcome::Success);
        }
        endpoint.failures.record(outcome, policy)
    }

    /// The state of an address that is still part of the cluster.
    pub fn state_of(&self, addr: SocketAddr) -> Option<&Arc<EndpointState>> {
        let all = self.endpoints.endpoints();
        // In order of addresses.
        all.binary_search_by_key(&addr, |v| v.endpoint.address).ok().map(|i| &all[i].state)
    }

    /// Ejects an endpoint if the policy allows it. Answers whether a new version is due. Only the writer calls it.
    pub(crate) fn eject(&self, addr: SocketAddr, cause: Cause, now: Instant) -> bool {
        let Some(state) = self.state_of(addr) else { return false };
        let policy = &self.config.cluster.outlier_detection;
        let counts = self.endpoints.counts();
        // It is in rotation unless another report came first, which `Ejection::eject` sees.
        let usable_after = counts.usable.saturating_sub(1);
        state.failures.reset();
        may_eject(counts.total, counts.ejected, usable_after, policy)
            && state.health.lock().ejection.eject(now, cause, policy)
    }

    /// Lets endpoints back in whose ejection is over. Answers whether a new version is due.
    pub(crate) fn expire_ejections(&self, now: Instant) -> bool {
        let mut changed = false;
        for view in self.endpoints.endpoints() {
            changed |= view.state.health.lock().ejection.expire(now);
        }
        changed
    }

    /// Compares endpoints, if an interval is over. Answers who should be ejected.
    pub(crate) fn outliers(&self, now: Instant) -> Vec<(SocketAddr, Cause)> {
        let policy = &self.config.cluster.outlier_detection;
        if !policy.compares() {
            return Vec::new();
        }
        let mut compared = self.shared.compared.lock();
        let since = *compared.get_or_insert(now);
        if now.saturating_duration_since(since) < policy.interval {
            return Vec::new();
        }
        *compared = Some(now);
        let views = self.endpoints.endpoints().iter();
        let seen: Vec<_> = views.map(|v| (v.state.addr(), v.state.window.take())).collect();
        compare::outliers(&seen, policy)
    }

    /// When the next ejection is over.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        if self.endpoints.counts().ejected == 0 {
            return None;
        }
        let until = |v: &super::endpoint_set::EndpointView| Some(v.state.health.lock().ejection.current()?.1);
        self.endpoints.endpoints().iter().filter_map(until).min()
    }

    /// Counts the result of an active check; one that passes ends an ejection at once. Answers whether a new
    /// version is due.
    pub(crate) fn checked(&self, addr: SocketAddr, result: Result<(), String>, now: Instant) -> bool {
        let Some(state) = self.state_of(addr) else { return false };
        let mut health = state.health.lock();
        let lifted = result.is_ok() && health.ejection.lift(now);
        if lifted {
            state.failures.reset();
        }
        let changed = match &self.config.cluster.health_check {
            Some(policy) => {
                let failed = health.check.status() == CheckStatus::Failing;
                let changed = health.check.record(result, policy);
                if changed && failed {
                    health.passed = Some(now);
                }
                changed
            }
            // A probe of an ejected endpoint, in a cluster without checks.
            None => false,
        };
        lifted || changed
    }
}

fn rules<'a>(config: &'a ClusterConfig, shared: &'a ClusterShared) -> Rules<'a> {
    let cluster = &config.cluster;
    Rules {
        policy: &cluster.lb_policy,
        panic: cluster.panic,
        slow_start: cluster.slow_start.map(|slow| (slow, Instant::now())),
        zone_aware: cluster.zone_aware.map(|rule| (rule, &*shared.around)),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weft_xds_proto::resource::cluster::{HealthCheck, LbPolicy};

    use super::*;
    use crate::cluster::endpoint_set::Status;
    use crate::config::static_config::static_endpoint;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn config(ports: &[u16]) -> ClusterConfig {
        let mut cluster = weft_xds_proto::resource::cluster::Cluster::with_defaults("hello");
        cluster.outlier_detection.max_ejection_percent = 100;
        cluster.health_check = Some(HealthCheck { unhealthy_threshold: 1, ..HealthCheck::default() });
        let endpoints = ports.iter().map(|p| static_endpoint(addr(*p), 1)).collect();
        ClusterConfig { cluster, endpoints, version: "1".into() }
    }

    fn cluster(ports: &[u16]) -> Cluster {
        let shared = Arc::new(ClusterShared::new(0, Arc::default(), ClusterMetrics::detached()));
        Cluster::new(Arc::new(config(ports)), shared, Security::Plain)
    }

    fn statuses(cluster: &Cluster) -> Vec<Status> {
        cluster.endpoints.endpoints().iter().map(|v| v.status).collect()
    }

    #[test]
    fn ejected_endpoint_returns_after_its_time() {
        let (one, now) = (cluster(&[1, 2]), Instant::now());
        assert!(one.eject(addr(2), Cause::Connect, now));
        let two = one.refreshed();
        assert_eq!(statuses(&two), [Status::Ready, Status::Ejected]);
        let until = two.next_expiry().unwrap();
        assert_eq!(until - now, two.config.cluster.outlier_detection.base_ejection_time);
        assert!(!two.expire_ejections(until - Duration::from_millis(1)));
        assert!(two.expire_ejections(until));
        assert_eq!(statuses(&two.refreshed()), [Status::Ready, Status::Ready]);
    }

    #[test]
    fn last_usable_endpoint_is_never_ejected_but_failing_checks_take_it_out() {
        let (one, now) = (cluster(&[1, 2]), Instant::now());
        assert!(one.eject(addr(1), Cause::Failures, now));
        let two = one.refreshed();
        assert!(!two.eject(addr(2), Cause::Connect, now));
        assert!(two.checked(addr(2), Err("refused".into()), now));
        assert_eq!(statuses(&two.refreshed()), [Status::Ejected, Status::FailingChecks]);
    }

    #[test]
    fn passing_check_brings_an_ejected_endpoint_back_at_once() {
        let (one, now) = (cluster(&[1, 2]), Instant::now());
        one.eject(addr(1), Cause::Connect, now);
        let two = one.refreshed();
        assert!(two.checked(addr(1), Ok(()), now));
        assert_eq!(statuses(&two.refreshed()), [Status::Ready, Status::Ready]);
    }

    #[test]
    fn health_and_requests_in_flight_survive_updates_and_a_policy_switch() {
        let (one, now) = (cluster(&[1, 2, 3]), Instant::now());
        let request = one.state_of(addr(3)).unwrap().start();
        one.eject(addr(2), Cause::Connect, now);
        let mut next = config(&[2, 3, 4]);
        next.cluster.lb_policy = LbPolicy::LeastConnections;
        let two = one.updated(Arc::new(next), Security::Plain);
        assert_eq!(statuses(&two), [Status::Ejected, Status::Ready, Status::Ready]);
        assert_eq!(two.state_of(addr(3)).unwrap().active(), 1);
        let picked = two.endpoints.picker().pick(&[], &mut fastrand::Rng::with_seed(1)).unwrap();
        assert_eq!(picked.addr(), addr(4));
        drop(request);
    }

    #[test]
    fn without_checks_no_endpoint_stays_out_for_a_check_that_failed_before() {
        let (one, now) = (cluster(&[1, 2]), Instant::now());
        assert!(one.checked(addr(2), Err("refused".into()), now));
        let two = one.refreshed();
        assert_eq!(statuses(&two), [Status::Ready, Status::FailingChecks]);
        let mut next = config(&[1, 2]);
        next.cluster.health_check = None;
        assert_eq!(statuses(&two.updated(Arc::new(next), Security::Plain)), [Status::Ready, Status::Ready]);
    }

    #[test]
    fn discovery_is_told_of_use_at_most_once_a_second() {
        let one = cluster(&[1]);
        assert!(one.shared.touch(0), "the first time at once");
        assert!(one.shared.touch(5_000));
        assert!(!one.shared.touch(5_999));
        assert!(one.shared.touch(6_000));
    }

    #[test]
    fn reports_on_endpoints_that_are_gone_change_nothing() {
        let one = cluster(&[1, 2]);
        assert!(!one.eject(addr(9), Cause::Connect, Instant::now()));
        assert!(!one.checked(addr(9), Err("x".into()), Instant::now()));
    }
}
