//! Who is in the pool, and in which state.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use weft_core::id::NodeId;

/// A member as others know it. The id is the identity; the name is a label (P26).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Random, made at first start and kept in the data folder.
    pub id: NodeId,
    /// Label given by `--name`.
    pub name: String,
    /// What the process does.
    pub role: Role,
    /// Where its datagrams come from and go to.
    pub gossip_addr: SocketAddr,
    /// Grows each time the process starts, and never decreases.
    pub incarnation: u64,
}

/// What a member's process does, with the addresses that others need.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A control-plane server.
    Server {
        /// gRPC: etcd, weft.v1, xDS.
        grpc_addr: SocketAddr,
        /// HTTP: registry API, probes, metrics.
        http_addr: SocketAddr,
        /// Raft peers.
        peer_addr: SocketAddr,
    },
    /// A sidecar.
    Proxy,
}

/// State of a member as this process sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberState {
    /// Answers probes.
    Alive,
    /// Missed probes; others are being asked. Its endpoints get less traffic, none are withdrawn.
    Suspect,
    /// Declared down; its instances are withdrawn.
    Down,
}

/// A member with its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// The member.
    pub member: Member,
    /// Its state.
    pub state: MemberState,
    /// When the state last changed here.
    pub since: std::time::Instant,
}
