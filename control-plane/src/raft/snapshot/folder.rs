//! The folder of snapshots.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use parking_lot::Mutex;
use weft_state::machine::Machine;

use super::{
    super::{codec::SnapshotOffer, error::StartError, types::SnapshotMeta},
    file::{SnapshotFile, SnapshotWriter},
    incoming::{Incoming, Partial},
};

/// What was found, and why newer snapshots were passed over.
pub type Newest<T> = (Option<T>, Vec<StartError>);

/// The folder. Clones share it.
#[derive(Debug, Clone)]
pub struct SnapshotFolder {
    path: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// The newest that was found to be whole, so that it is not checked anew for each follower.
    newest: Mutex<Option<SnapshotFile>>,
    /// What came of a snapshot from a leader whose connection broke. At most one.
    incoming: Mutex<Option<Partial>>,
    /// Numbers temporary files.
    temps: AtomicU64,
}

impl SnapshotFolder {
    /// Opens it; makes it if it is absent. Removes what a crash left half-written.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        std::fs::create_dir_all(&path)?;
        let folder = Self { path, shared: Arc::default() };
        folder.files("tmp")?.into_iter().try_for_each(|file| remove(&file))?;
        Ok(folder)
    }

    /// The folder.
    #[cfg(test)]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Begins to write a snapshot.
    pub fn create(&self, meta: &SnapshotMeta) -> io::Result<SnapshotWriter> {
        SnapshotWriter::create(self.clone(), self.temp(), meta)
    }

    /// Begins to receive a snapshot, or goes on with one whose connection broke at this offset.
    ///
    /// # Errors
    /// The inner one says what is wrong with the offset.
    pub fn receive(&self, offer: &SnapshotOffer, offset: u64) -> io::Result<Result<Incoming, String>> {
        let mut slot = self.shared.incoming.lock();
        let received = slot.as_ref().filter(|partial| partial.offer == *offer).map_or(0, |p| p.received);
        let partial = match slot.take_if(|_| received > 0 && received == offset) {
            Some(partial) => partial,
            None if offset == 0 => Partial::create(self.temp(), offer.clone())?,
            None => {
                return Ok(Err(format!("snapshot chunk at {offset} where {received} bytes are there")));
            }
        };
        Ok(Ok(Incoming::new(self.clone(), partial)))
    }

    /// How much of an offered snapshot is here already.
    pub fn received(&self, offer: &SnapshotOffer) -> u64 {
        let slot = self.shared.incoming.lock();
        slot.as_ref().filter(|partial| partial.offer == *offer).map_or(0, |partial| partial.received)
    }

    /// Keeps what came so far, for when the sender is back.
    pub(super) fn set_aside(&self, partial: Partial) {
        *self.shared.incoming.lock() = Some(partial);
    }

    /// Makes a written or received snapshot one of the folder's, durably, then removes older ones. A newer one
    /// may have come from the leader while this one was being written; it stays.
    pub fn keep(&self, snapshot: &SnapshotFile) -> io::Result<()> {
        let last = snapshot.meta().last_log_id.as_ref();
        let (index, term) = last.map_or((0, 0), |id| (id.index(), id.committed_leader_id().term));
        let path = self.path.join(format!("{index:020}-{term}.snap"));
        snapshot.keep(path.clone())?;
        weft_core::fsio::sync_folder(&self.path)?;
        for other in self.files("snap")? {
            if other < path {
                remove(&other)?;
            }
        }
        Ok(())
    }

    /// The newest snapshot that is whole, and why newer ones are not.
    pub fn newest(&self) -> io::Result<Newest<SnapshotFile>> {
        let (found, bad) = self.newest_with(|file| Ok(file.verify()?.map(|_| ())))?;
        Ok((found.map(|(file, ())| file), bad))
    }

    /// The newest snapshot of which `read` makes something, and why it does not of newer ones.
    pub fn newest_with<T>(
        &self,
        read: impl Fn(&SnapshotFile) -> io::Result<Result<T, String>>,
    ) -> io::Result<Newest<(SnapshotFile, T)>> {
        let mut files = self.files("snap")?;
        files.sort();
        let mut bad = Vec::new();
        for path in files.into_iter().rev() {
            let opened = match self.open_file(&path) {
                // A newer one has just replaced it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return self.newest_with(read),
                opened => opened?,
            };
            let result = match opened {
                Ok(file) => read(&file)?.map(|read| (file, read)),
                Err(reason) => Err(reason),
            };
            match result {
                Ok((file, read)) => {
                    *self.shared.newest.lock() = Some(file.clone());
                    return Ok((Some((file, read)), bad));
                }
                Err(reason) => bad.push(StartError::Snapshot { path, reason }),
            }
        }
        Ok((None, bad))
    }

    /// The state of the newest snapshot that is whole, for a log that begins behind entry `needed`.
    ///
    /// # Errors
    /// If none reaches that far: the log no longer has what is missing.
    pub fn load_for_log(&self, needed: Option<u64>) -> Result<Option<(SnapshotMeta, Machine)>, StartError> {
        let io_error = |source| StartError::Io { path: self.path.clone(), source };
        let (found, bad) = self.newest_with(SnapshotFile::load).map_err(io_error)?;
        let found = found.map(|(file, machine)| (file.meta().clone(), machine));
        let covered = found.as_ref().and_then(|(meta, _)| meta.last_log_id).map(|id| id.index());
        if needed > covered {
            return Err(bad.into_iter().next().unwrap_or_else(|| StartError::Snapshot {
                path: self.path.clone(),
                reason: format!("no snapshot up to entry {}", needed.unwrap_or(0)),
            }));
        }
        for error in bad {
            tracing::warn!(%error, "a snapshot is damaged; an older one and the log make up for it");
        }
        Ok(found)
    }

    fn open_file(&self, path: &Path) -> io::Result<Result<SnapshotFile, String>> {
        let known = self.shared.newest.lock().clone().filter(|file| file.path() == path);
        match known {
            Some(file) => Ok(Ok(file)),
            None => SnapshotFile::open(path),
        }
    }

    fn temp(&self) -> PathBuf {
        self.path.join(format!("{}.tmp", self.shared.temps.fetch_add(1, Relaxed)))
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
}

