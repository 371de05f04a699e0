//! Who is told about which event.

use crate::{
    command::{Event, Revision},
    machine::Machine,
    watch::{WatchOptions, WatchPoll, WatcherId},
};

/// All watchers of one replica.
#[derive(Debug, Default)]
pub struct WatchHub {}

impl WatchHub {
    /// A hub without watchers.
    pub fn new() -> Self {
        Self::default()
    }
    /// Add a watcher; also answers the current revision. Poll it before waiting for a wake-up.
    pub fn create(&mut self, machine: &Machine, _options: WatchOptions) -> (WatcherId, Revision) {
        (WatcherId(0), machine.revision())
    }
    /// Remove a watcher; false if there was none.
    pub fn cancel(&mut self, _id: WatcherId) -> bool {
        false
    }
    /// Take in the events of one applied batch; answers whom to wake.
    pub fn publish(&mut self, _events: &[Event]) -> Vec<WatcherId> {
        Vec::new()
    }
    /// The machine was replaced by a newer one (from a Raft snapshot): everyone reads on from history.
    /// Answers whom to wake.
    pub fn restored(&mut self, _machine: &Machine) -> Vec<WatcherId> {
        Vec::new()
    }
    /// What the watcher has to tell now, at most about `max_bytes` (but at least one whole revision).
    pub fn poll(&mut self, _id: WatcherId, machine: &Machine, _max_bytes: usize) -> WatchPoll {
        WatchPoll::Idle { synced_to: machine.revision() }
    }
    /// How many watchers there are.
    pub fn len(&self) -> usize {
        0
    }
    /// Whether there is no watcher.
    pub fn is_empty(&self) -> bool {
        true
    }
    /// How often a watcher fell behind its bound and went back to history, since the start.
    pub fn overflows(&self) -> u64 {
        0
    }
}
