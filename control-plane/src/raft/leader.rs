//! What this server answers as leader, to its own clients and to the other servers' alike.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use openraft::{
    LinearizerOption,
    errors::{ForwardReason, LinearizableReadError, RaftError},
};
use tokio::time::{Instant, sleep, timeout};
use weft_state::{
    command::{Command, LeaseId},
    defect::{Defect, planted},
    error::StoreError,
};

use super::{
    config::ReadMode,
    driver::Node,
    forward::{Answer, Committed, Question, Refusal},
    types::encode_command,
};
use crate::lease_driver::ClockError;

/// Between two looks at a lease whose end is being decided: about one round of the log.
const UNDECIDED_PAUSE: Duration = Duration::from_millis(10);

/// A point at which a majority agreed that this server leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmed {
    /// Its term.
    pub term: u64,
    /// A state that has applied this index has seen everything that was answered before.
    pub index: u64,
}

impl Node {
    /// Answers a question if this server leads, or if any server can; refuses it else. Ends within `patience`.
    pub async fn answer_here(self: &Arc<Self>, question: Question, patience: Duration) -> Answer {
        if self.is_stopping() {
            return Answer::Refused(Refusal::Stopping);
        }
        let patience = patience.min(self.timing.deadline);
        let answer = match question {
            Question::Propose(commands) => Ok(Answer::Proposed(self.propose_here(commands, patience).await)),
            Question::LeaseRenew(id) => self.renew_here(id, patience).await.map(Answer::Renewed),
            Question::LeaseRemaining(id) => self
                .remaining_here(id, patience)
                .await
                .map(|left| Answer::Remaining(left.map(|d| d.as_millis() as u64))),
            Question::ReadIndex => self.reader_index_here(patience).await.map(|c| Answer::ReadIndex(c.index)),
            Question::Change(change) => self.change_group(change).await.map(Answer::Changed),
            Question::IsMember(id) => self.has_member(id, patience).await.map(Answer::IsMember),
            Question::HashAt(index) => Ok(Answer::HashAt(self.hash_at(index, patience).await)),
            Question::Standing => Ok(Answer::Standing(self.standing())),
            Question::Differs { index, right } => Ok(self.told_to_differ(index, right).await),
        };
        answer.unwrap_or_else(Answer::Refused)
    }

    async fn propose_here(
        &self,
        commands: Vec<Bytes>,
        patience: Duration,
    ) -> Vec<Result<Committed, Refusal>> {
        // openraft would refuse as well, but only after the proposals have waited for a batch.
        if !self.leads() {
            return vec![Err(Refusal::NotLeader); commands.len()];
        }
        let full = self.wal.stats().is_full();
        let propose = |command: Bytes| async move {
            if full && needs_space(&command) {
                return Err(Refusal::DiskFull);
            }
            self.batcher.propose(command, patience).await
        };
        join_all(commands.into_iter().map(propose)).await
    }

    /// Confirms leadership with a majority, once for all who ask at this time (ReadIndex, Raft thesis §6.4).
    pub async fn read_index_here(self: &Arc<Self>, patience: Duration) -> Result<Confirmed, Refusal> {
        if planted(Defect::StaleRead) && self.leads() {
            let index = self.replica.applied_index();
            return Ok(Confirmed { term: self.metrics().current_term, index });
        }
        let node = self.clone();
        let option = LinearizerOption::new(Some(Duration::ZERO), true);
        let round = self.read_rounds.join(move || confirm(node.clone(), option.clone()));
        bounded(patience, round).await
    }

    /// An index for a reader, confirmed as this group's reads are.
    async fn reader_index_here(self: &Arc<Self>, patience: Duration) -> Result<Confirmed, Refusal> {
        match self.timing.reads {
            ReadMode::Index => self.read_index_here(patience).await,
            ReadMode::Lease => {
                let node = self.clone();
                let option = LinearizerOption::new(Some(self.timing.read_lease()), true);
                let round = self.lease_read_rounds.join(move || confirm(node.clone(), option.clone()));
                bounded(patience, round).await
            }
        }
    }

