//! Exponential back-off with full jitter, as a value: the caller passes in the random number.

use std::time::Duration;

/// Waiting times that double up to a ceiling, each drawn uniformly from `[0, ceiling)` ("full jitter"),
/// so that clients that failed together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// First wait is below `base`, no wait is above `max`. A `max` below `base` counts as `base`.
    pub const fn new(base: Duration, max: Duration) -> Self {
        Self { base, max, failures: 0 }
    }

    /// Next wait after one more failure. `unit` is a random number in `[0, 1)`; values outside are clamped.
    pub fn next(&mut self, unit: f64) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        // NaN clamps to NaN; treat it as no wait rather than panic in Duration.
        let unit = if unit.is_nan() { 0.0 } else { unit.clamp(0.0, 1.0) };
        ceiling.mul_f64(unit)
    }

    /// Upper end of the next wait.
    pub fn ceiling(&self) -> Duration {
        let factor = 1u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.max.max(self.base))
    }

    /// Failures since the last [`Self::reset`].
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// It worked: the next wait starts from `base` again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(1);

    #[test]
    fn ceiling_doubles_up_to_the_maximum() {
        let mut b = Backoff::new(BASE, MAX);
        let waits: Vec<u64> = (0..6).map(|_| b.next(1.0).as_millis() as u64).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
    }

    #[test]
    fn wait_is_a_share_of_the_ceiling() {
        let mut b = Backoff::new(BASE, MAX);
        assert_eq!(b.next(0.5), Duration::from_millis(50));
        assert_eq!(b.next(0.0), Duration::ZERO);
    }

    #[test]
    fn reset_starts_over() {
        let mut b = Backoff::new(BASE, MAX);
        for _ in 0..10 {
            b.next(0.3);
        }
        b.reset();
        assert_eq!(b.next(1.0), BASE);
    }

    #[test]
    fn a_thousand_failures_do_not_overflow() {
        let mut b = Backoff::new(BASE, MAX);
        for _ in 0..1000 {
            assert!(b.next(1.0) <= MAX);
        }
    }

    #[test]
    fn random_numbers_out_of_range_are_clamped() {
        let mut b = Backoff::new(BASE, MAX);
        assert_eq!(b.next(7.0), BASE);
        assert_eq!(b.next(-1.0), Duration::ZERO);
        assert_eq!(b.next(f64::NAN), Duration::ZERO);
    }
}
