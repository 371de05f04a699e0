//! Who this process is in the mesh, and the folder that keeps it.

use std::fs::File;
use std::path::Path;

use weft_core::fsio::DataDir;
use weft_core::id::NodeId;

use crate::error::StartError;

/// See the module.
pub(crate) struct Identity {
    pub node_id: NodeId,
    pub data_dir: Option<DataDir>,
}

impl Identity {
    /// With the lock of a process that is taken over, its own.
    pub fn of(dir: Option<&Path>, lock: Option<File>) -> Result<Self, StartError> {
        let Some(dir) = dir else { return Ok(Self { node_id: NodeId(fastrand::u64(1..)), data_dir: None }) };
        let data_dir = match lock {
            Some(lock) => DataDir::inherit(dir, lock),
            None => DataDir::open(dir)?,
        };
        Ok(Self { node_id: data_dir.node_id()?, data_dir: Some(data_dir) })
    }

    pub fn incarnation(&self) -> Result<u64, StartError> {
        Ok(self.data_dir.as_ref().map_or_else(|| Ok(unix_seconds()), DataDir::next_incarnation)?)
    }

    /// The process that had the folder before has no more to do with it.
    pub fn take_folder(&self) {
        if let Some(Err(error)) = self.data_dir.as_ref().map(DataDir::write_pid) {
            tracing::warn!(%error, "the folder still names the process that had it before");
        }
    }
}

/// A process without a data folder has a new identity at each start, so its incarnation need not grow over restarts.
#[allow(clippy::disallowed_methods)]
fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_secs())
}
