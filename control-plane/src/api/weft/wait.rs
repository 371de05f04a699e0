//! Waiting for a turn: the part that acquire and campaign share.
//!
//! ```text
//! Proposing ──granted──► Deliver ──taken──► done
//!    │  │ queued            │ not taken
//!    │  ▼                   ▼
//!    │ Waiting ──cancel──► Leaving ──undo applied──► done
//!    │  │ ├─ timeout ──► Leaving, then answered
//!    │  │ └─ session ended, or withdrawn ──► answer that
//!    │  └─ granted ──► Deliver
//!    └─ outcome unknown and given up ──► Leaving
//! ```
//!
//! tonic drops a handler when its client goes away, at any of these points. Therefore no state lives in the
//! handler: each call is an owned task, and the handler only holds a guard whose drop tells the task that
//! nobody waits. Whatever was taken is then given back by the `undo` command, repeated until it is applied
//! or the session is gone, so that nothing leaks (L06).
//!
//! A request may be repeated, at this server or another, while an earlier call still waits or leaves. The
//! state machine keeps the newest call's `attempt` with the place or the grant, and the undo of any other
//! call is a no-op: the newest call owns what the request has, only it gives that back, and a server that
//! learns late that its client went away harms nobody (L01). The earlier call waits on, if anyone still
//! listens, and is answered as the request then stands. A release or resignation by the client is
//! unconditional; it ends the newest call here too ([`Waits::withdraw`]), so that it wins also when it
//! overtakes the command of the call.
//!
//! When this server stops, waiting calls are answered `unavailable` and keep their place: the client
//! repeats the request at another server, which finds the place again by session and request id.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use weft_core::backoff::Backoff;
use weft_state::auth::Caller;
use weft_state::command::{Acquired, Command, Grant, LeaseId, Range, Response, Revision};
use weft_state::watch::{WatchOptions, WatchPoll, WatchRange};

use crate::api::caller::Asking;
use crate::api::status;
use crate::raft::{Coordinator, ProposeError};
use crate::watch_driver::{WatchHandle, Watches};

/// Most requests that wait at one server; more are refused.
pub const WAITING_MAX: usize = 65_536;

/// Pause before a command is repeated whose outcome is not known.
const REPEAT_MIN: Duration = Duration::from_millis(50);
const REPEAT_MAX: Duration = Duration::from_secs(2);

/// Enough for the one or two small events of a turn.
const EVENT_BYTES_MAX: usize = 64 * 1024;

/// One request for a turn.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Enters the queue or is granted at once; repeating it is idempotent.
    pub enter: Command,
    /// Gives back what `enter` took, granted or waiting; a no-op if there is nothing, or if a later call of
    /// the request took over. Carries the same [`attempt`] as `enter`.
    pub undo: Command,
    /// The session.
    pub lease: LeaseId,
    /// Equal for repetitions of one request.
    pub key: CallKey,
    /// How long to wait; none: for ever.
    pub timeout: Option<Duration>,
}

/// Names one call among the calls of its request, at whatever server: random, and not 0.
pub fn attempt() -> u64 {
    fastrand::u64(1..)
}

/// What gives back what a caller took: in the server's own name while callers are checked, so that it works too when the
/// caller may not any more.
pub fn undo(asking: &Asking, undo: Command) -> Command {
    match asking.caller {
        Caller::Anonymous => undo,
        Caller::User { .. } | Caller::Server => undo.enclosed(Caller::Server, None),
    }
}

/// Identity of a request: kind, name, session, request id.
pub type CallKey = (&'static str, String, LeaseId, u64);

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Ours, as of this revision.
    Granted(Grant, Revision),
    /// Not ours, and nothing of ours is left: refused at once, or the time was up.
    NotGranted,
}

/// All calls of one server that wait or leave.
pub struct Waits {
    coordinator: Coordinator,
    watches: Arc<Watches>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// The newest call for each request. Held for one map operation.
    newest: Mutex<HashMap<CallKey, Newest>>,
    next_call: AtomicU64,
}

struct Newest {
    id: u64,
    gone: CancellationToken,
}

