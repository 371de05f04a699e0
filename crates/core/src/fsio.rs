//! Files that survive a crash: atomic replacement, and the data folder that one process owns.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::id::NodeId;

/// Replaces the file at `path` with `bytes`, whole or not at all, and durable on return: a temporary file beside
/// it is written and synced, renamed over it, and the folder is synced. Two writers of the same path must not run at the same time.
///
/// # Errors
/// Any error leaves the former content in place, except one from syncing the folder, after which either may be
/// found following a power loss.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole(path, bytes, false)
}

/// The same for what only this process's user may read.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_atomic_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole(path, bytes, true)
}

fn write_whole(path: &Path, bytes: &[u8], private: bool) -> io::Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", path.display())));
    };
    let mut temp_name = name.to_os_string();
    temp_name.push(".tmp");
    let temp = folder.join(temp_name);
    let written = (|| {
        let mut file = if private { create_private(&temp)? } else { File::create(&temp)? };
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temp, path)
    })();
    if let Err(error) = written {
        let _ = fs::remove_file(&temp);
        return Err(error);
    }
    sync_folder(folder)
}

/// Never readable by others, not for a moment: the mode is given at creation, and a file that is there already, with
/// a mode of its own, is not used.
fn create_private(path: &Path) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Makes creations, renames and removals in a folder durable.
///
/// # Errors
/// Those of opening and syncing it.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    // Elsewhere a folder cannot be opened as a file, and renames are durable in order.
    if cfg!(unix) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// The folder in which a process keeps its state. While one is open no other process can open it.
///
/// Clones share the lock, which is let go when the last one is dropped or the process ends in any way.
#[derive(Debug, Clone)]
pub struct DataDir {
    path: PathBuf,
    lock: Arc<File>,
}

/// Why a data folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Cannot be made, or is no folder.
    #[error("cannot create data folder {path}: {source}", path = path.display())]
    Create {
        /// The folder.
        path: PathBuf,
        /// From the file system.
        source: io::Error,
    },
    /// Exists, but this user cannot write in it.
    #[error("data folder {path} is not writable: {source}", path = path.display())]
    NotWritable {
        /// The folder.
        path: PathBuf,
        /// From the file system.
        source: io::Error,
    },
    /// Another process has it open.
    #[error("data folder {path} is in use by another process; give each its own --data-dir", path = path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A file in it holds something else than we wrote.
    #[error("{path} is damaged: holds {seen:?}, expected {expected}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Start of what it holds.
        seen: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// A file in it cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// From the file system.
        source: io::Error,
    },
}

impl DataDirError {
    /// The folder or file whose disk has no space; none if it failed for another reason.
    pub fn disk_full(&self) -> Option<&Path> {
        match self {
            Self::Create { path, source }
            | Self::NotWritable { path, source }
            | Self::Io { path, source } => (source.kind() == io::ErrorKind::StorageFull).then_some(path),
            Self::InUse { .. } | Self::Damaged { .. } => None,
        }
    }
}

const LOCK_FILE: &str = "lock";
const NODE_ID_FILE: &str = "node-id";
const INCARNATION_FILE: &str = "incarnation";

impl DataDir {
    /// Creates the folder if needed, checks that it can be written, and takes it for this process.
    ///
    /// # Errors
    /// Each is one line that says which folder and what to do.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataDirError> {
        let path = path.as_ref().to_path_buf();
        fs::create_dir_all(&path).map_err(|source| DataDirError::Create { path: path.clone(), source })?;
        let lock_path = path.join(LOCK_FILE);
        let not_writable = |source| DataDirError::NotWritable { path: path.clone(), source };
        // The lock file is never removed: removing it would let two processes lock two files of one name.
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(not_writable)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DataDirError::InUse { path }),
            Err(TryLockError::Error(source)) => return Err(not_writable(source)),
        }
        let new = Self { path, lock: Arc::new(lock) };
        // Opening an existing lock file proves nothing about making new ones.
        new.write_pid()?;
        Ok(new)
    }

    /// A folder that another process has opened, with the lock that it shares with us. It stays locked until both have
    /// let it go. The file that says whose it is stays as it was, until [`Self::write_pid`].
    pub fn inherit(path: impl AsRef<Path>, lock: File) -> Self {
        Self { path: path.as_ref().to_path_buf(), lock: Arc::new(lock) }
    }

    /// A further handle on the lock, for a process that goes on in our place.
    ///
    /// # Errors
    /// If there are no more descriptors.
    pub fn share_lock(&self) -> io::Result<File> {
        self.lock.try_clone()
    }

    /// Says that the folder is this process's.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_pid(&self) -> Result<(), DataDirError> {
        write_atomic(&self.path.join("pid"), format!("{}\n", std::process::id()).as_bytes())
            .map_err(|source| DataDirError::NotWritable { path: self.path.clone(), source })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Identity of the process that owns this folder: random and non-zero, made at the first call and kept.
    ///
    /// # Errors
    /// If it cannot be read or written, or the file is damaged. A damaged identity is never replaced silently: the
    /// group would take this process for another one.
    pub fn node_id(&self) -> Result<NodeId, DataDirError> {
        let path = self.path.join(NODE_ID_FILE);
        if let Some(text) = read_optional(&path)? {
            return match u64::from_str_radix(text.trim(), 16) {
                Ok(id) if id != 0 => Ok(NodeId(id)),
                _ => Err(damaged(path, &text, "16 hex digits, not all zero")),
            };
        }
        let id = NodeId(fastrand::u64(1..));
        write(&path, &format!("{id}\n"))?;
        Ok(id)
    }

    /// A number that is larger than all this folder gave before, also across restarts and clock steps: the larger
    /// of the former one + 1 and the seconds since 1970. The clock makes it larger than those of a folder that
    /// was lost and made anew; the file makes it grow when the clock goes back.
    ///
    /// # Errors
    /// As [`Self::node_id`].
    pub fn next_incarnation(&self) -> Result<u64, DataDirError> {
        // The one place that may: it only seeds a number that the file makes monotonic.
        #[allow(clippy::disallowed_methods)]
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        self.next_incarnation_at(now)
    }

    fn next_incarnation_at(&self, unix_seconds: u64) -> Result<u64, DataDirError> {
        let path = self.path.join(INCARNATION_FILE);
        let former = match read_optional(&path)? {
            None => 0,
            Some(text) => {
                text.trim().parse::<u64>().map_err(|_| damaged(path.clone(), &text, "a decimal number"))?
            }
        };
        let next = former.saturating_add(1).max(unix_seconds);
        write(&path, &format!("{next}\n"))?;
        Ok(next)
    }
}

