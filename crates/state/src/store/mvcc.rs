//! The store's content and the one way to change it.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    command::{DeleteRange, Event, KeyValue, LeaseId, Put, Revision},
    error::StoreError,
    lease::table::LeaseTable,
    store::{
        RESERVED_PREFIX,
        digest::Digest,
        image::Pins,
        key_index::{KeyIndex, Version},
        range::KeyRange,
        revision::ChangeLog,
    },
};

/// Keys, their versions, and the leases they hang on.
///
/// Invariant: `compacted <= revision`, and neither decreases.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    /// Boxed, so that the tree's nodes stay small and inserting a key moves few bytes.
    pub(super) index: BTreeMap<Bytes, Box<KeyIndex>>,
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
    /// What images under way still need. Not part of the state.
    pub(super) pins: Pins,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            index: BTreeMap::new(),
            changes: ChangeLog::default(),
            leases: LeaseTable::default(),
            revision: 1,
            compacted: 0,
            live: 0,
            digest: 0,
            data_bytes: 0,
            past_bytes: 0,
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
            .finish()
    }

    /// The version of a key that exists now, with the stored key.
    pub(crate) fn current(&self, key: &[u8]) -> Option<&Version> {
        self.index.get(key)?.current()
    }

    /// The keys of a range that exist now, in key order.
    pub(crate) fn live(&self, range: KeyRange<'_>) -> impl DoubleEndedIterator<Item = (&Bytes, &Version)> {
        self.index.range::<[u8], _>(range.bounds()).filter_map(|(key, index)| Some((key, index.current()?)))
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
        let answer = change(&mut Writer { store: self, events, main });
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

    /// Takes the newest change out again.
    fn undo(&mut self, event: &Event) {
        let key = &event.kv.key;
        let change = self.changes.pop_last();
        debug_assert!(change.is_some_and(|change| change.key == *key), "undone in reverse order");
        let index = self.index.get_mut(key).expect("a change that is undone was made to an indexed key");
        let undone = match index.pop() {
            Some(undone) => {
                self.past_bytes -= index.latest().value_bytes();
                undone
            }
            None => {
                let undone = index.latest().clone();
                self.index.remove(key);
                self.data_bytes -= key.len() as u64;
                undone
            }
        };
        self.data_bytes -= undone.value_bytes();
        self.digest = self.digest.wrapping_sub(undone.digest);
        if undone.is_live() {
            self.live -= 1;
            self.leases.detach(undone.lease, key);
        }
        if let Some(before) = self.index.get(key).and_then(|index| index.current()) {
            self.live += 1;
            self.digest = self.digest.wrapping_add(before.digest);
            self.leases.attach(before.lease, key.clone());
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
                value = current.value.clone().unwrap_or_default();
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
        use std::collections::btree_map::Entry;
        debug_assert!(lease == 0 || self.store.leases.contains(lease));
        let store = &mut *self.store;
        store.data_bytes += value.len() as u64;
        let (key, event, digest) = match store.index.entry(key) {
            Entry::Occupied(mut entry) => {
                // The stored key is shared from here on, so that the caller's copy can go.
                let key = entry.key().clone();
                let index = entry.get_mut();
                let before = index.current();
                let life =
                    before.map_or((self.main, 1), |before| (before.create_revision, before.version + 1));
                let version = Version::live(&key, value, lease, life, self.main);
                let event = version.event(&key, before);
                let digest = version.digest.wrapping_sub(before.map_or(0, |before| before.digest));
                store.past_bytes += index.latest().value_bytes();
                index.push(version);
                (key, event, digest)
            }
            Entry::Vacant(entry) => {
                let key = entry.key().clone();
                store.data_bytes += key.len() as u64;
                let version = Version::live(&key, value, lease, (self.main, 1), self.main);
                let (event, digest) = (version.event(&key, None), version.digest);
                entry.insert(Box::new(KeyIndex::new(version)));
                (key, event, digest)
            }
        };
        store.digest = store.digest.wrapping_add(digest);
        let lease_before = match &event.prev_kv {
            Some(before) => before.lease,
            None => {
                store.live += 1;
                0
            }
        };
        if lease_before != lease {
            store.leases.detach(lease_before, &key);
            store.leases.attach(lease, key.clone());
        }
        store.changes.push(self.main, key);
        self.events.push(event);
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
            let keys: Vec<Bytes> = self
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
        let store = &mut *self.store;
        let bounds = KeyRange::Single(key).bounds();
        // A range of one instead of `get_mut`: it answers the stored key too.
        let Some((key, index)) = store.index.range_mut::<[u8], _>(bounds).next() else { return false };
        let Some(before) = index.current() else { return false };
        let tombstone = Version::tombstone(self.main);
        store.digest = store.digest.wrapping_sub(before.digest);
        store.live -= 1;
        store.past_bytes += before.value_bytes();
        store.leases.detach(before.lease, key);
        store.changes.push(self.main, key.clone());
        self.events.push(tombstone.event(key, Some(before)));
        index.push(tombstone);
        true
    }
}

/// Domain of the store's hash.
const STORE: u64 = 2;
