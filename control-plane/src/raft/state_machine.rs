//! openraft's state machine: applies batches to the [`Machine`], tells observers, answers proposers.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures::{Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine},
};
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep},
};
use weft_core::id::NodeId;
use weft_state::{
    auth::AuthState,
    command::{Command, Event, Revision},
    machine::{ImageWalk, Machine},
};

use super::{
    ApplyObserver,
    agreement::Notes,
    snapshot::{SnapshotFile, SnapshotFolder, SnapshotWriter},
    types::{BatchResult, CommandResult, LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig},
};
use crate::{blocking, lease_driver::LeaseClock, wal::disk::out_of_space};

/// The replicated state of this server and who wants to hear of it. Shared by the Raft core, which
/// changes it, and the [`super::Coordinator`], which reads it.
pub struct Replica {
    machine: RwLock<Machine>,
    /// The machine's users and roles, to be looked at without its lock. Set before observers are told of what came
    /// after a change.
    auth: ArcSwap<AuthState>,
    observers: Vec<Arc<dyn ApplyObserver>>,
    clock: Arc<LeaseClock>,
    snapshots: SnapshotFolder,
    /// What was applied last, with the membership as of then.
    applied: Mutex<Applied>,
    /// For comparing replicas.
    notes: Mutex<Notes>,
    /// The applied index, after each batch.
    changes: watch::Sender<u64>,
    waiters: Mutex<Waiters>,
    own: NodeId,
    /// This server was a member, and by what was applied since it is none.
    removed: watch::Sender<bool>,
    /// By what was applied, this server is a member.
    taken_in: AtomicBool,
    /// Snapshots being written end at once.
    stopping: AtomicBool,
}

#[derive(Default, Clone)]
struct Applied {
    id: Option<LogId>,
    membership: StoredMembership,
}

/// Who waits for an index, by index. Bounded by the proposals and reads that the callers bound.
#[derive(Default)]
struct Waiters {
    by_index: BTreeMap<u64, Vec<oneshot::Sender<()>>>,
}

impl Replica {
    /// With what the newest snapshot holds, if there is one.
    pub fn new(
        own: NodeId,
        snapshots: SnapshotFolder,
        snapshot: Option<(SnapshotMeta, Machine)>,
        observers: Vec<Arc<dyn ApplyObserver>>,
        clock: Arc<LeaseClock>,
    ) -> Self {
        let restored = snapshot.is_some();
        let (applied, machine) = match snapshot {
            Some((meta, machine)) => {
                (Applied { id: meta.last_log_id, membership: meta.last_membership }, machine)
            }
            None => Default::default(),
        };
        if restored {
            observers.iter().for_each(|o| o.restored(&machine));
        }
        let index = applied.id.map_or(0, |id| id.index());
        let taken_in = applied.membership.get_node(&own.0).is_some();
        Self {
            auth: ArcSwap::new(machine.auth().clone()),
            machine: RwLock::new(machine),
            observers,
            clock,
            snapshots,
            applied: Mutex::new(applied),
            notes: Mutex::default(),
            changes: watch::Sender::new(index),
            waiters: Mutex::default(),
            own,
            removed: watch::Sender::new(false),
            taken_in: AtomicBool::new(taken_in),
            stopping: AtomicBool::new(false),
        }
    }

    /// Ends the writing of a snapshot, which is of no use any more.
    pub fn stop_writing(&self) {
        self.stopping.store(true, Relaxed);
    }

    /// Where snapshots are.
    pub fn snapshots(&self) -> &SnapshotFolder {
        &self.snapshots
    }

    /// Reads the machine.
    pub fn read<R>(&self, f: impl FnOnce(&Machine) -> R) -> R {
        f(&self.machine.read())
    }

    /// Gives back memory of at most `max` compacted changes; whether some are left.
    pub fn scrub(&self, max: usize) -> bool {
        // Nearly always there is nothing to do, and readers need not wait for that to be found.
        self.machine.read().history_held().backlog > 0 && self.machine.write().scrub(max)
    }

    /// The machine's users and roles.
    pub fn auth(&self) -> Arc<AuthState> {
        self.auth.load_full()
    }

    fn publish_auth(&self, machine: &Machine) {
        if !Arc::ptr_eq(&self.auth.load(), machine.auth()) {
            self.auth.store(machine.auth().clone());
        }
    }

    /// The members as of what was applied: those are committed.
    pub fn membership(&self) -> StoredMembership {
        self.applied.lock().membership.clone()
    }

    /// Notes what was applied last. That this server was taken out shows only between two memberships.
    fn set_applied(&self, id: Option<LogId>, membership: Option<StoredMembership>) {
        let mut applied = self.applied.lock();
        applied.id = id;
        let Some(membership) = membership else { return };
        let is_member = |membership: &StoredMembership| membership.get_node(&self.own.0).is_some();
        let (was, is) = (is_member(&applied.membership), is_member(&membership));
        if was || is {
            self.removed.send_replace(!is);
        }
        applied.membership = membership;
        // Release: whoever sees it sees the state of the entry that took this server in.
        self.taken_in.store(is, Release);
    }

