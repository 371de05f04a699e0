//! Why a proposal, a read, a lease call, a join or a start did not succeed.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use weft_core::id::ClusterId;
use weft_state::error::StoreError;

/// Why a proposal or a linearizable read has no answer. One variant for each thing a caller does
/// differently; a refusal by the state machine itself is not here but in [`super::Proposed::response`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nobody leads. Nothing was written; try again, here or at another server.
    #[error("no quorum: no leader is elected; waited {}; nothing was written, try again", seconds(waited))]
    NoLeader {
        /// How long this call waited for one.
        waited: Duration,
    },
    /// A leader is known, but it could not confirm with a majority that it still leads, or this server
    /// cannot reach one. For a read: there is no answer that is sure to be current. Nothing was written.
    #[error("no quorum: {reason}; waited {}", seconds(waited))]
    NoQuorum {
        /// How long this call waited.
        waited: Duration,
        /// What was seen.
        reason: String,
    },
    /// The command may or may not take effect. Read before trying again.
    #[error("unknown outcome: {reason}; waited {}; read before you repeat it", seconds(waited))]
    OutcomeUnknown {
        /// How long this call waited.
        waited: Duration,
        /// What was seen.
        reason: String,
    },
    /// The command took effect or will, but this server had not applied it in time.
    #[error("committed at index {index}, but not applied on this server within {}", seconds(waited))]
    NotAppliedHere {
        /// Its log index.
        index: u64,
        /// How long this call waited.
        waited: Duration,
    },
    /// More proposals are waiting than the server holds. Nothing was written.
    #[error("too many proposals are waiting (limit {limit}); nothing was written, try again")]
    Overloaded {
        /// Proposals that may wait.
        limit: usize,
    },
    /// The command is larger than a log entry may be. Nothing was written.
    #[error("command of {seen} bytes exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Its bytes when encoded.
        seen: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The disk of the leader's log is full, and the command may make the state larger. Nothing was written.
    #[error(
        "the disk of the leader's log is full; nothing was written. Deletes and compaction still pass; writes do \
         again by themselves when there is space"
    )]
    DiskFull,
    /// By what it has applied this server is no member of the group: it is new there, and has not got the state yet.
    /// What it has is older than what its clients may have seen.
    #[error("this server is new to its group and has not got the state yet: ask another one, or try again")]
    NotTakenIn,
    /// This server is shutting down. Nothing was written.
    #[error("this server is stopping; nothing was written, ask another server")]
    Stopped,
}

/// As people say it: nobody needs the microseconds.
fn seconds(time: &Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

impl ProposeError {
    /// Whether it is certain that the command was not and will not be carried out, so that the caller
    /// may send it again.
    pub fn is_safe_to_retry(&self) -> bool {
        match self {
            Self::NoLeader { .. }
            | Self::NoQuorum { .. }
            | Self::Overloaded { .. }
            | Self::DiskFull
            | Self::NotTakenIn
            | Self::Stopped => true,
            Self::OutcomeUnknown { .. } | Self::NotAppliedHere { .. } | Self::TooLarge { .. } => false,
        }
    }
}

/// Why a lease was not renewed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// The leader has no such lease.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The leader could not be asked, or is not sure that it leads. The lease may still run.
    #[error(transparent)]
    Unavailable(#[from] ProposeError),
}

/// Why the group was not changed as somebody asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupChangeError {
    /// The leader refuses. Nothing was changed, except after `Failed`, where it may come about yet.
    #[error(transparent)]
    Refused(#[from] super::ChangeRefused),
    /// No leader could be asked, or it was lost on the way.
    #[error(transparent)]
    Unavailable(#[from] ProposeError),
}

/// Why this server is not a member of the group yet, as it is to be. Asking again is safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// None of the addresses answered.
    #[error("no server of the group answered at {tried:?}: {last}")]
    Unreachable {
        /// Addresses tried.
        tried: Vec<SocketAddr>,
        /// What the last one said.
        last: String,
    },
    /// The group is another one than this server's data belongs to.
    #[error(
        "this server's data belongs to cluster {ours}, but {addr} is of cluster {theirs}: join that one with an empty data folder"
    )]
    ForeignCluster {
        /// Cluster of this server's data.
        ours: ClusterId,
        /// Cluster of the asked server.
        theirs: ClusterId,
        /// The asked server.
        addr: SocketAddr,
    },
    /// The leader answered with a refusal, or had no quorum to add a member.
    #[error("the group did not take this server in yet: {reason}")]
    Refused {
        /// What the leader said.
        reason: String,
    },
    /// This server is stopping.
    #[error("this server is stopping")]
    Stopped,
}

/// Why the Raft part of a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log on disk is damaged in a way that no crash explains.
    #[error(transparent)]
    Wal(#[from] crate::wal::WalError),
    /// A snapshot file is damaged and the log does not reach back far enough to do without.
    #[error("{path}: {reason}")]
    Snapshot {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A file or folder could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A setting is out of range or contradicts another.
    #[error("raft: {0}")]
    Setting(String),
    /// The data folder was written by a server with another id.
    #[error(
        "{path} belongs to server {theirs}, but this server's id is {ours}: a data folder is never shared or copied"
    )]
    ForeignData {
        /// The data folder.
        path: PathBuf,
        /// Id in the folder.
        theirs: weft_core::id::NodeId,
        /// Id of this server.
        ours: weft_core::id::NodeId,
    },
    /// The data is of a server that must not be in its group any more.
    #[error(
        "{path}: {reason}; to join the group as a new server, start with an empty data folder and --join"
    )]
    Retired {
        /// The mark.
        path: PathBuf,
        /// What is in it.
        reason: String,
    },
    /// Stored entries or the Raft core's own state do not make sense together.
    #[error("raft: {0}")]
    Raft(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded() {
        let error = ProposeError::OutcomeUnknown {
            waited: Duration::from_micros(5_001_234),
            reason: "no majority of the servers has stored it yet".to_owned(),
        };
        assert_eq!(
            error.to_string(),
            "unknown outcome: no majority of the servers has stored it yet; waited 5.0 s; read before you repeat it"
        );
    }
}