    /// Confirms leadership for a lease call: an acknowledgement by a majority within the leader's lease is
    /// enough, during which no other server can have become leader (S07).
    async fn lease_confirmed_here(self: &Arc<Self>, patience: Duration) -> Result<Confirmed, Refusal> {
        let node = self.clone();
        let option = LinearizerOption::new(None, true);
        let round = self.lease_rounds.join(move || confirm(node.clone(), option.clone()));
        let confirmed = bounded(patience, round).await?;
        // A lease that an entry of an earlier term granted must be known before it can be told unknown.
        let applied = async {
            self.replica.wait_applied(confirmed.index).await;
            Ok(confirmed)
        };
        bounded(patience, applied).await
    }

    async fn renew_here(
        self: &Arc<Self>,
        id: LeaseId,
        patience: Duration,
    ) -> Result<Result<i64, StoreError>, Refusal> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let confirmed = self.fresh_lease_confirmation(left).await?;
            match self.clock.renew(confirmed.term, id) {
                Ok(ttl_secs) => return Ok(Ok(ttl_secs)),
                Err(ClockError::Store(error)) => return Ok(Err(error)),
                Err(ClockError::NotLeader) => return Err(Refusal::NotLeader),
                Err(ClockError::Undecided) if left.is_zero() => {
                    let reason = "the lease's time is up, and no majority has ended it yet";
                    return Err(Refusal::NoQuorum(reason.to_owned()));
                }
                Err(ClockError::Undecided) => sleep(UNDECIDED_PAUSE.min(left)).await,
                Err(ClockError::Noted(lease)) => {
                    let take_back = Command::LeaseCheckpoint { term: confirmed.term, leases: vec![lease] };
                    let taken_back = self.propose_here(vec![encode_command(&take_back)], left).await;
                    taken_back.into_iter().try_for_each(|result| result.map(drop))?;
                }
            }
        }
    }

    async fn remaining_here(
        self: &Arc<Self>,
        id: LeaseId,
        patience: Duration,
    ) -> Result<Option<Duration>, Refusal> {
        let confirmed = self.fresh_lease_confirmation(patience).await?;
        self.clock.remaining(confirmed.term, id).map_err(|_| Refusal::NotLeader)
    }

    /// Asks again if so much time passed since the question that the answer may be out of date: this
    /// process may have been stopped in between.
    async fn fresh_lease_confirmation(self: &Arc<Self>, patience: Duration) -> Result<Confirmed, Refusal> {
        let deadline = Instant::now() + patience;
        loop {
            let asked = Instant::now();
            let confirmed = self.lease_confirmed_here(deadline.saturating_duration_since(asked)).await?;
            if asked.elapsed() < self.timing.leader_lease() / 2 {
                return Ok(confirmed);
            }
        }
    }
}

/// Only asked while the disk is full.
fn needs_space(command: &[u8]) -> bool {
    postcard::from_bytes::<Command>(command).is_ok_and(|command| command.needs_space())
}

async fn bounded<T>(
    patience: Duration,
    future: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    match timeout(patience, future).await {
        Ok(result) => result,
        Err(_) => Err(Refusal::NoQuorum("no majority confirmed the leader in time".to_owned())),
    }
}

async fn confirm(node: Arc<Node>, option: LinearizerOption) -> Result<Confirmed, Refusal> {
    match node.raft.get_read_linearizer(option).await {
        Ok(linearizer) => {
            let id = linearizer.read_log_id();
            Ok(Confirmed { term: id.committed_leader_id().term, index: id.index() })
        }
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => match forward.reason {
            ForwardReason::LeaseExpired => {
                Err(Refusal::NoQuorum("the leader's lease has run out".to_owned()))
            }
            ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => Err(Refusal::NotLeader),
        },
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(missing))) => {
            let heard = missing.got.len();
            Err(Refusal::NoQuorum(format!("only {heard} servers confirmed the leader")))
        }
        Err(RaftError::Fatal(_)) => Err(Refusal::Stopping),
    }
}
