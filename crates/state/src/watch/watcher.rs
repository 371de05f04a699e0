//! One watcher.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use crate::{
    command::{Event, EventKind, Revision},
    store::{KeyRange, event_bytes},
    watch::shared::SharedEvent,
};

/// Most bytes of events that wait for one watcher in memory. Beyond it the watcher's queue is dropped and
/// it reads on from history: the events themselves are there anyway until they are compacted. Events are shared
/// among watchers, and so are their bytes on the wire, which may be held as well.
pub const WATCHER_PENDING_BYTES_MAX: usize = 1 << 20;

/// A watcher of one hub. Never used again after it is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatcherId(pub u64);

impl WatcherId {
    /// A small number that no other watcher of the hub has as long as this one is there: for a driver's table.
    pub fn slot(self) -> usize {
        self.0 as u32 as usize
    }
}

/// Which keys, with etcd's conventions: an empty `range_end` is the single key, `"\0"` is everything from
/// `key` on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchRange {
    /// First key.
    pub key: Bytes,
    /// End of the range, exclusive.
    pub range_end: Bytes,
}

impl WatchRange {
    pub(crate) fn as_key_range(&self) -> KeyRange<'_> {
        KeyRange::new(&self.key, &self.range_end)
    }
}

/// What a watcher wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchOptions {
    /// Which keys.
    pub range: WatchRange,
    /// First revision of interest; 0 or less is the one after the current. May be in the future.
    pub start: Revision,
    /// Answer the key-value before the change. If not set, events have no `prev_kv`.
    pub prev_kv: bool,
    /// Leave puts out.
    pub no_put: bool,
    /// Leave deletes out.
    pub no_delete: bool,
}

/// What a watcher has to tell.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchPoll {
    /// Whole revisions in order.
    Events {
        /// The last revision in `events`.
        revision: Revision,
        /// Never empty.
        events: Vec<Arc<SharedEvent>>,
        /// Poll again at once: there may be more. If not set, `publish` will name this watcher when there is.
        more: bool,
    },
    /// What comes next in order is compacted: the watcher cannot go on without a gap and is gone.
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

/// The hub's side of a watcher.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) options: WatchOptions,
    /// Position in its group of the interest index.
    pub(super) position: usize,
    /// Events below this are answered, queued or not wanted. While synced it is the last queued event's own
    /// revision, which may have more events to come.
    pub(super) next: Revision,
    /// False: behind. What is in the queue comes first, then history from `next`.
    pub(super) synced: bool,
    /// Whole revisions.
    queue: VecDeque<Arc<SharedEvent>>,
    queued_bytes: usize,
    /// The `publish` that last named this watcher, so that each names it once.
    pub(super) named_in: u64,
}

/// What queueing an event came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Offered {
    NotWanted,
    /// Queued, or to be read from history.
    Pending,
    /// Dropped with all that was queued; all of it is to be read from history.
    Overflowed,
}

impl Watcher {
    pub(super) fn new(options: WatchOptions, current: Revision) -> Self {
        let next = if options.start <= 0 { current + 1 } else { options.start };
        Self {
            options,
            position: 0,
            next,
            synced: next > current,
            queue: VecDeque::new(),
            queued_bytes: 0,
            named_in: 0,
        }
    }

    pub(super) fn offer(&mut self, published: &mut Published<'_>, bytes_max: usize) -> Offered {
        let revision = published.event.kv.mod_revision;
        let filtered = match published.event.kind {
            EventKind::Put => self.options.no_put,
            EventKind::Delete => self.options.no_delete,
        };
        if filtered || revision < self.next {
            return Offered::NotWanted;
        }
        if !self.synced {
            return Offered::Pending;
        }
        if self.queued_bytes + published.bytes > bytes_max {
            // Back to the first revision that was not answered, so that none is torn apart.
            self.next = self.queue.front().map_or(revision, |first| first.kv.mod_revision);
            self.queue = VecDeque::new();
            self.queued_bytes = 0;
            self.synced = false;
            return Offered::Overflowed;
        }
        self.next = revision;
        self.queued_bytes += published.bytes;
        self.queue.push_back(published.share(self.options.prev_kv));
        Offered::Pending
    }

    /// Takes whole revisions out of the queue, at least one if there is any, until `max_bytes` are reached.
    pub(super) fn take(&mut self, max_bytes: usize) -> Option<WatchPoll> {
        let mut events: Vec<Arc<SharedEvent>> = Vec::new();
        let mut bytes = 0;
        while let Some(first) = self.queue.front() {
            let same_revision =
                events.last().is_some_and(|last| last.kv.mod_revision == first.kv.mod_revision);
            if bytes >= max_bytes && !events.is_empty() && !same_revision {
                break;
            }
            bytes += event_bytes(first);
            events.extend(self.queue.pop_front());
        }
        if self.queue.is_empty() {
            self.queued_bytes = 0;
        } else {
            self.queued_bytes = self.queued_bytes.saturating_sub(bytes);
        }
        let revision = events.last()?.kv.mod_revision;
        Some(WatchPoll::Events { revision, events, more: !self.queue.is_empty() || !self.synced })
    }
}

/// An event on its way to watchers, made shareable when the first one wants it.
pub(super) struct Published<'e> {
    pub(super) event: &'e Event,
    bytes: usize,
    with_prev: Option<Arc<SharedEvent>>,
    without_prev: Option<Arc<SharedEvent>>,
}

impl<'e> Published<'e> {
    pub(super) fn new(event: &'e Event) -> Self {
        Self { event, bytes: event_bytes(event), with_prev: None, without_prev: None }
    }

    fn share(&mut self, prev_kv: bool) -> Arc<SharedEvent> {
        let event = self.event;
        if prev_kv || event.prev_kv.is_none() {
            self.with_prev.get_or_insert_with(|| Arc::new(event.clone().into())).clone()
        } else {
            let bare = || Event { kind: event.kind, kv: event.kv.clone(), prev_kv: None };
            self.without_prev.get_or_insert_with(|| Arc::new(bare().into())).clone()
        }
    }
}
