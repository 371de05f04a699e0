//! Snapshot files: `DATA/snapshots/INDEX-TERM.snap`, written whole or not at all.
//!
//! ```text
//! [magic 8][version u32][head length u32][image length u64][head crc u32][image crc u32] head image
//! ```
//! The head says what the snapshot covers and who is in the group; the image is the machine's.

use std::{
    io,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    codec::{self, SnapshotHead},
    error::StartError,
    types::SnapshotMeta,
};

const MAGIC: [u8; 8] = *b"WEFTSNAP";
const VERSION: u32 = 1;
const PREFIX_BYTES: usize = 32;

/// The image that openraft hands around: the machine's bytes, shared.
#[derive(Debug, Clone)]
pub struct SnapshotData {
    /// As [`weft_state::machine::Machine::image`] gave them.
    pub image: Bytes,
}

/// What a snapshot file held: what it covers, and the image.
pub type Found = (SnapshotMeta, Bytes);

/// The folder.
#[derive(Debug, Clone)]
pub struct SnapshotFolder {
    path: PathBuf,
}

impl SnapshotFolder {
    /// Opens it; makes it if it is absent. Removes what a crash left half-written.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&path)?;
        let folder = Self { path };
        folder.files("tmp")?.into_iter().try_for_each(|file| remove(&file))?;
        Ok(folder)
    }

    /// Writes a snapshot, then removes older ones. A newer one may have come from the leader while this one
    /// was being written; it stays. Blocks.
    pub fn write(&self, meta: &SnapshotMeta, image: &[u8]) -> io::Result<PathBuf> {
        let last = meta.last_log_id.as_ref();
        let (index, term) = last.map_or((0, 0), |id| (id.index(), id.committed_leader_id().term));
        let path = self.path.join(format!("{index:020}-{term}.snap"));
        weft_core::fsio::write_atomic(&path, &encode(meta, image))?;
        for other in self.files("snap")? {
            if other < path {
                remove(&other)?;
            }
        }
        Ok(path)
    }

    /// The newest snapshot that reads back whole, and why newer ones do not. Blocks.
    pub fn newest(&self) -> io::Result<(Option<Found>, Vec<StartError>)> {
        let mut files = self.files("snap")?;
        files.sort();
        let mut bad = Vec::new();
        for path in files.into_iter().rev() {
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => Bytes::from(bytes),
                // A newer one has just replaced it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return self.newest(),
                Err(error) => return Err(error),
            };
            match decode(&bytes) {
                Ok(found) => return Ok((Some(found), bad)),
                Err(reason) => bad.push(StartError::Snapshot { path, reason }),
            }
        }
        Ok((None, bad))
    }

    fn files(&self, extension: &str) -> io::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == extension) {
                files.push(path);
            }
        }
        Ok(files)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Two snapshots may be written at the same time, one made here and one from the leader, and both remove
/// the older ones.
fn remove(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn encode(meta: &SnapshotMeta, image: &[u8]) -> Vec<u8> {
    let head = codec::encode(&SnapshotHead::from(meta));
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + head.len() + image.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(image.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&head).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(image).to_le_bytes());
    bytes.extend_from_slice(&head);
    bytes.extend_from_slice(image);
    bytes
}

fn decode(bytes: &Bytes) -> Result<(SnapshotMeta, Bytes), String> {
    let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    if bytes.len() < PREFIX_BYTES || bytes[..8] != MAGIC {
        return Err("is not a snapshot".to_owned());
    }
    let version = u32_at(8);
    if version != VERSION {
        return Err(format!("has format version {version}, this program reads version {VERSION}"));
    }
    let head_bytes = u32_at(12) as usize;
    let image_bytes = u64::from_le_bytes(bytes[16..24].try_into().expect("8 bytes")) as usize;
    let expected = PREFIX_BYTES.saturating_add(head_bytes).saturating_add(image_bytes);
    if bytes.len() != expected {
        return Err(format!("has {} bytes, expected {expected}", bytes.len()));
    }
    let head = bytes.slice(PREFIX_BYTES..PREFIX_BYTES + head_bytes);
    let image = bytes.slice(PREFIX_BYTES + head_bytes..);
    if crc32fast::hash(&head) != u32_at(24) || crc32fast::hash(&image) != u32_at(28) {
        return Err("is damaged: its checksum does not match".to_owned());
    }
    let head: SnapshotHead = codec::decode("snapshot head", &head).map_err(|e| e.to_string())?;
    let meta = SnapshotMeta::try_from(head).map_err(|e| e.to_string())?;
    Ok((meta, image))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::log_id;

    fn meta(index: u64) -> SnapshotMeta {
        SnapshotMeta { last_log_id: Some(log_id(2, index)), last_membership: Default::default() }
    }

    #[test]
    fn the_newest_whole_snapshot_is_found_and_a_damaged_one_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let snapshots = SnapshotFolder::open(folder.path().join("snapshots")).expect("opens");
        assert!(snapshots.newest().expect("reads").0.is_none());
        let first = snapshots.write(&meta(5), b"five").expect("writes");
        let five = std::fs::read(&first).expect("reads");
        let second = snapshots.write(&meta(12), b"twelve").expect("writes");
        assert!(!first.exists(), "older ones are removed");
        let (found, bad) = snapshots.newest().expect("reads");
        let (found_meta, image) = found.expect("is there");
        assert_eq!((found_meta, &image[..]), (meta(12), &b"twelve"[..]));
        assert!(bad.is_empty());

        std::fs::write(&first, five).expect("writes");
        let mut damaged = std::fs::read(&second).expect("reads");
        *damaged.last_mut().expect("not empty") ^= 1;
        std::fs::write(&second, damaged).expect("writes");
        let (found, bad) = snapshots.newest().expect("reads");
        assert_eq!(found.expect("the older one").0, meta(5));
        assert_eq!(bad.len(), 1);
    }

    #[test]
    fn two_snapshots_may_be_written_at_the_same_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let snapshots = SnapshotFolder::open(folder.path().join("snapshots")).expect("opens");
        std::thread::scope(|scope| {
            for first in [0, 1] {
                let snapshots = &snapshots;
                scope.spawn(move || {
                    for round in 0..200 {
                        snapshots.write(&meta(2 * round + first), b"image").expect("writes");
                    }
                });
            }
        });
        assert_eq!(snapshots.newest().expect("reads").0.expect("is there").0, meta(399));
    }

    #[test]
    fn what_a_crash_left_half_written_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("snapshots");
        SnapshotFolder::open(path.clone()).expect("opens").write(&meta(3), b"image").expect("writes");
        std::fs::write(path.join("00000000000000000007-2.snap.tmp"), b"half").expect("writes");
        let snapshots = SnapshotFolder::open(path.clone()).expect("opens");
        assert_eq!(std::fs::read_dir(&path).expect("reads").count(), 1);
        assert_eq!(snapshots.newest().expect("reads").0.expect("is there").0, meta(3));
    }
}