    /// Whether this server is a member by what it has applied. One that is has all that any server had applied, and shown to
    /// anybody, before it was taken in.
    pub fn is_taken_in(&self) -> bool {
        self.taken_in.load(Acquire)
    }

    /// Completes when this server has applied that it was removed, and no later entry takes it in again.
    pub async fn wait_removed(&self) {
        // The sender is dropped only with the replica itself.
        let _ = self.removed.subscribe().wait_for(|removed| *removed).await;
    }

    /// Has another state from now on, as no server ever should.
    #[cfg(test)]
    pub fn replace(&self, machine: Machine) {
        *self.machine.write() = machine;
    }

    /// Hashes of past states.
    pub fn notes(&self) -> &Mutex<Notes> {
        &self.notes
    }

    /// Index of the last applied entry.
    pub fn applied_index(&self) -> u64 {
        *self.changes.borrow()
    }

    /// Told of the applied index after each batch.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Completes when the entry at `index` has been applied here.
    pub async fn wait_applied(&self, index: u64) {
        let applied = {
            // Under the waiters' lock, so that an apply cannot pass between the look and the entry.
            let mut waiters = self.waiters.lock();
            if self.applied_index() >= index {
                return;
            }
            let (tell, told) = oneshot::channel();
            let waiting = waiters.by_index.entry(index).or_default();
            waiting.retain(|w| !w.is_closed());
            waiting.push(tell);
            told
        };
        // The sender is dropped only with the replica itself.
        let _ = applied.await;
    }

    fn apply_entry(&self, id: LogId, commands: &[Command]) -> BatchResult {
        let (index, term) = (id.index(), id.committed_leader_id().term);
        let mut machine = self.machine.write();
        // Index 0 is the membership that forms a group. The machine counts from 1.
        let applied = if index == 0 { Vec::new() } else { machine.apply_batch(index, term, commands) };
        if Notes::wants(index) {
            self.notes.lock().note(index, machine.hash());
        }
        self.publish_auth(&machine);
        let mut events: Vec<Event> = Vec::new();
        let mut results = Vec::with_capacity(applied.len());
        for (command, applied) in commands.iter().zip(applied) {
            self.clock.applied(&machine, command, &applied.response);
            events.extend(applied.events);
            results.push(CommandResult { revision: applied.revision, response: applied.response });
        }
        for observer in &self.observers {
            observer.applied(&machine, &events);
        }
        BatchResult { results }
    }

    /// Tells everyone who waits for an applied index.
    fn announce(&self, index: u64) {
        let due = {
            let mut waiters = self.waiters.lock();
            self.changes.send_replace(index);
            let later = waiters.by_index.split_off(&(index + 1));
            std::mem::replace(&mut waiters.by_index, later)
        };
        for waiter in due.into_values().flatten() {
            let _ = waiter.send(());
        }
    }
}

/// openraft's handle to the [`Replica`].
#[derive(Clone)]
pub struct StateMachine {
    replica: Arc<Replica>,
}

impl StateMachine {
    /// A handle.
    pub fn new(replica: Arc<Replica>) -> Self {
        Self { replica }
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self.replica.applied.lock().clone();
        Ok((applied.id, applied.membership))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let commands = match &entry.payload {
                EntryPayload::Normal(batch) => batch.commands().map_err(|e| {
                    // Every replica has the same bytes; one that skipped them would differ from the rest.
                    io::Error::other(format!("log entry {} cannot be decoded: {e}", entry.log_id))
                })?,
                EntryPayload::Blank | EntryPayload::Membership(_) => Vec::new(),
            };
            let result = self.replica.apply_entry(entry.log_id, &commands);
            let membership = match &entry.payload {
                EntryPayload::Membership(m) => Some(StoredMembership::new(Some(entry.log_id), m.clone())),
                EntryPayload::Normal(_) | EntryPayload::Blank => None,
            };
            self.replica.set_applied(Some(entry.log_id), membership);
            self.replica.announce(entry.log_id.index());
            if let Some(responder) = responder {
                responder.send(result);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        // Applying waits for this, and for nothing that follows.
        let (walk, meta) = self.replica.begin_snapshot().await;
        Builder { replica: self.replica.clone(), meta, walk: Some(walk) }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let folder = self.replica.snapshots.clone();
        let machine = blocking::run(move || {
            let machine = snapshot.load()?.map_err(io::Error::other)?;
            folder.keep(&snapshot)?;
            Ok::<_, io::Error>(machine)
        })
        .await?;
        let index = meta.last_log_id.map_or(0, |id| id.index());
        let replaced = {
            let mut guard = self.replica.machine.write();
            let replaced = std::mem::replace(&mut *guard, machine);
            self.replica.publish_auth(&guard);
            self.replica.set_applied(meta.last_log_id, Some(meta.last_membership.clone()));
            for observer in &self.replica.observers {
                observer.restored(&guard);
            }
            replaced
        };
        self.replica.announce(index);
        // Taking a large one apart takes its time.
        blocking::run(move || drop(replaced)).await;
        tracing::info!(index, "the state was replaced by a snapshot from the leader");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let folder = self.replica.snapshots.clone();
        let (found, bad) = blocking::run(move || folder.newest()).await?;
        if let (None, Some(bad)) = (&found, bad.first()) {
            return Err(io::Error::other(bad.to_string()));
        }
        Ok(found.map(|snapshot| Snapshot { meta: snapshot.meta().clone(), snapshot }))
    }
}

/// Bytes of an image written in one go.
const PIECE_BYTES: usize = 1024 * 1024;

/// Longest pause between two pieces.
const PIECE_PAUSE_MAX: Duration = Duration::from_millis(50);

/// How long a snapshot that found no space is not tried again.
const SPACE_PAUSE: Duration = Duration::from_secs(3);

/// Between two looks at a state that is just being changed.
const MOMENT_PAUSE: Duration = Duration::from_millis(1);

/// Writes the state of the moment at which it was made to disk, while commands go on.
pub struct Builder {
    replica: Arc<Replica>,
    meta: SnapshotMeta,
    /// Taken by the first build.
    walk: Option<ImageWalk>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    /// A disk that is full ends the attempt and not the process (P01): the space is given back, and the state as it
    /// is after a pause may be smaller.
    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let mut told = false;
        loop {
            match self.build_once().await {
                Err(error) if out_of_space(&error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(%error, "no space for a snapshot: the log grows until there is");
                    }
                }
                done => return done,
            }
            sleep(SPACE_PAUSE).await;
            if self.replica.stopping.load(Relaxed) {
                return Err(stopped());
            }
            let (walk, meta) = self.replica.begin_snapshot().await;
            (self.walk, self.meta) = (Some(walk), meta);
        }
    }
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "this server is stopping")
}

