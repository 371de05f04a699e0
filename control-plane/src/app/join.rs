//! What gossip tells about the other servers: where their Raft ports are, and whom to ask to be taken in.
//!
//! Gossip is a hint about addresses only. Who votes is decided by the group, through its own log.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use weft_core::backoff::Backoff;
use weft_core::id::NodeId;
use weft_gossip::driver::GossipHandle;
use weft_gossip::member::{MemberState, Role};

use crate::raft::{Coordinator, JoinError};

/// First and longest pause between two attempts to join. Short, since joining is what a start waits for.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Raft addresses of the other servers in the pool, those that are up first.
pub(super) fn peers(gossip: &GossipHandle) -> Vec<(NodeId, SocketAddr)> {
    let local = gossip.local().id;
    let members = gossip.members();
    let mut servers: Vec<_> = members
        .iter()
        .filter(|m| m.member.id != local)
        .filter_map(|m| match m.member.role {
            Role::Server { peer_addr, .. } => Some((m.state, m.member.id, peer_addr)),
            Role::Proxy => None,
        })
        .collect();
    servers.sort_by_key(|(state, id, _)| (*state != MemberState::Alive, *id));
    servers.into_iter().map(|(_, id, addr)| (id, addr)).collect()
}

/// Tells the coordinator each address that gossip has learnt, also when one changes (P15).
pub(super) async fn feed_addresses(coordinator: Coordinator, gossip: GossipHandle) {
    let mut changes = gossip.changes();
    let mut told: BTreeMap<NodeId, SocketAddr> = BTreeMap::new();
    loop {
        for (id, addr) in peers(&gossip) {
            if told.insert(id, addr) != Some(addr) {
                coordinator.set_peer_address(id, addr);
            }
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Asks the servers that gossip knows of to take this one in, until it votes.
pub(super) async fn join(coordinator: Coordinator, gossip: GossipHandle, stop: CancellationToken) {
    let mut backoff = Backoff::new(PAUSE_MIN, PAUSE_MAX);
    let mut changes = gossip.changes();
    let mut last = String::new();
    while !is_voter(&coordinator) && !stop.is_cancelled() {
        let addrs: Vec<SocketAddr> = peers(&gossip).into_iter().map(|(_, addr)| addr).collect();
        if addrs.is_empty() {
            say(&mut last, "no server is known yet: waiting for gossip to find one");
        } else {
            match coordinator.join_group(addrs).await {
                Ok(()) => {
                    tracing::info!("this server is a member of the raft group");
                    return;
                }
                Err(JoinError::Stopped) => return,
                Err(error @ JoinError::ForeignCluster { .. }) => {
                    // No repetition changes that; only an operator can.
                    tracing::error!(%error, "cannot join");
                    return;
                }
                Err(error) => say(&mut last, &error.to_string()),
            }
        }
        let pause = backoff.next(fastrand::f64());
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            // A server that just appeared is worth asking at once, but not in a loop without pause.
            _ = changes.changed() => tokio::time::sleep(PAUSE_MIN).await,
            () = stop.cancelled() => return,
        }
    }
}

/// The same reason again is not worth another line.
fn say(last: &mut String, reason: &str) {
    if last != reason {
        tracing::info!(reason, "not a member of the raft group yet");
        reason.clone_into(last);
    }
}

fn is_voter(coordinator: &Coordinator) -> bool {
    let status = coordinator.status();
    status.cluster_id.is_some() && status.peers.iter().any(|p| p.id == status.id && p.voter)
}
