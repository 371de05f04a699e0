//! All versions of one key.
//!
//! A generation is one life of a key: it begins with the put that creates it and ends with a tombstone.
//! The key `a` through put@2, put@3, delete@5, put@8:
//!
//! ```text
//! older:  [ create 2, mod 2, version 1 ] [ create 2, mod 3, version 2 ] [ tombstone, mod 5 ]
//! latest: [ create 8, mod 8, version 1 ]
//! ```
//!
//! Read at 4 it is version 2; at 5, 6 and 7 it does not exist. After compaction to 4 the versions
//! `[ mod 3 ] [ tombstone 5 ] [ mod 8 ]` are left, as 3 is what a read at 4 finds. After compaction to 5
//! `[ tombstone 5 ] [ mod 8 ]`: a watch may start at 5 itself and its event is the delete, without the value
//! before it, which is gone as in etcd: "delete all, compact to that" gives the space back. After compaction to
//! 6 only `[ mod 8 ]`.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::{
    command::{Event, EventKind, KeyValue, LeaseId, Revision},
    store::{digest::Digest, value::Value},
};

/// A value of a key, or its absence, from one revision on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    pub(crate) mod_revision: Revision,
    pub(crate) create_revision: Revision,
    /// 0 is a tombstone; then only `mod_revision` means anything.
    pub(crate) version: i64,
    pub(crate) lease: LeaseId,
    pub(crate) value: Value,
    /// Hash of key and version together; 0 for a tombstone.
    pub(crate) digest: u64,
}

impl Version {
    pub(crate) fn tombstone(mod_revision: Revision) -> Self {
        Self { mod_revision, create_revision: 0, version: 0, lease: 0, value: Value::empty(), digest: 0 }
    }

    pub(crate) fn live(
        key: &[u8],
        value: impl Into<Value>,
        lease: LeaseId,
        (create_revision, version): (Revision, i64),
        mod_revision: Revision,
    ) -> Self {
        debug_assert!(version > 0, "0 stands for a tombstone");
        let value = value.into();
        let digest = Digest::new(KEY_VALUE)
            .bytes(key)
            .bytes(value.as_slice())
            .int(create_revision)
            .int(mod_revision)
            .int(version)
            .int(lease)
            .finish();
        Self { mod_revision, create_revision, version, lease, value, digest }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.version != 0
    }

    /// None for a tombstone.
    pub(crate) fn key_value(&self, key: Bytes) -> Option<KeyValue> {
        self.is_live().then(|| self.with_value(key, self.value.to_bytes()))
    }

    /// As [`Version::key_value`], without the value.
    pub(crate) fn without_value(&self, key: Bytes) -> Option<KeyValue> {
        self.is_live().then(|| self.with_value(key, Bytes::new()))
    }

    /// With a value that the caller has already.
    pub(crate) fn with_value(&self, key: Bytes, value: Bytes) -> KeyValue {
        KeyValue {
            key,
            value,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            lease: self.lease,
        }
    }

    /// The change that made this version out of `before`.
    pub(crate) fn event(&self, key: &Bytes, before: Option<&Version>) -> Event {
        let prev_kv = before.and_then(|before| before.key_value(key.clone()));
        match self.key_value(key.clone()) {
            Some(kv) => Event { kind: EventKind::Put, kv, prev_kv },
            None => Event {
                kind: EventKind::Delete,
                kv: KeyValue { key: key.clone(), mod_revision: self.mod_revision, ..KeyValue::default() },
                prev_kv,
            },
        }
    }

    /// Bytes of the value held.
    pub(crate) fn value_bytes(&self) -> u64 {
        self.value.as_slice().len() as u64
    }
}

/// The versions of one key that are not compacted. Never empty: a key without versions has no index.
#[derive(Debug, Clone)]
pub(crate) struct KeyIndex {
    /// Inline, as it is what nearly every read and write wants.
    latest: Version,
    /// Ascending by `mod_revision`, all below `latest`. None if there are none, as for most keys most of the
    /// time; with it a key with one version takes a cache line.
    #[allow(clippy::box_collection)] // 8 bytes in each key instead of 32.
    older: Option<Box<VecDeque<Version>>>,
}