impl Waits {
    /// No calls yet.
    pub fn new(
        coordinator: Coordinator,
        watches: Arc<Watches>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            coordinator,
            watches,
            tasks,
            stop,
            newest: Mutex::default(),
            next_call: AtomicU64::new(0),
        })
    }

    /// Requests under way.
    pub fn waiting(&self) -> usize {
        self.newest.lock().len()
    }

    /// Ends the call for this request, if one is under way here: it takes nothing any more, and gives back
    /// what it has. To be called before the undo is proposed for another reason.
    pub fn withdraw(&self, key: &CallKey) {
        if let Some(newest) = self.newest.lock().get(key) {
            newest.gone.cancel();
        }
    }

    /// Asks for a turn and waits for it. Dropping the future gives back whatever was taken.
    ///
    /// # Errors
    /// As the caller should hear them.
    pub async fn turn(self: &Arc<Self>, ask: Ask) -> Result<Turn, Status> {
        if self.stop.is_cancelled() {
            return Err(status::stopping());
        }
        if self.waiting() >= WAITING_MAX {
            return Err(Status::resource_exhausted(format!(
                "{WAITING_MAX} requests wait at this server already; ask another one"
            )));
        }
        let gone = CancellationToken::new();
        let guard = gone.clone().drop_guard();
        let (answer, answered) = oneshot::channel();
        let (take, taken) = oneshot::channel();
        let call = Call {
            waits: self.clone(),
            id: self.next_call.fetch_add(1, Ordering::Relaxed),
            started: Instant::now(),
            ask,
            gone,
        };
        let newest = Newest { id: call.id, gone: call.gone.clone() };
        self.newest.lock().insert(call.ask.key.clone(), newest);
        self.tasks.spawn(call.run(answer, taken));
        let turn = answered.await.map_err(|_| status::stopping())?;
        // From here on the answer is on its way, as far as this server can tell.
        let _ = take.send(());
        guard.disarm();
        turn
    }
}

struct Call {
    waits: Arc<Waits>,
    id: u64,
    started: Instant,
    ask: Ask,
    /// Nobody wants the answer any more: the client went away, or withdrew.
    gone: CancellationToken,
}

/// What a call holds in the state machine when it ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holding {
    /// Nothing.
    Nothing,
    /// A place or a grant that this call took, took over from an earlier one, or may have taken.
    Something,
}

type Ended = (Result<Turn, Status>, Holding);

impl Call {
    async fn run(self, answer: oneshot::Sender<Result<Turn, Status>>, taken: oneshot::Receiver<()>) {
        let (mut turn, holding) = self.pursue().await;
        if self.gone.is_cancelled() {
            turn = Err(withdrawn());
        }
        let granted = matches!(turn, Ok(Turn::Granted(..)));
        // A grant is the client's once the handler has taken it; until then it is ours to give back.
        let delivered = answer.send(turn).is_ok() && taken.await.is_ok();
        if holding == Holding::Something && !(delivered && granted) && !self.waits.stop.is_cancelled() {
            self.leave().await;
        }
        let mut newest = self.waits.newest.lock();
        if newest.get(&self.ask.key).is_some_and(|newest| newest.id == self.id) {
            newest.remove(&self.ask.key);
        }
    }

    async fn pursue(&self) -> Ended {
        let mut backoff = Backoff::new(REPEAT_MIN, REPEAT_MAX);
        let mut unsure = false;
        loop {
            // Not cancelled half-way: only its answer says what there is to give back.
            let proposed = match self.waits.coordinator.propose(self.ask.enter.clone()).await {
                Ok(proposed) => proposed,
                Err(error) => {
                    unsure |= may_have_happened(&error);
                    // One that may have taken effect is repeated until it is known whether it has.
                    let pause = backoff.next(fastrand::f64());
                    if may_have_happened(&error) && !self.is_late() && self.pause(pause).await {
                        continue;
                    }
                    let holding = if unsure { Holding::Something } else { Holding::Nothing };
                    return (Err(status::propose(&error)), holding);
                }
            };
            let acquired = match proposed.response {
                Ok(Response::Acquire(acquired) | Response::Campaign(acquired)) => acquired,
                Ok(other) => return (Err(super::unexpected(&other)), Holding::Nothing),
                Err(error) => return (Err(status::store(&error)), Holding::Nothing),
            };
            let place = match acquired {
                Acquired::Granted(grant) => {
                    return (Ok(Turn::Granted(grant, proposed.revision)), Holding::Something);
                }
                Acquired::Refused => return (Ok(Turn::NotGranted), Holding::Nothing),
                Acquired::Queued { key, waiter_key, .. } => Place { key, waiter_key },
            };
            return match self.wait(&place, proposed.revision).await {
                Waited::Granted(grant) => {
                    let revision = grant.fence;
                    (Ok(Turn::Granted(grant, revision)), Holding::Something)
                }
                Waited::TimedOut => self.give_up(&place).await,
                Waited::Gone => (Ok(Turn::NotGranted), Holding::Something),
                Waited::Stopping => (Err(status::stopping()), Holding::Something),
                Waited::SessionEnded => (Err(status::session_ended(self.ask.lease)), Holding::Nothing),
                Waited::Removed => (Err(withdrawn()), Holding::Nothing),
            };
        }
    }

