//! How a server becomes a member of the group.
//!
//! ```text
//! joining server                      leader
//!   Join{id, name, address} ────────►  add as learner            (any other server answers where the leader is)
//!                           ◄────────  entries or a snapshot     (from which the joining server learns the cluster's id)
//!                                      caught up? make it a voter
//!                           ◄────────  JoinResponse{voter: true}
//! ```
//! Each step is idempotent, so the whole may be asked again at any time, also after a restart of either. A
//! server counts in no majority before it has the log (R03), so adding one that then fails does not stop the
//! group (R05).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use openraft::ChangeMembers;
use tokio::time::{Instant, sleep, timeout};
use tonic::Status;
use weft_core::id::{ClusterId, NodeId};
use weft_core::limits::MEMBER_NAME_BYTES_MAX;
use weft_xds_proto::peer::{JoinRequest, JoinResponse};

use super::{
    driver::Node,
    error::JoinError,
    link::Route,
    network::{Lane, reason},
    types::Peer,
};

/// How long the leader lets a new server catch up before it answers "not yet". The server asks again.
const CATCH_UP_MAX: Duration = Duration::from_secs(10);

/// A learner this many entries behind is caught up: it gets them within a round or two.
pub const CATCH_UP_LAG: u64 = 64;

/// How long one call of the joining server may take: above [`CATCH_UP_MAX`].
const JOIN_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a server that votes already waits for one that it is told to join.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// Of what should have been an address, so much is repeated in the refusal.
const ADDRESS_CHARS_SHOWN: usize = 60;

/// Servers asked in a row because each names another leader, before the answer is "not yet".
const REDIRECTS_MAX: usize = 3;

