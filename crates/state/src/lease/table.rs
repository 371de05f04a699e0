//! Which leases exist and which keys hang on them: the replicated half of leases.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    sync::{Arc, Weak},
};

use crate::{
    command::{LeaseCheckpoint, LeaseGrantNumber, LeaseId},
    lease::LeaseTerms,
    store::{digest::Digest, key::Key},
};

/// All leases. Ordered, so that every replica walks them alike.
#[derive(Debug, Clone, Default)]
pub(crate) struct LeaseTable {
    leases: BTreeMap<LeaseId, Lease>,
    /// The last number given to a grant; 0: none yet. Never goes back, also not across images.
    last_grant: LeaseGrantNumber,
    /// Sum of the hashes of all leases.
    digest: u64,
    /// Moments that are still read. Not part of the state.
    pins: Vec<Pinned>,
}

/// What changed since a moment that is still read: the terms of then, none if there was no such lease.
#[derive(Debug, Clone)]
struct Pinned {
    pin: Weak<()>,
    before: BTreeMap<LeaseId, Option<LeaseTerms>>,
}

/// One lease.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) ttl_secs: i64,
    pub(crate) grant: LeaseGrantNumber,
    /// See [`LeaseTerms::remaining_secs`].
    pub(crate) remaining_secs: Option<i64>,
    pub(crate) keys: KeySet,
}

impl LeaseTable {
    pub(crate) fn contains(&self, id: LeaseId) -> bool {
        self.leases.contains_key(&id)
    }

    pub(crate) fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = (LeaseId, &Lease)> {
        self.leases.iter().map(|(id, lease)| (*id, lease))
    }

    /// Adds a lease, or changes the time to live of a present one; either is a new grant.
    pub(crate) fn set(&mut self, id: LeaseId, ttl_secs: i64) {
        self.last_grant += 1;
        let grant = self.last_grant;
        let keys = match self.remove(id) {
            Some(Lease { keys, .. }) => keys,
            None => KeySet::default(),
        };
        self.insert(id, Lease { ttl_secs, grant, remaining_secs: None, keys });
    }

    /// Notes what is left of a lease; false if it is not that grant any more.
    pub(crate) fn note_remaining(&mut self, noted: &LeaseCheckpoint) -> bool {
        let LeaseCheckpoint { id, grant, remaining_secs } = *noted;
        if self.leases.get(&id).is_none_or(|lease| lease.grant != grant) {
            return false;
        }
        let lease = self.remove(id).expect("it was there just now");
        let remaining_secs = remaining_secs.map(|secs| secs.max(1)).filter(|secs| *secs < lease.ttl_secs);
        self.insert(id, Lease { remaining_secs, ..lease });
        true
    }

    /// The last number given, from an image, before [`LeaseTable::load`].
    pub(crate) fn load_last_grant(&mut self, last_grant: LeaseGrantNumber) {
        self.last_grant = last_grant;
    }

    /// Takes a lease in from an image, by id, before [`LeaseTable::attach`] does its keys. False if it is out
    /// of order or its number was not given yet.
    pub(crate) fn load(&mut self, terms: LeaseTerms) -> bool {
        let LeaseTerms { id, ttl_secs, grant, remaining_secs } = terms;
        let follows = self.leases.last_key_value().is_none_or(|(last, _)| *last < id);
        self.insert(id, Lease { ttl_secs, grant, remaining_secs, keys: KeySet::default() });
        follows && grant <= self.last_grant
    }

    /// Takes in, from an image, what is left of the lease that was loaded last. False if there is none, or that
    /// cannot be.
    pub(crate) fn load_remaining(&mut self, secs: i64) -> bool {
        let Some((id, lease)) = self.leases.last_key_value() else { return false };
        let noted = LeaseCheckpoint { id: *id, grant: lease.grant, remaining_secs: Some(secs) };
        lease.remaining_secs.is_none() && (1..lease.ttl_secs).contains(&secs) && self.note_remaining(&noted)
    }

