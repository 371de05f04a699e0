//! Makes a group of one from the data folder of a server whose group has lost its quorum for good (P15).
//!
//! ```text
//! read: snapshot + log, all of it ─► ask the other servers how far their logs reach ─► object, or:
//!   1. a new cluster id            (from here on the former group's servers are foreign to this one)
//!   2. at the end of the log, in one sync: a vote, BeginEpoch, a membership of this server alone, all of it committed
//! ```
//! A crash between the two leaves a server that can reach nobody and decide nothing; asking for the recovery again
//! finishes it. All that stands in this server's log counts as committed from then on: whether a majority had its end
//! cannot be known any more, and what was acknowledged may be among it. What only the lost servers had is lost; so
//! that no revision and no fencing token of theirs comes again, the revision moves on (P17).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_core::{
    fsio::{DataDir, DataDirError},
    id::{ClusterId, NodeId},
};
use weft_state::{
    command::{Command, Revision},
    machine::Machine,
};
use weft_xds_proto::peer::ask;

use super::{
    StartError,
    cluster::Cluster,
    codec,
    forward::{Answer, Asked, Question},
    network::{Lane, Peers, reason},
    retired,
    snapshot::SnapshotFolder,
    types::{Batch, Entry, Membership, Payload, encode_command, log_id},
};
use crate::{
    gate::Gate,
    wal::{
        Disk, FolderDisk, Operation, Recovered,
        log_file::{LogFile, Written},
        record::Vote,
        recovery,
        segment::SEGMENT_BYTES,
        spares::Spares,
    },
};

pub use super::forward::Standing;

/// How long another server may take to say how far its log reaches.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Why a folder cannot be recovered from. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// It is not the data folder of a server that was in a group.
    #[error("{path} holds no server of a group: name the data folder of a server that survived", path = path.display())]
    NoServer {
        /// As given.
        path: PathBuf,
    },
    /// In use, or not readable.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// It was removed from its group, or a part of it is damaged or cannot be read or written.
    #[error(transparent)]
    Start(#[from] StartError),
    /// An entry of the log cannot be read.
    #[error("entry {index} of the log cannot be read: {reason}")]
    Entry {
        /// Its index.
        index: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// The revision would not fit.
    #[error("revision {revision} cannot be moved on by {bump}: choose a smaller --bump-revision")]
    Revision {
        /// The present one.
        revision: Revision,
        /// As asked for.
        bump: Revision,
    },
}

/// Another server of the group.
#[derive(Debug, Clone)]
pub struct Other {
    /// Its id.
    pub id: NodeId,
    /// Its label.
    pub name: String,
    /// Where it was reached last, as the log says.
    pub addr: std::net::SocketAddr,
    /// Whether it votes.
    pub votes: bool,
    /// What it said, or why it says nothing.
    pub standing: Result<Standing, String>,
}

/// Why going on alone would do harm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Objection {
    /// There is a group already.
    #[error("{0} has a leader: the group has its quorum, start this server as always")]
    HasLeader(String),
    /// There would be.
    #[error("{0} answer, and with this server they are a majority: start this server as always")]
    Majority(String),
    /// Another survivor has more.
    #[error(
        "the log of {name} reaches further (entry {index} of term {term}): recover from that server, so that less is lost"
    )]
    Behind {
        /// Whose.
        name: String,
        /// Term of its last entry.
        term: u64,
        /// Index of its last entry.
        index: u64,
    },
}

/// A server that does not run, read whole. Holds the lock of its folder.
pub struct Stopped {
    data_dir: DataDir,
    id: NodeId,
    cluster: Arc<Cluster>,
    disk: Arc<dyn Disk>,
    recovered: Recovered,
    members: Membership,
    machine: Machine,
}

impl Stopped {
    /// Reads everything and applies it in memory, which takes as much of it as the server did. Blocks.
    ///
    /// # Errors
    /// See [`RecoverError`].
    pub fn open(path: &Path) -> Result<Self, RecoverError> {
        if !path.join("cluster").is_file() {
            return Err(RecoverError::NoServer { path: path.to_path_buf() });
        }
        let data_dir = DataDir::open(path)?;
        retired::check_folder(path)?;
        let id = data_dir.node_id()?;
        let cluster = Cluster::load(path, id)?;
        let io_error = |path: PathBuf| move |source| StartError::Io { path, source };
        let wal = path.join("wal");
        let disk: Arc<dyn Disk> = Arc::new(FolderDisk::existing(&wal).map_err(io_error(wal))?);
        let recovered = recovery::recover(&*disk).map_err(StartError::from)?;
        let folder = path.join("snapshots");
        let snapshots = SnapshotFolder::open(folder.clone()).map_err(io_error(folder))?;
        let found = snapshots.load_for_log(recovered.purged.map(|purged| purged.index))?;
        let (mut members, mut machine) = found.map_or_else(Default::default, |(meta, machine)| {
            (meta.last_membership.membership().clone(), machine)
        });
        for entry in &recovered.entries {
            follow(entry, &mut members, &mut machine)?;
        }
        if members.get_node(&id.0).is_none() {
            return Err(RecoverError::NoServer { path: path.to_path_buf() });
        }
        Ok(Self { data_dir, id, cluster: Arc::new(cluster), disk, recovered, members, machine })
    }