/// Whether a process has a data folder open. Changes nothing; a folder without a lock file is in use by nobody.
///
/// # Errors
/// Those of opening and locking the lock file.
pub fn is_in_use(data_dir: &Path) -> io::Result<bool> {
    let lock = match File::open(data_dir.join(LOCK_FILE)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn read_optional(path: &Path) -> Result<Option<String>, DataDirError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(DataDirError::Io { path: path.to_path_buf(), source }),
    }
}

fn write(path: &Path, text: &str) -> Result<(), DataDirError> {
    write_atomic(path, text.as_bytes())
        .map_err(|source| DataDirError::Io { path: path.to_path_buf(), source })
}

fn damaged(path: PathBuf, text: &str, expected: &'static str) -> DataDirError {
    DataDirError::Damaged { path, seen: text.chars().take(40).collect(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomic_write_replaces_the_whole_file_and_leaves_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        write_atomic(&file, b"a long first content").unwrap();
        write_atomic(&file, b"short").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"short");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn failed_atomic_write_keeps_the_former_content() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("folder");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("inside"), b"x").unwrap();
        assert!(write_atomic(&target, b"bytes").is_err());
        assert!(target.join("inside").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_second_opener_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path().join("d")).unwrap();
        let error = DataDir::open(first.path()).unwrap_err();
        assert!(matches!(error, DataDirError::InUse { .. }));
        assert!(!error.to_string().contains('\n'));
        let path = first.path().to_path_buf();
        assert!(is_in_use(&path).unwrap());
        drop(first);
        assert!(!is_in_use(&path).unwrap());
        DataDir::open(path).unwrap();
    }

    /// P47: between two processes of which one goes on in the place of the other, nobody gets in.
    #[test]
    fn a_folder_that_is_passed_on_is_never_free_in_between() {
        let dir = tempfile::tempdir().unwrap();
        let old = DataDir::open(dir.path()).unwrap();
        let new = DataDir::inherit(dir.path(), old.share_lock().unwrap());
        drop(old);
        assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::InUse { .. })));
        drop(new);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_file_in_the_place_of_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, b"").unwrap();
        let error = DataDir::open(&file).unwrap_err().to_string();
        assert!(error.starts_with("cannot create data folder"), "{error}");
    }

    #[test]
    fn node_id_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        let id = data.node_id().unwrap();
        assert_ne!(id.0, 0);
        assert_eq!(data.node_id().unwrap(), id);
        drop(data);
        assert_eq!(DataDir::open(dir.path()).unwrap().node_id().unwrap(), id);
    }

    #[test]
    fn a_damaged_node_id_is_reported_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        for content in ["", "0000000000000000", "not hex"] {
            fs::write(dir.path().join(NODE_ID_FILE), content).unwrap();
            assert!(matches!(data.node_id(), Err(DataDirError::Damaged { .. })));
        }
    }

    /// G07: a step back of the clock must not give an incarnation that was used before.
    #[test]
    fn incarnation_grows_when_the_clock_steps_back() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        assert_eq!(data.next_incarnation_at(1_000).unwrap(), 1_000);
        assert_eq!(data.next_incarnation_at(1_000).unwrap(), 1_001);
        assert_eq!(data.next_incarnation_at(500).unwrap(), 1_002);
        assert_eq!(data.next_incarnation_at(2_000).unwrap(), 2_000);
        drop(data);
        let data = DataDir::open(dir.path()).unwrap();
        assert_eq!(data.next_incarnation_at(0).unwrap(), 2_001);
        assert!(data.next_incarnation().unwrap() > 2_001);
    }

    #[test]
    fn a_damaged_incarnation_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        fs::write(dir.path().join(INCARNATION_FILE), "12x").unwrap();
        let error = data.next_incarnation().unwrap_err().to_string();
        assert!(error.contains("is damaged"), "{error}");
    }
}
