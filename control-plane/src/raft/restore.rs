//! Makes the data folder of a new group of one server from a state that was saved.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use weft_core::{
    fsio::{self, DataDir, DataDirError},
    id::{ClusterId, NodeId},
};
use weft_state::machine::Machine;

use super::{
    cluster::Cluster,
    codec,
    error::StartError,
    snapshot::SnapshotFolder,
    types::{Membership, Peer, SnapshotMeta, StoredMembership, log_id},
};
use crate::wal::{
    FolderDisk, Operation,
    log_file::{LogFile, Written},
    record::Vote,
    segment::SEGMENT_BYTES,
    spares::Spares,
};

/// How far a restore moves the revision on, unless told otherwise: more than a group writes in days at its full
/// speed, and a billionth of what there is.
pub const RESTORE_REVISIONS: i64 = 1_000_000_000;

/// A data folder that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// The new group. No server of the former one talks to it.
    pub cluster: ClusterId,
    /// The new server.
    pub server: NodeId,
}

/// Why a data folder was not made. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// There is something already.
    #[error("{path} exists and is not empty: a restore makes a new data folder, name one that is not there", path = path.display())]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// The folder could not be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A part of it could not be made.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Makes `path`, whole or not at all: the state becomes a snapshot with which a group of one server begins, under
/// a new cluster id. `machine` must have been applied to up to an entry above 0. `peer_addr` is only what others are
/// told until the server itself says where it is. Blocks.
///
/// # Errors
/// See [`RestoreError`].
pub fn restore(
    machine: &Machine,
    path: &Path,
    name: &str,
    peer_addr: SocketAddr,
) -> Result<Restored, RestoreError> {
    assert!(machine.applied_index() > 0, "the state stands at an entry of the log");
    let io_error = |path: &Path| {
        let path = path.to_path_buf();
        move |source| StartError::Io { path, source }
    };
    match std::fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
        Ok(true) => return Err(RestoreError::Exists { path: path.to_path_buf() }),
        Ok(false) => std::fs::remove_dir(path).map_err(io_error(path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error(path)(error).into()),
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".restoring");
    let unfinished = PathBuf::from(unfinished);
    match std::fs::remove_dir_all(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error(&unfinished)(error).into());
        }
        _ => {}
    }
    let made = make(machine, &unfinished, name, peer_addr).and_then(|restored| {
        std::fs::rename(&unfinished, path).map_err(io_error(path))?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fsio::sync_folder(parent).map_err(io_error(parent))?;
        Ok(restored)
    });
    if made.is_err() {
        let _ = std::fs::remove_dir_all(&unfinished);
    }
    made
}

fn make(machine: &Machine, path: &Path, name: &str, addr: SocketAddr) -> Result<Restored, RestoreError> {
    let io_error = |source| StartError::Io { path: path.to_path_buf(), source };
    let data_dir = DataDir::open(path)?;
    let server = data_dir.node_id()?;
    let last = log_id(machine.applied_term(), machine.applied_index());
    let peers = BTreeMap::from([(server.0, Peer { name: name.to_owned(), addr })]);
    let members =
        Membership::new(vec![[server.0].into()], peers).map_err(|e| io_error(io::Error::other(e)))?;
    let membership = StoredMembership::new(Some(last), members);
    let meta = SnapshotMeta { last_log_id: Some(last), last_membership: membership };

    let snapshots = SnapshotFolder::open(path.join("snapshots")).map_err(io_error)?;
    let mut writer = snapshots.create(&meta).map_err(io_error)?;
    machine.write_image(|piece| writer.write(piece)).and_then(|()| writer.finish()).map_err(io_error)?;

    let disk: Arc<dyn crate::wal::Disk> = Arc::new(FolderDisk::open(&path.join("wal")).map_err(io_error)?);
    let spares = Arc::new(Spares::open(disk.clone(), SEGMENT_BYTES).map_err(io_error)?);
    let mut log = LogFile::open(disk, spares, &Default::default()).map_err(StartError::from)?;
    // As after a snapshot and a purge up to its end, by a server that stands for the next term.
    let vote = Vote { term: machine.applied_term() + 1, node: server.0, committed: false };
    let mut group = vec![
        Operation::Vote { vote, done: Box::new(|| {}) },
        Operation::Purge { position: codec::to_wal(&last), done: Box::new(|| {}) },
    ];
    if log.write_group(&mut group).map_err(io_error)? == Written::OutOfSpace {
        return Err(io_error(io::ErrorKind::StorageFull.into()).into());
    }

    let cluster = ClusterId(fastrand::u64(1..));
    Cluster::load(path, server)?.adopt(cluster).map_err(io_error)?;
    Ok(Restored { cluster, server })
}
