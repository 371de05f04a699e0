//! Endpoints and their health at one moment, with the picker over the usable ones. Immutable.

use std::sync::Arc;
use std::time::Instant;

use weft_xds_proto::resource::cluster::{LbPolicy, PanicPolicy, SlowStart};
use weft_xds_proto::resource::endpoint::{Endpoint, EndpointHealth};

use super::check::CheckStatus;
use super::endpoint::EndpointState;
use super::picker::Picker;
use super::rotation::Rotation;

/// A healthy endpoint gets so many times the share of a degraded one of equal weight.
const DEGRADED_SHARE: u32 = 10;

/// See the module.
#[derive(Debug)]
pub struct EndpointSet {
    endpoints: Box<[EndpointView]>,
    picker: Picker,
    counts: Counts,
    warming: bool,
}

/// How endpoints are chosen.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Among the usable ones.
    pub policy: &'a LbPolicy,
    /// If those are few.
    pub panic: PanicPolicy,
    /// For those that have come in a while before this time.
    pub slow_start: Option<(SlowStart, Instant)>,
}

impl<'a> From<&'a LbPolicy> for Rules<'a> {
    /// Without panic.
    fn from(policy: &'a LbPolicy) -> Self {
        Self { policy, panic: PanicPolicy::Degraded, slow_start: None }
    }
}

/// One endpoint of the set.
#[derive(Debug, Clone)]
pub struct EndpointView {
    /// What the mesh says of it.
    pub endpoint: Endpoint,
    /// What this proxy remembers of it.
    pub state: Arc<EndpointState>,
    /// Both together.
    pub status: Status,
}

/// Whether an endpoint gets requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Yes.
    Ready,
    /// Few: its owner is suspected to be down, or it says so itself.
    Degraded,
    /// No: it failed requests.
    Ejected,
    /// No: it fails this proxy's active checks.
    FailingChecks,
    /// No: the mesh says that it is unhealthy.
    Unhealthy,
}

impl Status {
    /// Lower-case words, as shown on the admin port.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Degraded => "degraded",
            Self::Ejected => "ejected",
            Self::FailingChecks => "failing-checks",
            Self::Unhealthy => "unhealthy",
        }
    }

    fn of(endpoint: &Endpoint, state: &EndpointState) -> Self {
        let health = state.health.lock();
        match (endpoint.health, health.check.status()) {
            (EndpointHealth::Unhealthy, _) => Self::Unhealthy,
            (_, CheckStatus::Failing) => Self::FailingChecks,
            _ if health.ejection.current().is_some() => Self::Ejected,
            (EndpointHealth::Degraded, _) => Self::Degraded,
            (EndpointHealth::Healthy, _) => Self::Ready,
        }
    }

    fn is_usable(self) -> bool {
        matches!(self, Self::Ready | Self::Degraded)
    }
}

/// How many endpoints are in which status.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub total: usize,
    /// [`Status::Ready`] and [`Status::Degraded`].
    pub usable: usize,
    /// [`Status::Ejected`].
    pub ejected: usize,
    /// [`Status::FailingChecks`].
    pub failing_checks: usize,
    /// [`Status::Unhealthy`].
    pub unhealthy: usize,
    /// The panic policy, if it is time for it.
    pub panic: Option<PanicPolicy>,
}

impl Counts {
    /// Those that a request may go to.
    pub fn pickable(&self) -> usize {
        match self.panic {
            Some(PanicPolicy::Spread { .. }) => self.total,
            Some(PanicPolicy::Fail { .. }) => 0,
            Some(PanicPolicy::Degraded) | None => self.usable,
        }
    }
}

impl std::fmt::Display for Counts {
    /// `1 ejected, 2 failing checks of 3`; `it has no endpoints`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.total == 0 {
            return f.write_str("it has no endpoints");
        }
        let parts = [
            (self.usable, "ready"),
            (self.ejected, "ejected"),
            (self.failing_checks, "failing checks"),
            (self.unhealthy, "reported unhealthy"),
        ];
        let mut first = true;
        for (count, what) in parts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{}{count} {what}", if first { "" } else { ", " })?;
            first = false;
        }
        write!(f, " of {}", self.total)?;
        self.panic.map_or(Ok(()), |panic| write!(f, "; panic: {panic}"))
    }
}

