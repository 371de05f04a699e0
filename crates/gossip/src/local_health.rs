//! How much this process trusts itself to accuse others (Lifeguard's local health, DSN 2018 §IV-A; P25).
//!
//! A process that is starved of CPU, or cut off, sees everyone else fail. Signs of that raise a score; while it is
//! up, probes and suspicions of this process take longer by [`LocalHealth::multiplier`], so it accuses later.

use std::collections::VecDeque;
use std::time::Duration;

/// A timer later than this is a sign of starvation: far above the jitter of a busy but running process.
pub(crate) const LATE: Duration = Duration::from_millis(150);

const SCORE_MAX: u32 = 7;
/// What failing probes alone can raise the score to: they may be true, and detection must stay bounded.
const SCORE_BY_PROBES_MAX: u32 = 2;
/// Probes looked back at.
const WINDOW: usize = 6;
/// In smaller pools one member that is really down already fails most probes.
const POOL_MIN: usize = 5;

/// The score and what it is made from.
#[derive(Debug, Default)]
pub(crate) struct LocalHealth {
    score: u32,
    failures: VecDeque<bool>,
}

impl LocalHealth {
    /// One of our timers came late by this much.
    pub(crate) fn late(&mut self, lateness: Duration) {
        if lateness > LATE {
            let by = 1 + u32::try_from(lateness.as_secs()).unwrap_or(SCORE_MAX);
            self.score = self.score.saturating_add(by).min(SCORE_MAX);
        }
    }

    /// A probe of ours ended. `pool` is the number of members that could be probed.
    pub(crate) fn probe_ended(&mut self, failed: bool, pool: usize) {
        if self.failures.len() == WINDOW {
            self.failures.pop_front();
        }
        self.failures.push_back(failed);
        if !failed {
            self.score = self.score.saturating_sub(1);
            return;
        }
        let failures = self.failures.iter().filter(|f| **f).count();
        // More than half of the pool failing at once is likelier to be our fault than theirs.
        if pool >= POOL_MIN && failures * 2 > WINDOW && self.score < SCORE_BY_PROBES_MAX {
            self.score += 1;
        }
    }

    /// Factor for our probe and suspicion times, from 1 to 8.
    pub(crate) fn multiplier(&self) -> u32 {
        1 + self.score
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_delays_do_not_count() {
        let mut health = LocalHealth::default();
        health.late(Duration::from_millis(100));
        assert_eq!(health.multiplier(), 1);
    }

    #[test]
    fn a_pause_raises_the_multiplier_up_to_its_bound_and_successes_lower_it() {
        let mut health = LocalHealth::default();
        health.late(Duration::from_secs(2));
        assert_eq!(health.multiplier(), 4);
        health.late(Duration::from_secs(3_600));
        assert_eq!(health.multiplier(), 8);
        for _ in 0..10 {
            health.probe_ended(false, 10);
        }
        assert_eq!(health.multiplier(), 1);
    }

    #[test]
    fn one_failing_member_of_many_is_not_held_against_us() {
        let mut health = LocalHealth::default();
        for i in 0..100 {
            health.probe_ended(i % 4 == 0, 10);
            assert_eq!(health.multiplier(), 1);
        }
    }

    #[test]
    fn most_members_failing_at_once_is_but_only_so_far() {
        let mut health = LocalHealth::default();
        for _ in 0..100 {
            health.probe_ended(true, 10);
        }
        assert_eq!(health.multiplier(), 3);
        let mut pair = LocalHealth::default();
        for _ in 0..100 {
            pair.probe_ended(true, 1);
        }
        assert_eq!(pair.multiplier(), 1);
    }
}
