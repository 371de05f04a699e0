//! The numbers that `weft status` and the metrics show.

use std::{collections::BTreeSet, fmt, net::SocketAddr, time::Duration};

use weft_core::id::{ClusterId, NodeId};

/// What this server knows of the Raft group, at one moment.
#[derive(Debug, Clone)]
pub struct RaftStatus {
    /// This server.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// The group, once formed or joined.
    pub cluster_id: Option<ClusterId>,
    /// Who leads, as far as this server knows.
    pub leader: Option<NodeId>,
    /// Current term.
    pub term: u64,
    /// Index of the last entry in this server's log.
    pub last_log: u64,
    /// Index up to which this server knows the log to be committed.
    pub committed: u64,
    /// Index of the last entry applied here.
    pub applied: u64,
    /// Index of the last entry in the newest snapshot; 0 if there is none.
    pub snapshot: u64,
    /// Bytes of the log on disk.
    pub wal_bytes: u64,
    /// Syncs of the log since start.
    pub fsyncs: u64,
    /// The slowest of them.
    pub fsync_slowest: Duration,
    /// Whether the log's disk has space.
    pub disk: DiskState,
    /// On the leader: how long ago a majority last confirmed it.
    pub quorum_ack_age: Option<Duration>,
    /// On the leader: the last entry after which a majority was found to have the same state, and nobody another one; 0:
    /// not compared yet.
    pub agreed: u64,
    /// Whether a change of the group is half done, by this server's log.
    pub joint: bool,
    /// All servers of the group, this one included, by id.
    pub peers: Vec<PeerStatus>,
}

/// The servers of the group by what this server has applied: that is committed, and cannot be taken back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// Those that vote. While a change is half done, of both configurations.
    pub voters: BTreeSet<NodeId>,
    /// Those that only listen.
    pub learners: BTreeSet<NodeId>,
    /// A change is half done.
    pub joint: bool,
    /// Index of the entry that made it so; 0 before the first.
    pub entry: u64,
}

/// Whether the disk of the log has space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskState {
    /// It has.
    Fine,
    /// What needs space is refused if this server leads; the reserve is for the rest.
    Full,
    /// The reserve is used up too: this server's log waits.
    Stalled,
}

impl fmt::Display for DiskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiskState::Fine => "fine",
            DiskState::Full => "full",
            DiskState::Stalled => "stalled",
        })
    }
}

/// One server of the group.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where its peer port is reached.
    pub addr: SocketAddr,
    /// Whether it votes; a learner only listens.
    pub voter: bool,
    /// Its part.
    pub role: PeerRole,
    /// On the leader: the index up to which the peer's log is known to match.
    pub matched: Option<u64>,
}

/// What a server is in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// Leads.
    Leader,
    /// Votes and follows.
    Follower,
    /// Receives the log, does not vote yet.
    Learner,
}

impl std::fmt::Display for PeerRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Learner => "learner",
        })
    }
}
