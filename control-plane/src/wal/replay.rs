//! What the records of a log add up to, and whether each can follow those before it.

use std::collections::VecDeque;

use super::record::{LogPosition, Record, Vote};

/// The log as its records describe it, without the entries' content.
#[derive(Debug, Default, Clone)]
pub struct Replay {
    /// The last vote.
    pub vote: Option<Vote>,
    /// The last known commit index. May be behind, never ahead.
    pub committed: Option<LogPosition>,
    /// The last purged entry.
    pub purged: Option<LogPosition>,
    /// Entries after it.
    pub entries: Span,
    /// An entry was seen.
    begun: bool,
    /// The first entry found, where the oldest segment does not go on from the purge that it carries.
    gap_to: Option<u64>,
}

/// Entries that follow each other, by index and term alone.
#[derive(Debug, Default, Clone)]
pub struct Span {
    /// First index, and one past the last.
    first: u64,
    end: u64,
    /// Terms, each with the first index of it. Empty if there is no entry.
    terms: VecDeque<(u64, u64)>,
}

impl Span {
    /// First index, and one past the last; none if there is no entry.
    pub fn indexes(&self) -> Option<std::ops::Range<u64>> {
        (!self.terms.is_empty()).then_some(self.first..self.end)
    }

    /// The last entry.
    pub fn last(&self) -> Option<LogPosition> {
        self.terms.back().map(|(term, _)| LogPosition { term: *term, index: self.end - 1 })
    }

    fn push(&mut self, position: LogPosition) {
        if self.terms.is_empty() {
            self.first = position.index;
        }
        if self.terms.back().is_none_or(|(term, _)| *term != position.term) {
            self.terms.push_back((position.term, position.index));
        }
        self.end = position.index + 1;
    }

    fn truncate_from(&mut self, index: u64) {
        while self.terms.back().is_some_and(|(_, first)| *first >= index) {
            self.terms.pop_back();
        }
        self.end = self.end.min(index);
    }

    fn drop_through(&mut self, index: u64) {
        while let Some((_, first)) = self.terms.front_mut() {
            *first = (*first).max(index + 1);
            let end = self.terms.get(1).map_or(self.end, |(_, next)| *next);
            if end > index + 1 {
                break;
            }
            self.terms.pop_front();
        }
        self.first = self.first.max(index + 1);
    }
}

impl Replay {
    /// Position of the last entry, purged ones included.
    pub fn last(&self) -> Option<LogPosition> {
        self.entries.last().or(self.purged)
    }

    /// Whether entries between the last purge and the first that was found are missing, as they are if the oldest
    /// segments are gone.
    pub fn has_gap(&self) -> bool {
        self.gap_to.is_some_and(|first| self.purged.is_none_or(|p| p.index + 1 < first))
    }

    /// Carries out one record of segment number `place` of those there are, counted from 0. Answers why it cannot
    /// follow those before it; nothing was changed then.
    pub fn follow(&mut self, place: usize, record: &Record) -> Result<(), String> {
        match record {
            Record::Mark(_) | Record::Seal(_) => {}
            Record::Vote(vote) => self.vote = Some(*vote),
            Record::Committed(position) => self.committed = self.committed.max(Some(*position)),
            Record::TruncateFrom(index) => {
                self.entries.truncate_from(*index);
                self.gap_to = self.gap_to.map(|first| first.min(*index));
            }
            Record::Purge(position) => {
                if position.index == u64::MAX {
                    return Err(format!("a purge up to entry {}", position.index));
                }
                self.purged = self.purged.max(Some(*position));
                self.entries.drop_through(position.index);
            }
            Record::Entry(entry) => {
                let seen = entry.position.index;
                let mut expected = self.last().map_or(0, |p| p.index + 1);
                if self.entries.indexes().is_none() {
                    expected = expected.max(self.gap_to.unwrap_or(0));
                }
                if seen != expected || seen == u64::MAX {
                    // The oldest segment carries the purge of when it was made; segments that went since
                    // then leave a gap at its start, which a purge in a later record must account for.
                    let at_start = place == 0 && !self.begun && seen != u64::MAX;
                    if !(at_start && seen > expected) {
                        return Err(format!("log entry {seen} where {expected} must follow"));
                    }
                    self.gap_to = Some(seen);
                }
                self.begun = true;
                self.entries.push(entry.position);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::super::record::Entry;
    use super::*;

    fn entry(term: u64, index: u64) -> Record {
        Record::Entry(Entry { position: LogPosition { term, index }, payload: Bytes::new() })
    }

    #[test]
    fn an_entry_that_does_not_follow_is_told_and_changes_nothing() {
        let mut replay = Replay::default();
        replay.follow(0, &entry(1, 0)).expect("follows");
        for wrong in [0, 2, u64::MAX] {
            let error = replay.follow(0, &entry(1, wrong)).expect_err("does not follow");
            assert_eq!(error, format!("log entry {wrong} where 1 must follow"));
        }
        replay.follow(0, &entry(1, 1)).expect("follows");
        assert_eq!(replay.entries.indexes(), Some(0..2));
    }

    #[test]
    fn a_gap_at_the_start_needs_a_purge_that_explains_it() {
        let mut replay = Replay::default();
        replay.follow(0, &entry(1, 7)).expect("segments before it may be gone");
        assert!(replay.has_gap());
        replay.follow(1, &Record::Purge(LogPosition { term: 1, index: 6 })).expect("follows");
        assert!(!replay.has_gap());
        let mut replay = Replay::default();
        assert!(replay.follow(1, &entry(1, 7)).is_err(), "not in a later segment");
    }

    proptest! {
        /// Against the list of entries.
        #[test]
        fn a_span_is_what_a_list_of_entries_would_be(
            steps in prop::collection::vec((0..4u8, 0..6u64), 1..60),
        ) {
            let (mut span, mut list) = (Span::default(), VecDeque::<LogPosition>::new());
            let (mut next, mut term) = (0, 1);
            for (kind, number) in steps {
                match kind {
                    0 | 1 => for _ in 0..number {
                        span.push(LogPosition { term, index: next });
                        list.push_back(LogPosition { term, index: next });
                        next += 1;
                    },
                    2 => {
                        let index = list.front().map_or(next, |f| f.index.max(next.saturating_sub(number)));
                        span.truncate_from(index);
                        list.retain(|p| p.index < index);
                        next = list.back().map_or(next, |b| b.index + 1).min(next);
                        term += 1;
                    }
                    _ => {
                        let index = list.front().map_or(next, |f| f.index) + number;
                        span.drop_through(index);
                        list.retain(|p| p.index > index);
                        next = next.max(index + 1);
                    }
                }
                let indexes = list.front().map(|f| f.index..list[list.len() - 1].index + 1);
                prop_assert_eq!(span.indexes(), indexes);
                prop_assert_eq!(span.last(), list.back().copied());
            }
        }
    }
}
