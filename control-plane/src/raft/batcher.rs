//! Collects concurrent proposals: on the leader into log entries, so that one sync and one message to each
//! follower serve many writers; on a follower into messages to the leader.
//!
//! There is no linger: a proposal that finds nothing in flight leaves at once and alone. Those that come
//! while as many batches as allowed are on their way wait and leave together when one of them is done. Under
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
pub const ENTRIES_IN_FLIGHT_MAX: usize = 2;

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const GIVEN_UP: u8 = 2;

/// A command on its way, and who waits for it.
pub struct Proposal {
    /// Encoded.
    pub command: Bytes,
    /// Decides between the batcher and an impatient proposer which of them has it.
    state: Arc<AtomicU8>,
    answer: oneshot::Sender<Result<Committed, Refusal>>,
}

impl Proposal {
    fn take(&self) -> bool {
        self.state.compare_exchange(WAITING, TAKEN, AcqRel, Acquire).is_ok()
    }

    /// Tells the one who waits.
    pub fn answer(self, answer: Result<Committed, Refusal>) {
        let _ = self.answer.send(answer);
    }
}

/// Tells all of them the same.
pub fn refuse_all(batch: Vec<Proposal>, refusal: &Refusal) {
    for proposal in batch {
        proposal.answer(Err(refusal.clone()));
    }
}

/// Where proposals go in.
#[derive(Clone)]
pub struct Batcher {
    queue: mpsc::Sender<Proposal>,
}

impl Batcher {
    /// The way in, and the task that has to run until `stop`. `write` carries one batch and answers all of it.
    pub fn new<W, F>(
        in_flight_max: usize,
        stop: CancellationToken,
        write: W,
    ) -> (Self, impl Future<Output = ()> + Send)
    where
        W: Fn(Vec<Proposal>) -> F + Send,
        F: Future<Output = ()> + Send,
    {
        let (queue, proposals) = mpsc::channel(PROPOSALS_MAX);
        (Self { queue }, run(in_flight_max, write, proposals, stop))
    }

    /// Has a command carried.
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
                let reason = "no majority of the servers stores what was proposed before".to_owned();
                Err(gone(&state, "no majority of the servers has stored it yet", Refusal::NoQuorum(reason)))
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

async fn run<W, F>(
    in_flight_max: usize,
    write: W,
    mut proposals: mpsc::Receiver<Proposal>,
    stop: CancellationToken,
) where
    W: Fn(Vec<Proposal>) -> F + Send,
    F: Future<Output = ()> + Send,
{
    let mut in_flight = FuturesUnordered::new();
    // Did not fit into the batch before.
    let mut held: Option<Proposal> = None;
    loop {
        let room = in_flight.len() < in_flight_max;
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
            in_flight.push(write(batch));
        }
    }
}

/// Carries a batch as one log entry of this server as leader.
pub async fn write_entry(raft: Raft, batch: Vec<Proposal>) {
    let commands: Vec<Bytes> = batch.iter().map(|p| p.command.clone()).collect();
    let result = raft.client_write(Batch::join(&commands)).await;
    match result {
        Ok(written) => {
            let (index, term) = (written.log_id.index(), written.log_id.committed_leader_id().term);
            for (proposal, result) in batch.into_iter().zip(written.data.results) {
                let committed =
                    Committed { index, term, revision: result.revision, response: result.response };
                proposal.answer(Ok(committed));
            }
        }
        Err(error) => refuse_all(batch, &refusal(error)),
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

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    fn done(index: u64) -> Committed {
        Committed { index, term: 1, revision: 1, response: Ok(weft_state::command::Response::Noop) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lone_proposal_leaves_at_once_and_those_behind_it_together() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = sizes.clone();
        let (batcher, task) = Batcher::new(1, CancellationToken::new(), move |batch| {
            seen.lock().push(batch.len());
            async move {
                tokio::time::sleep(Duration::from_millis(10)).await;
                batch.into_iter().for_each(|p| p.answer(Ok(done(1))));
            }
        });
        let task = tokio::spawn(task);
        let propose = || batcher.propose(Bytes::from_static(b"x"), Duration::from_secs(1));
        assert!(propose().await.is_ok());
        let all = futures::future::join_all((0..50).map(|_| propose())).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(sizes.lock()[0], 1);
        assert_eq!(sizes.lock().len(), 2, "{:?}", sizes.lock());
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn batches_are_bounded_in_bytes_and_nothing_is_lost() {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = sizes.clone();
        let (batcher, task) = Batcher::new(1, CancellationToken::new(), move |batch: Vec<Proposal>| {
            seen.lock().push(batch.iter().map(|p| p.command.len()).sum::<usize>());
            async move { batch.into_iter().for_each(|p| p.answer(Ok(done(1)))) }
        });
        let task = tokio::spawn(task);
        let large = Bytes::from(vec![0; BATCH_BYTES_MAX / 2]);
        let all = (0..9).map(|_| batcher.propose(large.clone(), Duration::from_secs(1)));
        assert!(futures::future::join_all(all).await.iter().all(Result::is_ok));
        assert!(sizes.lock().iter().all(|bytes| *bytes <= BATCH_BYTES_MAX), "{:?}", sizes.lock());
        task.abort();
    }

    /// A06: whoever gives up knows whether the command was already on its way.
    #[tokio::test(start_paused = true)]
    async fn an_impatient_proposer_knows_whether_its_command_left() {
        let (batcher, task) = Batcher::new(1, CancellationToken::new(), |_batch: Vec<Proposal>| {
            tokio::time::sleep(Duration::from_secs(60))
        });
        let task = tokio::spawn(task);
        let patience = Duration::from_millis(100);
        let left = batcher.propose(Bytes::from_static(b"a"), patience);
        let stuck = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            batcher.propose(Bytes::from_static(b"b"), patience).await
        };
        let (left, stuck) = tokio::join!(left, stuck);
        assert!(matches!(left, Err(Refusal::Unknown(_))), "{left:?}");
        assert!(matches!(stuck, Err(Refusal::NoQuorum(_))), "{stuck:?}");
        task.abort();
    }
}
