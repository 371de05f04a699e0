//! One watcher.

use std::sync::Arc;

use bytes::Bytes;

use crate::command::{Event, Revision};

/// Most bytes of events that wait for one watcher in memory. Beyond it the watcher's queue is dropped and
/// it reads on from history.
pub const WATCHER_PENDING_BYTES_MAX: usize = 1 << 20;

/// A watcher of one hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatcherId(pub u64);

/// Which keys, with etcd's conventions: an empty `range_end` is the single key, `"\0"` is everything from
/// `key` on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchRange {
    /// First key.
    pub key: Bytes,
    /// End of the range, exclusive.
    pub range_end: Bytes,
}

/// What a watcher wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchOptions {
    /// Which keys.
    pub range: WatchRange,
    /// First revision of interest; 0 or less is the one after the current. May be in the future.
    pub start: Revision,
    /// Answer the key-value before the change.
    pub prev_kv: bool,
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletes out.
    pub no_delete: bool,
}

/// What a watcher has to tell.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchPoll {
    /// Whole revisions in order. Poll again at once: there may be more.
    Events {
        /// The last revision in `events`.
        revision: Revision,
        /// Never empty.
        events: Vec<Arc<Event>>,
    },
    /// What comes next in order is compacted: the watcher cannot go on without a gap and has been removed.
    Compacted {
        /// The oldest revision that a new watcher can start from.
        oldest: Revision,
    },
    /// Nothing now. `publish` will name this watcher when there is.
    Idle {
        /// Every event up to here was answered.
        synced_to: Revision,
    },
}