    /// Keeps the present terms of all leases readable until the pin is dropped, at the cost of one entry for
    /// each lease that changes meanwhile.
    pub(crate) fn pin(&mut self) -> Arc<()> {
        let pin = Arc::new(());
        self.pins.push(Pinned { pin: Arc::downgrade(&pin), before: BTreeMap::new() });
        pin
    }

    /// The leases after an id as they were at a pin, or as they are.
    pub(crate) fn at_pin(
        &self,
        pin: Option<&Arc<()>>,
        after: Bound<LeaseId>,
    ) -> impl Iterator<Item = LeaseTerms> {
        let range = (after, Bound::Unbounded);
        let pinned =
            pin.and_then(|pin| self.pins.iter().find(|p| std::ptr::eq(p.pin.as_ptr(), Arc::as_ptr(pin))));
        let mut before = pinned.map(|pinned| pinned.before.range(range)).into_iter().flatten().peekable();
        let mut now = self.leases.range(range).peekable();
        std::iter::from_fn(move || {
            loop {
                let (changed, present) = (before.peek().map(|(id, _)| **id), now.peek().map(|(id, _)| **id));
                let terms = match (changed, present) {
                    (None, None) => return None,
                    (Some(id), present) if present.is_none_or(|other| id <= other) => {
                        now.next_if(|(present, _)| **present == id);
                        before.next().and_then(|(_, terms)| *terms)
                    }
                    _ => now.next().map(|(id, lease)| lease.terms(*id)),
                };
                if terms.is_some() {
                    return terms;
                }
            }
        })
    }

    /// Notes what a lease was for those who still read then.
    fn note_for_pins(&mut self, id: LeaseId) {
        if self.pins.is_empty() {
            return;
        }
        self.pins.retain(|pinned| pinned.pin.strong_count() > 0);
        let terms = self.leases.get(&id).map(|lease| lease.terms(id));
        for pinned in &mut self.pins {
            pinned.before.entry(id).or_insert(terms);
        }
    }

    pub(crate) fn last_grant(&self) -> LeaseGrantNumber {
        self.last_grant
    }

    fn insert(&mut self, id: LeaseId, lease: Lease) {
        self.note_for_pins(id);
        self.digest = self.digest.wrapping_add(lease.terms(id).digest());
        self.leases.insert(id, lease);
    }

    /// Takes a lease out; its keys are the caller's to delete.
    pub(crate) fn remove(&mut self, id: LeaseId) -> Option<Lease> {
        self.note_for_pins(id);
        let lease = self.leases.remove(&id)?;
        self.digest = self.digest.wrapping_sub(lease.terms(id).digest());
        Some(lease)
    }

    /// Hangs a key on a lease. Nothing happens for lease 0.
    pub(crate) fn attach(&mut self, id: LeaseId, key: Key) {
        if id != 0
            && let Some(lease) = self.leases.get_mut(&id)
        {
            lease.keys.insert(key);
        }
    }

    /// Undoes [`LeaseTable::attach`]. Nothing happens for lease 0 or one that is being revoked.
    pub(crate) fn detach(&mut self, id: LeaseId, key: &[u8]) {
        if id != 0
            && let Some(lease) = self.leases.get_mut(&id)
        {
            lease.keys.remove(key);
        }
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }
}

/// A sorted set of keys that is small when it has few: nearly every lease has one or two.
#[derive(Debug, Clone)]
pub(crate) enum KeySet {
    /// Sorted.
    Few(Vec<Key>),
    /// More than [`FEW_MAX`].
    Many(BTreeSet<Key>),
}

impl Default for KeySet {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl KeySet {
    fn insert(&mut self, key: Key) {
        match self {
            Self::Few(keys) => {
                let Err(position) = keys.binary_search(&key) else { return };
                if keys.len() < FEW_MAX {
                    keys.insert(position, key);
                } else {
                    let mut many: BTreeSet<Key> = std::mem::take(keys).into_iter().collect();
                    many.insert(key);
                    *self = Self::Many(many);
                }
            }
            Self::Many(keys) => {
                keys.insert(key);
            }
        }
    }