static NONE_OLDER: VecDeque<Version> = VecDeque::new();

/// What [`KeyIndex::trim`] took away.
#[derive(Debug, Default)]
pub(crate) struct Trimmed {
    pub(crate) versions: u64,
    pub(crate) value_bytes: u64,
    /// Nothing is left: the key is to be removed from the map.
    pub(crate) all: bool,
}

impl KeyIndex {
    pub(crate) fn new(first: Version) -> Self {
        Self { latest: first, older: None }
    }

    pub(crate) fn push(&mut self, version: Version) {
        debug_assert!(self.latest.mod_revision < version.mod_revision, "one change per key and revision");
        let before = std::mem::replace(&mut self.latest, version);
        self.older.get_or_insert_default().push_back(before);
    }

    /// Undoes the last [`KeyIndex::push`]; none if `latest` was the only version, which then stays.
    pub(crate) fn pop(&mut self) -> Option<Version> {
        let older = self.older.as_mut()?;
        let before = older.pop_back()?;
        if older.is_empty() {
            self.older = None;
        }
        Some(std::mem::replace(&mut self.latest, before))
    }

    fn older(&self) -> &VecDeque<Version> {
        self.older.as_deref().unwrap_or(&NONE_OLDER)
    }

    pub(crate) fn latest(&self) -> &Version {
        &self.latest
    }

    /// The latest version alone.
    pub(crate) fn into_latest(self) -> Version {
        self.latest
    }

    /// Bytes of the values of all versions but the latest.
    pub(crate) fn older_bytes(&self) -> u64 {
        self.older().iter().map(Version::value_bytes).sum()
    }

    /// None if the key does not exist now.
    pub(crate) fn current(&self) -> Option<&Version> {
        self.latest.is_live().then_some(&self.latest)
    }

    /// None if the key did not exist at `revision`.
    pub(crate) fn at(&self, revision: Revision) -> Option<&Version> {
        if self.latest.mod_revision <= revision {
            return self.current();
        }
        let after = self.older().partition_point(|version| version.mod_revision <= revision);
        self.older().get(after.checked_sub(1)?).filter(|version| version.is_live())
    }

    /// The version that `revision` made, and the one before it.
    pub(crate) fn made_by(&self, revision: Revision) -> Option<(&Version, Option<&Version>)> {
        let position = self.position(revision);
        let version = self.get(position)?;
        (version.mod_revision == revision)
            .then(|| (version, position.checked_sub(1).and_then(|before| self.get(before))))
    }

    /// The versions made by the revisions `from` to `to`, each with the one before it.
    pub(crate) fn between(
        &self,
        from: Revision,
        to: Revision,
    ) -> impl Iterator<Item = (&Version, Option<&Version>)> {
        let start = if self.latest.mod_revision < from { self.len() } else { self.position(from) };
        (start..self.len())
            .map_while(|position| self.get(position).map(|version| (position, version)))
            .take_while(move |(_, version)| version.mod_revision <= to)
            .map(|(position, version)| (version, position.checked_sub(1).and_then(|before| self.get(before))))
    }

    /// The versions that count after compaction to `compacted`, whether or not [`KeyIndex::trim`] ran.
    pub(crate) fn retained(&self, compacted: Revision) -> impl Iterator<Item = &Version> {
        (self.retained_from(compacted)..self.len()).filter_map(|position| self.get(position))
    }

    /// Drops at most `max` versions that compaction to `compacted` made unreachable, oldest first.
    pub(crate) fn trim(&mut self, compacted: Revision, max: usize) -> Trimmed {
        let unreachable = self.retained_from(compacted);
        let mut trimmed = Trimmed::default();
        if let Some(older) = &mut self.older {
            for version in older.drain(..unreachable.min(older.len()).min(max)) {
                trimmed.versions += 1;
                trimmed.value_bytes += version.value_bytes();
            }
        }
        if self.older().is_empty() {
            self.older = None;
            if unreachable > trimmed.versions as usize {
                trimmed.versions += 1;
                trimmed.value_bytes += self.latest.value_bytes();
                trimmed.all = true;
            }
        }
        trimmed
    }

