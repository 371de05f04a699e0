//! Advertisements: ours, and those of others as they come in.

use std::time::Instant;

use super::Pool;
use crate::catalog::Merge;
use crate::instance::{AdvertiseError, Advertisement, InstanceRecord, RecordVersion};
use crate::spread::Item;

impl Pool {
    /// Replaces what this process advertises, and tells some members at once.
    ///
    /// # Errors
    /// If it is out of range; then nothing changes.
    pub fn advertise(&mut self, now: Instant, instances: Vec<InstanceRecord>) -> Result<(), AdvertiseError> {
        let own = self.records.get(self.local.id);
        if self.left || own.is_some_and(|own| own.instances == instances) {
            return Ok(());
        }
        self.own_advertisement(instances.clone()).check()?;
        self.put_own(instances);
        let result = self.swim.gossip(self.effects.at(now));
        self.settle(now, result);
        Ok(())
    }

    /// Takes in an advertisement, from a broadcast or a stream.
    pub(super) fn merge(&mut self, now: Instant, advertisement: Advertisement) {
        let owner = advertisement.owner;
        if owner == self.local.id {
            self.defend_own(&advertisement);
            return;
        }
        // One of an unknown owner would outlive it: nobody here would ever see it go down.
        let owner_is_known = self.swim.iter_membership_state().any(|m| m.id().id == owner);
        if !owner_is_known || advertisement.check().is_err() {
            self.stats.records_refused.inc();
            return;
        }
        let item = Item::encode(&advertisement);
        match self.records.merge(advertisement) {
            Merge::News => {
                self.records_changed = true;
                self.broadcast(&item);
                self.touch(now);
            }
            Merge::Full => self.stats.records_refused.inc(),
            Merge::Stale => {}
        }
    }

    /// What we advertise is ours to say. A larger version of it can only come from a process with our id.
    pub(super) fn defend_own(&mut self, claimed: &Advertisement) {
        let version = claimed.version;
        let own = RecordVersion { incarnation: self.local.incarnation, seq: self.seq };
        if version.incarnation == own.incarnation && version.seq > own.seq && version.seq < u64::MAX {
            self.stats.identity_conflicts.inc();
            self.seq = version.seq;
            let instances = self.records.get(self.local.id).map(|own| own.instances.clone());
            self.put_own(instances.unwrap_or_default());
        }
    }

    pub(super) fn own_advertisement(&self, instances: Vec<InstanceRecord>) -> Advertisement {
        let version = RecordVersion { incarnation: self.local.incarnation, seq: self.seq };
        Advertisement { owner: self.local.id, owner_name: self.local.name.clone(), version, instances }
    }

    pub(super) fn put_own(&mut self, instances: Vec<InstanceRecord>) {
        self.seq += 1;
        let own = self.own_advertisement(instances);
        let item = Item::encode(&own);
        self.records.merge(own);
        self.records_changed = true;
        self.broadcast(&item);
    }

    pub(super) fn broadcast(&mut self, item: &[u8]) {
        if let Err(error) = self.swim.add_broadcast(item) {
            // Anti-entropy carries it anyway.
            tracing::debug!("broadcast not queued: {error}");
        }
    }
}
