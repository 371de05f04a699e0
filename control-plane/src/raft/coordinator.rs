//! The way into the replicated state machine, from any server.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures::future::join_all;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use weft_core::id::{ClusterId, NodeId};
use weft_state::{
    auth::AuthState,
    command::{Command, LeaseId},
    defect::{Defect, planted},
    machine::Machine,
};

use super::{
    ApplyObserver, DiskState, GroupChange, GroupChangeError, JoinError, LeaseError, Members, Outside,
    PeerRole, PeerStatus, ProposeError, Proposed, RaftConfig, RaftStatus, StartError,
    driver::Node,
    forward::{Answer, Question, Refusal},
    image::StateImage,
    link::Route,
    types::{COMMAND_BYTES_MAX, encode_command},
};
use crate::wal::WalStats;

/// Pause between two attempts, unless the leader changes before. Short against an election.
const RETRY_PAUSE: Duration = Duration::from_millis(25);

/// The way into the replicated state machine. Cheap to clone. Works on any server: what only the leader
/// can do is forwarded to it.
#[derive(Clone)]
pub struct Coordinator {
    node: Arc<Node>,
}

impl Coordinator {
    /// Recover the state from disk and start serving peers.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(
        config: RaftConfig,
        observers: Vec<Arc<dyn ApplyObserver>>,
    ) -> Result<Coordinator, StartError> {
        Self::start_on(config, observers, Outside::default()).await
    }

    /// The same on something else than this machine's disk and network.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start_on(
        config: RaftConfig,
        observers: Vec<Arc<dyn ApplyObserver>>,
        outside: Outside,
    ) -> Result<Coordinator, StartError> {
        Ok(Coordinator { node: Node::start(config, observers, outside).await? })
    }

    /// Have a command carried out by the group. Returns only after it is applied on this server, so that
    /// a read here sees it. Tried again on another leader only while it is certain that it was not
    /// proposed before, or if it has a name by which a repetition is recognised (A06).
    ///
    /// # Errors
    /// See [`ProposeError`]; within the configured deadline.
    pub async fn propose(&self, command: Command) -> Result<Proposed, ProposeError> {
        let start = Instant::now();
        let repeatable = command.is_repeatable();
        let command = encode_command(&command);
        if command.len() > COMMAND_BYTES_MAX {
            return Err(ProposeError::TooLarge { seen: command.len(), limit: COMMAND_BYTES_MAX });
        }
        let committed = match self.ask(Question::Propose(vec![command]), repeatable, start).await? {
            Answer::Proposed(mut results) if matches!(results[..], [Ok(_)]) => results.remove(0),
            _ => return Err(mismatch(start)),
        };
        let committed = committed.map_err(|_| mismatch(start))?;
        self.wait_applied(committed.index, start)
            .await
            .map_err(|()| ProposeError::NotAppliedHere { index: committed.index, waited: start.elapsed() })?;
        Ok(Proposed { revision: committed.revision, term: committed.term, response: committed.response })
    }

    /// [`Coordinator::propose`] for many at once, each for itself; the answers are in their order. They go
    /// into the log together as far as one entry takes them.
    pub async fn propose_all(&self, commands: Vec<Command>) -> Vec<Result<Proposed, ProposeError>> {
        join_all(commands.into_iter().map(|command| self.propose(command))).await
    }

    /// Wait until a read of this server's state is linearizable: it will see every write that was
    /// answered, anywhere, before this call (A01, A11). One confirmation by a majority serves everyone who
    /// waits at the time.
    ///
    /// # Errors
    /// `NoQuorum` or `NoLeader` within the deadline if no majority is there: never a stale answer.
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        let start = Instant::now();
        let Answer::ReadIndex(index) = self.ask(Question::ReadIndex, true, start).await? else {
            return Err(mismatch(start));
        };
        self.wait_applied(index, start).await.map_err(|()| ProposeError::NoQuorum {
            waited: start.elapsed(),
            reason: format!("this server has not applied entry {index} in time"),
        })
    }

    /// For a read that asks no other server: refuses on one that is new to its group. Without it a client that reads at one
    /// address would be told less than before when the machine there has lost its disk (A11).
    ///
    /// # Errors
    /// `NotTakenIn`.
    pub fn check_taken_in(&self) -> Result<(), ProposeError> {
        if self.node.replica.is_taken_in() { Ok(()) } else { Err(ProposeError::NotTakenIn) }
    }

    /// Read this server's state. Keep it short: applying waits meanwhile.
    pub fn read<R>(&self, f: impl FnOnce(&Machine) -> R) -> R {
        self.node.replica.read(f)
    }

    /// Start a lease's time to live anew; answers it in seconds. Answered by a leader that a majority
    /// confirmed within its lease, never by another server (S07). Does not enter the log.
    ///
    /// # Errors
    /// `Store(LeaseNotFound)` if it does not exist or has run out; `Unavailable` if no leader could be
    /// asked, in which case it may still run.
    pub async fn lease_renew(&self, id: LeaseId) -> Result<i64, LeaseError> {
        let start = Instant::now();
        match self.ask(Question::LeaseRenew(id), true, start).await? {
            Answer::Renewed(result) => Ok(result?),
            _ => Err(mismatch(start).into()),
        }
    }

    /// Time left of a lease by the leader's clock; none if there is no such lease.
    ///
    /// # Errors
    /// As [`Coordinator::read_barrier`].
    pub async fn lease_remaining(&self, id: LeaseId) -> Result<Option<Duration>, ProposeError> {
        let start = Instant::now();
        match self.ask(Question::LeaseRemaining(id), true, start).await? {
            Answer::Remaining(left) => Ok(left.map(Duration::from_millis)),
            _ => Err(mismatch(start)),
        }
    }

    /// Begins an image of this server's state of this moment, in constant time.
    pub fn begin_image(&self) -> StateImage {
        StateImage::begin(self.node.replica.clone())
    }

    /// Numbers of the log on disk.
    pub fn wal_stats(&self) -> &Arc<WalStats> {
        self.node.wal.stats()
    }

    /// Users, roles and whether they count, as applied on this server. Does not lock the state.
    pub fn auth(&self) -> Arc<AuthState> {
        self.node.replica.auth()
    }

    /// What this server knows of the group.
    pub fn status(&self) -> RaftStatus {
        let node = &self.node;
        let metrics = node.metrics();
        let membership = &metrics.membership_config;
        let voters: Vec<u64> = membership.voter_ids().collect();
        let peers = membership.nodes().map(|(id, peer)| {
            let voter = voters.contains(id);
            let role = match metrics.current_leader {
                Some(leader) if leader == *id => PeerRole::Leader,
                _ if voter => PeerRole::Follower,
                _ => PeerRole::Learner,
            };
            let matched = match &metrics.replication {
                Some(_) if *id == node.id.0 => metrics.last_log_index,
                Some(replication) => replication.get(id).copied().flatten().map(|m| m.index()),
                None => None,
            };
            let addr = if *id == node.id.0 { node.advertise } else { node.peers.address(*id, peer.addr) };
            PeerStatus { id: NodeId(*id), name: peer.name.clone(), addr, voter, role, matched }
        });
        let wal = node.wal.stats();
        RaftStatus {
            id: node.id,
            name: node.name.clone(),
            cluster_id: node.cluster.id(),
            leader: metrics.current_leader.map(NodeId),
            term: metrics.current_term,
            last_log: metrics.last_log_index.unwrap_or(0),
            committed: metrics.local_committed.map_or(0, |id| id.index()),
            applied: node.replica.applied_index(),
            snapshot: metrics.snapshot.map_or(0, |id| id.index()),
            wal_bytes: wal.bytes(),
            fsyncs: wal.fsyncs(),
            fsync_slowest: wal.fsync_slowest(),
            disk: match (wal.is_full(), wal.is_stalled()) {
                (_, true) => DiskState::Stalled,
                (true, false) => DiskState::Full,
                (false, false) => DiskState::Fine,
            },
            quorum_ack_age: node.quorum_ack_age(),
            agreed: node.agreed.load(Relaxed),
            joint: membership.membership().get_joint_config().len() > 1,
            peers: peers.collect(),
        }
    }

    /// Who is in the group, as committed and applied on this server.
    pub fn members(&self) -> Members {
        let membership = self.node.replica.membership();
        let voters: BTreeSet<NodeId> = membership.voter_ids().map(NodeId).collect();
        let learners = membership.nodes().map(|(id, _)| NodeId(*id)).filter(|id| !voters.contains(id));
        let joint = membership.membership().get_joint_config().len() > 1;
        let entry = membership.log_id().as_ref().map_or(0, |id| id.index());
        Members { learners: learners.collect(), voters, joint, entry }
    }

    /// Whether this server believes that it leads.
    pub fn is_leader(&self) -> bool {
        self.node.leads()
    }

    /// Whether there is a leader at this time: it was heard of, or was confirmed by a majority, within the
    /// last election timeouts.
    pub fn has_leader(&self) -> bool {
        self.node.has_leader()
    }

    /// The group, once formed or joined.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        self.node.cluster.id()
    }

    /// Bumped to the applied index after each applied batch.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.node.replica.changes()
    }

    /// Who leads, as far as this server knows.
    pub fn leader_changes(&self) -> watch::Receiver<Option<NodeId>> {
        self.node.leader.subscribe()
    }

    /// Ask any of these servers to be taken into their group, as a voter, or without a vote if this server is to be a
    /// learner. Safe to call again.
    ///
    /// # Errors
    /// See [`JoinError`]: all but `ForeignCluster` may pass by themselves.
    pub async fn join_group(&self, server_peer_addrs: Vec<SocketAddr>) -> Result<(), JoinError> {
        self.node.join(server_peer_addrs).await
    }

    /// Have the leader change the group, and wait until this server sees it.
    ///
    /// # Errors
    /// `Refused` with the reason; `Unavailable` as for [`Coordinator::propose`]. After `OutcomeUnknown` it may come
    /// about: look at [`Coordinator::status`] before asking again.
    pub async fn change_group(&self, change: GroupChange) -> Result<(), GroupChangeError> {
        let start = Instant::now();
        match self.ask(Question::Change(change), false, start).await? {
            Answer::Changed(result) => result?,
            _ => return Err(mismatch(start).into()),
        }
        let is_seen = || {
            let status = self.status();
            match change {
                GroupChange::Remove { id, .. } => status.peers.iter().all(|peer| peer.id.0 != id),
                GroupChange::Promote { id } => status.peers.iter().any(|peer| peer.id.0 == id && peer.voter),
                GroupChange::Transfer { to } => status.leader == Some(NodeId(to)),
            }
        };
        // It is done; a server that hears of it late only says so late.
        while !is_seen() && start.elapsed() < self.node.timing.deadline {
            sleep(RETRY_PAUSE).await;
        }
        Ok(())
    }

    /// Reach this peer there from now on.
    pub fn set_peer_address(&self, id: NodeId, addr: SocketAddr) {
        if id != self.node.id {
            self.node.peers.set_address(id, addr);
        }
    }

    /// Hand leadership over if this server leads, then stop all tasks and close the log.
    pub async fn shutdown(&self) {
        self.node.shutdown().await;
    }

    #[cfg(test)]
    pub(super) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    async fn wait_applied(&self, index: u64, start: Instant) -> Result<(), ()> {
        let left = self.node.timing.deadline.saturating_sub(start.elapsed());
        timeout(left, self.node.replica.wait_applied(index)).await.map_err(|_| ())
    }

    /// Has a question answered by whoever leads, until the deadline. One that is `repeatable` is asked again also
    /// when nobody knows what became of it.
    async fn ask(
        &self,
        question: Question,
        repeatable: bool,
        start: Instant,
    ) -> Result<Answer, ProposeError> {
        let node = &self.node;
        let repeatable = repeatable || planted(Defect::DuplicateApply);
        let proposes = matches!(question, Question::Propose(_));
        // What became of an earlier attempt is not known: then nothing later can be said to have done nothing.
        let mut open: Option<String> = None;
        let mut leader = node.leader.subscribe();
        let mut last = Refusal::NotLeader;
        loop {
            if node.is_stopping() {
                return Err(unknown(open, start).unwrap_or(ProposeError::Stopped));
            }
            let left = node.timing.deadline.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(unknown(open, start).unwrap_or_else(|| give_up(last, start)));
            }
            leader.mark_unchanged();
            let refusal = match node.route() {
                Route::Nowhere => Refusal::NotLeader,
                Route::Here => match refused(node.answer_here(question.clone(), left).await) {
                    Ok(answer) => return Ok(answer),
                    Err(refusal) => refusal,
                },
                Route::There { id, addr } => {
                    match refused(self.ask_there(id, addr, question.clone(), left).await) {
                        Ok(answer) => return Ok(answer),
                        Err(refusal) => refusal,
                    }
                }
            };
            match refusal {
                Refusal::Unknown(reason) if !repeatable => {
                    return Err(ProposeError::OutcomeUnknown { waited: start.elapsed(), reason });
                }
                Refusal::Overloaded(limit) => {
                    let overloaded = ProposeError::Overloaded { limit: limit as usize };
                    return Err(unknown(open, start).unwrap_or(overloaded));
                }
                Refusal::DiskFull => return Err(unknown(open, start).unwrap_or(ProposeError::DiskFull)),
                Refusal::Unknown(reason) if proposes => {
                    open = Some(reason.clone());
                    last = Refusal::Unknown(reason);
                }
                other => last = other,
            }
            tokio::select! {
                () = sleep(RETRY_PAUSE) => {}
                _ = leader.changed() => {}
                () = node.stop.cancelled() => {
                    return Err(unknown(open, start).unwrap_or(ProposeError::Stopped));
                }
            }
        }
    }

    async fn ask_there(&self, id: u64, addr: SocketAddr, question: Question, patience: Duration) -> Answer {
        let node = &self.node;
        match question {
            Question::Propose(commands) => {
                let forward = commands.into_iter().map(|command| node.forwarder.propose(command, patience));
                Answer::Proposed(join_all(forward).await)
            }
            // A round serves many, so its patience is its own: one message's time.
            Question::ReadIndex => {
                let asking = node.clone();
                let round = node.remote_read_rounds.join(move || read_index_there(asking.clone()));
                match timeout(patience, round).await {
                    Ok(Ok(index)) => Answer::ReadIndex(index),
                    Ok(Err(refusal)) => Answer::Refused(refusal),
                    Err(_) => Answer::Refused(Refusal::NoQuorum("the leader does not answer".to_owned())),
                }
            }
            other => node.link().ask(id, addr, other, patience).await,
        }
    }
}

