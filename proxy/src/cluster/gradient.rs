//! How many requests a service bears at once, found out while it runs (adaptive concurrency): the limit falls when
//! answers take longer than they do without a queue, and grows otherwise. All workers share it.
//!
//! Answers are looked at in windows. Of a window's mean time `short` and the time without a queue, `base`, comes
//! ```text
//! gradient = clamp(tolerance × base ÷ short, ½, 1)        limit → limit × gradient + √limit     (one fifth of the way)
//! ```
//! so that it settles where the queue costs as much as the tolerance allows (as the gradient algorithms of Netflix's
//! concurrency-limits and of Envoy's adaptive concurrency filter do). `base` is the least mean of the last minute. Under a
//! load that never ends nobody would see it any more, so at first, and then whenever ten seconds have passed in which more
//! than half of the limit was used, the limit is a quarter for two windows.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use weft_xds_proto::resource::cluster::AdaptiveConcurrency;

/// Least time of a window.
const WINDOW: Duration = Duration::from_millis(100);
/// Least answers of a window: a mean of fewer says little.
const SAMPLES_MIN: u32 = 10;
/// Between two looks at the time without a queue.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
/// Windows of such a look. In all but the last one there are still answers to what was under way before.
const PROBE_WINDOWS: u32 = 2;
/// A minimum is remembered for one to two of these.
const BASE_AGE: Duration = Duration::from_secs(30);
/// At first, within the bounds that are configured.
const START: u32 = 32;
/// Share of the way to a new limit that one window goes.
const SMOOTHING: f64 = 0.2;

/// See the module.
#[derive(Debug, Default)]
pub struct Gradient {
    /// 0: nothing is known yet.
    limit: AtomicU32,
    /// Held for a few additions; whoever finds it taken leaves its sample out.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    window: Window,
    /// Exact, as the limit in use is rounded; 0 as there.
    limit: f64,
    /// Least means of the present and of the last age, in nanoseconds.
    base: [Option<f64>; 2],
    aged: Duration,
    /// None: never.
    probed: Option<Duration>,
    /// Windows that are left of a look.
    probing: u32,
}

#[derive(Debug, Default)]
struct Window {
    since: Option<Duration>,
    samples: u32,
    nanos: u64,
    peak: u32,
}

impl Gradient {
    /// Requests that may be under way now.
    pub fn limit(&self, rule: AdaptiveConcurrency) -> u32 {
        match self.limit.load(Ordering::Relaxed) {
            0 => START,
            limit => limit,
        }
        .clamp(rule.min, rule.max)
    }

    /// Takes over an answer that came at `now` of the process clock, `took` after its request was sent, and how many
    /// were under way.
    pub fn observe(&self, rule: AdaptiveConcurrency, now: Duration, took: Duration, under_way: u32) {
        let Some(mut state) = self.state.try_lock() else { return };
        let window = &mut state.window;
        let since = *window.since.get_or_insert(now);
        window.samples += 1;
        window.nanos = window.nanos.saturating_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
        window.peak = window.peak.max(under_way);
        if now.saturating_sub(since) < WINDOW || window.samples < SAMPLES_MIN {
            return;
        }
        let short = (window.nanos as f64 / f64::from(window.samples)).max(1.0);
        let peak = window.peak;
        state.window = Window::default();
        self.limit.store(state.next(rule, now, short, peak), Ordering::Relaxed);
    }
}

impl State {
    /// The limit while it is looked for the time without a queue.
    fn low(&self, min: f64) -> u32 {
        (self.limit / 4.0).max(min) as u32
    }

