//! Changes of the group that somebody asks for: removing a server, making a learner a voter, handing over leadership,
//! also by a leader that stops.
//! (How a server gets in is in [`super::join`].)
//!
//! The leader carries them out, one at a time, through a joint configuration (Raft thesis §4.3). One that would leave
//! the group without a majority that the leader has heard of lately is refused: it would be the last change for a
//! while. Who is taken out learns it from its own log, or by asking the leader when it has none, marks its data and ends
//! ([`super::retired`]); until then it disturbs nobody, since nobody votes for it while there is a leader (pre-vote, R02).

use std::{
    collections::{BTreeSet, HashSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use openraft::{
    ChangeMembers, Instant as _, ServerState,
    errors::{ChangeMembershipError, ClientWriteError, RaftError},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};
use weft_core::id::NodeId;

use super::{
    driver::Node,
    forward::{Answer, Question, Refusal},
    join::CATCH_UP_LAG,
    retired::Retired,
    types::{Peer, TypeConfig},
};

/// Between two looks at what the leader has heard.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How long a leader that goes waits for another server to have the whole log.
const SUCCESSOR_MAX: Duration = Duration::from_millis(200);

/// Between two looks whether this server is still a member.
const MEMBER_LOOK_EVERY: Duration = Duration::from_secs(1);

/// A server without a leader for so many looks asks the others whether it was removed.
const LEADERLESS_LOOKS: u32 = 3;

/// How long one server may take to say so.
const MEMBER_ANSWER_MAX: Duration = Duration::from_secs(1);

/// What is to be changed. Servers are named by id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupChange {
    /// Takes a server out.
    Remove {
        /// Which.
        id: u64,
        /// Also if too few of the voters that are left were heard of.
        force: bool,
    },
    /// Makes a learner a voter, once it has the log.
    Promote {
        /// Which.
        id: u64,
    },
    /// Hands leadership to a voter.
    Transfer {
        /// Which.
        to: u64,
    },
}

/// Why the group was not changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum ChangeRefused {
    /// It is not in the group, or not any more.
    #[error("no server {} is in the group: its servers are {known}", NodeId(*.id))]
    Unknown {
        /// As given.
        id: u64,
        /// Names and ids.
        known: String,
    },
    /// A group needs one.
    #[error("{} is the last voter: without it there is no group", NodeId(*.0))]
    LastVoter(u64),
    /// Too few voters would be left that live.
    #[error(
        "of the {voters} voters that are left, a majority of {} is needed and only {heard} answered within {within_ms} ms; \
         not heard of: {missing}. Bring them back first, or insist (--force)",
        voters / 2 + 1
    )]
    QuorumAtRisk {
        /// Voters after the change.
        voters: usize,
        /// Of them, how many answered.
        heard: usize,
        /// Names and ids of the others.
        missing: String,
        /// Within this time.
        within_ms: u64,
    },
    /// It would be a voter that others have to wait for, or a leader that cannot lead.
    #[error("server {} is not caught up: it has {matched} of {last} entries{}", NodeId(*.id), if *.heard { "" } else { " and does not answer" })]
    Behind {
        /// Which.
        id: u64,
        /// Entries it is known to have.
        matched: u64,
        /// Entries there are.
        last: u64,
        /// Whether it answered lately.
        heard: bool,
    },
    /// A learner cannot lead.
    #[error("server {} does not vote: promote it first", NodeId(*.0))]
    NotVoter(u64),
    /// The leader cannot go while nobody can take over.
    #[error("the leader is to be removed, and no other server has the whole log yet; ask again")]
    NoSuccessor,
    /// It was asked for and has not come about.
    #[error("{0}")]
    Failed(String),
}

impl Node {
    /// Carries out a change as leader.
    pub(super) async fn change_group(
        self: &Arc<Self>,
        change: GroupChange,
    ) -> Result<Result<(), ChangeRefused>, Refusal> {
        if !self.leads() {
            return Err(Refusal::NotLeader);
        }
        match change {
            GroupChange::Remove { id, .. } if id == self.id.0 => self.step_aside().await,
            GroupChange::Remove { id, force } => Ok(self.remove(id, force).await),
            GroupChange::Promote { id } => Ok(self.promote(id).await),
            GroupChange::Transfer { to } => Ok(self.transfer(to).await),
        }
    }

    /// The leader is to be removed: somebody else has to do it.
    async fn step_aside(self: &Arc<Self>) -> Result<Result<(), ChangeRefused>, Refusal> {
        if self.membership().voter_ids().all(|id| id == self.id.0) {
            return Ok(Err(ChangeRefused::LastVoter(self.id.0)));
        }
        match timeout(self.timing.election_timeout_max, self.hand_over()).await {
            Ok(()) if !self.leads() => Err(Refusal::NotLeader),
            _ => Ok(Err(ChangeRefused::NoSuccessor)),
        }
    }