    /// This server.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Its label.
    pub fn name(&self) -> &str {
        self.members.get_node(&self.id.0).map_or("", |peer| &peer.name)
    }

    /// Whether it votes.
    pub fn votes(&self) -> bool {
        self.members.voter_ids().any(|voter| voter == self.id.0)
    }

    /// Its group.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster.id()
    }

    /// The state after all that is in its log.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// How far its log reaches.
    pub fn standing(&self) -> Standing {
        let last = self.recovered.last();
        Standing {
            term: last.map_or(0, |at| at.term),
            index: last.map_or(0, |at| at.index),
            has_leader: false,
        }
    }

    /// Asks the other servers of the group how far their logs reach.
    pub async fn ask_others(&self, gate: Arc<Gate>) -> Vec<Other> {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let doors = (gate, None);
        let peers = Peers::new(self.id, self.cluster.clone(), ANSWER_MAX, doors, tasks.clone(), stop.clone());
        let voters: BTreeSet<u64> = self.members.voter_ids().collect();
        let others = self.members.nodes().filter(|(id, _)| **id != self.id.0);
        let asked = others.map(|(id, peer)| {
            let asked = Asked { patience_ms: ANSWER_MAX.as_millis() as u64, question: Question::Standing };
            let asking = peers.ask((*id, peer.addr), Lane::Forward, asked, ask::Body::Question);
            let votes = voters.contains(id);
            async move {
                let standing = match timeout(ANSWER_MAX, asking).await {
                    Err(_) => Err("does not answer".to_owned()),
                    Ok(Err(status)) => Err(reason(&status)),
                    Ok(Ok(answer)) => match codec::decode("answer of a peer", &answer) {
                        Ok(Answer::Standing(standing)) => Ok(standing),
                        Ok(Answer::Refused(refusal)) => Err(format!("{refusal:?}")),
                        Ok(_) => Err("answers something else".to_owned()),
                        Err(error) => Err(error.to_string()),
                    },
                };
                let (name, addr) = (peer.name.clone(), peer.addr);
                Other { id: NodeId(*id), name, addr, votes, standing }
            }
        });
        let others = join_all(asked).await;
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        others
    }

    /// Whether going on alone would do harm, as far as the others have answered.
    pub fn objection(&self, others: &[Other]) -> Option<Objection> {
        object(self.id, self.standing(), self.members.get_joint_config(), others)
    }

    /// Goes on as a group of one. Blocks.
    ///
    /// # Errors
    /// See [`RecoverError`]. After one that comes from the disk it is to be asked for again; a server that starts
    /// without that decides nothing.
    pub fn form_group(self, bump: Revision) -> Result<ClusterId, RecoverError> {
        let out_of_range = RecoverError::Revision { revision: self.machine.revision(), bump };
        if bump <= 0 || self.machine.revision().checked_add(bump).is_none() {
            return Err(out_of_range);
        }
        let path = self.data_dir.path().to_path_buf();
        let io_error = |source| StartError::Io { path: path.clone(), source };
        let Some(own) = self.members.get_node(&self.id.0).cloned() else {
            return Err(RecoverError::NoServer { path });
        };
        let cluster = ClusterId(fastrand::u64(1..));
        self.cluster.replace(cluster).map_err(io_error)?;

        let last = self.standing();
        let term = last.term.max(self.recovered.vote.map_or(0, |vote| vote.term)) + 1;
        let alone = Membership::new(vec![[self.id.0].into()], BTreeMap::from([(self.id.0, own)]))
            .map_err(|e| io_error(io::Error::other(e)))?;
        let epoch = Batch::join(&[encode_command(&Command::BeginEpoch { revisions: bump })]);
        let entries = [Payload::Normal(epoch), Payload::Membership(alone)];
        let entries: Vec<_> = (last.index + 1..)
            .zip(entries)
            .map(|(index, payload)| Entry { log_id: log_id(term, index), payload })
            .collect();
        let committed = entries.last().map(|entry| codec::to_wal(&entry.log_id)).expect("there are two");
        let spares = Arc::new(Spares::open(self.disk.clone(), SEGMENT_BYTES).map_err(io_error)?);
        let mut log = LogFile::open(self.disk.clone(), spares, &self.recovered).map_err(StartError::from)?;
        let mut group = vec![
            Operation::Vote { vote: Vote { term, node: self.id.0, committed: false }, done: Box::new(|| {}) },
            Operation::Append {
                entries: entries.iter().map(codec::entry_to_wal).collect(),
                done: Box::new(|| {}),
            },
            Operation::Committed(committed),
        ];
        match log.write_group(&mut group) {
            Ok(Written::Durable) => Ok(cluster),
            Ok(Written::OutOfSpace) => Err(io_error(io::ErrorKind::StorageFull.into()).into()),
            Err(error) => Err(io_error(error).into()),
        }
    }
}

