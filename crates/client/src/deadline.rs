//! Until when a session may believe in itself, by its own monotonic clock (P20).
//!
//! A server counts a lease's time from when it handles a renewal, which is after the renewal was sent.
//! So `sent + ttl` is never later than the lease's real end, whatever the network did to the answer,
//! and a holder that stops at `sent + ttl - margin` has stopped before anyone else can be granted.

use std::time::Duration;

use tokio::time::Instant;

/// Share of the TTL kept back for stopping the work in time.
const MARGIN_SHARE: u32 = 5;
const MARGIN_MIN: Duration = Duration::from_millis(200);
const MARGIN_MAX: Duration = Duration::from_secs(3);

/// Time kept back between the local deadline and the lease's end.
pub(crate) fn margin(ttl: Duration) -> Duration {
    (ttl / MARGIN_SHARE).clamp(MARGIN_MIN, MARGIN_MAX)
}

/// Pause between renewals: two of them may fail before the deadline.
pub(crate) fn interval(ttl: Duration) -> Duration {
    ttl / 3
}

/// The local end of a lease. Only ever moves later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    until: Instant,
}

impl Deadline {
    /// For a lease of `ttl` whose grant or renewal was sent at `sent`.
    pub(crate) fn new(sent: Instant, ttl: Duration) -> Self {
        Self { until: sent + ttl.saturating_sub(margin(ttl)) }
    }

    /// An answer that was overtaken by a later one changes nothing.
    pub(crate) fn renewed(&mut self, sent: Instant, ttl: Duration) {
        self.until = self.until.max(Self::new(sent, ttl).until);
    }

    pub(crate) fn until(self) -> Instant {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn the_deadline_counts_from_sending_and_keeps_a_margin() {
        let sent = Instant::now();
        let deadline = Deadline::new(sent, TTL);
        assert_eq!(deadline.until(), sent + Duration::from_secs(8));
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_to_an_early_renewal_does_not_move_it_back() {
        let sent = Instant::now();
        let mut deadline = Deadline::new(sent + Duration::from_secs(3), TTL);
        deadline.renewed(sent, TTL);
        assert_eq!(deadline.until(), sent + Duration::from_secs(11));
    }

    #[test]
    fn the_margin_is_bounded_on_both_sides() {
        assert_eq!(margin(Duration::from_millis(500)), MARGIN_MIN);
        assert_eq!(margin(Duration::from_secs(1)), MARGIN_MIN);
        assert_eq!(margin(Duration::from_secs(3600)), MARGIN_MAX);
    }

    /// S05: crystals differ by less than 200 parts in a million, and servers correct theirs by up to 500. Beyond an hour the
    /// bounded margin covers less than that, and a renewal comes much earlier.
    #[test]
    fn a_session_ends_before_its_lease_also_if_the_clocks_differ_in_rate() {
        for secs in [1, 2, 5, 10, 15, 60, 3600] {
            let ttl = Duration::from_secs(secs);
            let believed = ttl - margin(ttl);
            let really = believed.mul_f64(1.0 + 700e-6);
            assert!(really < ttl, "{ttl:?}: believed in for {really:?} of the server's time");
        }
    }

    #[test]
    fn two_renewals_fit_before_the_deadline() {
        for secs in [1, 2, 5, 10, 60, 3600] {
            let ttl = Duration::from_secs(secs);
            assert!(interval(ttl) * 2 < ttl - margin(ttl), "{ttl:?}");
        }
    }
}