impl Builder {
    async fn build_once(&mut self) -> Result<Snapshot, io::Error> {
        let walk = self.walk.take().ok_or_else(|| io::Error::other("a builder builds once"))?;
        let (folder, meta) = (self.replica.snapshots.clone(), self.meta.clone());
        let writer = blocking::run(move || folder.create(&meta)).await?;
        let mut work = Some(Box::new((walk, writer)));
        while let Some(part) = work.take() {
            if self.replica.stopping.load(Relaxed) {
                return Err(stopped());
            }
            let replica = self.replica.clone();
            let begun = Instant::now();
            match blocking::run(move || replica.write_piece(part)).await? {
                Piece::More(part) => work = Some(part),
                Piece::Last(snapshot) => {
                    tracing::info!(file = %snapshot.path().display(), bytes = snapshot.bytes(), "wrote a snapshot");
                    return Ok(Snapshot { meta: snapshot.meta().clone(), snapshot });
                }
                Piece::Lost => break,
            }
            // Half of one processor at most, and the disk is the log's for as long.
            sleep(begun.elapsed().min(PIECE_PAUSE_MAX)).await;
        }
        // A snapshot from the leader, with more in it, has just taken the state's place.
        let folder = self.replica.snapshots.clone();
        let (found, _) = blocking::run(move || folder.newest()).await?;
        let snapshot = found.ok_or_else(|| io::Error::other("the leader's snapshot is not there"))?;
        Ok(Snapshot { meta: snapshot.meta().clone(), snapshot })
    }
}

enum Piece {
    More(Box<(ImageWalk, SnapshotWriter)>),
    Last(SnapshotFile),
    /// The state was replaced.
    Lost,
}

impl Replica {
    /// Begins an image, together with what it covers.
    async fn begin_snapshot(&self) -> (ImageWalk, SnapshotMeta) {
        loop {
            {
                let mut machine = self.machine.write();
                let applied = self.applied.lock().clone();
                // What was applied last is noted a moment after it was applied.
                if applied.id.as_ref().map_or(0, |id| id.index()) == machine.applied_index() {
                    let meta = SnapshotMeta { last_log_id: applied.id, last_membership: applied.membership };
                    return (machine.begin_image(), meta);
                }
            }
            sleep(MOMENT_PAUSE).await;
        }
    }

    /// Begins an image of this moment; with its revision and applied index.
    pub(super) fn begin_image(&self) -> (ImageWalk, Revision, u64) {
        let mut machine = self.machine.write();
        (machine.begin_image(), machine.revision(), machine.applied_index())
    }

    fn write_piece(&self, mut part: Box<(ImageWalk, SnapshotWriter)>) -> io::Result<Piece> {
        let (walk, writer) = &mut *part;
        let mut written = 0;
        let mut bytes = Vec::new();
        while written < PIECE_BYTES {
            // The lock is let go after each step, so that a command waits for one at most.
            match self.read(|machine| machine.image_step(walk, &mut bytes)) {
                Ok(true) => {}
                Ok(false) => return part.1.finish().map(Piece::Last),
                Err(_) => return Ok(Piece::Lost),
            }
            writer.write(&bytes)?;
            written += bytes.len();
            bytes.clear();
        }
        Ok(Piece::More(part))
    }
}
