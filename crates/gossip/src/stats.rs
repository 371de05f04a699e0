//! What the pool counts.

use weft_core::metrics::{Counter, Gauge, Registry};

macro_rules! stats {
    ($($kind:ident $field:ident, $name:literal, $help:literal;)*) => {
        /// Counters and gauges of one pool. Cloning shares them.
        #[derive(Debug, Clone, Default)]
        pub struct Stats {
            $(#[doc = $help] pub $field: $kind,)*
        }

        impl Stats {
            /// Shows them in a registry.
            pub fn register(&self, registry: &Registry) {
                $(stats!(@add $kind, registry, $name, $help, &self.$field);)*
            }
        }
    };
    (@add Counter, $registry:ident, $name:literal, $help:literal, $metric:expr) => {
        $registry.add_counter($name, $help, $metric)
    };
    (@add Gauge, $registry:ident, $name:literal, $help:literal, $metric:expr) => {
        $registry.add_gauge($name, $help, $metric)
    };
}

stats! {
    Gauge members_up, "weft_gossip_members_up", "Other members that are up, suspected ones included";
    Gauge members_suspect, "weft_gossip_members_suspect", "Other members that are suspected";
    Gauge members_down, "weft_gossip_members_down", "Members that are down and still remembered";
    Gauge records, "weft_gossip_records", "Owners whose advertisement is known";
    Gauge instances, "weft_gossip_instances", "Instances shown in the catalogue";
    Gauge health_multiplier, "weft_gossip_health_multiplier", "Factor by which this process accuses later because it may itself be sick";
    Counter datagrams_received, "weft_gossip_datagrams_received", "Datagrams received";
    Counter datagrams_sent, "weft_gossip_datagrams_sent", "Datagrams sent";
    Counter datagrams_foreign, "weft_gossip_datagrams_foreign", "Datagrams dropped: of no pool, another version or another key";
    Counter datagrams_malformed, "weft_gossip_datagrams_malformed", "Datagrams dropped: cannot be decoded or out of place";
    Counter datagrams_limited, "weft_gossip_datagrams_limited", "Datagrams dropped at a limit of rate, queue or table";
    Counter send_errors, "weft_gossip_send_errors", "Datagrams that the system did not send";
    Counter identity_conflicts, "weft_gossip_identity_conflicts", "Messages from another process with our id";
    Counter probes_failed, "weft_gossip_probes_failed", "Probes of ours that nobody answered";
    Counter timers_late, "weft_gossip_timers_late", "Times that this process was not run when it should have been";
    Counter rejoins, "weft_gossip_rejoins", "Times that others declared us down and we came back";
    Counter records_refused, "weft_gossip_records_refused", "Advertisements dropped: out of range, of an unknown owner, or no room";
    Counter syncs_started, "weft_gossip_syncs_started", "Anti-entropy sessions that we started";
    Counter syncs_served, "weft_gossip_syncs_served", "Anti-entropy sessions that others started with us";
    Counter syncs_failed, "weft_gossip_syncs_failed", "Anti-entropy sessions that broke off";
    Counter syncs_refused, "weft_gossip_syncs_refused", "Anti-entropy sessions refused at the limit of sessions";
    Counter seeds_refused, "weft_gossip_seeds_refused", "Seeds not taken because there are too many";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_shown_once_registered() {
        let stats = Stats::default();
        let registry = Registry::new();
        stats.register(&registry);
        stats.rejoins.inc();
        stats.members_up.set(4);
        let text = registry.encode();
        assert!(text.contains("weft_gossip_rejoins_total 1"));
        assert!(text.contains("weft_gossip_members_up 4"));
    }
}
