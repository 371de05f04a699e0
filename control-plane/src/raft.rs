//! The Raft group: proposing, reading, who leads. The one place that names openraft.
//!
//! *Write:* [`Coordinator::propose`] → (on a follower: `Peer.Propose` to the leader) → [`batcher`] joins what
//! waits into one entry → openraft → [`log_store`] (memory, then one sync of [`crate::wal`]) and, at the
//! same time, [`network`] to the followers → committed by a majority → [`state_machine`] applies the batch
//! under the machine's write lock, tells the observers, answers each proposer.
//!
//! *Linearizable read:* [`Coordinator::read_barrier`] → one leadership confirmation for all who wait
//! ([`rounds`]) → wait until this server has applied that index → read.
//!
//! - [`types`]: openraft's type configuration; batches. [`codec`]: our own encoding of all that is stored or sent.
//! - [`log_store`], [`state_machine`], [`snapshot`]: what openraft keeps. [`cluster`]: which group this is.
//! - [`network`], [`service`]: the two ends of the peer port. [`forward`], [`link`]: what followers ask the leader.
//! - [`driver`]: the tasks, start and stop. [`upkeep`]: those that keep memory and disk bounded. [`leader`]: what only a leader answers. [`join`]: becoming a member.
//! - [`image`]: the state as bytes, for backups. [`describe`]: a log entry in words.
//! - [`restore`]: a saved state becomes the data folder of a new group. [`recover`]: so does a survivor's own folder.
//! - [`coordinator`]: what the rest of the server sees.

mod agreement;
mod batcher;
mod cluster;
mod codec;
mod config;
mod coordinator;
mod describe;
mod driver;
mod error;
mod exchange;
mod forward;
mod image;
mod join;
mod leader;
mod link;
mod log_store;
mod membership;
mod network;
pub mod recover;
pub mod restore;
mod retired;
mod rounds;
mod service;
mod snapshot;
mod state_machine;
mod status;
mod types;
mod upkeep;

#[cfg(test)]
mod tests;

use weft_state::{
    command::{Event, Response, Revision},
    error::StoreError,
    machine::Machine,
};

pub use batcher::PROPOSALS_MAX;
pub use config::{End, Outside, RaftConfig, RaftTiming, ReadMode, SNAPSHOT_EVERY};
pub use coordinator::Coordinator;
pub use describe::describe_entry;
pub use error::{GroupChangeError, JoinError, LeaseError, ProposeError, StartError};
pub use image::StateImage;
pub use membership::{ChangeRefused, GroupChange};
pub use status::{DiskState, Members, PeerRole, PeerStatus, RaftStatus};

/// Told of every change right where it happens. Called with the machine's write lock held, so that what
/// it records is in step with the state; must not block and must not lock the machine.
pub trait ApplyObserver: Send + Sync {
    /// A log entry was applied. Events are ordered by revision; empty if it changed no key.
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
