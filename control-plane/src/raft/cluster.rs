//! Which group this server belongs to, kept in `DATA/cluster`.

use std::{
    io,
    path::{Path, PathBuf},
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use weft_core::id::{ClusterId, NodeId};

use super::error::StartError;

const FILE: &str = "cluster";

/// The group's id. Set once: when the group is formed, or when the group that this server asked to join
/// first speaks to it.
pub struct Cluster {
    path: PathBuf,
    server: NodeId,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    id: Option<ClusterId>,
    /// A group was asked to take this server in, so the first one to speak to it may be it.
    joining: bool,
}

/// The file: JSON, so that a person can read it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    cluster: String,
    server: String,
}

/// What a message of some group is to this server.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Of this server's group.
    Ours,
    /// From the leader of a group, to a server that has none and asked to be taken into one.
    Invitation,
    /// Of another one.
    Foreign {
        /// Ours.
        ours: ClusterId,
    },
    /// This server has no group and is not joining one.
    NoGroup,
}

impl Cluster {
    /// Reads the file, if there is one.
    pub fn load(data_dir: &Path, server: NodeId) -> Result<Self, StartError> {
        let path = data_dir.join(FILE);
        let io_error = |source| StartError::Io { path: path.clone(), source };
        let id = match std::fs::read(&path) {
            Ok(bytes) => {
                let stored: Stored =
                    serde_json::from_slice(&bytes).map_err(|e| io_error(io::Error::other(e)))?;
                let parse =
                    |hex: &str| u64::from_str_radix(hex, 16).map_err(|e| io_error(io::Error::other(e)));
                let theirs = NodeId(parse(&stored.server)?);
                if theirs != server {
                    let path = data_dir.to_path_buf();
                    return Err(StartError::ForeignData { path, theirs, ours: server });
                }
                Some(ClusterId(parse(&stored.cluster)?))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(io_error(e)),
        };
        Ok(Self { path, server, state: Mutex::new(State { id, joining: false }) })
    }

    /// The group, if there is one yet.
    pub fn id(&self) -> Option<ClusterId> {
        self.state.lock().id
    }

    /// The group as messages carry it: 0 is none.
    pub fn wire_id(&self) -> u64 {
        self.id().map_or(0, |id| id.0)
    }

    /// The group that is asked to take this server in may speak to it from now on.
    pub fn expect_invitation(&self) {
        self.state.lock().joining = true;
    }

    /// Makes `id` this server's group, durably. False, and nothing happens, if it is in another one.
    pub fn adopt(&self, id: ClusterId) -> io::Result<bool> {
        let mut state = self.state.lock();
        if let Some(ours) = state.id {
            return Ok(ours == id);
        }
        self.store(id)?;
        state.id = Some(id);
        tracing::info!(cluster = %id, "this server belongs to a cluster now");
        Ok(true)
    }

    /// Makes `id` this server's group in place of the one that it was in, durably: the former group's servers are
    /// foreign to it from now on.
    pub fn replace(&self, id: ClusterId) -> io::Result<()> {
        self.store(id)?;
        self.state.lock().id = Some(id);
        Ok(())
    }

    fn store(&self, id: ClusterId) -> io::Result<()> {
        let stored = Stored { version: 1, cluster: id.to_string(), server: self.server.to_string() };
        let mut json = serde_json::to_vec_pretty(&stored)?;
        json.push(b'\n');
        weft_core::fsio::write_atomic(&self.path, &json)
    }

    /// Judges a message. `invites`: it is one that the leader of the group sends to its members, so that a
    /// joining server learns its group from it. What is judged an invitation is to be [adopted](Self::adopt)
    /// only if the message is for this server.
    pub fn judge(&self, wire_id: u64, invites: bool) -> Verdict {
        let state = self.state.lock();
        match state.id {
            Some(ours) if ours.0 == wire_id => Verdict::Ours,
            Some(ours) => Verdict::Foreign { ours },
            None if state.joining && invites && wire_id != 0 => Verdict::Invitation,
            None => Verdict::NoGroup,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_adopted_once_by_invitation_only_and_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let cluster = Cluster::load(folder.path(), NodeId(7)).expect("loads");
        assert_eq!(cluster.judge(5, true), Verdict::NoGroup);
        cluster.expect_invitation();
        assert_eq!(cluster.judge(5, false), Verdict::NoGroup);
        assert_eq!(cluster.judge(5, true), Verdict::Invitation);
        assert!(cluster.adopt(ClusterId(5)).expect("stored"));
        assert!(!cluster.adopt(ClusterId(6)).expect("nothing to store"));
        assert_eq!(cluster.judge(5, false), Verdict::Ours);
        assert_eq!(cluster.judge(6, true), Verdict::Foreign { ours: ClusterId(5) });

        let again = Cluster::load(folder.path(), NodeId(7)).expect("loads");
        assert_eq!(again.id(), Some(ClusterId(5)));
        assert!(matches!(Cluster::load(folder.path(), NodeId(8)), Err(StartError::ForeignData { .. })));
    }
}
