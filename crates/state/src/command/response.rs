//! What applying a command answers.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Event, KeyValue, LeaseId, Revision};
use crate::error::StoreError;

/// What applying one command produced. Not stored; each replica computes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The revision after the command; of a repeated one, when it was carried out.
    pub revision: Revision,
    /// The answer, or why nothing was changed.
    pub response: Result<Response, StoreError>,
    /// What changed, ordered by revision. Empty if nothing did.
    pub events: Vec<Event>,
}

/// The answer to a command that was carried out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// To `Put`.
    Put {
        /// If asked for and present.
        prev_kv: Option<KeyValue>,
    },
    /// To `DeleteRange`.
    DeleteRange {
        /// Keys removed.
        deleted: i64,
        /// If asked for.
        prev_kvs: Vec<KeyValue>,
    },
    /// To `Txn`.
    Txn(TxnResponse),
    /// To `Compact`.
    Compact,
    /// To `LeaseGrant` .
    LeaseGrant {
        /// Granted id.
        id: LeaseId,
        /// Granted time to live.
        ttl_secs: i64,
    },
    /// To `LeaseRevoke`.
    LeaseRevoke,
    /// To `LeaseExpire`: how many were in fact expired.
    LeaseExpire {
        /// Leases ended.
        expired: u64,
    },
    /// To `Acquire`.
    Acquire(Acquired),
    /// To `Release`.
    Release {
        /// False: it was neither held nor waiting.
        released: bool,
    },
    /// To `Campaign`.
    Campaign(Acquired),
    /// To `Proclaim`.
    Proclaim,
    /// To `Resign`.
    Resign {
        /// False: it neither led nor waited.
        resigned: bool,
    },
    /// To `Register`.
    Register {
        /// The lease that heartbeats renew: the given one, or the instance's earlier one.
        lease: LeaseId,
    },
    /// To `Deregister`.
    Deregister {
        /// The lease that ended with the instance; none: there was no such instance.
        lease: Option<LeaseId>,
    },
    /// To `SetLoadBalancing`.
    SetLoadBalancing,
    /// To `Noop`.
    Noop,
    /// To `Auth`.
    Auth,
    /// To `SetQuota`.
    SetQuota,
    /// To `SetMeshConfig`.
    SetMeshConfig,
    /// To `LeaseCheckpoint`: how many were in fact noted.
    LeaseCheckpoint {
        /// Leases.
        noted: u64,
    },
}

/// Where an acquire or a campaign stands right after it was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Acquired {
    /// Owned now.
    Granted(Grant),
    /// In the queue. The grant shows itself as a put of `key`; the end of the wait by a lost session as
    /// a delete of `waiter_key`.
    Queued {
        /// The key that will stand for the grant.
        key: Bytes,
        /// The key that stands for the place in the queue.
        waiter_key: Bytes,
        /// 0 is the head.
        position: u64,
    },
    /// `try_only`, and it would have had to wait.
    Refused,
}

/// Proof of ownership while the session lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Fencing token: create revision of `key`, strictly larger than that of every earlier grant.
    pub fence: Revision,
    /// Owning session.
    pub lease: LeaseId,
    /// The key that stands for it.
    pub key: Bytes,
}

/// Answer to a transaction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TxnResponse {
    /// Whether all compares held.
    pub succeeded: bool,
    /// One per operation that ran.
    pub responses: Vec<TxnOpResponse>,
}

/// Answer to one operation of a transaction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum TxnOpResponse {
    Range(RangeResponse),
    Put { prev_kv: Option<KeyValue> },
    DeleteRange { deleted: i64, prev_kvs: Vec<KeyValue> },
    Txn(TxnResponse),
}

/// Answer to a range.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RangeResponse {
    /// At most `limit`, sorted as asked.
    pub kvs: Vec<KeyValue>,
    /// More than `limit` matched.
    pub more: bool,
    /// How many keys are in the range, whatever the limit.
    pub count: i64,
}
