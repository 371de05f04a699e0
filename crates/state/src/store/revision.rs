//! Which keys each revision changed, in order.
//!
//! A revision in etcd's sense is a pair: the main one counts commands with an effect and is what clients
//! see; the sub one orders the changes inside. Here the sub revision is the position among the changes of
//! the same main revision and needs no number of its own.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::command::Revision;

/// One change: `key` has a version whose `mod_revision` is `revision`.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) revision: Revision,
    pub(crate) key: Bytes,
}

/// The changes that are not compacted, ordered by main and sub revision.
///
/// Invariant: within one main revision a key appears at most once.
#[derive(Debug, Clone, Default)]
pub(crate) struct ChangeLog {
    changes: VecDeque<Change>,
}

impl ChangeLog {
    pub(crate) fn push(&mut self, revision: Revision, key: Bytes) {
        debug_assert!(self.changes.back().is_none_or(|last| last.revision <= revision));
        self.changes.push_back(Change { revision, key });
    }

    pub(crate) fn pop_last(&mut self) -> Option<Change> {
        self.changes.pop_back()
    }

    /// Takes out the oldest change if it is older than `revision`.
    pub(crate) fn pop_before(&mut self, revision: Revision) -> Option<Change> {
        if self.changes.front()?.revision >= revision {
            return None;
        }
        self.changes.pop_front()
    }

    /// Position of a key among the changes of a revision. Both must be there.
    pub(crate) fn sub_revision(&self, revision: Revision, key: &[u8]) -> u32 {
        let start = self.position(revision);
        let same = self.changes.range(start..).take_while(|change| change.revision == revision);
        let sub = same.take_while(|change| change.key != key).count();
        debug_assert!(self.changes.get(start + sub).is_some_and(|change| change.key == key));
        sub as u32
    }

    /// Position of the first change at or after `revision`.
    fn position(&self, revision: Revision) -> usize {
        // Watchers mostly read the newest few changes: look there before searching all of history.
        let recent = self.changes.len().saturating_sub(64);
        match self.changes.get(recent) {
            Some(change) if change.revision < revision => {
                recent + self.changes.range(recent..).take_while(|change| change.revision < revision).count()
            }
            _ => self.changes.partition_point(|change| change.revision < revision),
        }
    }

    /// Changes of the revisions `from` to `to`, inclusive.
    pub(crate) fn between(
        &self,
        from: Revision,
        to: Revision,
    ) -> impl ExactSizeIterator<Item = &Change> + DoubleEndedIterator {
        let start = self.position(from);
        let end = self.position(to.saturating_add(1)).max(start);
        self.changes.range(start..end)
    }

    pub(crate) fn len(&self) -> usize {
        self.changes.len()
    }

    /// How many changes are older than `revision`.
    pub(crate) fn len_before(&self, revision: Revision) -> usize {
        self.position(revision)
    }

    /// The revision of the change that `newer` changes follow; none if there are not that many.
    pub(crate) fn revision_before_last(&self, newer: usize) -> Option<Revision> {
        let position = self.changes.len().checked_sub(newer.checked_add(1)?)?;
        self.changes.get(position).map(|change| change.revision)
    }

    pub(crate) fn len_between(&self, from: Revision, to: Revision) -> usize {
        self.between(from, to).len()
    }
}