    /// Position of the first version that counts after compaction: what a read at `compacted` finds, or the
    /// tombstone that `compacted` itself made, for its event.
    fn retained_from(&self, compacted: Revision) -> usize {
        let after = self.position(compacted.saturating_add(1));
        let Some(last) = after.checked_sub(1) else { return 0 };
        let Some(version) = self.get(last) else { return 0 };
        if version.is_live() || version.mod_revision == compacted { last } else { after }
    }

    /// Position of the first version at or after `revision`; `len()` if there is none.
    fn position(&self, revision: Revision) -> usize {
        if self.latest.mod_revision < revision {
            return self.len();
        }
        self.older().partition_point(|version| version.mod_revision < revision)
    }

    fn get(&self, position: usize) -> Option<&Version> {
        if position == self.older().len() { Some(&self.latest) } else { self.older().get(position) }
    }

    fn len(&self) -> usize {
        self.older().len() + 1
    }
}

/// Domain of a key-value's hash.
const KEY_VALUE: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    fn put(create: Revision, version: i64, modified: Revision) -> Version {
        Version::live(b"a", format!("v{modified}").as_bytes(), 0, (create, version), modified)
    }

    /// The key of the module's example.
    fn example() -> KeyIndex {
        let mut key = KeyIndex::new(put(2, 1, 2));
        key.push(put(2, 2, 3));
        key.push(Version::tombstone(5));
        key.push(put(8, 1, 8));
        key
    }

    fn mods<'a>(versions: impl Iterator<Item = &'a Version>) -> Vec<Revision> {
        versions.map(|version| version.mod_revision).collect()
    }

    #[test]
    fn key_with_one_version_takes_a_cache_line() {
        assert_eq!(size_of::<KeyIndex>(), 64);
    }

    #[test]
    fn read_finds_the_version_of_its_revision() {
        let key = example();
        let at = |revision| key.at(revision).map(|version| version.mod_revision);
        assert_eq!(
            (1..=9).map(at).collect::<Vec<_>>(),
            [None, Some(2), Some(3), Some(3), None, None, None, Some(8), Some(8)]
        );
    }

    #[test]
    fn compaction_keeps_what_a_read_or_an_event_at_its_revision_needs() {
        for (compacted, left) in [
            (1, vec![2, 3, 5, 8]),
            (2, vec![2, 3, 5, 8]),
            (3, vec![3, 5, 8]),
            (4, vec![3, 5, 8]),
            (5, vec![5, 8]),
            (6, vec![8]),
            (7, vec![8]),
            (8, vec![8]),
            (9, vec![8]),
        ] {
            let mut key = example();
            assert_eq!(mods(key.retained(compacted)), left, "retained at {compacted}");
            let trimmed = key.trim(compacted, usize::MAX);
            assert_eq!(mods(key.retained(0)), left, "trimmed to {compacted}");
            assert_eq!(trimmed.versions as usize, 4 - left.len());
            assert!(!trimmed.all);
        }
    }

    #[test]
    fn key_that_ended_before_the_compaction_goes_away_whole() {
        let mut key = KeyIndex::new(put(2, 1, 2));
        key.push(Version::tombstone(5));
        assert!(!key.clone().trim(5, usize::MAX).all, "a watch from 5 still sees the delete");
        assert!(key.trim(6, usize::MAX).all);
    }

    #[test]
    fn trimming_in_small_steps_ends_where_one_step_does() {
        let mut key = example();
        let mut steps = 0;
        while key.trim(6, 1).versions > 0 {
            steps += 1;
        }
        assert_eq!((steps, mods(key.retained(0))), (3, vec![8]));
    }
}