fn follow(
    entry: &crate::wal::Entry,
    members: &mut Membership,
    machine: &mut Machine,
) -> Result<(), RecoverError> {
    let index = entry.position.index;
    let unreadable = |reason: String| RecoverError::Entry { index, reason };
    let entry = codec::entry_from_wal(entry).map_err(|e| unreadable(e.to_string()))?;
    let commands = match entry.payload {
        Payload::Membership(changed) => {
            *members = changed;
            Vec::new()
        }
        Payload::Normal(batch) => batch.commands().map_err(|e| unreadable(e.to_string()))?,
        Payload::Blank => Vec::new(),
    };
    if index > machine.applied_index() {
        machine.apply_batch(index, entry.log_id.committed_leader_id().term, &commands);
    }
    Ok(())
}

/// `configs`: the voters; two sets while they are being changed, each of which needs its own majority.
fn object(own: NodeId, standing: Standing, configs: &[BTreeSet<u64>], others: &[Other]) -> Option<Objection> {
    let heard: Vec<(&Other, Standing)> =
        others.iter().filter_map(|other| Some((other, *other.standing.as_ref().ok()?))).collect();
    let label = |other: &Other| format!("{} ({})", other.name, other.id);
    if let Some((other, _)) = heard.iter().find(|(_, standing)| standing.has_leader) {
        return Some(Objection::HasLeader(label(other)));
    }
    let is_there = |id: &u64| *id == own.0 || heard.iter().any(|(other, _)| other.id.0 == *id);
    if configs.iter().all(|voters| voters.iter().filter(|id| is_there(id)).count() * 2 > voters.len()) {
        let names: Vec<String> =
            heard.iter().filter(|(other, _)| other.votes).map(|(other, _)| label(other)).collect();
        return Some(Objection::Majority(names.join(", ")));
    }
    let further = |theirs: &Standing| (theirs.term, theirs.index) > (standing.term, standing.index);
    let furthest = heard.iter().filter(|(_, theirs)| further(theirs)).max_by_key(|(_, s)| (s.term, s.index));
    furthest.map(|(other, theirs)| Objection::Behind {
        name: label(other),
        term: theirs.term,
        index: theirs.index,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn other(id: u64, standing: Option<(u64, u64, bool)>) -> Other {
        let standing = standing.map(|(term, index, has_leader)| Standing { term, index, has_leader });
        Other {
            id: NodeId(id),
            name: format!("s{id}"),
            addr: ([127, 0, 0, 1], 1).into(),
            votes: true,
            standing: standing.ok_or_else(|| "does not answer".to_owned()),
        }
    }

    #[test]
    fn a_server_goes_on_alone_only_without_a_majority_and_with_the_longest_log() {
        let own = Standing { term: 3, index: 10, has_leader: false };
        let voters = |ids: &[u64]| ids.iter().copied().collect::<BTreeSet<u64>>();
        let judge = |configs: &[BTreeSet<u64>], others: &[Other]| object(NodeId(1), own, configs, others);
        let three = [voters(&[1, 2, 3])];
        let five = [voters(&[1, 2, 3, 4, 5])];

        assert_eq!(judge(&three, &[other(2, None), other(3, None)]), None);
        let majority = judge(&three, &[other(2, Some((3, 9, false))), other(3, None)]);
        assert!(matches!(majority, Some(Objection::Majority(names)) if names.starts_with("s2")));
        let led = judge(&five, &[other(2, Some((3, 9, true)))]);
        assert!(matches!(led, Some(Objection::HasLeader(_))));

        // Two of five are none. The one with the longer log, by term first, has to go on.
        assert_eq!(judge(&five, &[other(2, Some((3, 10, false)))]), None);
        assert_eq!(judge(&five, &[other(2, Some((2, 99, false)))]), None);
        for (term, index) in [(3, 11), (4, 1)] {
            let behind = judge(&five, &[other(2, Some((term, index, false)))]);
            assert_eq!(behind, Some(Objection::Behind { name: format!("s2 ({})", NodeId(2)), term, index }));
        }

        // While voters are being changed both sets count.
        let joint = [voters(&[1, 2, 3]), voters(&[1, 4, 5])];
        assert_eq!(judge(&joint, &[other(2, Some((3, 10, false)))]), None);
        let both = [other(2, Some((3, 10, false))), other(4, Some((3, 10, false)))];
        assert!(matches!(judge(&joint, &both), Some(Objection::Majority(_))));
    }
}
