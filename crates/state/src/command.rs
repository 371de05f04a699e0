//! What enters the replicated log, and what applying it answers.
//!
//! A [`Command`] is complete in itself: ids, deadlines and choices are made before it is proposed, so
//! that `apply` needs no clock, randomness or configuration. Commands are stored on disk and sent to
//! peers in `postcard` encoding, so variants and fields are only ever appended.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    auth::{AuthChange, Caller},
    error::StoreError,
    requests::RequestId,
};

/// A store revision: the number of committed changes so far. Starts at 1; each write adds one.
pub type Revision = i64;

/// A lease id as etcd clients see it. 0 means "no lease".
pub type LeaseId = i64;

/// Which granting of a lease: every grant and every new time to live takes the next number, so that a
/// lease is not confused with an earlier one of the same id.
pub type LeaseGrantNumber = u64;

/// One change to the replicated state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Store one key.
    Put(Put),
    /// Delete a key or a range of keys.
    DeleteRange(DeleteRange),
    /// Compare, then one of two lists of operations, in one revision.
    Txn(Txn),
    /// Forget history up to and including this revision.
    Compact {
        /// Refused with `Compacted` below what is compacted already and with `FutureRevision` above
        /// the current revision.
        revision: Revision,
    },
    /// Create a lease. The id was chosen by the proposer and is not 0.
    LeaseGrant {
        /// The lease's id; refused with `LeaseExists` if taken.
        id: LeaseId,
        /// Time to live in seconds, from 1 to [`crate::lease::TTL_SECS_MAX`].
        ttl_secs: i64,
    },
    /// End a lease at its owner's wish and delete its keys, in one revision.
    LeaseRevoke {
        /// The lease to end; `LeaseNotFound` if unknown.
        id: LeaseId,
    },
    /// End leases that the leader saw expire. A no-op for each lease for which the condition no longer
    /// holds, so that a deposed leader cannot expire anything (etcd #15247).
    LeaseExpire {
        /// The term in which the leader saw them expire; must be the term of this log entry.
        term: u64,
        /// The leases, each with the grant whose time was up. One that was granted again since, or given
        /// a new time to live, stays.
        leases: Vec<(LeaseId, LeaseGrantNumber)>,
    },
    /// Take permits of a semaphore or join its queue. A lock is a semaphore with limit 1.
    Acquire(Acquire),
    /// Give permits back, or leave the queue.
    Release(Release),
    /// Become leader or join the queue of candidates.
    Campaign(Campaign),
    /// Replace the leader's value.
    Proclaim(Proclaim),
    /// Give up leadership or candidacy.
    Resign(Resign),
    /// Register a service instance together with its lease (registry API).
    Register(Register),
    /// Remove a registered instance and its lease.
    Deregister {
        /// Service name.
        service: String,
        /// Instance id, as registered.
        instance_id: String,
    },
    /// Set how proxies balance over a service (round-robin, random, least-connections).
    SetLoadBalancing {
        /// Service name.
        service: String,
        /// Policy name; validated by the proposer.
        policy: String,
    },
    /// Nothing; a new leader's first entry and a read barrier.
    Noop,
    /// Change users, roles or permissions.
    Auth(AuthChange),
    /// A command with who asks for it, or with a name by which a repetition is recognised. One without
    /// both travels bare.
    Enclosed(Box<Envelope>),
    /// Bound what clients may store under a prefix.
    SetQuota {
        /// What keys begin with; empty is all keys but Weft's own.
        prefix: Bytes,
        /// None takes the quota away.
        quota: Option<Quota>,
    },
    /// Change documents of the mesh's configuration.
    SetMeshConfig(SetMeshConfig),
    /// Note how much time leases have left, so that a new leader does not give them all of it again (P04). A no-op
    /// for each lease that was granted again since.
    LeaseCheckpoint {
        /// The term in which the leader saw it; must be the term of this log entry.
        term: u64,
        /// The leases.
        leases: Vec<LeaseCheckpoint>,
    },
    /// Begin a new life of the same keys, in which no revision of the former one comes again; see
    /// [`crate::machine::Machine::begin_epoch`]. Written to its log by a survivor of a lost quorum that goes on alone,
    /// and by nobody else.
    BeginEpoch {
        /// How far to move the revision on; refused with `FutureRevision` if it is not positive or out of range.
        revisions: Revision,
    },
}

/// How much time a lease has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseCheckpoint {
    /// The lease.
    pub id: LeaseId,
    /// The grant whose time it is.
    pub grant: LeaseGrantNumber,
    /// Seconds, from 1 to its time to live; none: all of it, as it was renewed.
    pub remaining_secs: Option<i64>,
}

