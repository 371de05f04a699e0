//! How long an endpoint takes to answer: a moving average that follows a slow answer at once and forgets it slowly.
//!
//! A slow answer is believed at once, because whatever made it slow (a pause, a full queue) hits the next request too;
//! fast ones win trust back with a half-life of about [`DECAY`]. Time without answers counts as fast, or an endpoint
//! that was slow once would never be asked again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// After so long, a third of what was known still counts.
pub const DECAY: Duration = Duration::from_secs(10);

/// What an endpoint is held to take before it has answered at all, while requests are in flight there: new ones are
/// tried, but not by everybody at once.
const UNKNOWN_NANOS: f64 = 30_000_000.0;

/// Of one endpoint; shared by all workers. Two that report at once may lose one of the reports.
#[derive(Debug, Default)]
pub struct Latency {
    nanos: AtomicU64,
    at: AtomicU64,
}

impl Latency {
    /// An answer that took `took` came at `now`, both in nanoseconds of one clock.
    pub fn observe(&self, now: u64, took: u64) {
        let (took, held) = (took as f64, self.held(now));
        let at = self.at.load(Ordering::Relaxed);
        let next = if took >= held || at == 0 {
            took
        } else {
            let kept = decay(now.saturating_sub(at));
            let before = f64::from_bits(self.nanos.load(Ordering::Relaxed));
            before * kept + took * (1.0 - kept)
        };
        self.nanos.store(next.to_bits(), Ordering::Relaxed);
        self.at.store(now.max(1), Ordering::Relaxed);
    }

    /// What the next of `active + 1` requests there would take, in nanoseconds.
    pub fn cost(&self, now: u64, active: u32) -> f64 {
        if self.at.load(Ordering::Relaxed) == 0 {
            return if active == 0 { 0.0 } else { UNKNOWN_NANOS * (f64::from(active) + 1.0) };
        }
        self.held(now) * (f64::from(active) + 1.0)
    }

    /// The average as of now, if anything has answered.
    pub(super) fn known(&self, now: u64) -> Option<f64> {
        (self.at.load(Ordering::Relaxed) != 0).then(|| self.held(now))
    }

    /// What another process knew, as of the beginning of this one's clock.
    pub(super) fn learnt(&self, nanos: f64) {
        self.nanos.store(nanos.to_bits(), Ordering::Relaxed);
        self.at.store(1, Ordering::Relaxed);
    }

    /// The average as of now.
    pub fn held(&self, now: u64) -> f64 {
        let at = self.at.load(Ordering::Relaxed);
        f64::from_bits(self.nanos.load(Ordering::Relaxed)) * decay(now.saturating_sub(at))
    }
}

fn decay(nanos: u64) -> f64 {
    (-(nanos as f64) / DECAY.as_nanos() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const SECOND: u64 = 1000 * MS;

    #[test]
    fn a_slow_answer_is_believed_at_once_and_forgotten_slowly() {
        let latency = Latency::default();
        latency.observe(SECOND, 10 * MS);
        latency.observe(SECOND + MS, 100 * MS);
        assert_eq!(latency.held(SECOND + MS), (100 * MS) as f64);
        for i in 0..1000 {
            latency.observe(SECOND + MS + i * MS, 10 * MS);
        }
        let after_a_second = latency.held(2 * SECOND);
        assert!((85.0..95.0).contains(&(after_a_second / MS as f64)), "{after_a_second}");
        let silent = latency.held(60 * SECOND);
        assert!(silent < MS as f64, "time without answers forgives: {silent}");
    }

    #[test]
    fn a_new_endpoint_is_tried_once_and_not_by_everybody() {
        let (new, known) = (Latency::default(), Latency::default());
        known.observe(SECOND, 5 * MS);
        assert!(new.cost(SECOND, 0) < known.cost(SECOND, 0));
        assert!(new.cost(SECOND, 1) > known.cost(SECOND, 1));
    }

    #[test]
    fn requests_in_flight_multiply_what_an_answer_takes() {
        let latency = Latency::default();
        latency.observe(SECOND, 5 * MS);
        assert_eq!(latency.cost(SECOND, 3), (20 * MS) as f64);
    }
}
