//! A rate limit that all workers share: the generic cell rate algorithm (ITU-T I.371, a token bucket that keeps one
//! number). Each sidecar counts for itself.
//!
//! The number is the time at which the bucket will be full again. A request moves it on by the time that one request
//! is worth, and is refused if that would put it further ahead than the whole bucket is worth.
//!
//! ```text
//! 2 a second, burst 3:   full at    now   +0.5  +1.0  +1.5 │ refused: +2.0 would be beyond 3 × 0.5 s
//!                        requests         1st   2nd   3rd  │ 4th, until 0.5 s have passed
//! ```

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use weft_xds_proto::resource::cluster::RateLimit;

/// What is left of a limit. Zero: never used.
#[derive(Debug, Default)]
pub struct Bucket {
    /// In nanoseconds of the process clock.
    full_at: AtomicU64,
}

/// A request beyond the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limited {
    /// Until the next one passes.
    pub retry_after: Duration,
    /// Until the bucket is full again.
    pub reset: Duration,
}

impl Bucket {
    /// Takes the place of one request, at `now` of the process clock.
    ///
    /// # Errors
    /// If there is none; nothing is taken then.
    pub fn take(&self, limit: RateLimit, now: Duration) -> Result<(), Limited> {
        let nanos = |t: Duration| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX / 4);
        // At least one, as no clock is finer.
        let one = (nanos(limit.per) / u64::from(limit.requests.max(1))).max(1);
        let whole = one.saturating_mul(u64::from(limit.burst.max(1)));
        let now = nanos(now);
        let mut full_at = self.full_at.load(Ordering::Relaxed);
        loop {
            let next = full_at.max(now).saturating_add(one);
            let ahead = next - now;
            if ahead > whole {
                return Err(Limited {
                    retry_after: Duration::from_nanos(ahead - whole),
                    reset: Duration::from_nanos(ahead - one),
                });
            }
            // Only this number is shared; nothing is published with it.
            match self.full_at.compare_exchange_weak(full_at, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(other) => full_at = other,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: RateLimit = RateLimit { requests: 2, per: Duration::from_secs(1), burst: 3 };
    const START: Duration = Duration::from_secs(1000);

    #[test]
    fn a_burst_passes_and_then_the_rate_does() {
        let bucket = Bucket::default();
        for _ in 0..3 {
            bucket.take(LIMIT, START).unwrap();
        }
        let refused = bucket.take(LIMIT, START).unwrap_err();
        assert_eq!(refused.retry_after, Duration::from_millis(500));
        assert_eq!(refused.reset, Duration::from_millis(1500));
        let passed = (1..=100).filter(|i| bucket.take(LIMIT, START + Duration::from_millis(i * 100)).is_ok());
        assert_eq!(passed.count(), 20, "two a second for ten seconds");
        for _ in 0..3 {
            bucket.take(LIMIT, START * 2).unwrap();
        }
        assert!(bucket.take(LIMIT, START * 2).is_err(), "what was not used does not add up beyond the burst");
    }

    #[test]
    fn who_waits_as_long_as_told_passes() {
        let bucket = Bucket::default();
        let mut now = START;
        for _ in 0..10 {
            while bucket.take(LIMIT, now).is_ok() {}
            let Err(limited) = bucket.take(LIMIT, now) else { panic!("it is full") };
            assert!(bucket.take(LIMIT, now + limited.retry_after - Duration::from_nanos(1)).is_err());
            now += limited.retry_after;
            bucket.take(LIMIT, now).unwrap();
        }
    }

    #[test]
    fn many_threads_together_get_no_more_than_one() {
        let bucket = Bucket::default();
        let limit = RateLimit { requests: 1, per: Duration::from_secs(3600), burst: 1000 };
        let passed = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        if bucket.take(limit, START).is_ok() {
                            passed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(passed.into_inner(), 1000);
    }

    #[test]
    fn a_limit_that_changes_holds_at_once() {
        let bucket = Bucket::default();
        for _ in 0..3 {
            bucket.take(LIMIT, START).unwrap();
        }
        let wider = RateLimit { burst: 100, ..LIMIT };
        bucket.take(wider, START).unwrap();
        assert!(bucket.take(LIMIT, START).is_err());
    }
}