    async fn remove(self: &Arc<Self>, id: u64, force: bool) -> Result<(), ChangeRefused> {
        let _one_at_a_time = self.membership_change.lock().await;
        let membership = self.membership();
        let Some(peer) = membership.get_node(&id).cloned() else { return Err(self.unknown_server(id)) };
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let votes = voters.contains(&id);
        if votes {
            let left: BTreeSet<u64> = voters.into_iter().filter(|voter| *voter != id).collect();
            if left.is_empty() {
                return Err(ChangeRefused::LastVoter(id));
            }
            if !force {
                self.majority_is_heard(&left).await?;
            }
        }
        self.removed.lock().insert(id);
        let ids = BTreeSet::from([id]);
        let change = if votes { ChangeMembers::RemoveVoters(ids) } else { ChangeMembers::RemoveNodes(ids) };
        self.change(change, false).await.map_err(ChangeRefused::Failed)?;
        tracing::info!(server = %NodeId(id), name = peer.name, "a server was removed from the group");
        Ok(())
    }

    /// Waits for at most an election timeout: a leader that was only just elected has heard nobody yet.
    async fn majority_is_heard(&self, voters: &BTreeSet<u64>) -> Result<(), ChangeRefused> {
        let deadline = Instant::now() + self.timing.election_timeout_max;
        loop {
            let heard = self.heard();
            let missing: Vec<u64> = voters.iter().copied().filter(|id| !heard.contains(id)).collect();
            if missing.len() * 2 < voters.len() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(ChangeRefused::QuorumAtRisk {
                    voters: voters.len(),
                    heard: voters.len() - missing.len(),
                    missing: self.names(missing),
                    within_ms: self.timing.election_timeout_max.as_millis() as u64,
                });
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn promote(self: &Arc<Self>, id: u64) -> Result<(), ChangeRefused> {
        if self.membership().get_node(&id).is_none() {
            return Err(self.unknown_server(id));
        }
        self.is_caught_up(id, CATCH_UP_LAG).await?;
        let _one_at_a_time = self.membership_change.lock().await;
        if self.membership().voter_ids().any(|voter| voter == id) {
            return Ok(());
        }
        let change = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
        self.change(change, true).await.map_err(ChangeRefused::Failed)?;
        tracing::info!(server = %NodeId(id), "a server votes now");
        Ok(())
    }

    async fn transfer(self: &Arc<Self>, to: u64) -> Result<(), ChangeRefused> {
        if to == self.id.0 {
            return Ok(());
        }
        let membership = self.membership();
        if membership.get_node(&to).is_none() {
            return Err(self.unknown_server(to));
        }
        if !membership.voter_ids().any(|voter| voter == to) {
            return Err(ChangeRefused::NotVoter(to));
        }
        self.is_caught_up(to, 0).await?;
        let mut leader = self.leader.subscribe();
        if let Err(fatal) = self.raft.trigger().transfer_leader(to).await {
            return Err(ChangeRefused::Failed(fatal.to_string()));
        }
        let own = Some(self.id);
        let changed = leader.wait_for(|leader| leader.is_some() && *leader != own);
        match timeout(2 * self.timing.election_timeout_max, changed).await {
            Ok(Ok(leader)) if *leader == Some(NodeId(to)) => Ok(()),
            _ => {
                let reason = format!("server {} has not taken over; ask again", NodeId(to));
                Err(ChangeRefused::Failed(reason))
            }
        }
    }

    /// Waits for at most an election timeout until a server answers and lacks no more than `lag` entries.
    async fn is_caught_up(&self, id: u64, lag: u64) -> Result<(), ChangeRefused> {
        let deadline = Instant::now() + self.timing.election_timeout_max;
        loop {
            let (matched, last) = self.replication_of(id);
            let (matched, heard) = (matched.unwrap_or(0), self.heard().contains(&id));
            if heard && matched + lag >= last {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(ChangeRefused::Behind { id, matched, last, heard });
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// If this server leads, lets the follower that has everything take over.
    pub(super) async fn hand_over(&self) {
        let Some(target) = self.successor().await else { return };
        tracing::info!(to = %NodeId(target), "hand leadership over before stopping");
        let mut leader = self.leader.subscribe();
        if self.raft.trigger().transfer_leader(target).await.is_err() {
            return;
        }
        let own = Some(self.id);
        let _ = leader.wait_for(|l| l.is_some() && *l != own).await;
    }

    /// The voter that leads next: one that was heard of lately and has the whole log. If none gets there
    /// in time there is none: it would refuse, and the group would be without a leader for longer than if
    /// it had not been asked.
    async fn successor(&self) -> Option<u64> {
        let deadline = Instant::now() + SUCCESSOR_MAX;
        loop {
            let metrics = self.metrics();
            let (Some(replication), ServerState::Leader) = (&metrics.replication, metrics.state) else {
                return None;
            };
            let heard = self.heard();
            let mut others = metrics
                .membership_config
                .voter_ids()
                .filter(|id| *id != self.id.0 && heard.contains(id))
                .peekable();
            others.peek()?;
            let complete = |id: &u64| {
                let matched = replication.get(id).copied().flatten().map(|matched| matched.index());
                matched >= metrics.last_log_index
            };
            if let Some(id) = others.find(complete) {
                return Some(id);
            }
            if Instant::now() > deadline {
                return None;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// As leader: who answered within the last election timeout, and this server.
    fn heard(&self) -> HashSet<u64> {
        let metrics = self.metrics();
        let answered = metrics.heartbeat.iter().flatten();
        let lately = answered.filter_map(|(id, at)| {
            let at = (*at)?;
            (at.elapsed() < self.timing.election_timeout_max).then_some(*id)
        });
        lately.chain([self.id.0]).collect()
    }

    fn unknown_server(&self, id: u64) -> ChangeRefused {
        let known = self.membership().nodes().map(|(id, _)| *id).collect();
        ChangeRefused::Unknown { id, known: self.names(known) }
    }

    fn names(&self, ids: Vec<u64>) -> String {
        let membership = self.membership();
        let name = |id: &u64| Named(*id, membership.get_node(id).map_or("?", |peer| &peer.name)).to_string();
        ids.iter().map(name).collect::<Vec<_>>().join(", ")
    }

    /// Finishes a change that was left in its joint configuration, because the leader that made it failed between its
    /// two entries, or gave up waiting. Until then both majorities are needed, the former one's lost servers included.
    pub(super) async fn finish_changes(self: Arc<Self>) {
        loop {
            sleep(MEMBER_LOOK_EVERY).await;
            if self.leads() && self.is_half_changed() {
                let _one_at_a_time = self.membership_change.lock().await;
                if let Err(reason) = self.finish_change().await {
                    tracing::warn!(reason, "a change of the group is half done");
                }
            }
        }
    }

    fn is_half_changed(&self) -> bool {
        self.membership().membership().get_joint_config().len() > 1
    }

    /// Leaves a joint configuration, if this is one, for the second of the two. Voters that are not in that one were to
    /// be removed: those that join were learners before.
    async fn finish_change(&self) -> Result<(), String> {
        if self.is_half_changed() {
            self.change_from_here(ChangeMembers::AddVoterIds(BTreeSet::new()), false).await?;
            tracing::info!("finished a change of the group that was left half done");
        }
        Ok(())
    }

    /// Changes the members through a joint configuration; `retain`: voters that are taken out stay as learners. A change
    /// that was left half done is finished before: this one would finish it in its own way, and keep whom that one was
    /// to remove.
    pub(super) async fn change(&self, change: ChangeMembers<u64, Peer>, retain: bool) -> Result<(), String> {
        self.finish_change().await?;
        self.change_from_here(change, retain).await
    }

    async fn change_from_here(&self, change: ChangeMembers<u64, Peer>, retain: bool) -> Result<(), String> {
        let result = timeout(self.timing.deadline, self.raft.change_membership(change, retain)).await;
        match result {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::<TypeConfig>::ChangeMembershipError(
                ChangeMembershipError::InProgress(_),
            )))) => Err("another change of the group is in progress; ask again".to_owned()),
            Ok(Err(error)) => Err(format!("the group cannot be changed now: {error}")),
            Err(_) => Err("the change of the group is not committed by a majority yet; ask again".to_owned()),
        }
    }

    // --- being removed

    /// Whether a server is in the group, as committed. Only a leader that a majority confirms may say no.
    pub(super) async fn has_member(self: &Arc<Self>, id: u64, patience: Duration) -> Result<bool, Refusal> {
        let confirmed = self.read_index_here(patience).await?;
        let applied = timeout(patience, self.replica.wait_applied(confirmed.index)).await;
        applied.map_err(|_| Refusal::NoQuorum("the leader has not applied its own log yet".to_owned()))?;
        Ok(self.replica.membership().get_node(&id).is_some())
    }

    /// Notices that this server was removed: by its own log, or, since that may never arrive here, by asking.
    pub(super) async fn notice_removal(self: Arc<Self>) {
        let mut leaderless = 0;
        // At once: a crash before the mark is written finds the removal in the log again, but only as long as the log
        // and no snapshot begins before it.
        while timeout(MEMBER_LOOK_EVERY, self.replica.wait_removed()).await.is_err() {
            let membership = self.replica.membership();
            let is_member = membership.get_node(&self.id.0).is_some();
            leaderless = if self.has_leader() { 0 } else { leaderless + 1 };
            if !is_member || leaderless < LEADERLESS_LOOKS {
                continue;
            }
            leaderless = 0;
            for (id, peer) in membership.nodes().filter(|(id, _)| **id != self.id.0) {
                let (id, addr) = (*id, self.peers.address(*id, peer.addr));
                let question = Question::IsMember(self.id.0);
                if let Answer::IsMember(false) =
                    self.link().ask_any(id, addr, question, MEMBER_ANSWER_MAX).await
                {
                    return self.retire(Retired::Removed).await;
                }
            }
        }
        self.retire(Retired::Removed).await;
    }
}

/// A server for people.
struct Named<'a>(u64, &'a str);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.1, NodeId(self.0))
    }
}
