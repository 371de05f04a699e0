//! What servers ask the leader for, beside openraft's own messages. `postcard`; variants are only appended.

use std::time::Duration;

use super::{ChangeRefused, GroupChange};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weft_state::{
    command::{LeaseId, Response, Revision},
    error::StoreError,
};

/// A question to the leader.
#[derive(Debug, Serialize, Deserialize)]
pub struct Asked {
    /// How long the one who asks still waits, in milliseconds.
    pub patience_ms: u64,
    /// What.
    pub question: Question,
}

impl Asked {
    /// How long the one who asks still waits.
    pub fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms)
    }
}

/// What is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Question {
    /// Carry out commands (encoded), each for itself.
    Propose(Vec<Bytes>),
    /// Renew a lease.
    LeaseRenew(LeaseId),
    /// Time left of a lease.
    LeaseRemaining(LeaseId),
    /// An index such that a state that has applied it is current as of this question.
    ReadIndex,
    /// The hash of the asked server's state after an entry. Any server answers.
    HashAt(u64),
    /// Change the group.
    Change(GroupChange),
    /// Whether a server is in the group.
    IsMember(u64),
    /// The asked server's state after an entry is not what most have. Any server.
    Differs {
        /// The entry.
        index: u64,
        /// The hash that most have.
        right: u64,
    },
    /// How far the asked server's log reaches, and whether it has a leader. Any server.
    Standing,
}

/// The leader's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// To `Propose`: one for each command.
    Proposed(Vec<Result<Committed, Refusal>>),
    /// To `LeaseRenew`: the time to live in seconds.
    Renewed(Result<i64, StoreError>),
    /// To `LeaseRemaining`: milliseconds; none if there is no such lease.
    Remaining(Option<u64>),
    /// To `ReadIndex`.
    ReadIndex(u64),
    /// To any.
    Refused(Refusal),
    /// To `HashAt`; none if the server is not that far, or does not remember.
    HashAt(Option<u64>),
    /// To `Change`.
    Changed(Result<(), ChangeRefused>),
    /// To `IsMember`.
    IsMember(bool),
    /// To `Standing`.
    Standing(Standing),
}

/// How far a server's log reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Term of the last entry.
    pub term: u64,
    /// Index of the last entry.
    pub index: u64,
    /// Whether it leads, or hears a leader.
    pub has_leader: bool,
}

/// A command that is committed and was applied on the leader.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Committed {
    /// Index of its log entry.
    pub index: u64,
    /// Term of its log entry.
    pub term: u64,
    /// The revision after it.
    pub revision: Revision,
    /// What it answered.
    pub response: Result<Response, StoreError>,
}

/// Why the asked server did not do it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// It does not lead, or hands leadership over. Nothing was done.
    NotLeader,
    /// It cannot confirm with a majority that it still leads. Nothing was done.
    NoQuorum(String),
    /// Too many wait. Nothing was done.
    Overloaded(u64),
    /// It may still happen.
    Unknown(String),
    /// It stops. Nothing was done.
    Stopping,
    /// The disk of its log is full. Nothing was done.
    DiskFull,
}
