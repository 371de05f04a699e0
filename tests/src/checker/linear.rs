//! Linearizability: could all operations have happened one at a time, each between its call and its answer?
//!
//! The search is that of Wing and Gong (1993) with the memoisation of Lowe (2017): take operations that may come next
//! one by one, never visit the same (set of operations taken, state) twice, go back when nothing fits. An operation
//! of unknown end may be taken at any time after its call or not at all; such operations are tried last, because most
//! of them are not needed. Histories are split into connected sets of keys first, which is sound because
//! linearizability is local (Herlihy and Wing 1990, theorem 1).
//!
//! The problem is NP-complete, so a search has a budget of steps, and a third verdict for when it is used up.

#[cfg(test)]
pub(crate) mod naive;
mod open;
mod report;
mod search;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::checker::model::Model;
use crate::history::{End, History, Operation};

pub use report::Counterexample;

/// Steps of the model that one check of a history may take before it gives up, shrinking included. About ten
/// seconds in a debug build.
pub const STEPS_MAX: u64 = 5_000_000;

/// The answer of a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// An order exists.
    Linearizable {
        /// Steps that finding it took.
        steps: u64,
    },
    /// No order exists.
    Violation(Box<Counterexample>),
    /// The budget was used up before either was known.
    Unknown {
        /// Which keys were being looked at.
        keys: String,
        /// Operations there.
        operations: usize,
        /// Those of unknown end, which cost most.
        unknown: usize,
        /// Steps that were taken.
        steps: u64,
    },
}

impl Verdict {
    /// Panics with the counterexample, or with what was not decided.
    #[track_caller]
    pub fn unwrap(self) -> u64 {
        match self {
            Self::Linearizable { steps } => steps,
            Self::Violation(counterexample) => panic!("{counterexample}"),
            Self::Unknown { keys, operations, unknown, steps } => panic!(
                "not decided within {steps} steps: {operations} operations on {keys}, {unknown} of them of unknown \
                 end; check a shorter history or raise the limit"
            ),
        }
    }

    /// Whether it is a violation.
    pub fn is_violation(&self) -> bool {
        matches!(self, Self::Violation(_))
    }
}

/// Checks a history against a model, within [`STEPS_MAX`] steps.
pub fn check<M: Model>(model: &M, history: &History<M::Call, M::Answer>) -> Verdict
where
    M::Call: Clone,
    M::Answer: Clone,
{
    check_within(model, history, STEPS_MAX)
}

/// As [`check`], with a limit of one's own.
pub fn check_within<M: Model>(model: &M, history: &History<M::Call, M::Answer>, steps_max: u64) -> Verdict
where
    M::Call: Clone,
    M::Answer: Clone,
{
    let mut used = 0;
    let mut undecided = None;
    for (keys, operations) in partitions(model, history.operations()) {
        let outcome = search::run(model, &operations, steps_max - used);
        used += outcome.steps();
        match outcome {
            search::Outcome::Found { .. } => {}
            search::Outcome::Stuck(stuck) => {
                let left = steps_max - used;
                let counterexample = report::explain(model, keys, operations, stuck, left);
                return Verdict::Violation(Box::new(counterexample));
            }
            search::Outcome::OutOfSteps { .. } => {
                // Another part may still have a violation, which says more; but each has the rest of the budget only.
                let unknown = operations.iter().filter(|op| op.answer().is_none()).count();
                undecided.get_or_insert((keys, operations.len(), unknown));
            }
        }
    }
    match undecided {
        None => Verdict::Linearizable { steps: used },
        Some((keys, operations, unknown)) => Verdict::Unknown { keys, operations, unknown, steps: used },
    }
}

type Part<'a, M> = Vec<&'a Operation<<M as Model>::Call, <M as Model>::Answer>>;

/// Splits operations by connected sets of keys, in the order of the smallest key, and leaves out those that cannot
/// matter: refused ones, and reads without an answer.
fn partitions<'a, M: Model>(
    model: &M,
    operations: &'a [Operation<M::Call, M::Answer>],
) -> Vec<(String, Part<'a, M>)> {
    let matters = |op: &&Operation<M::Call, M::Answer>| match op.end {
        End::Ok { .. } => true,
        End::Failed { .. } => false,
        End::Unknown => !model.is_read(&op.call),
    };
    let operations: Vec<_> = operations.iter().filter(matters).collect();
    let keys: Vec<Vec<M::Key>> = operations.iter().map(|op| model.keys(&op.call)).collect();
    let mut groups = Groups::default();
    for of_one in &keys {
        for key in of_one {
            groups.join(&of_one[0], key);
        }
    }
    let mut names: BTreeMap<M::Key, Vec<M::Key>> = BTreeMap::new();
    for key in groups.names() {
        names.entry(groups.root(&key)).or_default().push(key);
    }
    let mut parts: BTreeMap<M::Key, Part<'a, M>> =
        names.keys().map(|root| (root.clone(), Vec::new())).collect();
    for (op, of_one) in operations.into_iter().zip(&keys) {
        let part = parts.get_mut(&groups.root(&of_one[0])).expect("every key of an operation is in a group");
        part.push(op);
    }
    let name = |keys: Vec<M::Key>| keys.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    names.into_values().map(name).zip(parts.into_values()).collect()
}

/// Disjoint sets of keys; the root of a set is its smallest key.
struct Groups<K>(BTreeMap<K, K>);

impl<K> Default for Groups<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord + Clone> Groups<K> {
    fn join(&mut self, a: &K, b: &K) {
        for key in [a, b] {
            if !self.0.contains_key(key) {
                self.0.insert(key.clone(), key.clone());
            }
        }
        let (a, b) = (self.root(a), self.root(b));
        let (low, high) = if a <= b { (a, b) } else { (b, a) };
        self.0.insert(high, low);
    }

    fn root(&self, key: &K) -> K {
        let mut at = key;
        while let Some(up) = self.0.get(at)
            && up != at
        {
            at = up;
        }
        at.clone()
    }

    fn names(&self) -> Vec<K> {
        self.0.keys().cloned().collect()
    }
}
