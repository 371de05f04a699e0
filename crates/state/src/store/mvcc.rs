//! The store's content and the one way to change it.

use std::ops::Bound;

use bytes::Bytes;

use crate::{
    command::{DeleteRange, Event, EventKind, KeyValue, LeaseId, Put, Quota, Revision},
    error::StoreError,
    lease::table::LeaseTable,
    store::{
        RESERVED_PREFIX,
        digest::Digest,
        image::Pins,
        key::Key,
        key_index::{KeyIndex, Version},
        key_map::KeyMap,
        quota::{self, QuotaView, Quotas},
        range::KeyRange,
        revision::ChangeLog,
    },
};

/// Keys, their versions, and the leases they hang on.
///
/// Invariant: `compacted <= revision`, and neither decreases.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(super) index: KeyMap,
    pub(super) changes: ChangeLog,
    pub(crate) leases: LeaseTable,
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
    /// Keys that exist now.
    pub(super) live: u64,
    /// Sum of the hashes of all live versions; a sum, so that it follows each change at once.
    pub(super) digest: u64,
    /// Bytes of the keys in the index and of the values of all versions.
    pub(super) data_bytes: u64,
    /// The part of `data_bytes` that is values of versions which are not the newest of their key.
    pub(super) past_bytes: u64,
    pub(super) quotas: Quotas,
    /// How far the keys that a compacted revision itself changed have given back what was before: the revision, and
    /// how many of its changes. Not part of the state.
    pub(super) scrubbed: (Revision, usize),
    /// What images under way still need. Not part of the state.
    pub(super) pins: Pins,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            index: KeyMap::default(),
            changes: ChangeLog::default(),
            leases: LeaseTable::default(),
            revision: 1,
            compacted: 0,
            live: 0,
            digest: 0,
            data_bytes: 0,
            past_bytes: 0,
            quotas: Quotas::default(),
            scrubbed: (0, 0),
            pins: Pins::default(),
        }
    }
}

impl Store {
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// Oldest readable revision; 0 if nothing was ever compacted.
    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    pub(crate) fn key_count(&self) -> u64 {
        self.live
    }

    pub(crate) fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Hash of what the store holds now: equal on replicas that applied the same commands.
    pub(crate) fn hash(&self) -> u64 {
        Digest::new(STORE)
            .int(self.revision)
            .int(self.compacted)
            .word(self.live)
            .word(self.digest)
            .word(self.leases.digest())
            .word(self.quotas.digest())
            .finish()
    }

    /// The version of a key that exists now, with the stored key.
    pub(crate) fn current(&self, key: &[u8]) -> Option<&Version> {
        self.index.get(key)?.1.current()
    }