    fn remove(&mut self, key: &[u8]) {
        match self {
            Self::Few(keys) => {
                if let Ok(position) = keys.binary_search_by(|present| present[..].cmp(key)) {
                    keys.remove(position);
                }
            }
            Self::Many(keys) => {
                keys.remove(key);
            }
        }
    }

    /// In key order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Key> {
        let (few, many) = match self {
            Self::Few(keys) => (Some(keys), None),
            Self::Many(keys) => (None, Some(keys)),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten())
    }
}

impl Lease {
    pub(crate) fn terms(&self, id: LeaseId) -> LeaseTerms {
        LeaseTerms { id, ttl_secs: self.ttl_secs, grant: self.grant, remaining_secs: self.remaining_secs }
    }
}

impl LeaseTerms {
    fn digest(self) -> u64 {
        let digest = Digest::new(LEASE).int(self.id).int(self.ttl_secs).word(self.grant);
        match self.remaining_secs {
            Some(secs) => digest.int(secs).finish(),
            None => digest.finish(),
        }
    }
}

/// Keys up to which a sorted vector beats a tree.
const FEW_MAX: usize = 32;

/// Domain of a lease's hash.
const LEASE: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Key {
        Key::from(format!("{number:03}").as_bytes())
    }

    #[test]
    fn key_set_is_sorted_and_without_duplicates_at_any_size() {
        for size in [1, FEW_MAX, FEW_MAX + 1, 200] {
            let mut keys = KeySet::default();
            for number in (0..size).rev().chain(0..size) {
                keys.insert(key(number));
            }
            assert_eq!(keys.iter().cloned().collect::<Vec<_>>(), (0..size).map(key).collect::<Vec<_>>());
            keys.remove(&key(0));
            keys.remove(b"absent");
            assert_eq!(keys.iter().count(), size - 1);
        }
    }

    #[test]
    fn digest_depends_on_the_leases_and_not_on_their_order() {
        let (mut one, mut other) = (LeaseTable::default(), LeaseTable::default());
        one.set(1, 10);
        one.set(2, 20);
        let terms = |id, ttl_secs, grant| LeaseTerms { id, ttl_secs, grant, remaining_secs: None };
        other.load_last_grant(3);
        for terms in [terms(1, 10, 1), terms(2, 20, 2), terms(3, 1, 3)] {
            assert!(other.load(terms));
        }
        assert_ne!(one.digest(), other.digest());
        other.remove(3);
        assert_eq!(one.digest(), other.digest());
        one.set(2, 20);
        assert_ne!(one.digest(), other.digest(), "another grant");
        assert!(!other.load(terms(4, 1, 4)), "a grant that was never made");
        assert!(!other.load(terms(3, 1, 1)), "out of order");
    }

    #[test]
    fn pinned_leases_are_read_as_they_were() {
        let mut table = LeaseTable::default();
        for id in [1, 3, 5, 7] {
            table.set(id, id * 10);
        }
        let then: Vec<_> = table.iter().map(|(id, lease)| lease.terms(id)).collect();
        let pin = table.pin();
        table.remove(1);
        table.set(3, 99);
        table.set(4, 40);
        table.remove(7);
        table.set(7, 1);
        table.set(8, 80);
        table.remove(8);
        let read = |table: &LeaseTable, after| table.at_pin(Some(&pin), after).collect::<Vec<_>>();
        assert_eq!(read(&table, Bound::Unbounded), then);
        assert_eq!(read(&table, Bound::Excluded(3)), then[2..]);
        assert_eq!(table.at_pin(None, Bound::Unbounded).count(), 4, "3, 4, 5 and 7 are there now");
        drop(pin);
        table.set(9, 1);
        assert!(table.pins.is_empty());
    }
}
