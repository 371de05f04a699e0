//! The whole state as bytes, for Raft snapshots.
//!
//! ```text
//! magic 8 | format version u32 | body length u64 | crc32 of version, length and body u32 | body
//! ```
//!
//! Numbers of the header are little-endian; the body is `postcard`: a head with counts, then leases, keys with their
//! versions, and changes, each in order. Equal states have equal images, byte for byte: compacted history
//! that is still held in memory is left out.

use std::collections::BTreeMap;

use bytes::Bytes;
use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    command::{LeaseGrantNumber, LeaseId, Revision},
    lease::LeaseTerms,
    store::{
        key_index::{KeyIndex, Version},
        mvcc::Store,
    },
};

/// Newest format that this build reads, and the one that it writes.
pub const FORMAT_VERSION: u32 = 1;

/// Why bytes are not an image that this build can read. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Fewer bytes than the image says it has.
    #[error("state image is truncated: {seen} bytes of {expected}")]
    Truncated {
        /// Bytes given.
        seen: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// More bytes than the image says it has.
    #[error("state image has {extra} bytes behind its end")]
    TrailingBytes {
        /// How many too many.
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
    #[error("state image is damaged: its checksum is {computed:08x}, {stored:08x} expected")]
    Checksum {
        /// In the image.
        stored: u32,
        /// Of the bytes given.
        computed: u32,
    },
    /// The checksum is right and the content is not: a bug of the writer.
    #[error("state image is inconsistent: {what}")]
    Inconsistent {
        /// What does not fit.
        what: String,
    },
}

/// Where in the log an image stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogPosition {
    pub(crate) index: u64,
    pub(crate) term: u64,
}

