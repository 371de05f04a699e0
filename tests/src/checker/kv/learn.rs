//! What became of operations whose answers were lost, as far as others saw it.
//!
//! If a value that only one call can have written is seen, that call took effect, at the revision seen with it, before
//! whoever saw it had its answer. If the store's events of the whole run are known and the value is not among them, the
//! call did nothing. Few operations of unknown end are left then, and these are what makes the search expensive.

use std::collections::HashMap;

use crate::checker::kv::{Answer, Call, Key, Op, Seen, Value};
use crate::history::{End, History, Moment};

/// How many operations of unknown end were settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Learnt {
    /// Known to have taken effect.
    pub took_effect: usize,
    /// Known to have done nothing.
    pub did_nothing: usize,
    /// Still unknown.
    pub unknown: usize,
}

/// A written value, wherever it was written.
type Write = (Key, Value);

/// Settles what can be settled. `events` are all puts (key, value, revision) of the store from before the first operation
/// to after the last one's answer, read when no operation could be answered any more; `None` if they were not read.
pub fn learn(history: &mut History<Call, Answer>, events: Option<&[(Key, Value, i64)]>) -> Learnt {
    let last = history.operations().last().map_or_else(Default::default, |op| op.invoked.at);
    let now = history.moment(last);
    let writers = writers(history);
    let mut sightings = sightings(history);
    for (key, value, revision) in events.unwrap_or_default() {
        sightings.entry((key.clone(), value.clone())).or_insert((now, *revision));
    }
    let mut learnt = Learnt::default();
    for op in history.operations_mut() {
        if op.end != End::Unknown || op.call.is_read() {
            continue;
        }
        let sighting = [true, false].into_iter().find_map(|branch| {
            let mut own = puts(op.call.branch(branch)).filter(|write| writers.get(write) == Some(&1));
            own.find_map(|write| sightings.get(&write)).map(|seen| (branch, *seen))
        });
        // Only puts of values of their own can be told to be missing: a delete leaves no name behind.
        let would_show = |op: &Op| match op {
            Op::Get(_) => true,
            Op::Put(key, value) => writers.get(&(key.clone(), value.clone())) == Some(&1),
            Op::Delete(_) => false,
        };
        if let Some((branch, (moment, revision))) = sighting {
            let answer = Answer { revision: Some(revision), succeeded: Some(branch), seen: None };
            op.end = End::Ok { moment, answer };
            learnt.took_effect += 1;
        } else if events.is_some() && op.call.then.iter().chain(&op.call.otherwise).all(would_show) {
            op.end = End::Failed { moment: now };
            learnt.did_nothing += 1;
        } else {
            learnt.unknown += 1;
        }
    }
    learnt
}

fn puts(ops: &[Op]) -> impl Iterator<Item = Write> + '_ {
    ops.iter().filter_map(|op| match op {
        Op::Put(key, value) => Some((key.clone(), value.clone())),
        Op::Get(_) | Op::Delete(_) => None,
    })
}

/// How many calls may have written each value.
fn writers(history: &History<Call, Answer>) -> HashMap<Write, usize> {
    let mut writers = HashMap::new();
    for op in history.operations().iter().filter(|op| !matches!(op.end, End::Failed { .. })) {
        for write in puts(&op.call.then).chain(puts(&op.call.otherwise)) {
            *writers.entry(write).or_default() += 1;
        }
    }
    writers
}

/// When each value was first known to have been read, and the revision it had.
fn sightings(history: &History<Call, Answer>) -> HashMap<Write, (Moment, i64)> {
    let mut sightings: HashMap<Write, (Moment, i64)> = HashMap::new();
    for op in history.operations() {
        let End::Ok { moment, answer } = &op.end else { continue };
        let (Some(seen), Some(branch)) = (&answer.seen, answer.succeeded) else { continue };
        for (asked, seen) in op.call.branch(branch).iter().zip(seen) {
            let (Op::Get(key), Seen::Got(Some(kv))) = (asked, seen) else { continue };
            let first =
                sightings.entry((key.clone(), kv.value.clone())).or_insert((*moment, kv.mod_revision));
            if moment.seq < first.0.seq {
                *first = (*moment, kv.mod_revision);
            }
        }
    }
    sightings
}
