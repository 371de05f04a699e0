//! All changes of a run, as one server told them afterwards from the first revision on.

use std::collections::{HashMap, HashSet};

use crate::checker::kv::{Answer, Call, Key, Op, Seen, Value};
use crate::checker::watch::Change;
use crate::history::{End, History};

/// Every change, in order.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    changes: Vec<Change>,
    /// For each key its changes.
    by_key: HashMap<Key, Vec<(i64, Option<Value>)>>,
    /// To which history may have been compacted.
    compacted: HashSet<i64>,
}

/// Why a list of changes cannot be what happened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Contradiction {
    #[error("W03: {1:?} comes after {0:?}")]
    Order(Change, Change),
    #[error("W02: {0:?} changes its key twice in one revision")]
    Twice(Change),
    #[error("A07, W01: the write {0:?} was acknowledged, and is not among the changes")]
    Lost(Change),
    #[error(
        "A03, A06: {0:?} is among the changes, but no operation that was not refused can have done it, or not as often"
    )]
    Unasked(Change),
}

impl Truth {
    /// Changes in the order in which they were told.
    ///
    /// # Errors
    /// If revisions go back, or a key changes twice in one.
    pub fn new(changes: Vec<Change>) -> Result<Self, Contradiction> {
        let mut by_key: HashMap<Key, Vec<(i64, Option<Value>)>> = HashMap::new();
        if let Some(two) = changes.windows(2).find(|two| two[0].revision > two[1].revision) {
            return Err(Contradiction::Order(two[0].clone(), two[1].clone()));
        }
        for change in &changes {
            let of_key = by_key.entry(change.key.clone()).or_default();
            if of_key.last().is_some_and(|(revision, _)| *revision == change.revision) {
                return Err(Contradiction::Twice(change.clone()));
            }
            of_key.push((change.revision, change.value.clone()));
        }
        Ok(Self { changes, by_key, compacted: HashSet::new() })
    }

    /// Notes to which revisions history was, or may have been, compacted.
    pub fn compacted_to(&mut self, revisions: impl IntoIterator<Item = i64>) {
        self.compacted.extend(revisions);
    }

    /// Whether history may have been compacted to this revision.
    pub fn was_compacted_to(&self, revision: i64) -> bool {
        self.compacted.contains(&revision)
    }

    /// All of them.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Puts as [`learn`](crate::checker::kv::learn) wants them.
    pub fn puts(&self) -> Vec<(Key, Value, i64)> {
        let put = |change: &Change| Some((change.key.clone(), change.value.clone()?, change.revision));
        self.changes.iter().filter_map(put).collect()
    }

    /// Changes with revisions in [from, to).
    pub fn between(&self, from: i64, to: i64) -> &[Change] {
        let start = self.changes.partition_point(|change| change.revision < from);
        let end = self.changes.partition_point(|change| change.revision < to);
        &self.changes[start..end.max(start)]
    }

    /// Changes of one revision.
    pub fn at(&self, revision: i64) -> &[Change] {
        self.between(revision, revision + 1)
    }

    /// Every key that was ever there.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.by_key.keys()
    }

    /// The key's value before a revision.
    pub fn before(&self, key: &Key, revision: i64) -> Option<Value> {
        let of_key = self.by_key.get(key)?;
        let until = of_key.partition_point(|(at, _)| *at < revision);
        of_key[..until].last()?.1.clone()
    }

    /// Checks the changes against the writes that were asked for: what was acknowledged is there, at its revision, and
    /// what is there was asked for and not refused, and no more often than it was asked for.
    ///
    /// # Errors
    /// The first change that is missing or that nobody asked for.
    pub fn check_writes(&self, history: &History<Call, Answer>) -> Result<(), Contradiction> {
        let mut may_put: HashMap<(Key, Value), usize> = HashMap::new();
        let mut may_delete: HashSet<Key> = HashSet::new();
        for op in history.operations().iter().filter(|op| !matches!(op.end, End::Failed { .. })) {
            let branches: &[bool] = match op.answer().and_then(|answer| answer.succeeded) {
                Some(true) => &[true],
                Some(false) => &[false],
                None => &[true, false],
            };
            for op in branches.iter().flat_map(|branch| op.call.branch(*branch)) {
                match op {
                    Op::Put(key, value) => *may_put.entry((key.clone(), value.clone())).or_default() += 1,
                    Op::Delete(key) => _ = may_delete.insert(key.clone()),
                    Op::Get(_) => {}
                }
            }
            self.check_acknowledged(&op.call, op.answer())?;
        }
        for change in &self.changes {
            let asked = match &change.value {
                None => may_delete.contains(&change.key),
                Some(value) => match may_put.get_mut(&(change.key.clone(), value.clone())) {
                    Some(left @ 1..) => {
                        *left -= 1;
                        true
                    }
                    _ => false,
                },
            };
            if !asked {
                return Err(Contradiction::Unasked(change.clone()));
            }
        }
        Ok(())
    }

    fn check_acknowledged(&self, call: &Call, answer: Option<&Answer>) -> Result<(), Contradiction> {
        let Some(Answer { revision: Some(revision), succeeded: Some(branch), seen: Some(seen) }) = answer
        else {
            return Ok(());
        };
        let at = self.at(*revision);
        for (op, seen) in call.branch(*branch).iter().zip(seen) {
            let (key, value) = match (op, seen) {
                (Op::Put(key, value), Seen::Put) => (key, Some(value)),
                (Op::Delete(key), Seen::Deleted(1..)) => (key, None),
                _ => continue,
            };
            let told = at.iter().find(|change| change.key == *key);
            if told.is_none_or(|change| change.value.as_ref() != value) {
                let lost = Change { key: key.clone(), value: value.cloned(), revision: *revision };
                return Err(Contradiction::Lost(lost));
            }
        }
        Ok(())
    }
}