    /// Waits until the place in the queue is gone: by the grant, by a release, or with the session. Only the
    /// one whose place it is wakes up (L08). Nothing is missed: the watch starts right after the revision
    /// at which the place was given.
    async fn wait(&self, place: &Place, applied: Revision) -> Waited {
        let mut changes = self.watch(place, applied + 1);
        let late = async {
            match self.deadline() {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(late);
        loop {
            // Whatever an event says, the state says how it stands now; an event only wakes.
            if let Some(waited) = self.stand(place) {
                return waited;
            }
            tokio::select! {
                biased;
                poll = changes.next(EVENT_BYTES_MAX) => {
                    if matches!(poll, WatchPoll::Compacted { .. }) {
                        changes = self.watch(place, 0);
                    }
                }
                () = self.waits.stop.cancelled() => return Waited::Stopping,
                () = self.gone.cancelled() => return Waited::Gone,
                () = &mut late => return Waited::TimedOut,
            }
        }
    }

    fn watch(&self, place: &Place, start: Revision) -> WatchHandle {
        let range = WatchRange { key: place.waiter_key.clone(), range_end: Bytes::new() };
        let options = WatchOptions { range, start, prev_kv: false, no_put: false, no_delete: false };
        self.waits.watches.open(&self.waits.coordinator, options)
    }

    /// How the request stands in this server's state; none while it waits.
    fn stand(&self, place: &Place) -> Option<Waited> {
        self.waits.coordinator.read(|machine| {
            let kv = |key: &Bytes| {
                let range = Range { key: key.clone(), ..Range::default() };
                machine.range(&range).ok().and_then(|r| r.kvs.into_iter().next())
            };
            // The key of an election stands for whoever leads; its lease says who that is.
            if let Some(kv) = kv(&place.key).filter(|kv| kv.lease == self.ask.lease) {
                let grant =
                    Grant { fence: kv.create_revision, lease: self.ask.lease, key: place.key.clone() };
                return Some(Waited::Granted(grant));
            }
            if kv(&place.waiter_key).is_some() {
                return None;
            }
            let lives = machine.lease_ttl_secs(self.ask.lease).is_some();
            Some(if lives { Waited::Removed } else { Waited::SessionEnded })
        })
    }

    /// The time is up: leave, unless the grant was there first.
    async fn give_up(&self, place: &Place) -> Ended {
        if let Some(Waited::Granted(grant)) = self.stand(place) {
            let revision = grant.fence;
            return (Ok(Turn::Granted(grant, revision)), Holding::Something);
        }
        // A grant that comes between the look and the undo is undone with it. The place of a later call
        // stays, and is that call's.
        match self.waits.coordinator.propose(self.ask.undo.clone()).await {
            Ok(_) => (Ok(Turn::NotGranted), Holding::Nothing),
            Err(error) => (Err(status::propose(&error)), Holding::Something),
        }
    }

    /// Gives back, repeatedly, until it is certain.
    async fn leave(&self) {
        let mut backoff = Backoff::new(REPEAT_MIN, REPEAT_MAX);
        loop {
            match self.waits.coordinator.propose(self.ask.undo.clone()).await {
                Ok(_) => return,
                Err(error) => tracing::debug!(%error, lease = self.ask.lease, "cannot leave the queue yet"),
            }
            // The end of the session gives back everything by itself.
            if self.waits.coordinator.read(|m| m.lease_ttl_secs(self.ask.lease).is_none()) {
                return;
            }
            let pause = tokio::time::sleep(backoff.next(fastrand::f64()));
            if self.waits.stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        // A time that does not fit is one that nobody lives to see.
        self.ask.timeout.and_then(|t| self.started.checked_add(t))
    }

    fn is_late(&self) -> bool {
        self.deadline().is_some_and(|at| Instant::now() >= at)
    }

    /// False if nobody waits any more.
    async fn pause(&self, pause: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.gone.cancelled() => false,
            () = self.waits.stop.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }
}

/// A place in a queue.
struct Place {
    /// Will stand for the grant.
    key: Bytes,
    /// Stands for the place; goes when it does.
    waiter_key: Bytes,
}

enum Waited {
    Granted(Grant),
    TimedOut,
    Gone,
    Stopping,
    SessionEnded,
    Removed,
}

fn withdrawn() -> Status {
    Status::aborted("withdrawn: released or resigned under the same session and request id")
}

fn may_have_happened(error: &ProposeError) -> bool {
    matches!(error, ProposeError::OutcomeUnknown { .. } | ProposeError::NotAppliedHere { .. })
}
