//! Hands the watch hub's events to the tasks that wait for them.
//!
//! ```text
//! apply ──► Watches::applied ──► WatchHub::publish ──► Wakes (which watcher has something) ──► task polls
//! ```
//! Nothing is pushed to a task: it is only told that something is there, and polls the hub when it has
//! room for it. What was published it gets from the hub alone; the machine, which is busy applying, is locked
//! only by a watcher that reads history or wants to know that there is nothing. A task that never comes back therefore holds what the hub allows one watcher to hold, and
//! catches up from history later, or is told that history is gone. It is never skipped.
//!
//! Locks: the hub's mutex comes after the machine's lock and before that of a [`Wakes`]; none is held
//! over an `.await`.

use std::collections::{HashSet, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use weft_state::command::{Event, Revision};
use weft_state::machine::Machine;
use weft_state::watch::{WatchHub, WatchOptions, WatchPoll, WatcherId};

use crate::raft::{ApplyObserver, Coordinator};

/// All watchers of this server. Give it to [`Coordinator::start`] as an observer, then open watches on it.
pub struct Watches {
    inner: Mutex<Inner>,
    /// Term of the entry that was applied last; 0 before the first.
    term: AtomicU64,
}

struct Inner {
    hub: WatchHub,
    /// By the watcher's slot in the hub.
    wake: Vec<Option<Target>>,
}

/// Where a watcher's wake-ups go.
struct Target {
    watcher: WatcherId,
    wakes: Arc<Wakes>,
    token: u64,
}

impl Watches {
    /// No watchers yet.
    pub fn new() -> Arc<Self> {
        let inner = Inner { hub: WatchHub::default(), wake: Vec::new() };
        Arc::new(Watches { inner: Mutex::new(inner), term: AtomicU64::new(0) })
    }

    /// Watchers open now.
    pub fn count(&self) -> usize {
        self.inner.lock().hub.len()
    }

    /// Term of the log entry that was applied last, and so of the newest event; 0 before the first.
    pub fn term(&self) -> u64 {
        self.term.load(Relaxed)
    }

    /// How often a watcher's queue was full and the watcher went back to history, since the start.
    pub fn overflows(&self) -> u64 {
        self.inner.lock().hub.overflows()
    }

    /// Opens one watcher for one task to wait on.
    pub fn open(self: &Arc<Self>, coordinator: &Coordinator, options: WatchOptions) -> WatchHandle {
        let wakes = Arc::new(Wakes::default());
        let (watcher, _) = self.open_among(coordinator, options, &wakes, 0);
        WatchHandle { watcher, wakes }
    }

    /// Opens a watcher whose wake-ups show as `token` in `wakes`, which many watchers may share, and says
    /// what the current revision was. The watcher is woken once at the start, to be polled for history.
    pub fn open_among(
        self: &Arc<Self>,
        coordinator: &Coordinator,
        options: WatchOptions,
        wakes: &Arc<Wakes>,
        token: u64,
    ) -> (Watcher, Revision) {
        let start = options.start;
        let (id, current) = coordinator.read(|machine| {
            let mut inner = self.inner.lock();
            let (id, current) = inner.hub.create(machine, options);
            inner.wake_through(Target { watcher: id, wakes: wakes.clone(), token });
            (id, current)
        });
        wakes.wake(token);
        let synced_to = if start > 0 { start - 1 } else { current };
        let watcher = Watcher { watches: self.clone(), coordinator: coordinator.clone(), id, synced_to };
        (watcher, current)
    }
}

impl ApplyObserver for Watches {
    fn applied(&self, machine: &Machine, events: &[Event]) {
        self.term.store(machine.applied_term(), Relaxed);
        if events.is_empty() {
            return;
        }
        let mut inner = self.inner.lock();
        for id in inner.hub.publish(events) {
            inner.wake_up(id);
        }
    }

    fn restored(&self, machine: &Machine) {
        self.term.store(machine.applied_term(), Relaxed);
        let mut inner = self.inner.lock();
        for id in inner.hub.restored(machine) {
            inner.wake_up(id);
        }
    }
}

impl Inner {
    fn wake_up(&self, id: WatcherId) {
        if let Some(target) = self.wake.get(id.slot()).and_then(Option::as_ref) {
            target.wakes.wake(target.token);
        }
    }

    fn wake_through(&mut self, target: Target) {
        let slot = target.watcher.slot();
        if self.wake.len() <= slot {
            self.wake.resize_with(slot + 1, || None);
        }
        self.wake[slot] = Some(target);
    }

    fn close(&mut self, id: WatcherId) {
        self.hub.cancel(id);
        // The hub may have given the slot of a watcher that is compacted to another one already.
        if let Some(place) = self.wake.get_mut(id.slot())
            && place.as_ref().is_some_and(|target| target.watcher == id)
        {
            *place = None;
        }
    }
}

/// One open watcher. Dropping it closes it.
pub struct Watcher {
    watches: Arc<Watches>,
    coordinator: Coordinator,
    id: WatcherId,
    synced_to: Revision,
}

impl Watcher {
    /// The hub's id, unique on this server.
    pub fn id(&self) -> WatcherId {
        self.id
    }

    /// Every event up to here has been handed out; all later ones have a higher revision.
    pub fn synced_to(&self) -> Revision {
        self.synced_to
    }

    /// What is there now, at most about `bytes_max` of it but whole revisions; does not wait.
    pub fn poll(&mut self, bytes_max: usize) -> WatchPoll {
        let published = self.watches.inner.lock().hub.take(self.id, bytes_max);
        let poll = published.unwrap_or_else(|| {
            self.coordinator.read(|machine| self.watches.inner.lock().hub.poll(self.id, machine, bytes_max))
        });
        self.note(&poll);
        poll
    }

    fn note(&mut self, poll: &WatchPoll) {
        match poll {
            WatchPoll::Events { events, .. } => {
                if let Some(last) = events.last() {
                    debug_assert!(last.kv.mod_revision > self.synced_to, "revisions only grow on a watcher");
                    self.synced_to = last.kv.mod_revision;
                }
            }
            // A watcher that starts in the future is synced to what precedes its start.
            WatchPoll::Idle { synced_to } => self.synced_to = self.synced_to.max(*synced_to),
            WatchPoll::Compacted { .. } => {}
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.watches.inner.lock().close(self.id);
    }
}

/// One watcher with one task that waits on it. Dropping it closes the watcher.
pub struct WatchHandle {
    watcher: Watcher,
    wakes: Arc<Wakes>,
}

impl WatchHandle {
    /// The hub's id, unique on this server.
    pub fn id(&self) -> WatcherId {
        self.watcher.id
    }

    /// See [`Watcher::synced_to`].
    pub fn synced_to(&self) -> Revision {
        self.watcher.synced_to
    }

    /// The next events, or `Compacted`, after which no events will come; never `Idle`. Dropping the
    /// future loses nothing.
    pub async fn next(&mut self, bytes_max: usize) -> WatchPoll {
        loop {
            match self.watcher.poll(bytes_max) {
                WatchPoll::Idle { .. } => {
                    self.wakes.next().await;
                }
                poll => return poll,
            }
        }
    }
}

/// Tokens of watchers that may have something, each at most once, in the order in which they were woken: a
/// busy watcher goes to the end of the queue and does not starve the others. For one task to wait on.
#[derive(Default)]
pub struct Wakes {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    order: VecDeque<u64>,
    queued: HashSet<u64, foldhash::fast::RandomState>,
    /// Of the task that found the queue empty.
    waiting: Option<Waker>,
}

impl Wakes {
    /// Puts the token at the end of the queue unless it is in it.
    pub fn wake(&self, token: u64) {
        let mut queue = self.queue.lock();
        if queue.queued.insert(token) {
            queue.order.push_back(token);
            let waiting = queue.waiting.take();
            drop(queue);
            if let Some(waiting) = waiting {
                waiting.wake();
            }
        }
    }

    /// Takes the first token, without waiting.
    pub fn pop(&self) -> Option<u64> {
        self.queue.lock().pop()
    }

    /// Takes the first token, or has the task woken by the next one.
    pub fn poll_pop(&self, cx: &mut Context<'_>) -> Poll<u64> {
        let mut queue = self.queue.lock();
        if let Some(token) = queue.pop() {
            return Poll::Ready(token);
        }
        match &mut queue.waiting {
            Some(waiting) => waiting.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Whether no token is queued.
    pub fn is_empty(&self) -> bool {
        self.queue.lock().order.is_empty()
    }

    /// Takes the first token as soon as there is one. Dropping the future loses nothing.
    pub async fn next(&self) -> u64 {
        poll_fn(|cx| self.poll_pop(cx)).await
    }
}

impl Queue {
    fn pop(&mut self) -> Option<u64> {
        let token = self.order.pop_front()?;
        self.queued.remove(&token);
        Some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_woken_token_is_queued_once_and_goes_to_the_end() {
        let wakes = Wakes::default();
        for token in [1, 2, 1, 3, 2] {
            wakes.wake(token);
        }
        assert_eq!(wakes.next().await, 1);
        wakes.wake(1);
        assert_eq!((wakes.next().await, wakes.next().await, wakes.next().await), (2, 3, 1));
        assert!(wakes.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_up_between_polls_is_not_lost() {
        let wakes = Arc::new(Wakes::default());
        let waiting = tokio::spawn({
            let wakes = wakes.clone();
            async move { (wakes.next().await, wakes.next().await) }
        });
        tokio::task::yield_now().await;
        wakes.wake(7);
        wakes.wake(8);
        assert_eq!(waiting.await.unwrap(), (7, 8));
        // A wait that is given up leaves later wake-ups for the next one.
        assert!(tokio::time::timeout(std::time::Duration::from_secs(1), wakes.next()).await.is_err());
        wakes.wake(9);
        assert_eq!(wakes.next().await, 9);
    }
}
