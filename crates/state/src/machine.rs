//! The state machine: the only place where replicated state changes.

use std::sync::Arc;

use crate::{
    command::{Applied, Command, Event, LeaseId, Range, RangeResponse, Response, Revision},
    error::StoreError,
    recipes::Recipes,
};
pub use crate::{
    recipes::{
        election::{ElectionCandidate, ElectionView},
        registry::Registered,
        semaphore::{SemaphoreHolder, SemaphoreView, SemaphoreWaiter},
    },
    store::image::ImageError,
};

/// All replicated state.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    _recipes: Recipes,
    applied_index: u64,
    applied_term: u64,
}

/// A lease as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseView {
    /// Its id.
    pub id: LeaseId,
    /// Granted time to live.
    pub ttl_secs: i64,
    /// Keys attached to it, sorted.
    pub keys: Vec<bytes::Bytes>,
}

impl Machine {
    /// The empty state: revision 1, applied index 0.
    pub fn new() -> Self {
        Self::default()
    }
    /// Carry out one committed command. `index` must be above every earlier one.
    pub fn apply(&mut self, index: u64, term: u64, _command: &Command) -> Applied {
        self.applied_index = index;
        self.applied_term = term;
        Applied { revision: self.revision(), response: Ok(Response::Noop), events: Vec::new() }
    }
    /// Index of the last applied log entry; 0 if none.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }
    /// Term of the last applied log entry; 0 if none.
    pub fn applied_term(&self) -> u64 {
        self.applied_term
    }
    /// Read keys.
    pub fn range(&self, _r: &Range) -> Result<RangeResponse, StoreError> {
        Ok(RangeResponse::default())
    }
    /// Current revision; 1 when empty.
    pub fn revision(&self) -> Revision {
        1
    }
    /// Oldest readable revision; 0 if nothing was ever compacted.
    pub fn compacted(&self) -> Revision {
        0
    }
    /// Keys that exist now, those under `weft/` included.
    pub fn key_count(&self) -> u64 {
        0
    }
    /// Bytes of all keys and values held, old versions included.
    pub fn data_bytes(&self) -> u64 {
        0
    }
    /// A lease.
    pub fn lease(&self, _id: LeaseId) -> Option<LeaseView> {
        None
    }
    /// A lease's granted time to live, without its keys.
    pub fn lease_ttl_secs(&self, _id: LeaseId) -> Option<i64> {
        None
    }
    /// All leases, by id.
    pub fn leases(&self) -> Vec<LeaseId> {
        Vec::new()
    }
    /// A semaphore; none if it has no holder, no waiter and no limit of its own.
    pub fn semaphore(&self, _name: &str) -> Option<SemaphoreView> {
        None
    }
    /// Names of all semaphores, sorted.
    pub fn semaphores(&self) -> Vec<String> {
        Vec::new()
    }
    /// An election; none if nobody leads or waits.
    pub fn election(&self, _name: &str) -> Option<ElectionView> {
        None
    }
    /// Names of all elections, sorted.
    pub fn elections(&self) -> Vec<String> {
        Vec::new()
    }
    /// Registered instances of one service or of all, sorted by service and instance id.
    pub fn registered(&self, _service: Option<&str>) -> Vec<Registered> {
        Vec::new()
    }
    /// The load-balancing policy set for a service.
    pub fn load_balancing(&self, _service: &str) -> Option<String> {
        None
    }
    /// A hash of the logical content; equal on equal replicas.
    pub fn hash(&self) -> u64 {
        0
    }
    /// The whole state as bytes.
    pub fn image(&self) -> Vec<u8> {
        Vec::new()
    }
    /// Undoes [`Machine::image`].
    pub fn from_image(bytes: &[u8]) -> Result<Machine, ImageError> {
        Err(ImageError::Truncated { seen: bytes.len() as u64, expected: 20 })
    }
    /// What changed in a range of keys from revision `from` to `to_inclusive`, whole revisions, at most
    /// about `max_events` (but at least one revision).
    pub fn events(
        &self,
        _key: &[u8],
        _range_end: &[u8],
        _from: Revision,
        _to_inclusive: Revision,
        _max_events: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        Ok(Vec::new())
    }
}
