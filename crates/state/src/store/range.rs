//! Ranges of keys, and reading them.

use std::{cmp::Ordering, ops::Bound};

use bytes::Bytes;

use crate::{
    command::{KeyValue, Range, RangeResponse, Revision, SortOrder, SortTarget},
    error::StoreError,
    store::{
        key::Key,
        key_index::{KeyIndex, Version},
        mvcc::Store,
    },
};

/// A range of keys by etcd's conventions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyRange<'k> {
    /// No range end.
    Single(&'k [u8]),
    /// Range end `"\0"`.
    From(&'k [u8]),
    /// `[start, end)`. Empty if inverted.
    Between(&'k [u8], &'k [u8]),
}

impl<'k> KeyRange<'k> {
    pub(crate) fn new(key: &'k [u8], range_end: &'k [u8]) -> Self {
        match range_end {
            [] => Self::Single(key),
            [0] => Self::From(key),
            _ => Self::Between(key, range_end),
        }
    }

    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        match *self {
            Self::Single(single) => key == single,
            Self::From(start) => start <= key,
            Self::Between(start, end) => start <= key && key < end,
        }
    }

    /// For `BTreeMap::range`, which panics on inverted bounds: those become an empty range.
    pub(crate) fn bounds(&self) -> (Bound<&'k [u8]>, Bound<&'k [u8]>) {
        match *self {
            Self::Single(key) => (Bound::Included(key), Bound::Included(key)),
            Self::From(start) => (Bound::Included(start), Bound::Unbounded),
            Self::Between(start, end) if start < end => (Bound::Included(start), Bound::Excluded(end)),
            Self::Between(start, _) => (Bound::Included(start), Bound::Excluded(start)),
        }
    }

    /// Every key there can be; keys have at least one byte.
    fn is_everything(&self) -> bool {
        matches!(self, Self::From([] | [0]))
    }
}

/// Keys looked at for one chunk of a cursor, whether or not they are answered.
const KEYS_PER_CHUNK: usize = 5_000;

/// A range that is read chunk by chunk, all of it at one revision: see [`crate::machine::Machine::range_cursor`].
#[derive(Debug, Clone)]
pub struct RangeCursor {
    /// Its revision is the one that is read at.
    range: Range,
    /// What is left, as bounds.
    start: Bound<Bytes>,
    end: Bound<Bytes>,
    count: i64,
    /// Key-values that may still be answered.
    left: usize,
    more: bool,
    done: bool,
}

impl RangeCursor {
    /// The revision of all chunks.
    pub fn revision(&self) -> Revision {
        self.range.revision
    }

    /// How many keys are in the range at that revision, whatever limit and filters.
    pub fn count(&self) -> i64 {
        self.count
    }

    /// Whether more matched than the limit. Final when all chunks were read.
    pub fn more(&self) -> bool {
        self.more
    }
}

impl Store {
    /// etcd's range. Inside a transaction a read of the current revision sees its earlier writes. Holds no
    /// more than it answers, and twice that while it sorts.
    ///
    /// # Errors
    /// `EmptyKey`; `Compacted` and `FutureRevision` for a revision that cannot be read.
    pub(crate) fn range(&self, r: &Range) -> Result<RangeResponse, StoreError> {
        if r.key.is_empty() {
            return Err(StoreError::EmptyKey);
        }
        let at = self.readable(r.revision)?;
        let range = KeyRange::new(&r.key, &r.range_end);
        let count = match range {
            KeyRange::Single(key) => {
                usize::from(self.index.get(key).is_some_and(|(_, index)| read(index, at).is_some()))
            }
            _ if at.is_none() && range.is_everything() => self.live as usize,
            _ => self.index.count(range.bounds(), at),
        };
        let mut response = RangeResponse { count: count as i64, ..RangeResponse::default() };
        if r.count_only || count == 0 {
            return Ok(response);
        }
        let found = self.index.range(range.bounds()).filter_map(|(key, index)| Some((key, read(index, at)?)));
        let found = found.filter(|(_, version)| passes(r, version));
        let limit = usize::try_from(r.limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX);
        // One more than the limit tells of more.
        let most = limit.saturating_add(1);
        let mut kept: Vec<(&Key, &Version)> = match r.sort {
            None | Some((SortTarget::Key, SortOrder::Ascend)) => found.take(most).collect(),
            Some((SortTarget::Key, SortOrder::Descend)) => found.rev().take(most).collect(),
            Some((target, order)) => first_of(found, most, |a, b| match order {
                SortOrder::Ascend => compare(target, a.1, b.1),
                SortOrder::Descend => compare(target, b.1, a.1),
            }),
        };
        response.more = kept.len() > limit;
        kept.truncate(limit);
        response.kvs = kept.into_iter().filter_map(|(key, version)| answer(r, key, version)).collect();
        Ok(response)
    }

