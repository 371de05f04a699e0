//! The running Raft part of a server: what it consists of, its tasks, start and stop.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    Config, Instant as _, ServerState, SnapshotPolicy, TokioInstant, async_runtime::watch::WatchReceiver,
    errors::Fatal, metrics::RaftMetrics,
};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_core::id::{ClusterId, NodeId};
use weft_state::{command::Command, machine::Machine, retention::HistoryLimits};

use super::{
    ApplyObserver, Outside, RaftConfig,
    batcher::{Batcher, ENTRIES_IN_FLIGHT_MAX, write_entry},
    cluster::Cluster,
    config::{End, RaftTiming},
    error::StartError,
    forward::{Refusal, Standing},
    leader::Confirmed,
    link::{Link, MESSAGES_IN_FLIGHT_MAX, Route, route},
    log_store::LogStore,
    network::{Factory, Peers},
    retired,
    rounds::Rounds,
    service::Service,
    snapshot::SnapshotFolder,
    state_machine::{Replica, StateMachine},
    types::{Peer, Raft, StoredMembership, TypeConfig, encode_command},
};
use crate::{
    blocking,
    lease_driver::LeaseClock,
    listener::{self, Door, ListenerMetrics, Speaks, Stop},
    wal::{LogDisk, Wal, WalOptions},
};

/// Entries that stay in the log although a snapshot has them, for followers that are a little behind.
const KEEP_ENTRIES: u64 = 1000;

/// How long a leader that stops waits for another server to have the whole log and take over. A healthy one
/// needs tens of milliseconds; without a successor the others elect one when they miss this server.
/// Together with twice [`STOP_MAX`] it is less than the process leaves for all of it.
const HANDOVER_MAX: Duration = Duration::from_millis(350);

/// Pause before a majority is looked for again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How long connections, and then tasks, may take to end.
const STOP_MAX: Duration = Duration::from_millis(100);

/// Everything of one server. The tasks hold it until they are stopped.
pub struct Node {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) data_dir: PathBuf,
    pub(super) advertise: SocketAddr,
    pub(super) learner: bool,
    pub(super) timing: RaftTiming,
    pub(super) raft: Raft,
    pub(super) replica: Arc<Replica>,
    pub(super) peers: Arc<Peers>,
    pub(super) cluster: Arc<Cluster>,
    /// Proposals to this server as leader.
    pub(super) batcher: Batcher,
    /// Proposals to another server that leads.
    pub(super) forwarder: Batcher,
    pub(super) clock: Arc<LeaseClock>,
    pub(super) wal: Wal,
    pub(super) read_rounds: Arc<Rounds<Result<Confirmed, Refusal>>>,
    pub(super) lease_read_rounds: Arc<Rounds<Result<Confirmed, Refusal>>>,
    pub(super) lease_rounds: Arc<Rounds<Result<Confirmed, Refusal>>>,
    pub(super) remote_read_rounds: Arc<Rounds<Result<u64, Refusal>>>,
    pub(super) leader: watch::Sender<Option<NodeId>>,
    /// Membership changes, one at a time.
    pub(super) membership_change: tokio::sync::Mutex<()>,
    /// Servers that were taken out while this one led: what they asked for before must not bring them back.
    pub(super) removed: Mutex<BTreeSet<u64>>,
    pub(super) stop: CancellationToken,
    pub(super) log: LogStore,
    /// How much history stays.
    pub(super) history: HistoryLimits,
    /// Index of the last entry after which the servers' states were found to be the same.
    pub(super) agreed: AtomicU64,
    stopping: AtomicBool,
    /// Milliseconds from `started` to the last message of a leader, and one more; 0: none yet.
    leader_heard_ms: AtomicU64,
    pub(super) started: Instant,
    tasks: TaskTracker,
    /// Of the peer port. `stop` lets them finish, `kill` ends them.
    connections: TaskTracker,
    kill: CancellationToken,
    end: End,
}