/// Two snapshots may be kept at the same time, one made here and one from the leader, and both remove the
/// older ones.
fn remove(file: &Path) -> io::Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use weft_state::{
        command::{Command, Put},
        machine::Machine,
    };

    use super::*;
    use crate::raft::types::log_id;

    fn meta(index: u64) -> SnapshotMeta {
        SnapshotMeta { last_log_id: Some(log_id(2, index)), last_membership: Default::default() }
    }

    /// A machine whose keys tell which one it is.
    fn machine(index: u64) -> Machine {
        let mut machine = Machine::new();
        let key = index.to_string().into();
        machine.apply(index, 2, &Command::Put(Put { key, ..Put::default() }));
        machine
    }

    fn write(snapshots: &SnapshotFolder, index: u64) -> PathBuf {
        let mut writer = snapshots.create(&meta(index)).expect("creates");
        writer.write(&machine(index).image()).expect("writes");
        writer.finish().expect("finishes").path()
    }

    fn folder() -> (tempfile::TempDir, SnapshotFolder) {
        let folder = tempfile::tempdir().expect("a folder");
        let snapshots = SnapshotFolder::open(folder.path().join("snapshots")).expect("opens");
        (folder, snapshots)
    }

    #[test]
    fn the_newest_whole_snapshot_is_found_and_a_damaged_one_is_told() {
        let (_folder, snapshots) = folder();
        assert!(snapshots.newest().expect("reads").0.is_none());
        let first = write(&snapshots, 5);
        let five = std::fs::read(&first).expect("reads");
        let second = write(&snapshots, 12);
        assert!(!first.exists(), "older ones are removed");
        let (found, bad) = snapshots.newest().expect("reads");
        let found = found.expect("is there");
        assert_eq!(found.meta(), &meta(12));
        assert_eq!(found.load().expect("reads").expect("loads").image(), machine(12).image());
        assert!(bad.is_empty());

        std::fs::write(&first, &five).expect("writes");
        let whole = std::fs::read(&second).expect("reads");
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&second, damaged).expect("writes");
            // As after a restart: nothing is known of the files.
            let snapshots = SnapshotFolder::open(snapshots.path().to_path_buf()).expect("opens");
            let (found, bad) = snapshots.newest().expect("reads");
            assert_eq!((found.expect("the older one").meta(), bad.len()), (&meta(5), 1), "bit {bit}");
        }
        for length in 0..whole.len() {
            std::fs::write(&second, &whole[..length]).expect("writes");
            let snapshots = SnapshotFolder::open(snapshots.path().to_path_buf()).expect("opens");
            let (found, _) = snapshots.newest_with(SnapshotFile::load).expect("reads");
            assert_eq!(found.expect("the older one").0.meta(), &meta(5), "length {length}");
        }
    }

    #[test]
    fn a_snapshot_is_readable_after_a_newer_one_took_its_place() {
        let (_folder, snapshots) = folder();
        write(&snapshots, 5);
        let five = snapshots.newest().expect("reads").0.expect("is there");
        write(&snapshots, 12);
        assert!(!five.path().exists());
        assert_eq!(five.load().expect("reads").expect("loads").applied_index(), 5);
    }

    #[test]
    fn two_snapshots_may_be_written_at_the_same_time() {
        let (_folder, snapshots) = folder();
        std::thread::scope(|scope| {
            for first in [1, 2] {
                let snapshots = &snapshots;
                scope.spawn(move || {
                    for round in 0..100 {
                        write(snapshots, 2 * round + first);
                    }
                });
            }
        });
        assert_eq!(snapshots.newest().expect("reads").0.expect("is there").meta(), &meta(200));
        assert!(snapshots.files("tmp").expect("reads").is_empty());
    }

    #[test]
    fn a_snapshot_goes_on_where_its_connection_broke() {
        let (_folder, snapshots) = folder();
        let path = write(&snapshots, 5);
        let bytes = std::fs::read(path).expect("reads");
        let offer = |term: u64| SnapshotOffer {
            vote: (&crate::raft::types::Vote::new_committed(term, 1)).into(),
            head: (&meta(5)).into(),
            bytes: bytes.len() as u64,
            checksum: crc32fast::hash(&bytes),
        };
        let (_other, receiver) = folder();
        let begin = |offer: &SnapshotOffer, offset| receiver.receive(offer, offset).expect("no disk error");
        begin(&offer(2), 0).expect("begins").write(&bytes[..10]).expect("writes");
        assert_eq!(receiver.received(&offer(2)), 10);
        assert_eq!(receiver.received(&offer(3)), 0, "another leader begins anew");
        assert!(begin(&offer(2), 11).is_err(), "there would be a gap");
        begin(&offer(2), 10).expect("goes on").write(&bytes[10..20]).expect("writes");
        let mut rest = begin(&offer(2), 20).expect("goes on");
        rest.write(&bytes[20..]).expect("writes");
        let whole = rest.finish().expect("no disk error").expect("is whole");
        assert!(receiver.newest().expect("reads").0.is_none(), "not kept yet");
        receiver.keep(&whole).expect("keeps");
        assert_eq!(receiver.newest().expect("reads").0.expect("is there").meta(), &meta(5));

        // One that is not what was offered leaves nothing.
        let mut wrong = begin(&offer(2), 0).expect("begins");
        wrong.write(&vec![0; bytes.len()]).expect("writes");
        assert!(wrong.finish().expect("no disk error").is_err());
        // Nor one that nobody keeps.
        let mut unused = begin(&offer(2), 0).expect("begins");
        unused.write(&bytes).expect("writes");
        drop(unused.finish().expect("no disk error").expect("is whole"));
        assert!(receiver.files("tmp").expect("reads").is_empty());
    }

    #[test]
    fn what_a_crash_or_a_failure_left_half_written_is_removed() {
        let (_folder, snapshots) = folder();
        write(&snapshots, 3);
        drop(snapshots.create(&meta(7)).expect("creates"));
        assert!(snapshots.files("tmp").expect("reads").is_empty());
        std::fs::write(snapshots.path().join("0.tmp"), b"half").expect("writes");
        let snapshots = SnapshotFolder::open(snapshots.path().to_path_buf()).expect("opens");
        assert_eq!(std::fs::read_dir(snapshots.path()).expect("reads").count(), 1);
        assert_eq!(snapshots.newest().expect("reads").0.expect("is there").meta(), &meta(3));
    }
}
