//! What a run came to: every record judged by its checker.

use std::fmt;
use std::time::Duration;

use crate::checker::kv::{KvModel, Learnt, learn};
use crate::checker::lease::{self, Bounds};
use crate::checker::linear::check;
use crate::checker::lock::LockModel;
use crate::checker::revision::{check as check_revisions, check_sessions, readings};
use crate::checker::watch::{Change, Message, Truth, Watcher, check_readable};
use crate::workload::Run;
use crate::workload::stale::Snapshot;

/// Everything that was recorded beside what [`Run`] has.
#[derive(Debug)]
pub struct Records {
    /// The store's revision when all was over.
    pub revision: i64,
    /// Watchers that were told everything up to it from the first revision on.
    pub watchers: Vec<Watcher>,
    /// What each server told again when all was over, of what is not compacted.
    pub retold: Vec<Watcher>,
    /// Each server's hash of that, and from where its history is kept.
    pub hashes: Vec<(u32, i64)>,
    /// Serializable reads, by reader.
    pub snapshots: Vec<Vec<Snapshot>>,
    /// For how long there may have been no leader at a stretch: so much later may a lease end.
    pub outage_max: Duration,
}

/// Figures of a run that passed.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Report {
    pub answered: usize,
    pub refused: usize,
    pub unknown: usize,
    pub learnt: Learnt,
    pub steps: u64,
    pub changes: usize,
    pub messages: usize,
    pub snapshots: usize,
    pub lease_notes: usize,
    pub lock_operations: usize,
}

/// Judges a run.
///
/// # Panics
/// With what was wrong.
pub fn judge(run: &Run, records: &Records) -> Report {
    let mut history = run.keys().take();
    let (answered, refused, unknown) = history.tally();

    // What one watcher was told is taken for what happened; the others and all that was acknowledged must agree.
    let truth = Truth::new(changes(&records.watchers[0])).unwrap_or_else(|wrong| panic!("{wrong}"));
    truth.check_writes(&history).unwrap_or_else(|wrong| panic!("{wrong}"));

    let readings = readings(&history);
    check_revisions(&readings).unwrap_or_else(|wrong| panic!("{wrong}"));
    let hashes = &records.hashes;
    assert!(hashes.windows(2).all(|two| two[0] == two[1]), "A09: servers have different stores: {hashes:?}");
    // A09, A10: whatever server tells it again.
    for watcher in records.watchers.iter().chain(&records.retold) {
        watcher.check_complete(&truth, records.revision).unwrap_or_else(|wrong| panic!("{wrong}"));
    }
    let sightings = records.watchers.iter().flat_map(Watcher::sightings);
    check_readable(sightings, &readings).unwrap_or_else(|wrong| panic!("{wrong}"));
    for snapshots in &records.snapshots {
        let readings: Vec<_> = snapshots.iter().map(|snapshot| snapshot.reading).collect();
        check_sessions(&readings).unwrap_or_else(|wrong| panic!("{wrong}"));
        snapshots.iter().for_each(|snapshot| check_snapshot(&truth, snapshot));
    }

    let learnt = learn(&mut history, Some(&truth.puts()));
    let steps = check(&KvModel::default(), &history).unwrap();

    let notes = run.lease_notes();
    // Twice the TTL for a renewal that was received as the outage began and is counted anew by the next leader.
    let bounds = Bounds { late: records.outage_max + Duration::from_secs(10), skew_permille: 0 };
    lease::check(&notes, bounds).unwrap_or_else(|wrong| panic!("{wrong}"));
    let locks = run.locks().take();
    let steps = steps + check(&LockModel { permits: 1 }, &locks).unwrap();

    Report {
        answered,
        refused,
        unknown,
        learnt,
        steps,
        changes: truth.changes().len(),
        messages: records.watchers.iter().map(|watcher| watcher.told.len()).sum(),
        snapshots: records.snapshots.iter().map(Vec::len).sum(),
        lease_notes: notes.len(),
        lock_operations: locks.operations().len(),
    }
}

fn changes(watcher: &Watcher) -> Vec<Change> {
    let events = watcher.told.iter().flat_map(|(_, message)| match message {
        Message::Events { events, .. } => events.as_slice(),
        _ => &[],
    });
    events.map(|event| event.change.clone()).collect()
}

/// A read at a revision shows the store as it was then, and nothing of any other time.
fn check_snapshot(truth: &Truth, snapshot: &Snapshot) {
    let then = snapshot.reading.revision + 1;
    let keys = truth.keys().filter_map(|key| Some((key.clone(), truth.before(key, then)?)));
    let expected: std::collections::BTreeMap<_, _> = keys.collect();
    let seen = snapshot.pairs.iter().cloned().collect();
    assert_eq!(
        expected, seen,
        "A10: a serializable read differs from the store at its revision: {:?}",
        snapshot.reading
    );
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answered, refused, unknown, learnt, .. } = self;
        writeln!(f, "{answered} operations answered, {refused} refused, {unknown} without an answer")?;
        let Learnt { took_effect, did_nothing, unknown } = learnt;
        writeln!(
            f,
            "  of those {took_effect} took effect, {did_nothing} did nothing, {unknown} remain unknown"
        )?;
        let Self { steps, changes, messages, snapshots, lease_notes, lock_operations, .. } = self;
        writeln!(
            f,
            "linearizable in {steps} steps; {changes} changes told in {messages} messages of watchers"
        )?;
        write!(
            f,
            "{snapshots} serializable reads; {lease_notes} facts of leases; {lock_operations} operations of locks"
        )
    }
}