impl Node {
    /// Recovers what is on disk and starts all tasks.
    pub async fn start(
        config: RaftConfig,
        observers: Vec<Arc<dyn ApplyObserver>>,
        outside: Outside,
    ) -> Result<Arc<Self>, StartError> {
        let raft_config = raft_config(&config)?;
        retired::check_folder(&config.data_dir)?;
        let cluster = Arc::new(Cluster::load(&config.data_dir, config.id)?);
        let clock = Arc::new(LeaseClock::default());
        let (disk_clock, data_dir) = (clock.clone(), config.data_dir.clone());
        // A server learns or makes its cluster's id after its log was made.
        let had_log = cluster.id().is_some();
        let (own, disk) = (config.id, outside.log);
        let recovering = move || recover(own, &data_dir, had_log, disk, observers, disk_clock);
        let (wal, log, replica) = blocking::run(recovering).await?;

        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let message_timeout = config.timing.election_timeout_max.max(Duration::from_secs(1));
        let peers = Peers::new(
            config.id,
            cluster.clone(),
            message_timeout,
            (config.gate.clone(), outside.dialer),
            tasks.clone(),
            stop.clone(),
        );
        let peers = Arc::new(peers);
        let raft = Raft::new(
            config.id.0,
            Arc::new(raft_config),
            Factory::new(peers.clone()),
            log.clone(),
            StateMachine::new(replica.clone()),
        )
        .await
        .map_err(|e| StartError::Raft(e.to_string()))?;

        let entries_of = raft.clone();
        let (batcher, batches) = Batcher::new(ENTRIES_IN_FLIGHT_MAX, stop.clone(), move |batch| {
            write_entry(entries_of.clone(), batch)
        });
        tasks.spawn(batches);
        let leader = watch::Sender::new(None);
        let link = Link { raft: raft.clone(), peers: peers.clone(), leader: leader.subscribe() };
        let patience = config.timing.deadline;
        let (forwarder, messages) = Batcher::new(MESSAGES_IN_FLIGHT_MAX, stop.clone(), move |batch| {
            link.clone().forward(batch, patience)
        });
        tasks.spawn(messages);
        let node = Arc::new(Node {
            id: config.id,
            name: config.name,
            data_dir: config.data_dir,
            advertise: config.peer_advertise,
            learner: config.learner,
            timing: config.timing,
            raft,
            replica,
            peers,
            cluster,
            batcher,
            forwarder,
            clock,
            wal,
            read_rounds: Rounds::new(tasks.clone()),
            lease_read_rounds: Rounds::new(tasks.clone()),
            lease_rounds: Rounds::new(tasks.clone()),
            remote_read_rounds: Rounds::new(tasks.clone()),
            leader,
            membership_change: tokio::sync::Mutex::new(()),
            removed: Mutex::default(),
            stop,
            log,
            history: config.history,
            agreed: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            leader_heard_ms: AtomicU64::new(0),
            started: Instant::now(),
            tasks,
            connections: TaskTracker::new(),
            kill: CancellationToken::new(),
            end: outside.end.unwrap_or_else(|| Arc::new(|| std::process::exit(1))),
        });
        let router = tonic::service::Routes::new(Service::server(node.clone())).prepare().into_axum_router();
        let stop = Stop { drain: node.stop.clone(), kill: node.kill.clone() };
        let metrics = ListenerMetrics::default();
        let door = Door::Gate(config.gate);
        listener::serve(config.peer_listener, router, (Speaks::Peer, door), metrics, stop, &node.connections);
        node.spawn(Node::follow_metrics);
        node.spawn(Node::keep_log_short);
        node.spawn(Node::keep_history_short);
        node.spawn(Node::give_back_memory);
        node.spawn(Node::keep_lease_time);
        node.spawn(Node::compare_states);
        node.spawn(Node::notice_removal);
        node.spawn(Node::finish_changes);
        if let Err(error) = node.form_group(config.bootstrap).await {
            node.shutdown().await;
            return Err(error);
        }
        Ok(node)
    }