async fn read_index_there(node: Arc<Node>) -> Result<u64, Refusal> {
    // The leader may have changed since the round was asked for.
    let Route::There { id, addr } = node.route() else { return Err(Refusal::NotLeader) };
    let patience = node.timing.election_timeout_max;
    match node.link().ask(id, addr, Question::ReadIndex, patience).await {
        Answer::ReadIndex(index) => Ok(index),
        Answer::Refused(refusal) => Err(refusal),
        _ => Err(Refusal::NotLeader),
    }
}

/// Takes a refusal out of an answer to one question.
fn refused(answer: Answer) -> Result<Answer, Refusal> {
    match answer {
        Answer::Refused(refusal) => Err(refusal),
        Answer::Proposed(results) => {
            let results: Result<Vec<_>, Refusal> = results.into_iter().collect();
            results.map(|all| Answer::Proposed(all.into_iter().map(Ok).collect()))
        }
        answer => Ok(answer),
    }
}

/// The error of a command that may be on its way, if it may.
fn unknown(open: Option<String>, start: Instant) -> Option<ProposeError> {
    open.map(|reason| ProposeError::OutcomeUnknown { waited: start.elapsed(), reason })
}

fn give_up(last: Refusal, start: Instant) -> ProposeError {
    let waited = start.elapsed();
    match last {
        Refusal::NoQuorum(reason) | Refusal::Unknown(reason) => ProposeError::NoQuorum { waited, reason },
        Refusal::NotLeader | Refusal::Stopping => ProposeError::NoLeader { waited },
        Refusal::Overloaded(limit) => ProposeError::Overloaded { limit: limit as usize },
        Refusal::DiskFull => ProposeError::DiskFull,
    }
}

/// An answer of another kind than the question: a leader of an incompatible version.
fn mismatch(start: Instant) -> ProposeError {
    let reason = "the leader's answer does not fit the question".to_owned();
    ProposeError::OutcomeUnknown { waited: start.elapsed(), reason }
}
