//! The whole state as bytes, for Raft snapshots: written and read piece by piece.
//!
//! ```text
//! magic 8 | format version u32 | chunk*
//! chunk: payload length u32 | crc32 of chunk number, length and payload u32 | payload
//! ```
//! Numbers of the framing are little-endian. The payloads of all chunks are one sequence of `postcard`
//! records that are never cut: head, quotas, leases, each key with its versions, users and roles, then each client
//! whose requests are remembered, all in order, then the end.
//! Equal states have equal images, byte for byte: compacted history that is still held in memory is left
//! out, and where chunks end depends on the records alone.
//!
//! An image is of one moment although commands go on while it is written ([`ImageWalk`]). What reads it
//! ([`ImageLoader`]) takes it as it comes, from a file or a connection, and holds one chunk at a time.

mod load;
mod walk;

use std::sync::Arc;

use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    auth::AuthState,
    command::{LeaseGrantNumber, LeaseId, Quota, Revision},
    requests::{Requests, RequestsHead},
};
pub use load::{ImageCheck, ImageLoader};
pub(crate) use walk::Pins;
pub use walk::{ImageWalk, WalkLost};

/// Newest format that this build reads, and the one that it writes.
pub const FORMAT_VERSION: u32 = 1;

/// Why bytes are not an image that this build can read. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The bytes end before the image does.
    #[error("state image is truncated after {seen} bytes")]
    Truncated {
        /// Bytes given.
        seen: u64,
    },
    /// There are bytes behind the image's end.
    #[error("state image has {extra} bytes behind its end")]
    TrailingBytes {
        /// How many too many, as far as they were given.
        extra: u64,
    },
    /// Not an image at all.
    #[error("not a weft state image: it begins with {seen:02x?}")]
    NotAnImage {
        /// What is there instead.
        seen: Vec<u8>,
    },
    /// Written by a newer build.
    #[error("state image has format version {seen}; this build reads up to {supported}: upgrade weft")]
    NewerVersion {
        /// The image's.
        seen: u32,
        /// Newest that can be read.
        supported: u32,
    },
    /// Bytes changed on their way.
    #[error("state image is damaged: the checksum of chunk {chunk} is {computed:08x}, {stored:08x} expected")]
    Checksum {
        /// Which chunk, from 0.
        chunk: u32,
        /// In the image.
        stored: u32,
        /// Of the bytes given.
        computed: u32,
    },
    /// The checksums are right and the content is not: a bug of the writer.
    #[error("state image is inconsistent: {what}")]
    Inconsistent {
        /// What does not fit.
        what: String,
    },
}

/// Where in the log an image stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogPosition {
    pub(crate) index: u64,
    pub(crate) term: u64,
}

/// What an image is made of, in this order. Variants and fields are only ever appended.
#[derive(Debug, Serialize, Deserialize)]
enum Record<'b> {
    /// First, once.
    Head(Head),
    /// By id.
    Lease { id: LeaseId, ttl_secs: i64, grant: LeaseGrantNumber },
    /// In key order; the versions of the key follow.
    #[serde(borrow)]
    Key(Raw<'b>),
    /// Of the last key, by `mod_revision`.
    Version(ImageVersion<'b>),
    /// Last, once.
    End { leases: u64, keys: u64, versions: u64, clients: u64 },
    /// Once: users and roles, and where the table of requests stands.
    Beside {
        #[serde(borrow)]
        auth: Raw<'b>,
        requests: RequestsHead,
    },
    /// By id: one client of the table of requests.
    Client(u64, #[serde(borrow)] Raw<'b>),
    /// Behind the head, by prefix.
    Quota {
        #[serde(borrow)]
        prefix: Raw<'b>,
        quota: Quota,
    },
    /// Behind its lease: what is left of it, if that was noted.
    Remaining { secs: i64 },
}

/// What the machine keeps beside the store. Cheap to clone: it is copied when it changes while an image of it is
/// written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Beside {
    pub(crate) auth: Arc<AuthState>,
    pub(crate) requests: Arc<Requests>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Head {
    revision: Revision,
    compacted: Revision,
    position: LogPosition,
    /// Of the store as it is after loading.
    hash: u64,
    last_grant: LeaseGrantNumber,
}

/// A version without its hash, which the reader computes anew and so checks.
#[derive(Debug, Serialize, Deserialize)]
struct ImageVersion<'b> {
    mod_revision: Revision,
    /// Position among the changes of `mod_revision`; 0 also if that is older than what is compacted.
    sub: u32,
    /// None is a tombstone.
    #[serde(borrow)]
    live: Option<ImageLive<'b>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ImageLive<'b> {
    create_revision: Revision,
    version: i64,
    lease: LeaseId,
    #[serde(borrow)]
    value: Raw<'b>,
}

/// Bytes that are written as a whole and read without a copy.
#[derive(Debug)]
struct Raw<'b>(&'b [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'b, 'b> Deserialize<'de> for Raw<'b> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&'b [u8]>::deserialize(deserializer).map(Raw)
    }
}

/// Appends whole slices, where `postcard`'s own vector flavour goes byte by byte.
struct Append<'i>(&'i mut Vec<u8>);

impl Flavor for Append<'_> {
    type Output = ();

    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Over all of a chunk, and its place: chunks that trade places are found.
fn checksum(number: u32, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&number.to_le_bytes());
    hasher.update(&(payload.len() as u32).to_le_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn inconsistent(what: &str) -> ImageError {
    ImageError::Inconsistent { what: what.to_owned() }
}

const MAGIC: [u8; 8] = *b"WEFTSTAT";

/// Magic and format version.
const HEADER_BYTES: usize = 12;

/// Length and checksum.
const CHUNK_HEADER_BYTES: usize = 8;

/// A chunk ends with the record that fills it to this, in bytes. Copying and checking it takes a few tens of
/// microseconds, for which commands wait.
const CHUNK_BYTES: usize = 64 * 1024;

/// Longest payload that is accepted, in bytes: the longest record is one key or one value, and commands are
/// bounded far below. Keeps a damaged length from allocating memory.
const PAYLOAD_BYTES_MAX: usize = 64 * 1024 * 1024;