    fn spawn<F>(self: &Arc<Self>, task: impl FnOnce(Arc<Node>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (stop, task) = (self.stop.clone(), task(self.clone()));
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Forms a group of one if there is nothing yet and that was asked for; stands for election at once if
    /// this server is the only voter.
    async fn form_group(&self, bootstrap: bool) -> Result<(), StartError> {
        let fatal = |e: &dyn std::fmt::Display| StartError::Raft(e.to_string());
        if bootstrap && self.learner && self.log.is_pristine() {
            let reason = "the first server of a group votes: --learner needs --join";
            return Err(StartError::Setting(reason.to_owned()));
        }
        if bootstrap && self.log.is_pristine() {
            if self.cluster.id().is_none() {
                let id = ClusterId(fastrand::u64(1..));
                self.cluster.adopt(id).map_err(|source| StartError::Io { path: "cluster".into(), source })?;
            }
            let own = Peer { name: self.name.clone(), addr: self.advertise };
            let members = std::collections::BTreeMap::from([(self.id.0, own)]);
            return self.raft.initialize(members).await.map_err(|e| fatal(&e));
        }
        let voters: Vec<u64> = self.membership().voter_ids().collect();
        if voters == [self.id.0] {
            // Nobody else can lead, so waiting for an election timeout would only be a pause.
            self.raft.trigger().elect(false).await.map_err(|e| fatal(&e))?;
        }
        Ok(())
    }

    /// Follows openraft's state: who leads, whether the lease clock runs here, whether the core has failed.
    async fn follow_metrics(self: Arc<Self>) {
        let mut metrics = self.raft.metrics();
        let mut promoted: Option<u64> = None;
        let mut acked: Option<TokioInstant> = None;
        loop {
            let now = metrics.borrow_watched().clone();
            if let Err(fatal @ (Fatal::StorageError(_) | Fatal::Panicked)) = &now.running_state {
                tracing::error!(
                    %fatal,
                    "the raft core has failed; what is on disk is unknown now, so this process ends at once"
                );
                std::process::abort();
            }
            let leader = now.current_leader.map(NodeId);
            self.leader.send_if_modified(|known| {
                let changed = *known != leader;
                if changed {
                    tracing::info!(
                        term = now.current_term,
                        leader = leader.map(|l| l.to_string()).unwrap_or_else(|| "none".to_owned()),
                        "the leader has changed"
                    );
                    *known = leader;
                }
                changed
            });
            if now.state == ServerState::Leader {
                let acked_now = now.last_quorum_acked.map(|at| *at);
                // After a time without a majority nobody could renew: everyone gets another full time, or what was
                // noted of it.
                let was_lost = acked
                    .zip(acked_now)
                    .is_some_and(|(before, after)| after > before + self.timing.election_timeout_max);
                if promoted != Some(now.current_term) || was_lost {
                    let extension = self.timing.election_timeout_max;
                    // Only with all that earlier leaders committed: a renewal may have taken back what was noted
                    // of its lease (S01). The first entry of the term comes after that.
                    let promote = |machine: &Machine| {
                        let is_current = machine.applied_term() == now.current_term;
                        if is_current {
                            self.clock.promote(now.current_term, machine, extension);
                        }
                        is_current
                    };
                    if self.replica.read(promote) {
                        promoted = Some(now.current_term);
                    }
                }
                acked = acked_now;
            } else if promoted.take().is_some() {
                self.clock.demote();
                acked = None;
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    async fn keep_lease_time(self: Arc<Self>) {
        let propose = |command| {
            let node = self.clone();
            async move { node.propose_expiry(encode_command(&command)).await }
        };
        let note = |command: Command| {
            let node = self.clone();
            async move { node.propose_checkpoint(&command).await }
        };
        self.clock.run(propose, note).await
    }

    /// Proposes what is left of leases. Whatever becomes of it, it does not enter the log later than this ends:
    /// what takes it back comes after it.
    async fn propose_checkpoint(&self, command: &Command) {
        if self.wal.stats().is_full() && command.needs_space() {
            return;
        }
        if let Err(error) = self.batcher.propose(encode_command(command), self.timing.deadline).await {
            tracing::debug!(
                ?error,
                "what is left of leases was not noted: a new leader gives them more time"
            );
        }
    }

    /// Proposes that leases have run out; answers whether they did. Only the leader may, so this is never
    /// forwarded.
    async fn propose_expiry(self: &Arc<Self>, command: Bytes) -> bool {
        // A majority has to confirm this leader after the time ran out: only then could everyone renew until
        // the end (S01). Proposed without asking, the entry would wait in the log and take effect at the
        // moment when renewing becomes possible again.
        match self.read_index_here(self.timing.deadline).await {
            Ok(_) => {}
            Err(Refusal::NoQuorum(_)) => {
                self.start_lease_time_anew().await;
                return false;
            }
            Err(_) => return false,
        }
        match self.batcher.propose(command, self.timing.deadline).await {
            Ok(committed) => committed.response.is_ok(),
            // It is in the log and may yet take effect. Until that is known its leases must not be renewed
            // (S01): whatever is committed later in this term comes after it.
            Err(Refusal::Unknown(_)) => {
                let noop = encode_command(&Command::Noop);
                while let Err(Refusal::Unknown(_) | Refusal::NoQuorum(_) | Refusal::Overloaded(_)) =
                    self.batcher.propose(noop.clone(), self.timing.deadline).await
                {
                    sleep(RETRY_PAUSE).await;
                }
                true
            }
            Err(Refusal::NoQuorum(_)) => {
                self.start_lease_time_anew().await;
                false
            }
            Err(_) => false,
        }
    }

    /// No majority is there, so nobody can renew: once it is back, everyone gets another full time before
    /// anything runs out (S01).
    async fn start_lease_time_anew(&self) {
        let lost = self.timing.election_timeout_max;
        while self.leads() && self.quorum_ack_age().is_none_or(|age| age > lost) {
            sleep(RETRY_PAUSE).await;
        }
        self.replica.read(|machine| self.clock.start_anew(machine, lost));
    }

    /// Hands leadership over, stops all tasks, closes the log. Safe to call twice.
    pub async fn shutdown(&self) {
        if self.stopping.swap(true, Relaxed) {
            return;
        }
        if timeout(HANDOVER_MAX, self.hand_over()).await.is_err() {
            tracing::info!("no other server has taken over leadership in time");
        }
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "the raft core did not end well");
        }
        self.replica.stop_writing();
        self.stop.cancel();
        self.connections.close();
        // A leader's stream of entries does not end by itself.
        let _ = timeout(STOP_MAX, self.connections.wait()).await;
        self.kill.cancel();
        self.tasks.close();
        if timeout(STOP_MAX, self.tasks.wait()).await.is_err() {
            tracing::warn!("some raft tasks have not ended in time");
        }
        self.wal.close().await;
    }

    /// Ends the process, or what stands for it: nothing that this server holds can be relied on.
    pub(super) async fn end_now(&self) {
        (self.end)();
        self.crash().await;
    }

    /// Ends as a killed process does, as far as that goes within one: nobody is told.
    pub(super) async fn crash(&self) {
        self.stopping.store(true, Relaxed);
        self.kill.cancel();
        let _ = self.raft.shutdown().await;
        self.replica.stop_writing();
        self.wal.close().await;
        // Last: it ends the task that this may run in.
        self.stop.cancel();
    }

    // --- what others ask of it

    pub(super) fn metrics(&self) -> RaftMetrics<TypeConfig> {
        self.raft.metrics().borrow_watched().clone()
    }

    pub(super) fn membership(&self) -> Arc<StoredMembership> {
        self.raft.metrics().borrow_watched().membership_config.clone()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    pub(super) fn leads(&self) -> bool {
        self.raft.metrics().borrow_watched().state == ServerState::Leader
    }

    /// As leader: up to where a peer's log is known to match, and the last index of this one.
    pub(super) fn replication_of(&self, id: u64) -> (Option<u64>, u64) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let matched = metrics.replication.as_ref().and_then(|r| r.get(&id).copied().flatten());
        (matched.map(|id| id.index()), metrics.last_log_index.unwrap_or(0))
    }

    pub(super) fn link(&self) -> Link {
        Link { raft: self.raft.clone(), peers: self.peers.clone(), leader: self.leader.subscribe() }
    }

    pub(super) fn route(&self) -> Route {
        route(&self.raft, &self.peers)
    }

    pub(super) fn heard_from_leader(&self) {
        self.leader_heard_ms.store(self.started.elapsed().as_millis() as u64 + 1, Relaxed);
    }

    /// Whether there is a leader at this time, not only one that is remembered.
    pub(super) fn has_leader(&self) -> bool {
        match self.route() {
            Route::Nowhere => false,
            Route::Here => self.quorum_ack_age().is_some_and(|age| age < self.timing.election_timeout_max),
            Route::There { .. } => {
                let heard = self.leader_heard_ms.load(Relaxed);
                let silence = self.started.elapsed().saturating_sub(Duration::from_millis(heard));
                heard > 0 && silence < 2 * self.timing.election_timeout_max
            }
        }
    }

    /// How far its log reaches.
    pub(super) fn standing(&self) -> Standing {
        let last = self.log.last();
        Standing {
            term: last.map_or(0, |id| id.committed_leader_id().term),
            index: last.map_or(0, |id| id.index()),
            has_leader: self.has_leader(),
        }
    }

    /// As leader: how long ago a majority last confirmed it.
    pub(super) fn quorum_ack_age(&self) -> Option<Duration> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state != ServerState::Leader {
            return None;
        }
        if metrics.membership_config.voter_ids().all(|id| id == self.id.0) {
            return Some(Duration::ZERO);
        }
        metrics.last_quorum_acked.map(|at| at.elapsed())
    }
}

/// Reads the log and the newest snapshot. Blocks.
fn recover(
    own: NodeId,
    data_dir: &std::path::Path,
    had_log: bool,
    disk: Option<LogDisk>,
    observers: Vec<Arc<dyn ApplyObserver>>,
    clock: Arc<LeaseClock>,
) -> Result<(Wal, LogStore, Arc<Replica>), StartError> {
    let options = WalOptions { must_exist: had_log, ..WalOptions::default() };
    let (wal, recovered) = match disk {
        None => Wal::open(&data_dir.join("wal"), options)?,
        Some(disk) => Wal::open_given(disk, options)?,
    };
    let path = data_dir.join("snapshots");
    let folder = SnapshotFolder::open(path.clone()).map_err(|source| StartError::Io { path, source })?;
    let found = folder.load_for_log(recovered.purged.map(|p| p.index)).map_err(|error| match error {
        StartError::Snapshot { path, reason } => StartError::Snapshot {
            path,
            reason: format!(
                "{reason}, and the log no longer has what it covered. If the other servers of the group are well, \
                 move this data folder away and start with an empty one and --join; else restore it from a copy"
            ),
        },
        other => other,
    })?;
    let log = LogStore::new(wal.clone(), recovered).map_err(|e| StartError::Raft(e.to_string()))?;
    let replica = Replica::new(own, folder, found, observers, clock);
    Ok((wal, log, Arc::new(replica)))
}

/// openraft's settings from ours.
///
/// A follower of openraft stands for election a *lease* (its largest election timeout) plus a random
/// election timeout after it last heard of the leader. Ours are from the last word to the election, so
/// openraft gets the half of our maximum for each.
fn raft_config(config: &RaftConfig) -> Result<Config, StartError> {
    let timing = &config.timing;
    timing.check().map_err(StartError::Setting)?;
    if config.snapshot_every == 0 {
        return Err(StartError::Setting("snapshot_every is 0, it must be at least 1".to_owned()));
    }
    let millis = |d: Duration| d.as_millis() as u64;
    let lease = millis(timing.leader_lease());
    let heartbeat = millis(timing.heartbeat_interval);
    let election_min =
        millis(timing.election_timeout_min).saturating_sub(lease).max(2 * heartbeat).min(lease - 1);
    Config {
        cluster_name: "weft".to_owned(),
        heartbeat_interval: heartbeat,
        election_timeout_min: election_min,
        election_timeout_max: lease,
        max_payload_entries: 1024,
        replication_lag_threshold: config.snapshot_every.saturating_mul(2),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(config.snapshot_every),
        max_in_snapshot_log_to_keep: KEEP_ENTRIES.min(config.snapshot_every),
        install_snapshot_timeout: 60_000,
        // Followers get entries while this server's own disk is still writing them.
        broadcast_submitted_on_append: Some(true),
        enable_pre_vote: Some(true),
        quorum_loss_probe_interval: Some(2 * lease),
        // A restarted leader stands for election again: its log may end in entries that it does not know
        // to be committed, and what it answered from them must not be forgotten.
        enable_leader_restore: Some(false),
        backoff: "50ms 100ms 200ms ...1s".to_owned(),
        ..Config::default()
    }
    .validate()
    .map_err(|e| StartError::Setting(e.to_string()))
}
