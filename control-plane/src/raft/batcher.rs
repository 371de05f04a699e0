//! Collects concurrent proposals into log entries, so that one sync and one message to each follower serve
//! many writers.
//!
//! There is no linger: a proposal that finds nothing in flight leaves at once and alone. Those that come
//! while [`IN_FLIGHT_MAX`] entries are on their way wait and leave together when one of them is done. Under
//! load the batches thus grow to what one round of disk and network can carry, by themselves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::AcqRel, Ordering::Acquire},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use openraft::errors::{ClientWriteError, ForwardReason, RaftError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    forward::{Committed, Refusal},
    types::{BATCH_BYTES_MAX, BATCH_COMMANDS_MAX, Batch, Raft},
};

/// Proposals that may wait on one leader. Further ones are refused, which tells clients to slow down.
pub const PROPOSALS_MAX: usize = 8192;

/// Entries on their way at one time: one is being written while the next one is being sent.
const IN_FLIGHT_MAX: usize = 2;

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const GIVEN_UP: u8 = 2;

struct Proposal {
    command: Bytes,
    /// Decides between the batcher and an impatient proposer which of them has it.
    state: Arc<AtomicU8>,
    answer: oneshot::Sender<Result<Committed, Refusal>>,
}

impl Proposal {
    fn take(&self) -> bool {
        self.state.compare_exchange(WAITING, TAKEN, AcqRel, Acquire).is_ok()
    }
}

/// Where proposals go in.
#[derive(Clone)]
pub struct Batcher {
    queue: mpsc::Sender<Proposal>,
}

impl Batcher {
    /// The way in, and the task that has to run.
    pub fn new(raft: Raft, stop: CancellationToken) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, proposals) = mpsc::channel(PROPOSALS_MAX);
        (Self { queue }, run(raft, proposals, stop))
    }

    /// Has a command committed and applied by this server as leader.
    pub async fn propose(&self, command: Bytes, patience: Duration) -> Result<Committed, Refusal> {
        let (tell, answer) = oneshot::channel();
        let state = Arc::new(AtomicU8::new(WAITING));
        let proposal = Proposal { command, state: state.clone(), answer: tell };
        match self.queue.try_send(proposal) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Err(Refusal::Overloaded(PROPOSALS_MAX as u64)),
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Refusal::Stopping),
        }
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(answer)) => answer,
            // The task ended: what it had taken may or may not be in the log.
            Ok(Err(_)) => Err(gone(&state, "this server stopped", Refusal::Stopping)),
            Err(_) => {
                let reason = "earlier proposals are not committed by a majority".to_owned();
                Err(gone(&state, "it is in the log but not yet committed", Refusal::NoQuorum(reason)))
            }
        }
    }
}

/// The refusal of a proposal that is no longer waited for: `untouched` if it had not entered the log.
fn gone(state: &AtomicU8, unknown: &str, untouched: Refusal) -> Refusal {
    if state.compare_exchange(WAITING, GIVEN_UP, AcqRel, Acquire).is_ok() {
        untouched
    } else {
        Refusal::Unknown(unknown.to_owned())
    }
}

async fn run(raft: Raft, mut proposals: mpsc::Receiver<Proposal>, stop: CancellationToken) {
    let mut in_flight = FuturesUnordered::new();
    // Did not fit into the batch before.
    let mut held: Option<Proposal> = None;
    loop {
        let room = in_flight.len() < IN_FLIGHT_MAX;
        let first = match held.take() {
            Some(proposal) if room => proposal,
            kept => {
                held = kept;
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    Some(()) = in_flight.next(), if !in_flight.is_empty() => continue,
                    proposal = proposals.recv(), if room && held.is_none() => match proposal {
                        Some(proposal) => proposal,
                        None => return,
                    },
                }
            }
        };
        let mut batch = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        while let Some(proposal) = next {
            if !batch.is_empty() && bytes + proposal.command.len() > BATCH_BYTES_MAX {
                held = Some(proposal);
                break;
            }
            if proposal.take() {
                bytes += proposal.command.len();
                batch.push(proposal);
            }
            next = if batch.len() < BATCH_COMMANDS_MAX { proposals.try_recv().ok() } else { None };
        }
        if !batch.is_empty() {
            in_flight.push(write(raft.clone(), batch));
        }
    }
}

async fn write(raft: Raft, batch: Vec<Proposal>) {
    let commands: Vec<Bytes> = batch.iter().map(|p| p.command.clone()).collect();
    let result = raft.client_write(Batch::join(&commands)).await;
    match result {
        Ok(written) => {
            let (index, term) = (written.log_id.index(), written.log_id.committed_leader_id().term);
            for (proposal, result) in batch.into_iter().zip(written.data.results) {
                let committed =
                    Committed { index, term, revision: result.revision, response: result.response };
                let _ = proposal.answer.send(Ok(committed));
            }
        }
        Err(error) => {
            let refusal = refusal(error);
            for proposal in batch {
                let _ = proposal.answer.send(Err(refusal.clone()));
            }
        }
    }
}

fn refusal(
    error: RaftError<super::types::TypeConfig, ClientWriteError<super::types::TypeConfig>>,
) -> Refusal {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => match forward.reason {
            ForwardReason::LeaseExpired => {
                Refusal::NoQuorum("the leader has not heard from a majority".to_owned())
            }
            ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => Refusal::NotLeader,
        },
        // The entry was in this server's log and was replaced; another leader may have committed it.
        RaftError::APIError(other) => Refusal::Unknown(other.to_string()),
        RaftError::Fatal(fatal) => Refusal::Unknown(format!("the raft core ended: {fatal}")),
    }
}