impl EndpointSet {
    /// Reads the states once; later changes of them need a new set.
    pub fn new(
        endpoints: impl IntoIterator<Item = (Endpoint, Arc<EndpointState>)>,
        rules: Rules<'_>,
        rotation: &Arc<Rotation>,
    ) -> Self {
        let endpoints: Box<[EndpointView]> = endpoints
            .into_iter()
            .map(|(endpoint, state)| EndpointView { status: Status::of(&endpoint, &state), endpoint, state })
            .collect();
        let mut counts = Counts { total: endpoints.len(), ..Counts::default() };
        for view in &endpoints {
            match view.status {
                Status::Ready | Status::Degraded => counts.usable += 1,
                Status::Ejected => counts.ejected += 1,
                Status::FailingChecks => counts.failing_checks += 1,
                Status::Unhealthy => counts.unhealthy += 1,
            }
        }
        counts.panic = Some(rules.panic).filter(|p| p.applies(counts.usable, counts.total));
        let spread = matches!(counts.panic, Some(PanicPolicy::Spread { .. }));
        let fail = matches!(counts.panic, Some(PanicPolicy::Fail { .. }));
        let usable = || endpoints.iter().filter(|v| spread || (v.status.is_usable() && !fail));
        // As long as all are equal the weights stay as they are, and round robin an exact cycle.
        let mixed =
            usable().any(|v| v.status == Status::Ready) && usable().any(|v| v.status == Status::Degraded);
        let share = |state: &EndpointState| match rules.slow_start {
            Some((slow, now)) => slow.permille(now.saturating_duration_since(state.in_since())),
            None => 1000,
        };
        let warming = rules.slow_start.is_some() && usable().any(|v| share(&v.state) < 1000);
        let weighted: Vec<_> = usable()
            .map(|v| {
                let factor = if mixed && v.status == Status::Ready { DEGRADED_SHARE } else { 1 };
                let share = if warming { share(&v.state) } else { 1 };
                (v.state.clone(), v.endpoint.weight.max(1).saturating_mul(factor).saturating_mul(share))
            })
            .collect();
        Self { picker: Picker::new(rules.policy, &weighted, rotation), endpoints, counts, warming }
    }

    /// All, in order of their addresses.
    pub fn endpoints(&self) -> &[EndpointView] {
        &self.endpoints
    }

    /// Chooses among the usable ones.
    pub fn picker(&self) -> &Picker {
        &self.picker
    }

    /// Whether shares are still growing, so that a new set is due before long.
    pub fn is_warming(&self) -> bool {
        self.warming
    }

    /// In which status how many are.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use weft_xds_proto::resource::cluster::{HealthCheck, OutlierDetection};

    use super::*;
    use crate::cluster::outlier::Cause;
    use crate::config::static_config::static_endpoint;

    fn pair(port: u16, health: EndpointHealth) -> (Endpoint, Arc<EndpointState>) {
        let mut endpoint = static_endpoint(std::net::SocketAddr::from(([127, 0, 0, 1], port)), 1);
        endpoint.health = health;
        let state = EndpointState::new(endpoint.address);
        (endpoint, state)
    }

    fn with_panic(pairs: &[(Endpoint, Arc<EndpointState>)], panic: PanicPolicy) -> EndpointSet {
        let rules = Rules { policy: &LbPolicy::RoundRobin, panic, slow_start: None };
        EndpointSet::new(pairs.to_vec(), rules, &Arc::new(Rotation::new(0)))
    }

    fn set(pairs: &[(Endpoint, Arc<EndpointState>)]) -> EndpointSet {
        with_panic(pairs, PanicPolicy::Degraded)
    }

    /// SD-31, D05.
    #[test]
    fn ejected_failing_and_unhealthy_endpoints_are_never_picked() {
        let pairs = [
            pair(1, EndpointHealth::Healthy),
            pair(2, EndpointHealth::Healthy),
            pair(3, EndpointHealth::Healthy),
            pair(4, EndpointHealth::Unhealthy),
        ];
        pairs[1].1.health.lock().ejection.eject(Instant::now(), Cause::Connect, &OutlierDetection::default());
        pairs[2].1.health.lock().check.record(Err("refused".into()), &HealthCheck::default());
        let set = set(&pairs);
        let mut rng = fastrand::Rng::with_seed(1);
        assert!((0..20).all(|_| set.picker().pick(&[], &mut rng).unwrap().addr().port() == 1));
        assert_eq!(
            set.counts().to_string(),
            "1 ready, 1 ejected, 1 failing checks, 1 reported unhealthy of 4"
        );
        assert_eq!(
            EndpointSet::new([], (&LbPolicy::Random).into(), &Arc::new(Rotation::new(0)))
                .counts()
                .to_string(),
            "it has no endpoints"
        );
    }

