//! What enters the replicated log, and what applying it answers.
//!
//! A [`Command`] is complete in itself: ids, deadlines and choices are made before it is proposed, so
//! that `apply` needs no clock, randomness or configuration. Commands are stored on disk and sent to
//! peers in `postcard` encoding, so variants and fields are only ever appended.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    auth::{AuthChange, Caller},
    requests::RequestId,
};

mod kv;
mod response;

pub use kv::{
    Compare, CompareOp, CompareTarget, DeleteRange, Event, EventKind, KeyValue, Put, Range, SortOrder,
    SortTarget, Txn, TxnOp,
};
pub use response::{Acquired, Applied, Grant, RangeResponse, Response, TxnOpResponse, TxnResponse};

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
