//! The MVCC key-value store: etcd's data model in memory.
//!
//! One ordered map (`key_map`) leads from a key to all its versions (`key_index`); one log leads from a revision
//! to the keys it changed (`revision`). Everything else is a walk over one of the two: reads (`range`) over
//! the first, watch history (`history`) over whichever is shorter. Keys and small values are held in as few
//! bytes as they have and copied for each reader (`key`, `value`); larger values are shared.
//!
//! Writes go through `mvcc::Writer`, which stands for one main revision: it either becomes the current
//! revision whole or is undone whole. The store knows no clock, so leases are only names with keys here.

pub(crate) mod compaction;
pub(crate) mod digest;
pub(crate) mod history;
pub mod image;
pub(crate) mod key;
pub(crate) mod key_index;
pub(crate) mod key_map;
pub(crate) mod mvcc;
pub(crate) mod quota;
pub(crate) mod range;
pub(crate) mod revision;
pub(crate) mod txn;
pub(crate) mod value;

pub(crate) use history::{HistoryChunk, HistoryQuery, event_bytes};
pub(crate) use mvcc::Store;
pub(crate) use range::KeyRange;

/// All keys that Weft's own APIs write start with this. Clients can read them and cannot write them.
pub const RESERVED_PREFIX: &[u8] = b"weft/";

/// Longest key, in bytes. etcd bounds only the whole request (1.5 MiB); a key takes part in every
/// comparison on its path, so it gets a bound of its own.
pub const KEY_BYTES_MAX: usize = 1 << 20;

/// Most compares, most `success` and most `failure` operations of a transaction, nested ones counted at
/// each level; etcd's default.
pub const TXN_OPS_MAX: usize = 128;