    /// P40: panic is a policy, and a state that is shown.
    #[test]
    fn few_usable_endpoints_are_used_alone_spared_or_helped_by_all() {
        let pairs = [
            pair(1, EndpointHealth::Healthy),
            pair(2, EndpointHealth::Unhealthy),
            pair(3, EndpointHealth::Unhealthy),
        ];
        let picked = |pairs: &[_], panic| {
            let set = with_panic(pairs, panic);
            let mut rng = fastrand::Rng::with_seed(1);
            let picks = (0..9).filter_map(|_| set.picker().pick(&[], &mut rng).map(|e| e.addr().port()));
            let mut picks: Vec<_> = picks.collect();
            picks.sort_unstable();
            picks.dedup();
            (picks, set.counts().pickable(), set.counts().to_string())
        };
        let text = |panic: &str| format!("1 ready, 2 reported unhealthy of 3{panic}");
        assert_eq!(picked(&pairs, PanicPolicy::Degraded), (vec![1], 1, text("")));
        let spread = PanicPolicy::Spread { below: 50 };
        assert_eq!(picked(&pairs, spread), (vec![1, 2, 3], 3, text("; panic: spread below 50 %")));
        let fail = PanicPolicy::Fail { below: 50 };
        assert_eq!(picked(&pairs, fail), (vec![], 0, text("; panic: fail below 50 %")));
        assert_eq!(picked(&pairs[..2], spread).0, [1], "half is not below half");
    }

    #[test]
    fn a_degraded_endpoint_gets_a_small_share_and_an_equal_one_if_all_are() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut share = |pairs: &[(Endpoint, Arc<EndpointState>)]| {
            let set = set(pairs);
            (0..210).filter(|_| set.picker().pick(&[], &mut rng).unwrap().addr().port() == 3).count()
        };
        let healthy = [pair(1, EndpointHealth::Healthy), pair(2, EndpointHealth::Healthy)];
        let degraded = pair(3, EndpointHealth::Degraded);
        assert_eq!(share(&[healthy.as_slice(), std::slice::from_ref(&degraded)].concat()), 10);
        let all = [pair(1, EndpointHealth::Degraded), pair(2, EndpointHealth::Degraded), degraded];
        assert_eq!(share(&all), 70);
    }

    #[test]
    fn a_new_endpoint_gets_its_share_step_by_step() {
        let pairs = [pair(1, EndpointHealth::Healthy), pair(2, EndpointHealth::Healthy)];
        let slow = SlowStart { window: Duration::from_secs(100), min_weight_percent: 10 };
        let came = pairs[1].1.since();
        // The first one came long before.
        pairs[1].1.health.lock().passed = Some(came + Duration::from_secs(200));
        let share = |after: u64| {
            let now = came + Duration::from_secs(200 + after);
            let rules = Rules { slow_start: Some((slow, now)), ..(&LbPolicy::RoundRobin).into() };
            let set = EndpointSet::new(pairs.to_vec(), rules, &Arc::new(Rotation::new(0)));
            let mut rng = fastrand::Rng::with_seed(1);
            let picks = (0..330).filter(|_| set.picker().pick(&[], &mut rng).unwrap().addr().port() == 2);
            (picks.count(), set.is_warming())
        };
        assert_eq!([share(0), share(50), share(100)], [(30, true), (110, true), (165, false)]);
    }

    #[test]
    fn a_set_does_not_change_when_a_state_does() {
        let pairs = [pair(1, EndpointHealth::Healthy)];
        let before = set(&pairs);
        pairs[0].1.health.lock().ejection.eject(Instant::now(), Cause::Connect, &OutlierDetection::default());
        assert_eq!(before.counts().usable, 1);
        assert_eq!(set(&pairs).counts().ejected, 1);
        pairs[0].1.health.lock().ejection.expire(Instant::now() + Duration::from_secs(60));
        assert_eq!(set(&pairs).counts().usable, 1);
    }
}
