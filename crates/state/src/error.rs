//! Why a command changed nothing or a read has no answer.

use serde::{Deserialize, Serialize};

use crate::{
    auth::AuthError,
    command::{LeaseId, Revision},
};

/// A refusal. The state is as it was before. Every replica refuses alike.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum StoreError {
    /// A key was empty.
    #[error("key is not provided")]
    EmptyKey,
    /// A key was too long.
    #[error("key of {seen} bytes exceeds the limit of {limit} bytes")]
    KeyTooLong {
        /// Bytes given.
        seen: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// The revision's history is gone.
    #[error("required revision {requested} has been compacted; the oldest readable one is {oldest}")]
    Compacted {
        /// Asked for.
        requested: Revision,
        /// Oldest revision that can be read.
        oldest: Revision,
    },
    /// The revision does not exist yet.
    #[error("required revision {requested} is a future revision; the current one is {current}")]
    FutureRevision {
        /// Asked for.
        requested: Revision,
        /// Current.
        current: Revision,
    },
    /// `ignore_value` or `ignore_lease` on a key that does not exist.
    #[error("key not found")]
    KeyNotFound,
    /// `ignore_value` with a value.
    #[error("value is provided")]
    ValueProvided,
    /// `ignore_lease` with a lease.
    #[error("lease is provided")]
    LeaseProvided,
    /// A transaction puts one key twice, or puts into a range that it deletes.
    #[error("duplicate key given in txn request")]
    DuplicateKey,
    /// A transaction has too many operations.
    #[error("{seen} operations in one transaction exceed the limit of {limit}")]
    TooManyOps {
        /// Operations given.
        seen: u64,
        /// Operations allowed.
        limit: u64,
    },
    /// No such lease.
    #[error("lease {id:x} not found")]
    LeaseNotFound {
        /// Asked for.
        id: LeaseId,
    },
    /// A lease of that id exists.
    #[error("lease {id:x} already exists")]
    LeaseExists {
        /// Asked for.
        id: LeaseId,
    },
    /// A time to live out of range.
    #[error("lease TTL of {seen} s is out of range: 1 to {limit} s")]
    LeaseTtlOutOfRange {
        /// Given.
        seen: i64,
        /// Largest allowed.
        limit: i64,
    },
    /// A client tried to write keys that Weft's own APIs write.
    #[error("keys under weft/ are written by Weft's own APIs only")]
    ReservedKey,
    /// More permits than the semaphore has.
    #[error("{seen} permits asked of semaphore {name}, which has {limit}")]
    PermitsOverLimit {
        /// Semaphore.
        name: String,
        /// Permits asked for.
        seen: u32,
        /// Permits there are.
        limit: u32,
    },
    /// A name that is empty or too long.
    #[error("name of {seen} bytes is out of range: 1 to {limit} bytes")]
    NameOutOfRange {
        /// Bytes given.
        seen: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// A fencing token that is not the present holder's.
    #[error("fencing token {seen} is stale; the current one is {current}")]
    StaleToken {
        /// Given.
        seen: Revision,
        /// Present holder's, 0 if there is none.
        current: Revision,
    },
    /// A write would bring a quota above its hard mark.
    #[error(
        "database space exceeded: keys with prefix {prefix:?} have {used_bytes} bytes, {needed_bytes} more \
         exceed the quota of {limit} bytes; delete some or raise the quota"
    )]
    SpaceExceeded {
        /// Of the quota.
        prefix: String,
        /// Bytes there before.
        used_bytes: u64,
        /// Bytes the command adds.
        needed_bytes: u64,
        /// The hard mark.
        limit: u64,
    },
    /// Marks that no quota can have.
    #[error(
        "quota of {soft_bytes} bytes soft and {hard_bytes} bytes hard: soft is at most hard, hard at least 1"
    )]
    QuotaMarks {
        /// Given.
        soft_bytes: u64,
        /// Given.
        hard_bytes: u64,
    },
    /// A queue or table is full.
    #[error("{what} is full: limit {limit}")]
    Full {
        /// What is full.
        what: String,
        /// Its limit.
        limit: u64,
    },
    /// The caller may not, or users and roles do not stand so that it could be done.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// A repeated request of which it is not known any more whether it was carried out.
    #[error(
        "too late to know whether this request was carried out: requests first sent before log index {known_from}, or with many later ones, are forgotten; read before you repeat it"
    )]
    TooLateToKnow {
        /// A request that was first sent when the log had reached this index is known for certain.
        known_from: u64,
    },
    /// A repeated request that was carried out, with an answer that was too large to keep.
    #[error(
        "this request was carried out already, at revision {revision}; its answer was too large to keep: read the keys"
    )]
    AnswerNotKept {
        /// The revision after it.
        revision: Revision,
    },
    /// Two requests under one name.
    #[error(
        "request {seq} of client {client:x} was another one: a client counts its requests up and never reuses a number"
    )]
    RequestReused {
        /// The client.
        client: u64,
        /// The request's number.
        seq: u64,
    },
    /// An envelope inside an envelope.
    #[error(
        "a command came in two envelopes; this is a fault of the server that proposed it, please report it"
    )]
    NestedEnvelope,
    /// The mesh's configuration is not what a change was checked against.
    #[error(
        "the mesh configuration is at revision {current}, the change was checked against {base}; try again"
    )]
    MeshConfigChanged {
        /// Checked against.
        base: Revision,
        /// Present one.
        current: Revision,
    },
}
