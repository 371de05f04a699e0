//! When this proxy itself has too much to do: a share of the requests is answered 503 at once, so that the others are
//! served well. Pure: whoever measures says what was seen.
//!
//! - *Memory*: from nine tenths of the limit on, the share grows evenly to all at the limit.
//! - *Queue time*: how late a worker comes to what it was to do at a given time, which is how long requests wait in it.
//!   If even the least of some measurements is too late, there is a standing queue and no mere burst (CoDel, RFC 8289
//!   §4.4): a tenth more is refused each time, and a tenth less once it is gone.

use std::time::Duration;

/// Limits of a process; without any, nothing is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Resident bytes.
    pub memory: Option<u64>,
    /// Time that requests may wait in a worker.
    pub queue: Option<Duration>,
}

impl Limits {
    /// Whether there is one.
    pub fn any(self) -> bool {
        self.memory.is_some() || self.queue.is_some()
    }
}

/// Parts of the requests, in thousandths.
pub type Permille = u32;

/// The share to refuse for memory.
pub fn for_memory(used: u64, limit: u64) -> Permille {
    let begins = limit / 10 * 9;
    if used <= begins {
        return 0;
    }
    let room = (limit - begins).max(1);
    // At most 1000.
    ((used - begins).min(room) * 1000 / room) as Permille
}

/// What one worker knows of its queue.
#[derive(Debug, Default)]
pub struct Queue {
    least: Option<Duration>,
    seen: u32,
    share: Permille,
}

/// Between two measurements.
pub const MEASURE_EVERY: Duration = Duration::from_millis(20);
/// Measurements of which the least counts.
const OF: u32 = 5;
const STEP: Permille = 100;
/// Some are always let through, or nobody would find out that it is over.
const SHARE_MAX: Permille = 900;

impl Queue {
    /// The worker came so late. Answers the share to refuse.
    pub fn observe(&mut self, late: Duration, limit: Duration) -> Permille {
        self.least = Some(self.least.map_or(late, |least| least.min(late)));
        self.seen += 1;
        if self.seen >= OF {
            let least = self.least.take().unwrap_or_default();
            self.seen = 0;
            self.share = if least > limit {
                (self.share + STEP).min(SHARE_MAX)
            } else {
                self.share.saturating_sub(STEP)
            };
        }
        self.share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_the_limit_of_memory_more_and_more_is_refused() {
        let shares = [0, 900, 901, 950, 1000, 5000].map(|used| for_memory(used, 1000));
        assert_eq!(shares, [0, 0, 10, 500, 1000, 1000]);
    }

    #[test]
    fn a_burst_is_borne_and_a_standing_queue_is_not() {
        let (mut queue, limit) = (Queue::default(), Duration::from_millis(10));
        let mut observe = |millis: u64| queue.observe(Duration::from_millis(millis), limit);
        for late in [50, 50, 9, 50, 50] {
            assert_eq!(observe(late), 0, "once it was in time");
        }
        let shares: Vec<_> = (0..60).map(|_| observe(11)).collect();
        assert_eq!((shares[4], shares[9], shares[59]), (100, 200, SHARE_MAX));
        let after: Vec<_> = (0..45).map(|_| observe(0)).collect();
        assert_eq!((after[4], after[44]), (SHARE_MAX - 100, 0));
    }
}
