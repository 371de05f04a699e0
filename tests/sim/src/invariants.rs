//! What must hold, one file each: what is looked at while it runs, and what is looked at when it is over.

pub(crate) mod acknowledged;
pub(crate) mod leaders;
pub(crate) mod leases;
pub(crate) mod linearizable;
pub(crate) mod locks;
pub(crate) mod replicas;
pub(crate) mod revisions;
pub(crate) mod watches;

use std::time::Duration;

use weft_tests::checker::kv::{Answer, Call};
use weft_tests::checker::lease::Note;
use weft_tests::checker::revision::Reading;
use weft_tests::checker::watch::{Truth, Watcher};
use weft_tests::history::History;

use crate::workload::lock::Held;

/// A run that is over, as the clients saw it and as it was.
pub(crate) struct Finished {
    /// Calls, with what could be learnt of those whose answers were lost.
    pub(crate) calls: History<Call, Answer>,
    /// Revisions as clients were told them.
    pub(crate) readings: Vec<Reading>,
    /// Every change of the calls' keys.
    pub(crate) truth: Truth,
    /// Every change of the key that the lock protects: the fences, in order.
    pub(crate) protected: Vec<i64>,
    pub(crate) watchers: Vec<Watcher>,
    pub(crate) notes: Vec<Note>,
    pub(crate) grants: Vec<Held>,
    /// When everything was well again.
    pub(crate) healed: Duration,
    /// Last revision of a change of the calls' keys.
    pub(crate) last: i64,
}

/// All that is wrong.
pub(crate) fn check(run: &Finished) -> Vec<String> {
    let all = [
        acknowledged::check,
        revisions::check,
        linearizable::check,
        watches::check,
        leases::check,
        locks::check,
    ];
    all.iter().filter_map(|check| check(run).err()).collect()
}