    /// The keys of a range that exist now, in key order.
    pub(crate) fn live<'s>(
        &'s self,
        range: KeyRange<'_>,
    ) -> impl DoubleEndedIterator<Item = (&'s Key, &'s Version)> {
        self.index.range(range.bounds()).filter_map(|(key, index)| Some((key, index.current()?)))
    }

    /// Runs `change` as one main revision. It takes effect whole if it answers `Ok` and changed
    /// something; on `Err` every trace of it is undone.
    pub(crate) fn write<R>(
        &mut self,
        events: &mut Vec<Event>,
        change: impl FnOnce(&mut Writer<'_>) -> Result<R, StoreError>,
    ) -> Result<R, StoreError> {
        let mark = events.len();
        let main = self.revision + 1;
        self.quotas.begin();
        let answer = change(&mut Writer { store: self, events, main });
        let answer = answer.and_then(|answer| self.quotas.check().map(|()| answer));
        if answer.is_err() {
            for event in events.drain(mark..).rev() {
                self.undo(&event);
            }
        } else if events.len() > mark {
            self.revision = main;
        }
        answer
    }

    /// [`Store::write`] for changes that cannot be refused.
    pub(crate) fn revise<R>(
        &mut self,
        events: &mut Vec<Event>,
        change: impl FnOnce(&mut Writer<'_>) -> R,
    ) -> R {
        self.write(events, |writer| Ok(change(writer))).expect("the change was not refused")
    }

    /// Ends a lease and deletes its keys in one revision.
    pub(crate) fn revoke(&mut self, events: &mut Vec<Event>, id: LeaseId) -> Result<(), StoreError> {
        let lease = self.leases.remove(id).ok_or(StoreError::LeaseNotFound { id })?;
        self.revise(events, |writer| {
            for key in lease.keys.iter() {
                writer.delete(key);
            }
        });
        Ok(())
    }

    /// Sets or takes away a quota.
    pub(crate) fn set_quota(&mut self, prefix: &Bytes, quota: Option<Quota>) -> Result<(), StoreError> {
        quota::check(prefix, quota)?;
        match quota {
            Some(quota) => self.quotas.set(prefix.clone(), quota, self.live_bytes_under(prefix)),
            None => {
                self.quotas.unset(prefix);
                Ok(())
            }
        }
    }

    pub(crate) fn quotas(&self) -> impl Iterator<Item = QuotaView> {
        self.quotas.iter()
    }

    /// Of clients' keys, so without Weft's own.
    fn live_bytes_under(&self, prefix: &[u8]) -> u64 {
        let under = |prefix: &[u8]| {
            let end = prefix_end(prefix);
            let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
            self.index.live_bytes((Bound::Included(prefix), end))
        };
        let reserved = if RESERVED_PREFIX.starts_with(prefix) { under(RESERVED_PREFIX) } else { 0 };
        under(prefix) - reserved
    }

    /// Takes the newest change out again.
    fn undo(&mut self, event: &Event) {
        let change = self.changes.pop_last().expect("a change that is undone was logged");
        debug_assert!(*change.key == event.kv.key[..], "undone in reverse order");
        let key = change.key;
        let pop = |_: &Key, index: &mut KeyIndex| {
            let undone = index.pop();
            (undone, index.latest().value_bytes())
        };
        let (undone, before_bytes) =
            self.index.edit(&key, pop).expect("a change that is undone was made to an indexed key");
        let undone = match undone {
            Some(undone) => {
                self.past_bytes -= before_bytes;
                undone
            }
            None => {
                let index = self.index.remove(&key).expect("it was there just now");
                self.data_bytes -= key.len() as u64;
                index.into_latest()
            }
        };
        self.data_bytes -= undone.value_bytes();
        self.digest = self.digest.wrapping_sub(undone.digest);
        let (mut bytes, mut bytes_before) = (0, 0);
        if undone.is_live() {
            bytes = key.len() as u64 + undone.value_bytes();
            self.live -= 1;
            self.leases.detach(undone.lease, &key);
        }
        let before = self.index.get(&key).and_then(|(_, index)| index.current());
        if let Some(before) = before {
            bytes_before = key.len() as u64 + before.value_bytes();
        }
        self.quotas.changed(&key, bytes, bytes_before);
        if let Some(before) = before {
            self.live += 1;
            self.digest = self.digest.wrapping_add(before.digest);
            self.leases.attach(before.lease, key);
        }
    }
}

/// Changes that share one main revision, in the making. Reads through [`Writer::store`] see them.
pub(crate) struct Writer<'s> {
    store: &'s mut Store,
    events: &'s mut Vec<Event>,
    /// The revision that the changes get.
    main: Revision,
}