    /// The limit after a window.
    fn next(&mut self, rule: AdaptiveConcurrency, now: Duration, short: f64, peak: u32) -> u32 {
        let (min, max) = (f64::from(rule.min), f64::from(rule.max));
        if self.limit == 0.0 {
            (self.limit, self.aged) = (f64::from(START), now);
        }
        self.limit = self.limit.clamp(min, max);
        if now.saturating_sub(self.aged) >= BASE_AGE {
            self.base = [None, self.base[0]];
            self.aged = now;
        }
        let probed = self.probing > 0;
        if probed {
            self.probing -= 1;
            if self.probing > 0 {
                // Answers to what was under way before.
                return self.low(min);
            }
        }
        self.base[0] = Some(self.base[0].map_or(short, |least| least.min(short)));
        let base = self.base.iter().flatten().fold(f64::MAX, |a, b| a.min(*b));
        if probed {
            // What was seen is in `base`; the limit is as it was.
        } else if f64::from(peak) * 2.0 >= self.limit {
            let gradient = (f64::from(rule.tolerance_percent) / 100.0 * base / short).clamp(0.5, 1.0);
            let target = self.limit * gradient + self.limit.sqrt();
            self.limit = (self.limit + (target - self.limit) * SMOOTHING).clamp(min, max);
        } else {
            // Nothing is learnt of a limit, and what was seen is as good as a look.
            self.probed = Some(now);
        }
        if self.probed.is_none_or(|at| now.saturating_sub(at) >= PROBE_INTERVAL) {
            (self.probed, self.probing) = (Some(now), PROBE_WINDOWS);
            return self.low(min);
        }
        self.limit as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: AdaptiveConcurrency = AdaptiveConcurrency { min: 2, max: 1000, tolerance_percent: 150 };
    const BASE: Duration = Duration::from_millis(10);

    /// Seconds of a service that does `capacity` requests at once in [`BASE`], and others in turn, with as many requests
    /// as `demand` and the limit allow. Answers the limits of the last second.
    fn run(gradient: &Gradient, start: u64, seconds: u64, capacity: f64, demand: u32) -> Vec<u32> {
        let mut limits = Vec::new();
        for tick in 0..seconds * 200 {
            let now = Duration::from_secs(start) + Duration::from_millis(tick * 5);
            let limit = gradient.limit(RULE);
            let under_way = limit.min(demand);
            let took = BASE.mul_f64((f64::from(under_way) / capacity).max(1.0));
            gradient.observe(RULE, now, took, under_way);
            if tick >= (seconds - 1) * 200 {
                limits.push(limit);
            }
        }
        limits
    }

    fn settles(limits: &[u32], range: std::ops::RangeInclusive<u32>) -> bool {
        let mut sorted = limits.to_vec();
        sorted.sort_unstable();
        range.contains(&sorted[sorted.len() / 2])
    }

    #[test]
    fn the_limit_settles_a_little_above_what_the_service_does_at_once_from_either_side() {
        for capacity in [5.0, 20.0, 200.0] {
            let gradient = Gradient::default();
            let limits = run(&gradient, 0, 120, capacity, u32::MAX);
            let range = capacity as u32..=(capacity * 2.6) as u32;
            assert!(settles(&limits, range), "{capacity}: {limits:?}");
        }
    }

    #[test]
    fn a_service_that_becomes_weaker_gets_less_and_more_again_when_it_recovers() {
        let gradient = Gradient::default();
        assert!(settles(&run(&gradient, 0, 60, 100.0, u32::MAX), 100..=260));
        assert!(settles(&run(&gradient, 60, 60, 10.0, u32::MAX), 10..=26), "ten times weaker");
        assert!(settles(&run(&gradient, 120, 60, 100.0, u32::MAX), 100..=260));
    }

    #[test]
    fn a_load_that_lasts_is_not_taken_for_the_usual() {
        let gradient = Gradient::default();
        let limits = run(&gradient, 0, 1800, 20.0, u32::MAX);
        assert!(settles(&limits, 20..=52), "after half an hour: {limits:?}");
    }

    #[test]
    fn without_demand_nothing_is_learnt() {
        let gradient = Gradient::default();
        let limits = run(&gradient, 0, 60, 100.0, 3);
        assert!(settles(&limits, START..=START), "{limits:?}");
    }

    #[test]
    fn the_limit_stays_within_its_bounds() {
        let tight = AdaptiveConcurrency { min: 4, max: 6, ..RULE };
        let gradient = Gradient::default();
        assert_eq!(gradient.limit(tight), 6);
        for tick in 0..10_000 {
            let took = if tick > 5_000 { BASE * 50 } else { BASE };
            gradient.observe(tight, Duration::from_millis(tick * 5), took, 6);
            assert!((4..=6).contains(&gradient.limit(tight)));
        }
        assert_eq!(gradient.limit(tight), 4, "fifty times slower than it was a minute ago");
    }
}
