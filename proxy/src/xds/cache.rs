//! The last good state on disk, so that a proxy that restarts while no server lives still serves.
//!
//! ```text
//! "weftxds\0" · format version u32 · payload length u64 · CRC-32 of the payload u32 · payload      (little endian)
//! payload: clusters, endpoints, routes, each a length-delimited DeltaDiscoveryResponse
//! ```
//!
//! Written whole and atomically. A file that is damaged or of another format is reported and not used: the proxy
//! starts empty and learns everything anew.

use std::io::{self, Read};
use std::path::Path;

use prost::Message;
use prost::encoding::encode_varint;
use weft_core::fsio::write_atomic_private;
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};

use super::subscription::Exported;
use crate::courtesy;

/// Name of the file in the data folder.
pub const FILE_NAME: &str = "xds-cache";

const MAGIC: &[u8; 8] = b"weftxds\0";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;

/// Largest file that is read, in bytes: a thousand services of a thousand endpoints.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Why a cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The file system says so.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    /// It is not what was written.
    #[error("is damaged: {0}")]
    Damaged(String),
    /// Another release wrote it.
    #[error("has format {seen}, expected {FORMAT_VERSION}")]
    Format {
        /// The file's format.
        seen: u32,
    },
}

/// The file's bytes.
pub fn encode(saved: Exported) -> Vec<u8> {
    let mut payload = Vec::new();
    for resources in [saved.clusters, saved.endpoints, saved.routes] {
        encode_part(resources, &mut payload);
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend(MAGIC);
    bytes.extend(FORMAT_VERSION.to_le_bytes());
    bytes.extend((payload.len() as u64).to_le_bytes());
    bytes.extend(crc32fast::hash(&payload).to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// One after the other, as there may be megabytes: what follows in a message is merged with what came before.
fn encode_part(resources: Vec<Resource>, payload: &mut Vec<u8>) {
    let one = |resource| DeltaDiscoveryResponse { resources: vec![resource], ..Default::default() };
    let parts: Vec<DeltaDiscoveryResponse> = resources.into_iter().map(one).collect();
    let length: usize = parts.iter().map(Message::encoded_len).sum();
    encode_varint(length as u64, payload);
    for part in parts {
        courtesy::make_way();
        part.encode_raw(payload);
    }
}

/// What the bytes hold.
///
/// # Errors
/// If they are not what [`encode`] made.
pub fn decode(bytes: &[u8]) -> Result<Exported, CacheError> {
    let damaged = |what: String| CacheError::Damaged(what);
    let Some((header, payload)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(damaged(format!("{} bytes, at least {HEADER_BYTES} expected", bytes.len())));
    };
    let four = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    if &header[..8] != MAGIC {
        return Err(damaged("it does not start as a cache does".to_owned()));
    }
    if four(8) != FORMAT_VERSION {
        return Err(CacheError::Format { seen: four(8) });
    }
    let length = u64::from_le_bytes(header[12..20].try_into().expect("8 bytes"));
    if length != payload.len() as u64 {
        return Err(damaged(format!("{} bytes of content, {length} expected", payload.len())));
    }
    let (seen, expected) = (crc32fast::hash(payload), four(20));
    if seen != expected {
        return Err(damaged(format!("checksum {seen:08x}, {expected:08x} expected")));
    }
    let mut rest = payload;
    let mut part = || {
        DeltaDiscoveryResponse::decode_length_delimited(&mut rest)
            .map(|r| r.resources)
            .map_err(|e| CacheError::Damaged(e.to_string()))
    };
    Ok(Exported { clusters: part()?, endpoints: part()?, routes: part()? })
}

/// Reads the cache in a folder; none if there is none.
///
/// # Errors
/// If it cannot be read or used.
pub fn load(folder: &Path) -> Result<Option<Exported>, CacheError> {
    let file = match std::fs::File::open(folder.join(FILE_NAME)) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(CacheError::Damaged(format!("more than {FILE_BYTES_MAX} bytes")));
    }
    decode(&bytes).map(Some)
}

/// Replaces the cache in a folder.
///
/// # Errors
/// Those of the file system; the earlier cache is then still there.
pub fn store(folder: &Path, saved: Exported) -> io::Result<()> {
    write_atomic_private(&folder.join(FILE_NAME), &encode(saved))
}

#[cfg(test)]
mod tests {
    use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::Resource as WireResource;
    use weft_xds_proto::envoy_types::pb::google::protobuf::Any;

    use super::*;

    fn saved() -> Exported {
        let resource = |name: &str, bytes: usize| WireResource {
            name: name.to_owned(),
            version: "1".to_owned(),
            resource: Some(Any { type_url: "t".to_owned(), value: vec![7; bytes] }),
            ..WireResource::default()
        };
        Exported {
            clusters: vec![resource("a", 10), resource("b", 20)],
            endpoints: vec![resource("a", 30)],
            routes: vec![resource("a", 40)],
        }
    }

    #[test]
    fn what_was_stored_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        store(dir.path(), saved()).unwrap();
        store(dir.path(), Exported::default()).unwrap();
        store(dir.path(), saved()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), Some(saved()));
    }

    /// Also in place of one that an older release has left for everybody to read.
    #[test]
    fn the_file_is_for_its_own_user_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (path, temporary) = (dir.path().join(FILE_NAME), dir.path().join(format!("{FILE_NAME}.tmp")));
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        store(dir.path(), saved()).unwrap();
        assert_eq!(mode(), 0o600);
        for file in [&path, &temporary] {
            std::fs::write(file, b"old").unwrap();
            std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o666)).unwrap();
        }
        store(dir.path(), saved()).unwrap();
        assert_eq!(mode(), 0o600);
        assert_eq!(load(dir.path()).unwrap(), Some(saved()));
    }

    /// Each single flipped bit and each cut is noticed, wherever it is.
    #[test]
    fn damage_anywhere_is_noticed() {
        let good = encode(saved());
        for i in 0..good.len() {
            assert!(decode(&good[..i]).is_err(), "cut at {i}");
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[i] ^= 1 << bit;
                assert!(decode(&bad).is_err(), "bit {bit} of byte {i}");
            }
        }
        let mut longer = good;
        longer.push(0);
        assert!(decode(&longer).is_err());
    }

    #[test]
    fn a_cache_of_another_release_is_not_guessed_at() {
        let mut bytes = encode(saved());
        bytes[8] = 2;
        assert_eq!(decode(&bytes).unwrap_err().to_string(), "has format 2, expected 1");
    }

    #[test]
    fn an_empty_file_is_damaged_not_empty_state() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), b"").unwrap();
        let error = load(dir.path()).unwrap_err().to_string();
        assert_eq!(error, "is damaged: 0 bytes, at least 24 expected");
    }
}