pub(crate) fn encode(store: &Store, position: LogPosition) -> Vec<u8> {
    // Room for most of it at once: growing by doubling would copy and fault in twice as much.
    let records = store.index.len() + store.leases.iter().len();
    let mut image = Vec::with_capacity(HEADER_BYTES + store.data_bytes as usize + 24 * records);
    image.resize(HEADER_BYTES, 0);
    let keys = || store.index.iter().filter(|(_, index)| index.retained(store.compacted).next().is_some());
    write(
        &mut image,
        &Head {
            revision: store.revision,
            compacted: store.compacted,
            applied_index: position.index,
            applied_term: position.term,
            hash: store.hash(),
            last_grant: store.leases.last_grant(),
            leases: store.leases.iter().len() as u64,
            keys: keys().count() as u64,
            changes: store.changes.len_between(store.compacted, store.revision) as u64,
        },
    );
    for (id, lease) in store.leases.iter() {
        write(&mut image, &(id, lease.ttl_secs, lease.grant));
    }
    let mut ordinals = BTreeMap::new();
    for (ordinal, (key, index)) in keys().enumerate() {
        ordinals.insert(&key[..], ordinal as u64);
        let versions = index.retained(store.compacted).map(ImageVersion::from).collect();
        write(&mut image, &ImageKey { key: key.clone(), versions });
    }
    let mut previous = 0;
    for change in store.changes.between(store.compacted, store.revision) {
        // A change that is not compacted made a version that is retained, so its key is among them.
        write(&mut image, &(change.revision - previous, ordinals[&change.key[..]]));
        previous = change.revision;
    }
    let body_bytes = (image.len() - HEADER_BYTES) as u64;
    image[..8].copy_from_slice(&MAGIC);
    image[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    image[12..20].copy_from_slice(&body_bytes.to_le_bytes());
    let checksum = checksum(&image);
    image[20..24].copy_from_slice(&checksum.to_le_bytes());
    image
}

pub(crate) fn decode(image: &[u8]) -> Result<(Store, LogPosition), ImageError> {
    let mut body = body(image)?;
    let head: Head = read(&mut body)?;
    let mut store = Store { revision: head.revision, compacted: head.compacted, ..Store::default() };
    let mut leases = Vec::new();
    for _ in 0..head.leases {
        let (id, ttl_secs, grant): (LeaseId, i64, LeaseGrantNumber) = read(&mut body)?;
        leases.push(LeaseTerms { id, ttl_secs, grant });
    }
    if !store.leases.load(head.last_grant, leases) {
        return Err(inconsistent("a lease with a grant that was never made"));
    }
    let mut keys: Vec<Bytes> = Vec::new();
    for _ in 0..head.keys {
        let ImageKey { key, versions } = read(&mut body)?;
        if keys.last().is_some_and(|last| *last >= key) {
            return Err(inconsistent("keys out of order"));
        }
        load_key(&mut store, &key, versions)?;
        keys.push(key);
    }
    let mut revision = 0;
    for _ in 0..head.changes {
        let (step, ordinal): (Revision, u64) = read(&mut body)?;
        revision += step;
        let key = usize::try_from(ordinal).ok().and_then(|ordinal| keys.get(ordinal));
        let key = key.filter(|_| step >= 0).ok_or_else(|| inconsistent("a change of no key"))?;
        if store.index.get(key).and_then(|index| index.made_by(revision)).is_none() {
            return Err(inconsistent("a change without its version"));
        }
        store.changes.push(revision, key.clone());
    }
    if !body.is_empty() {
        return Err(inconsistent("more content than announced"));
    }
    if store.hash() != head.hash {
        return Err(inconsistent("the content's hash differs from the one written with it"));
    }
    Ok((store, LogPosition { index: head.applied_index, term: head.applied_term }))
}

/// Counts and positions; what follows it is as many leases, keys and changes.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    revision: Revision,
    compacted: Revision,
    applied_index: u64,
    applied_term: u64,
    hash: u64,
    last_grant: LeaseGrantNumber,
    leases: u64,
    keys: u64,
    changes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct ImageKey {
    key: Bytes,
    versions: Vec<ImageVersion>,
}

/// A [`Version`] without its hash, which the reader computes anew and so checks.
#[derive(Debug, Serialize, Deserialize)]
struct ImageVersion {
    mod_revision: Revision,
    create_revision: Revision,
    version: i64,
    lease: LeaseId,
    value: Option<Bytes>,
}

impl From<&Version> for ImageVersion {
    fn from(version: &Version) -> Self {
        Self {
            mod_revision: version.mod_revision,
            create_revision: version.create_revision,
            version: version.version,
            lease: version.lease,
            value: version.value.clone(),
        }
    }
}

impl ImageVersion {
    fn into_version(self, key: &[u8]) -> Version {
        match self.value {
            None => Version::tombstone(self.mod_revision),
            Some(value) => {
                Version::live(key, value, self.lease, (self.create_revision, self.version), self.mod_revision)
            }
        }
    }
}

fn load_key(store: &mut Store, key: &Bytes, versions: Vec<ImageVersion>) -> Result<(), ImageError> {
    let mut index: Option<Box<KeyIndex>> = None;
    let mut last = 0;
    for version in versions {
        if version.mod_revision <= last || version.mod_revision > store.revision {
            return Err(inconsistent("versions out of order"));
        }
        last = version.mod_revision;
        let version = version.into_version(key);
        store.data_bytes += version.value_bytes();
        match &mut index {
            None => index = Some(Box::new(KeyIndex::new(version))),
            Some(index) => index.push(version),
        }
    }
    let index = index.ok_or_else(|| inconsistent("a key without versions"))?;
    store.data_bytes += key.len() as u64;
    store.past_bytes += index.older_bytes();
    if let Some(current) = index.current() {
        store.live += 1;
        store.digest = store.digest.wrapping_add(current.digest);
        if current.lease != 0 && !store.leases.contains(current.lease) {
            return Err(inconsistent("a key of a lease that does not exist"));
        }
        store.leases.attach(current.lease, key.clone());
    }
    store.index.insert(key.clone(), index);
    Ok(())
}

/// The body, if all of it is there and unchanged.
fn body(image: &[u8]) -> Result<&[u8], ImageError> {
    let seen = image.len() as u64;
    if !image.starts_with(&MAGIC[..image.len().min(8)]) {
        return Err(ImageError::NotAnImage { seen: image[..image.len().min(8)].to_vec() });
    }
    if image.len() < HEADER_BYTES {
        return Err(ImageError::Truncated { seen, expected: HEADER_BYTES as u64 });
    }
    let field = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().expect("4 bytes"));
    let version = field(8);
    if version > FORMAT_VERSION {
        return Err(ImageError::NewerVersion { seen: version, supported: FORMAT_VERSION });
    }
    let body_bytes = u64::from_le_bytes(image[12..20].try_into().expect("8 bytes"));
    let expected = body_bytes.saturating_add(HEADER_BYTES as u64);
    if seen < expected {
        return Err(ImageError::Truncated { seen, expected });
    }
    if seen > expected {
        return Err(ImageError::TrailingBytes { extra: seen - expected });
    }
    let (stored, computed) = (field(20), checksum(image));
    if stored != computed {
        return Err(ImageError::Checksum { stored, computed });
    }
    Ok(&image[HEADER_BYTES..])
}

/// Over everything but the magic and the checksum itself.
fn checksum(image: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&image[8..20]);
    hasher.update(&image[HEADER_BYTES..]);
    hasher.finalize()
}

fn write(image: &mut Vec<u8>, record: &impl Serialize) {
    postcard::serialize_with_flavor(record, Append(image))
        .expect("a vector takes any record of plain fields");
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

fn read<T: DeserializeOwned>(body: &mut &[u8]) -> Result<T, ImageError> {
    let (record, rest) = postcard::take_from_bytes(body)
        .map_err(|error| inconsistent(&format!("unreadable record: {error}")))?;
    *body = rest;
    Ok(record)
}

fn inconsistent(what: &str) -> ImageError {
    ImageError::Inconsistent { what: what.to_owned() }
}

const MAGIC: [u8; 8] = *b"WEFTSTAT";
const HEADER_BYTES: usize = 24;
