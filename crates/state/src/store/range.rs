//! Ranges of keys, and reading them.

use std::{cmp::Ordering, ops::Bound};

use bytes::Bytes;

use crate::{
    command::{KeyValue, Range, RangeResponse, Revision, SortOrder, SortTarget},
    error::StoreError,
    store::{
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

impl Store {
    /// etcd's range. Inside a transaction a read of the current revision sees its earlier writes.
    ///
    /// # Errors
    /// `EmptyKey`; `Compacted` and `FutureRevision` for a revision that cannot be read.
    pub(crate) fn range(&self, r: &Range) -> Result<RangeResponse, StoreError> {
        if r.key.is_empty() {
            return Err(StoreError::EmptyKey);
        }
        let at = self.readable(r.revision)?;
        let range = KeyRange::new(&r.key, &r.range_end);
        if let KeyRange::Single(key) = range {
            let found = self.index.get_key_value(key).and_then(|(key, index)| Some((key, read(index, at)?)));
            return Ok(answer(r, found.into_iter().collect(), i64::from(found.is_some())));
        }
        if at.is_none() && range.is_everything() && r.count_only {
            return Ok(RangeResponse { count: self.live.cast_signed(), ..RangeResponse::default() });
        }
        let found = self
            .index
            .range::<[u8], _>(range.bounds())
            .filter_map(|(key, index)| Some((key, read(index, at)?)));
        if r.count_only {
            return Ok(RangeResponse { count: found.count() as i64, ..RangeResponse::default() });
        }
        let limit = usize::try_from(r.limit).ok().filter(|&limit| limit > 0);
        match (r.sort, limit) {
            // In key order a limit bounds what is collected. One more than the limit tells of more.
            (None | Some((SortTarget::Key, SortOrder::Ascend)), Some(limit)) if !has_filters(r) => {
                let (kept, count) = take_and_count(found, limit.saturating_add(1));
                Ok(answer(r, kept, count))
            }
            (Some((SortTarget::Key, SortOrder::Descend)), Some(limit)) if !has_filters(r) => {
                let (mut kept, count) = take_and_count(found.rev(), limit.saturating_add(1));
                kept.reverse();
                Ok(answer(r, kept, count))
            }
            _ => {
                let found: Vec<_> = found.collect();
                let count = found.len() as i64;
                Ok(answer(r, found, count))
            }
        }
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

fn read(index: &KeyIndex, at: Option<Revision>) -> Option<&Version> {
    match at {
        None => index.current(),
        Some(revision) => index.at(revision),
    }
}

fn take_and_count<T>(items: impl Iterator<Item = T>, take: usize) -> (Vec<T>, i64) {
    let mut kept = Vec::new();
    let mut count = 0;
    for item in items {
        if kept.len() < take {
            kept.push(item);
        }
        count += 1;
    }
    (kept, count)
}

fn has_filters(r: &Range) -> bool {
    (r.min_mod_revision, r.max_mod_revision, r.min_create_revision, r.max_create_revision) != (0, 0, 0, 0)
}

/// Filter, then sort, then limit, as etcd does. `found` is in key order; `count` is before all three.
fn answer(r: &Range, mut found: Vec<(&Bytes, &Version)>, count: i64) -> RangeResponse {
    if r.count_only {
        return RangeResponse { count, ..RangeResponse::default() };
    }
    if has_filters(r) {
        found.retain(|(_, version)| {
            let within = |value, min, max| (min == 0 || value >= min) && (max == 0 || value <= max);
            within(version.mod_revision, r.min_mod_revision, r.max_mod_revision)
                && within(version.create_revision, r.min_create_revision, r.max_create_revision)
        });
    }
    if let Some((target, order)) = r.sort {
        match (target, order) {
            (SortTarget::Key, SortOrder::Ascend) => {}
            (SortTarget::Key, SortOrder::Descend) => found.reverse(),
            (_, SortOrder::Ascend) => found.sort_by(|a, b| compare(target, a.1, b.1)),
            (_, SortOrder::Descend) => found.sort_by(|a, b| compare(target, b.1, a.1)),
        }
    }
    let mut more = false;
    if let Ok(limit) = usize::try_from(r.limit)
        && limit > 0
        && found.len() > limit
    {
        found.truncate(limit);
        more = true;
    }
    let kvs = found
        .into_iter()
        .filter_map(|(key, version)| version.key_value(key))
        .map(|kv| if r.keys_only { KeyValue { value: Bytes::new(), ..kv } } else { kv })
        .collect();
    RangeResponse { kvs, more, count }
}

/// Order of two versions of different keys; keys themselves are in order already.
fn compare(target: SortTarget, a: &Version, b: &Version) -> Ordering {
    match target {
        SortTarget::Key => Ordering::Equal,
        SortTarget::Version => a.version.cmp(&b.version),
        SortTarget::Create => a.create_revision.cmp(&b.create_revision),
        SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
        SortTarget::Value => a.value.cmp(&b.value),
    }
}
