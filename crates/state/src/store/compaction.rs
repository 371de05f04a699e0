//! Forgetting history.
//!
//! A compaction takes effect at once: from then on reads below it are refused. The memory is given back
//! in small steps, a few with each later command, so that no command pays for a long history. What is
//! not yet given back can be seen by nobody: reads, events, hash and image look past it.

use crate::{
    command::Revision,
    error::StoreError,
    store::{key::Key, key_index::KeyIndex, mvcc::Store},
};

/// How much of the past a store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HistoryHeld {
    /// Changes that can still be read and watched from.
    pub changes: u64,
    /// Bytes of values that newer versions or deletes have taken the place of, whether or not they can still
    /// be read.
    pub bytes: u64,
    /// Compacted changes whose memory is not given back yet.
    pub backlog: u64,
}

/// Changes given back with each applied command, beside two for each that it makes, so that a backlog
/// always shrinks. Each takes about half a microsecond, as the keys are far apart in memory; at 1,000
/// commands a second a backlog of a million changes lasts half a minute.
pub(crate) const SCRUB_PER_COMMAND: usize = 32;

/// Versions of one key dropped in one step. One is enough for the versions to be gone when their changes
/// are: what a compaction drops was followed by a change that is taken out here, or by one of the compacted
/// revision, which stays but is looked at.
const VERSIONS_PER_STEP: usize = 1;

impl Store {
    /// Makes `revision` the oldest readable one.
    ///
    /// # Errors
    /// `Compacted` if it is that already or is older; `FutureRevision` if it is above the current one.
    pub(crate) fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        if revision == 0 && self.compacted == 0 {
            return Ok(());
        }
        if revision <= self.compacted {
            return Err(StoreError::Compacted { requested: revision, oldest: self.compacted });
        }
        if revision > self.revision {
            return Err(StoreError::FutureRevision { requested: revision, current: self.revision });
        }
        self.compacted = revision;
        Ok(())
    }

    /// Moves the revision on and forgets all history; false if it would be out of range.
    pub(crate) fn begin_epoch(&mut self, revisions: Revision) -> bool {
        let Some(revision) = self.revision.checked_add(revisions) else { return false };
        self.revision = revision;
        self.compacted = revision;
        while self.scrub(usize::MAX) {}
        true
    }

    /// What is held of the past. Answers without a walk.
    pub(crate) fn history_held(&self) -> HistoryHeld {
        let backlog = self.changes.len_before(self.compacted);
        let own = self.changes.len_between(self.compacted, self.compacted);
        let scrubbed = if self.scrubbed.0 == self.compacted { self.scrubbed.1 } else { 0 };
        HistoryHeld {
            changes: (self.changes.len() - backlog) as u64,
            bytes: self.past_bytes,
            backlog: (backlog + own.saturating_sub(scrubbed)) as u64,
        }
    }

    /// The newest revision that leaves at least `changes` changes readable if compacted to; none if there
    /// are not more than that.
    pub(crate) fn revision_keeping(&self, changes: u64) -> Option<Revision> {
        let revision = self.changes.revision_before_last(usize::try_from(changes).ok()?)?;
        (revision > self.compacted).then_some(revision)
    }

    /// Gives back at most `max` changes of compacted history; false if nothing is left to give back, or the
    /// rest is needed by an image that is being written.
    pub(crate) fn scrub(&mut self, max: usize) -> bool {
        let horizon = self.pins.horizon(self.compacted);
        for _ in 0..max {
            let changed = match self.changes.pop_before(horizon) {
                Some(change) => Some(change.key),
                // The compacted revision's own changes stay: a watch may start there.
                None => self.next_own_change(horizon),
            };
            let Some(key) = changed else { return false };
            let trim = |_: &Key, index: &mut KeyIndex| index.trim(horizon, VERSIONS_PER_STEP);
            let Some(trimmed) = self.index.edit(&key, trim) else { continue };
            self.data_bytes -= trimmed.value_bytes;
            self.past_bytes -= trimmed.value_bytes;
            if trimmed.all {
                self.data_bytes -= key.len() as u64;
                self.index.remove(&key);
            }
        }
        true
    }

    /// The next key that a revision changed, each once.
    fn next_own_change(&mut self, revision: Revision) -> Option<Key> {
        if self.scrubbed.0 != revision {
            self.scrubbed = (revision, 0);
        }
        let key = self.changes.nth_of(revision, self.scrubbed.1)?.key.clone();
        self.scrubbed.1 += 1;
        Some(key)
    }
}
