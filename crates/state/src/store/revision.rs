//! Which keys each revision changed, in order.
//!
//! A revision in etcd's sense is a pair: the main one counts commands with an effect and is what clients
//! see; the sub one orders the changes inside. Here the sub revision is the position among the changes of
//! the same main revision and needs no number of its own.

use std::collections::VecDeque;

use crate::{command::Revision, store::key::Key};

/// One change: `key` has a version whose `mod_revision` is `revision`.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) revision: Revision,
    pub(crate) key: Key,
}

/// Changes of one chunk, 24 KiB: growing never copies more, and history that goes gives its memory back.
const CHUNK_LEN: usize = 1024;

/// The changes that are not compacted, ordered by main and sub revision.
///
/// Invariants: within one main revision a key appears at most once; all chunks but the first and the last
/// are full, and none is empty.
#[derive(Debug, Clone, Default)]
pub(crate) struct ChangeLog {
    chunks: VecDeque<VecDeque<Change>>,
    len: usize,
}

impl ChangeLog {
    pub(crate) fn push(&mut self, revision: Revision, key: Key) {
        debug_assert!(self.get(self.len.wrapping_sub(1)).is_none_or(|last| last.revision <= revision));
        let change = Change { revision, key };
        self.len += 1;
        match self.chunks.back_mut() {
            Some(last) if last.len() < CHUNK_LEN => last.push_back(change),
            _ => {
                let mut chunk = VecDeque::with_capacity(CHUNK_LEN);
                chunk.push_back(change);
                self.chunks.push_back(chunk);
            }
        }
    }

    pub(crate) fn pop_last(&mut self) -> Option<Change> {
        let last = self.chunks.back_mut()?;
        let change = last.pop_back();
        if last.is_empty() {
            self.chunks.pop_back();
        }
        self.len -= 1;
        change
    }

    /// Takes out the oldest change if it is older than `revision`.
    pub(crate) fn pop_before(&mut self, revision: Revision) -> Option<Change> {
        let first = self.chunks.front_mut()?;
        if first.front()?.revision >= revision {
            return None;
        }
        let change = first.pop_front();
        if first.is_empty() {
            self.chunks.pop_front();
        }
        self.len -= 1;
        change
    }

    fn get(&self, position: usize) -> Option<&Change> {
        let first = self.chunks.front()?;
        match position.checked_sub(first.len()) {
            None => first.get(position),
            Some(behind) => self.chunks.get(1 + behind / CHUNK_LEN)?.get(behind % CHUNK_LEN),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// How many changes are older than `revision`.
    pub(crate) fn len_before(&self, revision: Revision) -> usize {
        self.position(revision)
    }

    /// The revision of the change that `newer` changes follow; none if there are not that many.
    pub(crate) fn revision_before_last(&self, newer: usize) -> Option<Revision> {
        let position = self.len.checked_sub(newer.checked_add(1)?)?;
        self.get(position).map(|change| change.revision)
    }

    /// Position of a key among the changes of a revision. Both must be there.
    pub(crate) fn sub_revision(&self, revision: Revision, key: &[u8]) -> u32 {
        let start = self.position(revision);
        let same =
            (start..self.len).map_while(|at| self.get(at).filter(|change| change.revision == revision));
        let sub = same.take_while(|change| change.key[..] != *key).count();
        debug_assert!(self.get(start + sub).is_some_and(|change| change.key[..] == *key));
        sub as u32
    }

    /// Position of the first change at or after `revision`.
    fn position(&self, revision: Revision) -> usize {
        let (Some(first), Some(last)) = (self.get(0), self.get(self.len.wrapping_sub(1))) else { return 0 };
        if revision <= first.revision {
            return 0;
        }
        if revision > last.revision {
            return self.len;
        }
        // Most revisions have one change. With fewer per revision than one, there are none but these.
        let (mut low, mut high) = (0, self.len);
        for guess in [
            self.len.checked_sub((last.revision - revision) as usize + 1),
            Some((revision - first.revision) as usize),
        ]
        .into_iter()
        .flatten()
        {
            match (guess.checked_sub(1).and_then(|before| self.get(before)), self.get(guess)) {
                (Some(before), Some(at)) if before.revision < revision && revision <= at.revision => {
                    return guess;
                }
                (_, Some(at)) if at.revision < revision => low = low.max(guess + 1),
                (_, Some(_)) => high = high.min(guess),
                _ => {}
            }
        }
        while low < high {
            let middle = low + (high - low) / 2;
            if self.get(middle).is_some_and(|change| change.revision < revision) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Changes of the revisions `from` to `to`, inclusive.
    pub(crate) fn between(
        &self,
        from: Revision,
        to: Revision,
    ) -> impl ExactSizeIterator<Item = &Change> + DoubleEndedIterator {
        let start = self.position(from);
        let end = self.position(to.saturating_add(1)).max(start);
        (start..end).map(|at| self.get(at).expect("positions are within"))
    }

    /// One of the changes of a revision, by its place among them.
    pub(crate) fn nth_of(&self, revision: Revision, place: usize) -> Option<&Change> {
        self.get(self.position(revision) + place).filter(|change| change.revision == revision)
    }

    pub(crate) fn len_between(&self, from: Revision, to: Revision) -> usize {
        self.between(from, to).len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: usize) -> Key {
        Key::from(&number.to_be_bytes()[..])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn log_equals_a_vector(
            steps in prop::collection::vec((0..5u8, 0..900usize, 0..3i64), 1..40),
        ) {
            let (mut log, mut model, mut revision) = (ChangeLog::default(), Vec::new(), 1);
            for (what, count, step) in steps {
                for n in 0..count {
                    match what {
                        0..=2 => {
                            // Some revisions have several changes, some have none.
                            revision += if n % 3 == 0 { step } else { 1 };
                            log.push(revision, key(n));
                            model.push((revision, key(n)));
                        }
                        3 => {
                            let popped = log.pop_last().map(|change| (change.revision, change.key));
                            prop_assert_eq!(popped, model.pop());
                        }
                        _ => {
                            let due = model.first().is_some_and(|(oldest, _)| *oldest < revision);
                            let expected = due.then(|| model.remove(0));
                            let popped = log.pop_before(revision);
                            prop_assert_eq!(popped.map(|change| (change.revision, change.key)), expected);
                        }
                    }
                }
                prop_assert_eq!(log.len(), model.len());
                for probe in [0, 1, revision / 3, revision / 2, revision - 1, revision, revision + 5] {
                    let expected = model.partition_point(|(at, _)| *at < probe);
                    prop_assert_eq!(log.len_before(probe), expected, "{}", probe);
                }
                let middle = revision / 2;
                let found = log.between(middle, revision - 1).map(|change| (change.revision, change.key.clone()));
                let expected = model.iter().filter(|(at, _)| (middle..revision).contains(at)).cloned();
                prop_assert!(found.eq(expected));
            }
        }
    }
}
