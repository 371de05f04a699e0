//! Reading what changed, for watchers that catch up.

use std::sync::Arc;

use crate::{
    command::{Event, EventKind, Revision},
    error::StoreError,
    store::{key::Key, key_index::Version, mvcc::Store, range::KeyRange},
    watch::SharedEvent,
};

/// Which changes to read.
#[derive(Debug, Clone)]
pub(crate) struct HistoryQuery<'k> {
    pub(crate) range: KeyRange<'k>,
    pub(crate) from: Revision,
    /// Inclusive.
    pub(crate) to: Revision,
    /// Stop after the revision that reaches this many events.
    pub(crate) events_max: usize,
    /// Stop after the revision that reaches this many bytes.
    pub(crate) bytes_max: usize,
    pub(crate) prev_kv: bool,
    pub(crate) no_put: bool,
    pub(crate) no_delete: bool,
}

/// Changes of whole revisions.
#[derive(Debug, Default)]
pub(crate) struct HistoryChunk {
    pub(crate) events: Vec<Arc<SharedEvent>>,
    bytes: usize,
    /// Every matching change up to here is in `events`: the query's `to`, or less if a limit was reached.
    pub(crate) through: Revision,
}

impl Store {
    /// Changes in order of main and sub revision; those of one revision are never torn apart.
    ///
    /// # Errors
    /// `Compacted` if `from` is below the compacted revision.
    pub(crate) fn history(&self, query: &HistoryQuery<'_>) -> Result<HistoryChunk, StoreError> {
        let from = query.from.max(1);
        if from < self.compacted {
            return Err(StoreError::Compacted { requested: from, oldest: self.compacted });
        }
        let to = query.to.min(self.revision);
        let mut chunk = HistoryChunk { through: to, ..HistoryChunk::default() };
        if self.fewer_keys_than_changes(query.range, from, to) {
            self.history_by_key(query, from, to, &mut chunk);
        } else {
            self.history_by_revision(query, from, to, &mut chunk);
        }
        Ok(chunk)
    }

    /// Whether it is less work to look at each key of the range than at each change of the revisions.
    fn fewer_keys_than_changes(&self, range: KeyRange<'_>, from: Revision, to: Revision) -> bool {
        let changes = self.changes.len_between(from, to);
        if changes <= CHANGES_SCANNED_MIN {
            return false;
        }
        // A key costs more than a change: its versions are searched and the result is sorted.
        let keys_max = changes / 4;
        matches!(range, KeyRange::Single(_))
            || self.index.range(range.bounds()).take(keys_max).count() < keys_max
    }

    fn history_by_revision(
        &self,
        query: &HistoryQuery<'_>,
        from: Revision,
        to: Revision,
        chunk: &mut HistoryChunk,
    ) {
        let mut current = from;
        for change in self.changes.between(from, to) {
            if change.revision != current {
                if chunk.is_full(query) {
                    chunk.through = current;
                    return;
                }
                current = change.revision;
            }
            if query.range.contains(&change.key)
                && let Some((version, before)) =
                    self.index.get(&change.key).and_then(|(_, index)| index.made_by(change.revision))
            {
                chunk.add(query, &change.key, version, self.still_there(version, before));
            }
        }
    }

    fn history_by_key(
        &self,
        query: &HistoryQuery<'_>,
        from: Revision,
        to: Revision,
        chunk: &mut HistoryChunk,
    ) {
        let mut found: Vec<(&Key, &Version, Option<&Version>)> = Vec::new();
        for (key, index) in self.index.range(query.range.bounds()) {
            found.extend(index.between(from, to).map(|(version, before)| (key, version, before)));
        }
        found.sort_by_key(|(_, version, _)| version.mod_revision);
        for revision in found.chunk_by(|a, b| a.1.mod_revision == b.1.mod_revision) {
            let main = revision[0].1.mod_revision;
            match revision {
                [(key, version, before)] => {
                    chunk.add(query, key, version, self.still_there(version, *before));
                }
                // The order inside one revision is known to the log alone.
                _ => self.history_by_revision(&HistoryQuery { to: main, ..query.clone() }, main, main, chunk),
            }
            if chunk.is_full(query) {
                chunk.through = main;
                return;
            }
        }
    }
}

impl Store {
    /// The version before a change, if it is not compacted: that before the compacted revision's own change is,
    /// whether or not its memory was given back, which no two servers do at the same time.
    fn still_there<'s>(&self, version: &Version, before: Option<&'s Version>) -> Option<&'s Version> {
        before.filter(|_| version.mod_revision > self.compacted)
    }
}

impl HistoryChunk {
    fn is_full(&self, query: &HistoryQuery<'_>) -> bool {
        self.events.len() >= query.events_max || self.bytes >= query.bytes_max
    }

    fn add(&mut self, query: &HistoryQuery<'_>, key: &Key, version: &Version, before: Option<&Version>) {
        if if version.is_live() { query.no_put } else { query.no_delete } {
            return;
        }
        let event = version.event(&key.to_bytes(), before.filter(|_| query.prev_kv));
        self.bytes += event_bytes(&event);
        self.events.push(Arc::new(event.into()));
    }
}

/// About what an event takes on the wire and in memory beyond shared bytes.
pub(crate) fn event_bytes(event: &Event) -> usize {
    let before = event.prev_kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len());
    let overhead = match event.kind {
        EventKind::Put => 32,
        EventKind::Delete => 16,
    };
    overhead + event.kv.key.len() + event.kv.value.len() + before
}

/// Up to this many changes are looked at one by one without asking whether there is a shorter way.
const CHANGES_SCANNED_MIN: usize = 64;