/// What is known about a command beside what it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    /// Who asks.
    pub caller: Caller,
    /// Carried out once under this name, and answered again when it is repeated.
    pub request: Option<RequestId>,
    /// What to do; not an envelope itself.
    pub command: Command,
}

/// How many bytes of keys and values may exist under a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Above it, operators are told. At most the hard mark.
    pub soft_bytes: u64,
    /// Above it, writes that need more are refused with `SpaceExceeded`; at least 1.
    pub hard_bytes: u64,
}

/// Changes of the mesh's configuration, all or none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetMeshConfig {
    /// The generation that the changes were checked against; refused with `MeshConfigChanged` if it is not the
    /// present one.
    pub base: Revision,
    /// Each document at most once.
    pub changes: Vec<MeshConfigChange>,
}

/// A change of one document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeshConfigChange {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// What it says now; none: it goes.
    pub document: Option<Bytes>,
}

impl Command {
    /// This command for that caller, and recognisable by that name.
    pub fn enclosed(self, caller: Caller, request: Option<RequestId>) -> Self {
        if caller == Caller::Anonymous && request.is_none() {
            return self;
        }
        Self::Enclosed(Box::new(Envelope { caller, request, command: self }))
    }

    /// What it does, out of its envelope.
    pub fn bare(&self) -> &Self {
        match self {
            Self::Enclosed(envelope) => &envelope.command,
            bare => bare,
        }
    }

    /// Whether proposing it again cannot have it carried out again.
    pub fn is_repeatable(&self) -> bool {
        matches!(self, Self::Enclosed(envelope) if envelope.request.is_some())
    }

    /// Whether it may make the state larger. What does not is let through where space is short: deleting and
    /// compacting are how space comes back, and ends of leases must not wait.
    pub fn needs_space(&self) -> bool {
        match self.bare() {
            Command::DeleteRange(_)
            | Command::Compact { .. }
            | Command::LeaseRevoke { .. }
            | Command::LeaseExpire { .. }
            | Command::Release(_)
            | Command::Resign(_)
            | Command::Deregister { .. }
            | Command::BeginEpoch { .. }
            | Command::Noop => false,
            // A renewal must not wait; to note the time that is left can.
            Command::LeaseCheckpoint { leases, .. } => {
                leases.iter().any(|lease| lease.remaining_secs.is_some())
            }
            Command::Txn(txn) => txn.success.iter().chain(&txn.failure).any(TxnOp::needs_space),
            _ => true,
        }
    }
}

impl TxnOp {
    fn needs_space(&self) -> bool {
        match self {
            TxnOp::Put(_) => true,
            TxnOp::Txn(txn) => txn.success.iter().chain(&txn.failure).any(TxnOp::needs_space),
            _ => false,
        }
    }
}

/// etcd's `PutRequest`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Put {
    /// 1 byte or more.
    pub key: Bytes,
    /// Any bytes.
    pub value: Bytes,
    /// 0: not attached.
    pub lease: LeaseId,
    /// Answer the previous key-value.
    pub prev_kv: bool,
    /// Keep the present value; refused with `KeyNotFound` if there is none.
    pub ignore_value: bool,
    /// Keep the present lease; refused with `KeyNotFound` if the key does not exist.
    pub ignore_lease: bool,
}

/// etcd's `DeleteRangeRequest`. `[key, range_end)` with etcd's conventions: an empty `range_end` means
/// the single key, `"\0"` means everything from `key` on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DeleteRange {
    /// First key.
    pub key: Bytes,
    /// End of the range, exclusive.
    pub range_end: Bytes,
    /// Answer the deleted key-values.
    pub prev_kv: bool,
}

/// etcd's `RangeRequest`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Range {
    /// First key.
    pub key: Bytes,
    /// End of the range, exclusive; etcd's conventions.
    pub range_end: Bytes,
    /// Most key-values to answer; 0 is no limit.
    pub limit: i64,
    /// Read as of this revision; 0 or less is the current one.
    pub revision: Revision,
    /// None keeps key order.
    pub sort: Option<(SortTarget, SortOrder)>,
    /// Leave values out.
    pub keys_only: bool,
    /// Answer only how many match.
    pub count_only: bool,
    /// Bounds on revisions, inclusive; 0 is no bound.
    pub min_mod_revision: Revision,
    /// See `min_mod_revision`.
    pub max_mod_revision: Revision,
    /// See `min_mod_revision`.
    pub min_create_revision: Revision,
    /// See `min_mod_revision`.
    pub max_create_revision: Revision,
}

/// Direction of a sorted range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SortOrder {
    /// Smallest first.
    Ascend,
    /// Largest first.
    Descend,
}

