//! Passive health: an endpoint that fails requests is left out for a while. Pure; the caller knows the time.
//!
//! ```text
//!            failures in a row reach a limit, one connect failure, or worse than the others (`compare`)
//!  in ────────────────────────────────────────────────────────────────> ejected
//!  in <──────────────────────────────────────────────────────────────── ejected
//!            its time is over, or an active check passed
//! ```
//! The time doubles with each ejection, and is forgotten again as the endpoint stays in (departure from Envoy, where
//! it grows by the base time).

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use weft_xds_proto::resource::cluster::OutlierDetection;

/// What one exchange says of its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An answer below 500.
    Success,
    /// A 5xx answer of the app, or one that cannot be used.
    Failure,
    /// 502, 503 or 504, a connection that broke, no answer in time: the way there rather than the app.
    GatewayFailure,
    /// No connection: nobody listens there, so one is enough.
    ConnectFailure,
}

impl Outcome {
    /// Of an answer with this status.
    pub fn of_status(status: http::StatusCode) -> Self {
        match status.as_u16() {
            502..=504 => Self::GatewayFailure,
            500.. => Self::Failure,
            _ => Self::Success,
        }
    }
}

/// Failures in a row: all, and those of the way there. Shared by all workers.
#[derive(Debug, Default)]
pub struct Failures(AtomicU32, AtomicU32);

impl Failures {
    /// Counts one outcome. Answers the cause if the endpoint should be ejected.
    pub fn record(&self, outcome: Outcome, policy: &OutlierDetection) -> Option<Cause> {
        match outcome {
            Outcome::Success => {
                // A store alone would take the cache line from other workers on each request.
                for counter in [&self.0, &self.1] {
                    if counter.load(Ordering::Relaxed) != 0 {
                        counter.store(0, Ordering::Relaxed);
                    }
                }
                None
            }
            _ if policy.consecutive_failures == 0 && policy.consecutive_gateway == 0 => None,
            Outcome::ConnectFailure => Some(Cause::Connect),
            Outcome::Failure => {
                self.1.store(0, Ordering::Relaxed);
                reached(&self.0, policy.consecutive_failures).then_some(Cause::Failures)
            }
            Outcome::GatewayFailure => {
                let gateway = reached(&self.1, policy.consecutive_gateway);
                match reached(&self.0, policy.consecutive_failures) {
                    _ if gateway => Some(Cause::Gateway),
                    any => any.then_some(Cause::Failures),
                }
            }
        }
    }

    /// Failures since the last success.
    pub fn in_a_row(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// The endpoint starts afresh.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
        self.1.store(0, Ordering::Relaxed);
    }
}

/// Counts one more; 0 is no limit.
fn reached(counter: &AtomicU32, limit: u32) -> bool {
    let seen = counter.fetch_add(1, Ordering::Relaxed).saturating_add(1);
    limit > 0 && seen >= limit
}

/// Why an endpoint is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// [`Outcome::ConnectFailure`].
    Connect,
    /// [`OutlierDetection::consecutive_failures`] in a row.
    Failures,
    /// [`OutlierDetection::consecutive_gateway`] in a row.
    Gateway,
    /// [`OutlierDetection::success_rate`].
    SuccessRate,
    /// [`OutlierDetection::failure_percentage`].
    FailurePercentage,
    /// [`OutlierDetection::latency`].
    Latency,
}

impl Cause {
    /// As shown on the admin port.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect-failure",
            Self::Failures => "consecutive-failures",
            Self::Gateway => "gateway-failures",
            Self::SuccessRate => "success-rate",
            Self::FailurePercentage => "failure-percentage",
            Self::Latency => "latency",
        }
    }
}

/// Ejections of one endpoint.
#[derive(Debug, Default, Clone)]
pub struct Ejection {
    current: Option<(Cause, Instant)>,
    /// Ejections in close succession.
    times: u32,
    returned: Option<Instant>,
}

impl Ejection {
    /// As another process left it.
    pub(super) fn learnt(current: Option<(Cause, Instant)>, times: u32, returned: Option<Instant>) -> Self {
        Self { current, times, returned }
    }

    /// Ejections in close succession.
    pub(super) fn times(&self) -> u32 {
        self.times
    }

    /// Why and until when, if it is ejected.
    pub fn current(&self) -> Option<(Cause, Instant)> {
        self.current
    }

    /// When it came back last.
    pub fn returned(&self) -> Option<Instant> {
        self.returned
    }

    /// Leaves the endpoint out from now on. Answers `false` if it already is.
    pub fn eject(&mut self, now: Instant, cause: Cause, policy: &OutlierDetection) -> bool {
        if self.current.is_some() {
            return false;
        }
        if let Some(returned) = self.returned {
            let base = policy.base_ejection_time.max(Duration::from_millis(1));
            let forgotten = now.saturating_duration_since(returned).as_millis() / base.as_millis();
            self.times = self.times.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX));
        }
        let factor = 1u32.checked_shl(self.times).unwrap_or(u32::MAX);
        let time = policy.base_ejection_time.saturating_mul(factor);
        let time = time.min(policy.max_ejection_time.max(policy.base_ejection_time));
        self.times = self.times.saturating_add(1);
        self.current = Some((cause, now + time));
        true
    }

    /// Back in if its time is over. Answers whether that changed anything.
    pub fn expire(&mut self, now: Instant) -> bool {
        self.current.is_some_and(|(_, until)| until <= now) && self.lift(now)
    }

    /// Back in now. Answers whether that changed anything.
    pub fn lift(&mut self, now: Instant) -> bool {
        if self.current.take().is_none() {
            return false;
        }
        self.returned = Some(now);
        true
    }
}

