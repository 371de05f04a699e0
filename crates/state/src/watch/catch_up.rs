//! A watcher that is behind reads history.

use crate::{
    defect::{Defect, planted},
    machine::Machine,
    store::HistoryQuery,
    watch::watcher::{WatchPoll, Watcher},
};

impl Watcher {
    /// Reads on from history. None if there is nothing more in it: the watcher is synced then. The machine
    /// and the hub are locked together, so that nothing is published in between.
    pub(super) fn catch_up(&mut self, machine: &Machine, max_bytes: usize) -> Option<WatchPoll> {
        let to = machine.revision();
        if planted(Defect::CompactionLosesDelete) && self.next == machine.compacted() && self.next < to {
            self.next += 1;
        }
        let query = HistoryQuery {
            range: self.options.range.as_key_range(),
            from: self.next,
            to,
            events_max: usize::MAX,
            bytes_max: max_bytes.max(1),
            prev_kv: self.options.prev_kv,
            no_put: self.options.no_put,
            no_delete: self.options.no_delete,
        };
        let Ok(chunk) = machine.history(&query) else {
            return Some(WatchPoll::Compacted { oldest: machine.compacted() });
        };
        let through = chunk.through;
        let last = chunk.events.last().map(|event| event.kv.mod_revision);
        self.next = self.next.max(through + 1);
        self.synced = through >= to;
        let more = !self.synced;
        last.map(|revision| WatchPoll::Events { revision, events: chunk.events, more })
    }
}
