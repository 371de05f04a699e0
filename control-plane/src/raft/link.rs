//! Where the leader is, and asking it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use weft_core::id::NodeId;
use weft_xds_proto::peer::ask;

use super::{
    batcher::{Proposal, refuse_all},
    codec,
    forward::{Answer, Asked, Question, Refusal},
    network::{Lane, Peers, never_sent},
    types::Raft,
};

/// Messages with proposals on their way to the leader at one time.
pub const MESSAGES_IN_FLIGHT_MAX: usize = 4;

/// How much longer than its patience a question may take, for the way there and back.
const WAY_SLACK: Duration = Duration::from_millis(250);

/// How long an answer of a former leader is still waited for once another one is known. It had its answer
/// on the way, or it will never have one.
const FORMER_LEADER_GRACE: Duration = Duration::from_millis(200);

/// Where the leader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// This server.
    Here,
    /// Another one.
    There {
        /// Its id.
        id: u64,
        /// Where it is reached.
        addr: SocketAddr,
    },
    /// Not known.
    Nowhere,
}

/// As far as this server knows.
pub fn route(raft: &Raft, peers: &Peers) -> Route {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    match metrics.current_leader {
        Some(id) if id == peers.own().0 => Route::Here,
        Some(id) => match metrics.membership_config.get_node(&id) {
            Some(peer) => Route::There { id, addr: peers.address(id, peer.addr) },
            None => Route::Nowhere,
        },
        None => Route::Nowhere,
    }
}

/// The way to whoever leads.
#[derive(Clone)]
pub struct Link {
    pub(super) raft: Raft,
    pub(super) peers: Arc<Peers>,
    pub(super) leader: watch::Receiver<Option<NodeId>>,
}

impl Link {
    /// Carries proposals in one message and hands each its answer.
    pub async fn forward(self, batch: Vec<Proposal>, patience: Duration) {
        let Route::There { id, addr } = route(&self.raft, &self.peers) else {
            return refuse_all(batch, &Refusal::NotLeader);
        };
        let commands: Vec<Bytes> = batch.iter().map(|p| p.command.clone()).collect();
        match self.ask(id, addr, Question::Propose(commands), patience).await {
            Answer::Proposed(results) if results.len() == batch.len() => {
                for (proposal, result) in batch.into_iter().zip(results) {
                    proposal.answer(result);
                }
            }
            Answer::Refused(refusal) => refuse_all(batch, &refusal),
            _ => {
                let reason = "the leader's answer does not fit the question".to_owned();
                refuse_all(batch, &Refusal::Unknown(reason));
            }
        }
    }

    /// One question to the leader. Not waited for much longer once another server leads.
    pub async fn ask(&self, id: u64, addr: SocketAddr, question: Question, patience: Duration) -> Answer {
        let leader = NodeId(id);
        let mut changes = self.leader.clone();
        let replaced = async {
            let is_other = |now: &Option<NodeId>| now.is_some_and(|now| now != leader);
            loop {
                if changes.wait_for(is_other).await.is_err() {
                    // This server stops, which the patience bounds as well.
                    std::future::pending::<()>().await;
                }
                sleep(FORMER_LEADER_GRACE).await;
                if is_other(&changes.borrow()) {
                    return;
                }
            }
        };
        tokio::select! {
            answer = self.ask_any(id, addr, question, patience) => answer,
            () = replaced => {
                let reason = format!("leader {leader} at {addr} was replaced before it answered");
                Answer::Refused(Refusal::Unknown(reason))
            }
        }
    }

    /// One question to one server, whoever leads.
    pub async fn ask_any(&self, id: u64, addr: SocketAddr, question: Question, patience: Duration) -> Answer {
        let asked = Asked { patience_ms: patience.as_millis() as u64, question };
        let asking = self.peers.ask((id, addr), Lane::Forward, asked, ask::Body::Question);
        let server = NodeId(id);
        let refusal = match timeout(patience + WAY_SLACK, asking).await {
            Ok(Ok(answer)) => match codec::decode("answer of a peer", &answer) {
                Ok(answer) => return answer,
                Err(error) => Refusal::Unknown(error.to_string()),
            },
            Ok(Err(status)) => {
                let reason = format!("server {server} at {addr}: {}", status.message());
                // Refused at the door, before anything was done with it.
                let at_the_door = status.code() == tonic::Code::FailedPrecondition;
                if at_the_door || never_sent(&status) {
                    Refusal::NoQuorum(reason)
                } else {
                    Refusal::Unknown(reason)
                }
            }
            Err(_) => Refusal::Unknown(format!("server {server} at {addr} does not answer")),
        };
        Answer::Refused(refusal)
    }
}
