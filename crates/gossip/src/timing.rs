//! How fast the pool notices, and what it tells SWIM for its size.

use std::time::Duration;

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