/// What a range is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum SortTarget {
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// etcd's `TxnRequest`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Txn {
    /// All must hold for `success` to run; else `failure` runs.
    pub compare: Vec<Compare>,
    /// Run in order; later ones see what earlier ones wrote.
    pub success: Vec<TxnOp>,
    /// Run in order if a compare did not hold.
    pub failure: Vec<TxnOp>,
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum TxnOp {
    Range(Range),
    Put(Put),
    DeleteRange(DeleteRange),
    Txn(Txn),
}

/// One condition of a transaction, over a key or (with `range_end`) over each key of a range.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compare {
    /// The key.
    pub key: Bytes,
    /// End of the range, exclusive; empty for a single key.
    pub range_end: Bytes,
    /// How the stored property relates to the given one.
    pub op: CompareOp,
    /// The property and what it is compared with. A missing key has zeros, and fails any value compare.
    pub target: CompareTarget,
}

/// `stored <op> given`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum CompareOp {
    Equal,
    NotEqual,
    Greater,
    Less,
}

/// The property compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum CompareTarget {
    Version(i64),
    CreateRevision(Revision),
    ModRevision(Revision),
    Value(Bytes),
    Lease(LeaseId),
}

/// Take `permits` of semaphore `name` for a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Acquire {
    /// 1 to 256 bytes.
    pub name: String,
    /// The owning session; `LeaseNotFound` if it does not exist.
    pub lease: LeaseId,
    /// At least 1; refused with `PermitsOverLimit` if above the limit.
    pub permits: u32,
    /// 0 keeps the present limit (1 for a new semaphore); another value sets it.
    pub limit: u32,
    /// With `lease`, identifies the request: repeating it is idempotent.
    pub request_id: u64,
    /// Do not queue: answer `Acquired::Refused` when it would have to wait.
    pub try_only: bool,
    /// Tells the calls of one request apart: random for each call, the same when one call proposes again.
    /// The newest call takes over what the request has, with its place and its fencing token.
    pub attempt: u64,
}

/// Undo an [`Acquire`], granted or waiting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// Semaphore.
    pub name: String,
    /// Session.
    pub lease: LeaseId,
    /// As in the acquire.
    pub request_id: u64,
    /// Only what this call has: a no-op if a newer one took over. None gives back in any case.
    pub attempt: Option<u64>,
}

/// Stand for election `name`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Campaign {
    /// 1 to 256 bytes.
    pub name: String,
    /// The candidate's session. Repeating a campaign with the same session is idempotent.
    pub lease: LeaseId,
    /// The value that observers see while this session leads.
    pub value: Bytes,
    /// As in [`Acquire::attempt`].
    pub attempt: u64,
}

/// Replace the leader's value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proclaim {
    /// Election.
    pub name: String,
    /// The leader's session.
    pub lease: LeaseId,
    /// The leader's fencing token; `StaleToken` if it is not the present one.
    pub fence: i64,
    /// New value.
    pub value: Bytes,
}

/// Give up leadership or candidacy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resign {
    /// Election.
    pub name: String,
    /// Session.
    pub lease: LeaseId,
    /// As in [`Release::attempt`].
    pub attempt: Option<u64>,
}

/// Register a service instance. Registering the same instance again replaces it and keeps its lease.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Register {
    /// The record, stored as JSON under `weft/registry/SERVICE/INSTANCE_ID`.
    pub instance: RegisteredInstance,
    /// Lease id to use if the instance is new; chosen by the proposer, not 0.
    pub lease: LeaseId,
    /// Seconds without a heartbeat after which the instance is removed.
    pub ttl_secs: i64,
}

/// A service instance in the registry (the CP half of the catalogue).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredInstance {
    /// Service name: a DNS label.
    pub service: String,
    /// Unique within the service.
    pub instance_id: String,
    /// IP address or host name.
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
    /// Free-form labels, such as `version` and `region`.
    pub metadata: std::collections::BTreeMap<String, String>,
    /// Path for active HTTP checks by proxies; none: TCP connect.
    pub health_path: Option<String>,
    /// Seconds without a heartbeat after which it is removed.
    pub ttl_secs: i64,
}

/// A stored key with its value, as etcd's `KeyValue`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct KeyValue {
    pub key: Bytes,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    /// Puts since the key was created; 1 for the first.
    pub version: i64,
    pub lease: LeaseId,
}

/// One change of one key, as watchers see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Put or delete.
    pub kind: EventKind,
    /// After the change. A delete carries only key and mod_revision.
    pub kv: KeyValue,
    /// Before the change; none on creation.
    pub prev_kv: Option<KeyValue>,
}

/// Put or delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum EventKind {
    Put,
    Delete,
}

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
