//! Which leases exist and which keys hang on them: the replicated half of leases.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    command::{LeaseGrantNumber, LeaseId},
    lease::LeaseTerms,
    store::digest::Digest,
};

/// All leases. Ordered, so that every replica walks them alike.
#[derive(Debug, Clone, Default)]
pub(crate) struct LeaseTable {
    leases: BTreeMap<LeaseId, Lease>,
    /// The last number given to a grant; 0: none yet. Never goes back, also not across images.
    last_grant: LeaseGrantNumber,
    /// Sum of the hashes of all leases.
    digest: u64,
}

/// One lease.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) ttl_secs: i64,
    pub(crate) grant: LeaseGrantNumber,
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
        self.insert(id, Lease { ttl_secs, grant, keys });
    }

    /// Takes leases in from an image, before [`LeaseTable::attach`] does their keys. False if one of the
    /// numbers was not given yet.
    pub(crate) fn load(
        &mut self,
        last_grant: LeaseGrantNumber,
        leases: impl IntoIterator<Item = LeaseTerms>,
    ) -> bool {
        self.last_grant = last_grant;
        leases.into_iter().all(|LeaseTerms { id, ttl_secs, grant }| {
            self.insert(id, Lease { ttl_secs, grant, keys: KeySet::default() });
            grant <= last_grant
        })
    }

    pub(crate) fn last_grant(&self) -> LeaseGrantNumber {
        self.last_grant
    }

    fn insert(&mut self, id: LeaseId, lease: Lease) {
        self.digest = self.digest.wrapping_add(lease.terms(id).digest());
        self.leases.insert(id, lease);
    }

    /// Takes a lease out; its keys are the caller's to delete.
    pub(crate) fn remove(&mut self, id: LeaseId) -> Option<Lease> {
        let lease = self.leases.remove(&id)?;
        self.digest = self.digest.wrapping_sub(lease.terms(id).digest());
        Some(lease)
    }

    /// Hangs a key on a lease. Nothing happens for lease 0.
    pub(crate) fn attach(&mut self, id: LeaseId, key: Bytes) {
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
    Few(Vec<Bytes>),
    /// More than [`FEW_MAX`].
    Many(BTreeSet<Bytes>),
}

impl Default for KeySet {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl KeySet {
    fn insert(&mut self, key: Bytes) {
        match self {
            Self::Few(keys) => {
                let Err(position) = keys.binary_search(&key) else { return };
                if keys.len() < FEW_MAX {
                    keys.insert(position, key);
                } else {
                    let mut many: BTreeSet<Bytes> = std::mem::take(keys).into_iter().collect();
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
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Bytes> {
        let (few, many) = match self {
            Self::Few(keys) => (Some(keys), None),
            Self::Many(keys) => (None, Some(keys)),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten())
    }
}

impl Lease {
    pub(crate) fn terms(&self, id: LeaseId) -> LeaseTerms {
        LeaseTerms { id, ttl_secs: self.ttl_secs, grant: self.grant }
    }
}

impl LeaseTerms {
    fn digest(self) -> u64 {
        Digest::new(LEASE).int(self.id).int(self.ttl_secs).word(self.grant).finish()
    }
}

/// Keys up to which a sorted vector beats a tree.
const FEW_MAX: usize = 32;

/// Domain of a lease's hash.
const LEASE: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: usize) -> Bytes {
        Bytes::from(format!("{number:03}"))
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
        let terms = |id, ttl_secs, grant| LeaseTerms { id, ttl_secs, grant };
        assert!(other.load(3, [terms(2, 20, 2), terms(3, 1, 3), terms(1, 10, 1)]));
        assert_ne!(one.digest(), other.digest());
        other.remove(3);
        assert_eq!(one.digest(), other.digest());
        one.set(2, 20);
        assert_ne!(one.digest(), other.digest(), "another grant");
        assert!(!other.load(3, [terms(4, 1, 4)]), "a grant that was never made");
    }
}
