//! Keys and values: etcd's requests, and what is stored.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{LeaseId, Revision};

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

impl TxnOp {
    /// See [`super::Command::needs_space`].
    pub(super) fn needs_space(&self) -> bool {
        match self {
            TxnOp::Put(_) => true,
            TxnOp::Txn(txn) => txn.success.iter().chain(&txn.failure).any(TxnOp::needs_space),
            _ => false,
        }
    }
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