/// Whether one more endpoint may be ejected. `ejected` counts the others that are, `usable` the others that would
/// stay in rotation. Failing active checks is accounted apart: such endpoints are neither (P40).
pub fn may_eject(total: usize, ejected: usize, usable: usize, policy: &OutlierDetection) -> bool {
    let after = ejected + 1;
    let percent = usize::try_from(policy.max_ejection_percent).unwrap_or(100);
    usable > 0 && percent > 0 && (after == 1 || after * 100 <= total * percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy() -> OutlierDetection {
        OutlierDetection {
            consecutive_failures: 3,
            base_ejection_time: SECOND * 10,
            max_ejection_time: SECOND * 60,
            max_ejection_percent: 50,
            ..OutlierDetection::default()
        }
    }

    #[test]
    fn failures_in_a_row_eject_and_a_success_starts_over() {
        let (failures, policy) = (Failures::default(), policy());
        for outcome in
            [Outcome::Failure, Outcome::Failure, Outcome::Success, Outcome::Failure, Outcome::Failure]
        {
            assert_eq!(failures.record(outcome, &policy), None);
        }
        assert_eq!(failures.record(Outcome::Failure, &policy), Some(Cause::Failures));
        assert_eq!(failures.in_a_row(), 3);
    }

    #[test]
    fn gateway_failures_have_a_limit_of_their_own_and_count_as_failures_too() {
        let policy = OutlierDetection { consecutive_failures: 4, consecutive_gateway: 2, ..policy() };
        let failures = Failures::default();
        let cause = |outcome| failures.record(outcome, &policy);
        assert_eq!(cause(Outcome::GatewayFailure), None);
        assert_eq!(cause(Outcome::Failure), None, "ends the row of those of the way there");
        assert_eq!(cause(Outcome::GatewayFailure), None);
        assert_eq!(cause(Outcome::GatewayFailure), Some(Cause::Gateway));
        failures.reset();
        let policy = OutlierDetection { consecutive_gateway: 0, ..policy.clone() };
        let causes: Vec<_> = (0..4).map(|_| failures.record(Outcome::GatewayFailure, &policy)).collect();
        assert_eq!(causes, [None, None, None, Some(Cause::Failures)]);
        assert_eq!(Outcome::of_status(http::StatusCode::BAD_GATEWAY), Outcome::GatewayFailure);
        assert_eq!(Outcome::of_status(http::StatusCode::NOT_IMPLEMENTED), Outcome::Failure);
        assert_eq!(Outcome::of_status(http::StatusCode::NOT_FOUND), Outcome::Success);
    }

    #[test]
    fn one_connect_failure_ejects() {
        assert_eq!(Failures::default().record(Outcome::ConnectFailure, &policy()), Some(Cause::Connect));
    }

    #[test]
    fn zero_consecutive_failures_turns_it_off() {
        let off = OutlierDetection { consecutive_failures: 0, ..policy() };
        assert_eq!(Failures::default().record(Outcome::ConnectFailure, &off), None);
        assert_eq!(Failures::default().record(Outcome::Failure, &off), None);
    }

    #[test]
    fn ejection_time_doubles_up_to_the_maximum_and_is_forgotten_in_time() {
        let (mut ejection, policy) = (Ejection::default(), policy());
        let mut now = Instant::now();
        let mut times = Vec::new();
        for _ in 0..5 {
            assert!(ejection.eject(now, Cause::Failures, &policy));
            let (_, until) = ejection.current().unwrap();
            times.push((until - now).as_secs());
            assert!(!ejection.expire(until - SECOND));
            assert!(ejection.expire(until));
            now = until;
        }
        assert_eq!(times, [10, 20, 40, 60, 60]);
        now += SECOND * 100;
        ejection.eject(now, Cause::Failures, &policy);
        assert_eq!(ejection.current().unwrap().1 - now, SECOND * 10);
    }

    #[test]
    fn ejecting_twice_changes_nothing() {
        let (mut ejection, policy, now) = (Ejection::default(), policy(), Instant::now());
        assert!(ejection.eject(now, Cause::Connect, &policy));
        assert!(!ejection.eject(now + SECOND, Cause::Failures, &policy));
        assert_eq!(ejection.current(), Some((Cause::Connect, now + SECOND * 10)));
        assert!(ejection.lift(now));
        assert!(!ejection.lift(now));
    }

    /// P40: the share is that after the ejection; the last usable endpoint always stays.
    #[test]
    fn share_of_ejected_endpoints_is_counted_after_the_ejection() {
        let at = |percent| OutlierDetection { max_ejection_percent: percent, ..policy() };
        assert!(may_eject(3, 0, 2, &at(67)));
        assert!(!may_eject(3, 1, 1, &at(66)), "2 of 3 is more than 66 %");
        assert!(may_eject(3, 1, 1, &at(67)));
        assert!(!may_eject(3, 2, 0, &at(100)), "the last one stays");
        assert!(!may_eject(1, 0, 0, &at(100)));
        assert!(may_eject(10, 0, 9, &at(5)), "one may always be");
        assert!(!may_eject(10, 1, 8, &at(5)));
        assert!(!may_eject(10, 0, 9, &at(0)), "0 turns it off");
    }
}