impl Node {
    /// Asks any of these servers to be taken in.
    pub async fn join(self: &Arc<Self>, servers: Vec<SocketAddr>) -> Result<(), JoinError> {
        if self.is_taken_in() {
            return self.check_cluster(&servers).await;
        }
        if self.is_being_removed() {
            let reason = "its log says that this server was removed, which is not known to be committed yet";
            return Err(JoinError::Refused { reason: reason.to_owned() });
        }
        self.cluster.expect_invitation();
        let mut last = "no address was given".to_owned();
        let mut refused = None;
        for first in &servers {
            if self.is_stopping() {
                return Err(JoinError::Stopped);
            }
            if *first == self.advertise {
                continue;
            }
            let mut addr = *first;
            for _ in 0..REDIRECTS_MAX {
                match self.ask_to_join(addr).await {
                    Ok(answer) if answer.voter || answer.learner => return self.wait_until_taken_in().await,
                    Ok(answer) => match answer.leader_address.parse() {
                        Ok(leader) if leader != addr => addr = leader,
                        _ => {
                            refused = Some(format!("{addr} knows no leader"));
                            break;
                        }
                    },
                    Err(JoinError::Unreachable { last: why, .. }) => {
                        last = format!("{addr}: {why}");
                        break;
                    }
                    Err(JoinError::Refused { reason }) => {
                        refused = Some(reason);
                        break;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        match refused {
            Some(reason) => Err(JoinError::Refused { reason }),
            None => Err(JoinError::Unreachable { tried: servers, last }),
        }
    }

    /// This server votes already; it only must not be told to join another cluster without noticing.
    async fn check_cluster(&self, servers: &[SocketAddr]) -> Result<(), JoinError> {
        for addr in servers.iter().filter(|addr| **addr != self.advertise) {
            match timeout(CHECK_TIMEOUT, self.ask_to_join(*addr)).await {
                Ok(Err(error @ JoinError::ForeignCluster { .. })) => return Err(error),
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(_)) | Err(_) => {}
            }
        }
        Ok(())
    }

    async fn ask_to_join(&self, addr: SocketAddr) -> Result<JoinResponse, JoinError> {
        let request = JoinRequest {
            id: self.id.0,
            name: self.name.clone(),
            peer_address: self.advertise.to_string(),
            cluster_id: self.cluster.wire_id(),
            learner: self.learner,
            was_member: self.replica.membership().get_node(&self.id.0).is_some(),
        };
        let mut client = self.peers.client(addr, Lane::Forward);
        let answer = match timeout(JOIN_TIMEOUT, client.join(request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) if status.code() == tonic::Code::Unavailable => {
                let last = reason(&status);
                return Err(JoinError::Unreachable { tried: vec![addr], last });
            }
            Ok(Err(status)) => return Err(JoinError::Refused { reason: status.message().to_owned() }),
            Err(_) => {
                let last = format!("no answer within {JOIN_TIMEOUT:?}");
                return Err(JoinError::Unreachable { tried: vec![addr], last });
            }
        };
        match self.cluster.id() {
            Some(ours) if answer.cluster_id != 0 && answer.cluster_id != ours.0 => {
                Err(JoinError::ForeignCluster { ours, theirs: ClusterId(answer.cluster_id), addr })
            }
            _ => Ok(answer),
        }
    }

    /// The leader says that this server is a member; its own log says so shortly after.
    async fn wait_until_taken_in(&self) -> Result<(), JoinError> {
        let deadline = Instant::now() + CATCH_UP_MAX;
        while !self.is_taken_in() {
            if Instant::now() > deadline {
                return Err(JoinError::Refused { reason: "the log does not arrive here".to_owned() });
            }
            if self.is_stopping() {
                return Err(JoinError::Stopped);
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Whether it is what it wants to be, at its present address.
    fn is_taken_in(&self) -> bool {
        let membership = self.membership();
        (self.learner || membership.voter_ids().any(|id| id == self.id.0))
            && membership.get_node(&self.id.0).is_some_and(|peer| peer.addr == self.advertise)
    }

    /// It was a member, and by its log is none: if that is committed it ends ([`super::retired`]), else it is a member
    /// still. It must not ask to be taken in before that is decided, or it would be back without anybody's order.
    fn is_being_removed(&self) -> bool {
        let (own, applied) = (self.id.0, self.replica.membership());
        self.membership().get_node(&own).is_none()
            && (applied.get_node(&own).is_some() || self.log.knows_member(own))
    }

    /// Answers a server that asks to be taken in.
    pub async fn take_in(self: &Arc<Self>, request: JoinRequest) -> Result<JoinResponse, Status> {
        let Some(ours) = self.cluster.id() else {
            return Err(Status::unavailable("this server belongs to no cluster yet itself"));
        };
        let answer = |voter, leader: String| JoinResponse {
            cluster_id: ours.0,
            voter,
            leader_address: leader,
            learner: false,
        };
        if request.cluster_id != 0 && request.cluster_id != ours.0 {
            tracing::warn!(
                server = %NodeId(request.id), name = request.name, theirs = %ClusterId(request.cluster_id), %ours,
                "a server of another cluster asks to join and is refused"
            );
            return Ok(answer(false, String::new()));
        }
        let addr: SocketAddr = request.peer_address.parse().map_err(|_| {
            let seen: String = request.peer_address.chars().take(ADDRESS_CHARS_SHOWN).collect();
            Status::invalid_argument(format!("peer_address {seen:?} is not IP:PORT"))
        })?;
        if request.id == 0 {
            return Err(Status::invalid_argument("id must not be 0"));
        }
        if addr.port() == 0 || addr.ip().is_unspecified() || addr.ip().is_multicast() {
            return Err(Status::invalid_argument(format!(
                "peer_address {addr} cannot be connected to: it must name one server and its port"
            )));
        }
        if !(1..=MEMBER_NAME_BYTES_MAX).contains(&request.name.len()) {
            return Err(Status::invalid_argument(format!(
                "name has {} bytes, allowed are 1 to {MEMBER_NAME_BYTES_MAX}",
                request.name.len()
            )));
        }
        match self.route() {
            Route::Here => {}
            Route::There { addr, .. } => return Ok(answer(false, addr.to_string())),
            Route::Nowhere => return Err(Status::unavailable("no leader is elected; ask again")),
        }
        self.peers.set_address(NodeId(request.id), addr);
        let peer = Peer { name: request.name, addr };
        let was_member = request.was_member;
        if request.learner {
            self.make_member(request.id, peer, was_member).await?;
            return Ok(JoinResponse { learner: true, ..answer(false, String::new()) });
        }
        self.add(request.id, peer, was_member).await?;
        Ok(answer(true, String::new()))
    }

    /// Brings a server into the group, as far as it is not there yet. The group changes by one at a time, but
    /// while one catches up, which it may never do, others are not kept waiting (R05).
    async fn add(&self, id: u64, peer: Peer, was_member: bool) -> Result<(), Status> {
        self.make_member(id, peer, was_member).await?;
        if self.is_voter(id) {
            return Ok(());
        }
        self.wait_until_caught_up(id).await.map_err(Status::unavailable)?;
        let _one_at_a_time = self.membership_change.lock().await;
        if self.is_voter(id) {
            return Ok(());
        }
        let voters = ChangeMembers::AddVoterIds(BTreeSet::from([id]));
        self.change(voters, true).await.map_err(Status::unavailable)?;
        tracing::info!(server = %NodeId(id), "a server votes now");
        Ok(())
    }

    fn is_voter(&self, id: u64) -> bool {
        self.membership().voter_ids().any(|voter| voter == id)
    }

    /// Adds a server as learner, or notes its new address. One that was a member by what it has applied and is none
    /// by what this leader knows was removed, also if an earlier leader did it while that server was down.
    async fn make_member(&self, id: u64, peer: Peer, was_member: bool) -> Result<(), Status> {
        let _one_at_a_time = self.membership_change.lock().await;
        let known = self.membership().get_node(&id).cloned();
        match known {
            None if was_member || self.removed.lock().contains(&id) => {
                return Err(Status::failed_precondition(format!(
                    "server {} was removed from this group: it comes back with an empty data folder, as a new server",
                    NodeId(id)
                )));
            }
            None => {
                tracing::info!(server = %NodeId(id), name = peer.name, addr = %peer.addr, "a server joins as learner");
                let same_place = self
                    .membership()
                    .nodes()
                    .find(|(other, known)| **other != id && known.addr == peer.addr)
                    .map(|(other, _)| NodeId(*other));
                if let Some(other) = same_place {
                    tracing::warn!(
                        server = %NodeId(id), %other, addr = %peer.addr,
                        "another member of the group was last at this address: if it lost its data, it still counts in majorities"
                    );
                }
                let added = ChangeMembers::AddNodes(BTreeMap::from([(id, peer)]));
                self.change(added, true).await.map_err(Status::unavailable)?;
            }
            // Nothing else can have moved there: the server itself says so, with its id.
            Some(known) if known != peer => {
                tracing::info!(server = %NodeId(id), old = %known.addr, new = %peer.addr, "a server of the group has a new address");
                let moved = ChangeMembers::SetNodes(BTreeMap::from([(id, peer)]));
                self.change(moved, true).await.map_err(Status::unavailable)?;
            }
            Some(_) => {}
        }
        Ok(())
    }

    async fn wait_until_caught_up(&self, id: u64) -> Result<(), String> {
        let deadline = Instant::now() + CATCH_UP_MAX;
        loop {
            let (matched, last) = self.replication_of(id);
            if let Some(matched) = matched
                && matched + CATCH_UP_LAG >= last
            {
                return Ok(());
            }
            if !self.leads() {
                return Err("this server does not lead any more; ask again".to_owned());
            }
            if Instant::now() > deadline {
                let seen = matched.map_or("nothing".to_owned(), |m| format!("entry {m}"));
                return Err(format!("the server has {seen} of {last} entries; ask again"));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }
}
