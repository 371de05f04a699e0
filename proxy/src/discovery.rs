//! Merges xDS, gossip and static clusters into config snapshots.
