//! What every server applied, seen where it happens: the truth that clients' observations are held against, and the
//! proof that replicas do the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use weft_control_plane::raft::ApplyObserver;
use weft_state::command::{Event, EventKind};
use weft_state::machine::Machine;

use super::server::Number;
use super::trace::Trace;
use weft_tests::checker::watch::Change;

/// Of all servers. Clones share it.
#[derive(Clone)]
pub(crate) struct Ledger {
    entries: Arc<Mutex<Entries>>,
    trace: Trace,
}

#[derive(Default)]
struct Entries {
    /// By log index: hash and revision of the state after it, and who was first to have it.
    states: BTreeMap<u64, (u64, i64, Number)>,
    /// By revision.
    changes: BTreeMap<i64, Vec<Change>>,
    /// How often each server's state was replaced by a snapshot, also at its start.
    restored: BTreeMap<Number, u32>,
    wrong: Option<String>,
}

impl Ledger {
    pub(crate) fn new(trace: Trace) -> Self {
        Self { entries: Arc::default(), trace }
    }

    /// What a server is to be given.
    pub(crate) fn observer(&self, server: Number) -> Arc<dyn ApplyObserver> {
        Arc::new(Observer { ledger: self.clone(), server })
    }

    /// What replicas did differently, if anything.
    pub(crate) fn wrong(&self) -> Option<String> {
        self.entries.lock().wrong.clone()
    }

    /// Every change, by revision.
    pub(crate) fn changes(&self) -> Vec<Change> {
        self.entries.lock().changes.values().flatten().cloned().collect()
    }

    /// How often a server's state was replaced by a snapshot, also at its start.
    pub(crate) fn restored(&self, server: Number) -> u32 {
        self.entries.lock().restored.get(&server).copied().unwrap_or(0)
    }

    /// Entries applied by the furthest server.
    pub(crate) fn applied(&self) -> u64 {
        self.entries.lock().states.last_key_value().map_or(0, |(index, _)| *index)
    }
}

struct Observer {
    ledger: Ledger,
    server: Number,
}

impl Observer {
    fn state(&self, entries: &mut Entries, machine: &Machine) {
        let (index, hash, revision) = (machine.applied_index(), machine.hash(), machine.revision());
        self.ledger.trace.note(&[3, u64::from(self.server), index, hash]);
        let (known_hash, known_revision, first) =
            *entries.states.entry(index).or_insert((hash, revision, self.server));
        if (known_hash, known_revision) != (hash, revision) {
            entries.wrong.get_or_insert_with(|| {
                format!(
                    "A09: after entry {index} server {} has revision {revision} and hash {hash:016x}, server {first} \
                     had revision {known_revision} and hash {known_hash:016x}",
                    self.server
                )
            });
        }
    }
}

impl ApplyObserver for Observer {
    fn applied(&self, machine: &Machine, events: &[Event]) {
        let mut entries = self.ledger.entries.lock();
        let mut by_revision: BTreeMap<i64, Vec<Change>> = BTreeMap::new();
        for event in events {
            let change = change(event);
            by_revision.entry(change.revision).or_default().push(change);
        }
        for (revision, changes) in by_revision {
            let known = entries.changes.entry(revision).or_insert_with(|| changes.clone());
            if *known != changes {
                let wrong = format!(
                    "A09: server {} has {changes:?} at revision {revision}, another one had {known:?}",
                    self.server
                );
                entries.wrong.get_or_insert(wrong);
            }
        }
        self.state(&mut entries, machine);
    }

    fn restored(&self, machine: &Machine) {
        let mut entries = self.ledger.entries.lock();
        *entries.restored.entry(self.server).or_default() += 1;
        self.state(&mut entries, machine);
    }
}

fn change(event: &Event) -> Change {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Change {
        key: text(&event.kv.key).into(),
        value: (event.kind == EventKind::Put).then(|| text(&event.kv.value).into()),
        revision: event.kv.mod_revision,
    }
}
