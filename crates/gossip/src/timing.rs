//! How fast the pool notices, and what it tells SWIM for its size.

use std::num::{NonZeroU8, NonZeroU32, NonZeroUsize};
use std::time::Duration;

use foca::PeriodicParams;
use weft_core::limits::GOSSIP_DATAGRAM_BYTES_MAX;

use crate::wire::ENVELOPE_BYTES;

/// Times of the protocol. The defaults declare a killed member down after 3 to 5 s in a small pool. All members of
/// a pool should use the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GossipTiming {
    /// How often a member is probed. Shorter notices sooner and costs more datagrams.
    pub probe_period: Duration,
    /// How long a direct answer may take before others are asked to probe. Below half of `probe_period`.
    pub probe_rtt: Duration,
    /// How long a suspected member may refute, in a pool of up to ten; grows with the logarithm of the size.
    pub suspicion: Duration,
    /// How often news is passed on.
    pub gossip_period: Duration,
    /// How often a random member is asked to compare all it knows with us (anti-entropy).
    pub sync_period: Duration,
    /// How often seeds and known peers are called again while we see no other member; ten times slower while we
    /// see some but not all that we know of.
    pub rejoin_period: Duration,
    /// How long a member that is down is remembered.
    pub down_retention: Duration,
}

impl Default for GossipTiming {
    fn default() -> Self {
        Self {
            probe_period: Duration::from_millis(500),
            probe_rtt: Duration::from_millis(200),
            suspicion: Duration::from_millis(2_500),
            gossip_period: Duration::from_millis(200),
            sync_period: Duration::from_secs(5),
            rejoin_period: Duration::from_secs(1),
            down_retention: Duration::from_secs(600),
        }
    }
}

impl GossipTiming {
    /// What SWIM runs with when it sees `others` other members that are up. The times that SWIM cannot change at run
    /// time do not depend on it.
    pub(crate) fn swim(&self, others: usize) -> foca::Config {
        let size = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(1);
        let size = NonZeroU32::new(size).unwrap_or(NonZeroU32::MIN);
        let preset = foca::Config::new_lan(size);
        let every = |frequency, members: usize| {
            Some(PeriodicParams {
                frequency,
                num_members: NonZeroUsize::new(members).unwrap_or(NonZeroUsize::MIN),
            })
        };
        foca::Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_rtt,
            num_indirect_probes: preset.num_indirect_probes,
            // The preset leaves a few of a hundred to chance; our datagrams have room.
            max_transmissions: preset.max_transmissions.saturating_mul(TWO).max(TRANSMISSIONS_MIN),
            suspect_to_down_after: self.suspicion.mul_f64(f64::from(size.get()).log10().max(1.0)),
            remove_down_after: Some(self.down_retention),
            max_packet_size: SWIM_BYTES_MAX,
            notify_down_members: true,
            periodic_announce: every(self.sync_period * 2, 1),
            periodic_announce_to_down_members: every(self.sync_period, 2),
            periodic_gossip: every(self.gossip_period, 3),
        }
    }

    /// Time between anti-entropy sessions that this member starts, in a pool of that size: its cost grows with the
    /// size, so large pools do it less often (as memberlist scales push/pull).
    pub(crate) fn sync_every(&self, others: usize) -> Duration {
        let doublings = (others / 32).checked_ilog2().map_or(0, |log| log + 1);
        self.sync_period * (1 + doublings)
    }

    /// Checks what SWIM takes for granted.
    ///
    /// # Errors
    /// Says which value is out of range and why.
    pub(crate) fn check(&self) -> Result<(), String> {
        let all = [
            ("probe_period", self.probe_period),
            ("probe_rtt", self.probe_rtt),
            ("suspicion", self.suspicion),
            ("gossip_period", self.gossip_period),
            ("sync_period", self.sync_period),
            ("rejoin_period", self.rejoin_period),
            ("down_retention", self.down_retention),
        ];
        if let Some((name, _)) = all.iter().find(|(_, time)| time.is_zero()) {
            return Err(format!("{name} is 0, it must be longer"));
        }
        if self.probe_rtt * 2 > self.probe_period {
            return Err(format!(
                "probe_rtt is {:?}, it must be at most half of probe_period ({:?})",
                self.probe_rtt, self.probe_period
            ));
        }
        if self.down_retention < self.suspicion * 10 {
            return Err(format!(
                "down_retention is {:?}, it must be at least ten times suspicion ({:?})",
                self.down_retention, self.suspicion
            ));
        }
        Ok(())
    }
}

/// Also in a pool of two, where a lost datagram would otherwise be the only one.
const TRANSMISSIONS_MIN: NonZeroU8 = match NonZeroU8::new(6) {
    Some(six) => six,
    None => NonZeroU8::MIN,
};

const TWO: NonZeroU8 = match NonZeroU8::new(2) {
    Some(two) => two,
    None => NonZeroU8::MIN,
};

/// What the envelope leaves for SWIM.
const SWIM_BYTES_MAX: NonZeroUsize = match NonZeroUsize::new(GOSSIP_DATAGRAM_BYTES_MAX - ENVELOPE_BYTES) {
    Some(bytes) => bytes,
    None => panic!("the envelope is smaller than a datagram"),
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspicion_grows_with_the_logarithm_of_the_pool() {
        let timing = GossipTiming::default();
        assert_eq!(timing.swim(0).suspect_to_down_after, timing.suspicion);
        assert_eq!(timing.swim(9).suspect_to_down_after, timing.suspicion);
        assert_eq!(timing.swim(99).suspect_to_down_after, timing.suspicion * 2);
    }

    #[test]
    fn anti_entropy_is_rarer_in_large_pools() {
        let timing = GossipTiming::default();
        assert_eq!(timing.sync_every(0), timing.sync_period);
        assert_eq!(timing.sync_every(31), timing.sync_period);
        assert_eq!(timing.sync_every(32), timing.sync_period * 2);
        assert_eq!(timing.sync_every(64), timing.sync_period * 3);
    }

    #[test]
    fn times_that_cannot_work_are_refused() {
        assert_eq!(GossipTiming::default().check(), Ok(()));
        let zero = GossipTiming { gossip_period: Duration::ZERO, ..GossipTiming::default() };
        assert!(zero.check().unwrap_err().starts_with("gossip_period is 0"));
        let rtt = GossipTiming { probe_rtt: Duration::from_millis(400), ..GossipTiming::default() };
        assert!(rtt.check().unwrap_err().contains("at most half"));
        let forget = GossipTiming { down_retention: Duration::from_secs(1), ..GossipTiming::default() };
        assert!(forget.check().unwrap_err().contains("ten times"));
    }
}