impl Writer<'_> {
    pub(crate) fn store(&self) -> &Store {
        self.store
    }

    /// The revision that the changes get.
    pub(crate) fn revision(&self) -> Revision {
        self.main
    }

    /// etcd's put. Answers the value before, if asked for.
    pub(crate) fn put(&mut self, put: &Put) -> Result<Option<KeyValue>, StoreError> {
        let (mut value, mut lease) = (put.value.clone(), put.lease);
        if put.ignore_value || put.ignore_lease {
            let current = self.store.current(&put.key).ok_or(StoreError::KeyNotFound)?;
            if put.ignore_value {
                value = current.value.to_bytes();
            }
            if put.ignore_lease {
                lease = current.lease;
            }
        }
        if lease != 0 && !self.store.leases.contains(lease) {
            return Err(StoreError::LeaseNotFound { id: lease });
        }
        let prev_kv = self.set(put.key.clone(), value, lease);
        Ok(if put.prev_kv { prev_kv.cloned() } else { None })
    }

    /// Stores a value; answers the one before. The lease must exist or be 0.
    pub(crate) fn set(&mut self, key: Bytes, value: Bytes, lease: LeaseId) -> Option<&KeyValue> {
        debug_assert!(lease == 0 || self.store.leases.contains(lease));
        let (store, main) = (&mut *self.store, self.main);
        store.data_bytes += value.len() as u64;
        let change = |stored: &Key, index: &mut KeyIndex| {
            let before = index.current();
            let life = before.map_or((main, 1), |before| (before.create_revision, before.version + 1));
            let version = Version::live(&key, &value, lease, life, main);
            let kv = version.with_value(key.clone(), value.clone());
            let prev_kv = before.and_then(|before| before.key_value(key.clone()));
            let digest = version.digest.wrapping_sub(before.map_or(0, |before| before.digest));
            let past_bytes = index.latest().value_bytes();
            index.push(version);
            (stored.clone(), kv, prev_kv, digest, past_bytes)
        };
        let (stored, kv, prev_kv, digest, past_bytes) = match store.index.edit(&key, change) {
            Some(changed) => changed,
            None => {
                store.data_bytes += key.len() as u64;
                let version = Version::live(&key, &value, lease, (main, 1), main);
                let (stored, digest) = (Key::from(&key[..]), version.digest);
                let kv = version.with_value(key, value);
                store.index.insert(stored.clone(), Box::new(KeyIndex::new(version)));
                (stored, kv, None, digest, 0)
            }
        };
        let bytes_of = |value: &Bytes| (stored.len() + value.len()) as u64;
        store.quotas.changed(
            &stored,
            prev_kv.as_ref().map_or(0, |kv| bytes_of(&kv.value)),
            bytes_of(&kv.value),
        );
        store.past_bytes += past_bytes;
        store.digest = store.digest.wrapping_add(digest);
        let lease_before = match &prev_kv {
            Some(before) => before.lease,
            None => {
                store.live += 1;
                0
            }
        };
        if lease_before != lease {
            store.leases.detach(lease_before, &stored);
            store.leases.attach(lease, stored.clone());
        }
        store.changes.push(main, stored);
        self.events.push(Event { kind: EventKind::Put, kv, prev_kv });
        self.events.last().and_then(|event| event.prev_kv.as_ref())
    }

    /// etcd's delete, for clients: keys under `weft/` that a wider range spans stay.
    /// Answers how many were deleted, and their values if asked for.
    pub(crate) fn delete_range(&mut self, delete: &DeleteRange) -> (i64, Vec<KeyValue>) {
        let range = KeyRange::new(&delete.key, &delete.range_end);
        let first = self.events.len();
        if let KeyRange::Single(key) = range {
            self.delete(key);
        } else {
            let keys: Vec<Key> = self
                .store
                .live(range)
                .filter(|(key, _)| !key.starts_with(RESERVED_PREFIX))
                .map(|(key, _)| key.clone())
                .collect();
            for key in keys {
                self.delete(&key);
            }
        }
        let deleted = &self.events[first..];
        let prev_kvs = if delete.prev_kv {
            deleted.iter().filter_map(|event| event.prev_kv.clone()).collect()
        } else {
            Vec::new()
        };
        (deleted.len() as i64, prev_kvs)
    }

    /// Ends a key's life; false if it does not exist.
    pub(crate) fn delete(&mut self, key: &[u8]) -> bool {
        let (store, main) = (&mut *self.store, self.main);
        let change = |stored: &Key, index: &mut KeyIndex| {
            let before = index.current()?;
            let (digest, lease, past_bytes) = (before.digest, before.lease, before.value_bytes());
            let tombstone = Version::tombstone(main);
            let event = tombstone.event(&stored.to_bytes(), Some(before));
            index.push(tombstone);
            Some((stored.clone(), event, digest, lease, past_bytes))
        };
        let Some((stored, event, digest, lease, past_bytes)) = store.index.edit(key, change).flatten() else {
            return false;
        };
        store.digest = store.digest.wrapping_sub(digest);
        store.live -= 1;
        store.past_bytes += past_bytes;
        store.quotas.changed(&stored, stored.len() as u64 + past_bytes, 0);
        store.leases.detach(lease, &stored);
        store.changes.push(main, stored);
        self.events.push(event);
        true
    }
}

/// The least key behind all that begin with a prefix; none if there is no such key.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// Domain of the store's hash.
const STORE: u64 = 2;