    /// Fixes the revision and counts.
    pub(crate) fn range_cursor(&self, r: &Range) -> Result<RangeCursor, StoreError> {
        if r.key.is_empty() {
            return Err(StoreError::EmptyKey);
        }
        let revision = self.readable(r.revision)?.unwrap_or(self.revision);
        let (start, end) = KeyRange::new(&r.key, &r.range_end).bounds();
        let own = |bound: Bound<&[u8]>| bound.map(Bytes::copy_from_slice);
        Ok(RangeCursor {
            range: Range { revision, ..r.clone() },
            start: own(start),
            end: own(end),
            count: self.index.count((start, end), Some(revision)) as i64,
            left: usize::try_from(r.limit).ok().filter(|&limit| limit > 0).unwrap_or(usize::MAX),
            more: false,
            done: r.count_only,
        })
    }

    /// The next key-values in key order, at most `keys_max` and of about `bytes_max` in all; none when that was
    /// all. A chunk may be empty.
    pub(crate) fn range_chunk(
        &self,
        cursor: &mut RangeCursor,
        keys_max: usize,
        bytes_max: usize,
    ) -> Result<Option<Vec<KeyValue>>, StoreError> {
        if cursor.done {
            return Ok(None);
        }
        let at = self.readable(cursor.range.revision)?;
        let mut kvs = Vec::new();
        let (mut bytes, mut looked_at) = (0, 0);
        let mut last = None;
        let bounds = (cursor.start.as_ref().map(|b| &b[..]), cursor.end.as_ref().map(|b| &b[..]));
        for (key, index) in self.index.range(bounds) {
            if bytes >= bytes_max || kvs.len() >= keys_max || looked_at == KEYS_PER_CHUNK {
                break;
            }
            looked_at += 1;
            if let Some(version) = read(index, at).filter(|version| passes(&cursor.range, version))
                && let Some(kv) = answer(&cursor.range, key, version)
            {
                if cursor.left == 0 {
                    cursor.more = true;
                    cursor.done = true;
                    return Ok(Some(kvs));
                }
                cursor.left -= 1;
                bytes += kv.key.len() + kv.value.len() + KEY_VALUE_OVERHEAD;
                kvs.push(kv);
            }
            last = Some(key);
        }
        match last {
            Some(last) => cursor.start = Bound::Excluded(last.to_bytes()),
            None => cursor.done = true,
        }
        Ok(if cursor.done && kvs.is_empty() { None } else { Some(kvs) })
    }

    /// The revision to read at; none is the newest state, with the writes of a transaction under way.
    fn readable(&self, requested: Revision) -> Result<Option<Revision>, StoreError> {
        if requested <= 0 {
            Ok(None)
        } else if requested > self.revision {
            Err(StoreError::FutureRevision { requested, current: self.revision })
        } else if requested < self.compacted {
            Err(StoreError::Compacted { requested, oldest: self.compacted })
        } else {
            Ok(Some(requested))
        }
    }
}

/// About what a key-value takes beside its bytes.
const KEY_VALUE_OVERHEAD: usize = 32;

fn read(index: &KeyIndex, at: Option<Revision>) -> Option<&Version> {
    match at {
        None => index.current(),
        Some(revision) => index.at(revision),
    }
}

/// The first `most` in an order, ties as they came. Never holds more than twice as many.
fn first_of<T>(items: impl Iterator<Item = T>, most: usize, order: impl Fn(&T, &T) -> Ordering) -> Vec<T> {
    let mut kept = Vec::new();
    for item in items {
        kept.push(item);
        if kept.len() >= most.saturating_mul(2) {
            kept.sort_by(&order);
            kept.truncate(most);
        }
    }
    kept.sort_by(&order);
    kept.truncate(most);
    kept
}

/// Bounds on revisions; they say nothing about the count.
fn passes(r: &Range, version: &Version) -> bool {
    let within = |value, min, max| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(version.mod_revision, r.min_mod_revision, r.max_mod_revision)
        && within(version.create_revision, r.min_create_revision, r.max_create_revision)
}

fn answer(r: &Range, key: &Key, version: &Version) -> Option<KeyValue> {
    let key = key.to_bytes();
    if r.keys_only { version.without_value(key) } else { version.key_value(key) }
}

/// Order of two versions of different keys; keys themselves are in order already.
fn compare(target: SortTarget, a: &Version, b: &Version) -> Ordering {
    match target {
        SortTarget::Key => Ordering::Equal,
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.as_slice().cmp(b.value.as_slice()),
    }
}
