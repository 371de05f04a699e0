//! The leader's clock for leases.

use crate::{command::LeaseId, error::StoreError, lease::Tick};

/// Most leases in one batch to expire, so that the command they become stays small.
pub const LEASES_PER_EXPIRE_MAX: usize = 1_000;

/// The leader's clock for leases. See the module documentation.
#[derive(Debug, Default)]
pub struct Lessor {}

impl Lessor {
    /// A lessor that is not promoted: it knows no lease and expires nothing.
    pub fn new() -> Self {
        Self::default()
    }
    /// Whether this replica keeps time at present.
    pub fn is_promoted(&self) -> bool {
        false
    }
    /// This replica became leader: every lease gets its full time to live plus `extension_ms`.
    pub fn promote(
        &mut self,
        _now: Tick,
        _leases: impl IntoIterator<Item = (LeaseId, i64)>,
        _extension_ms: u64,
    ) {
    }
    /// This replica no longer leads: forget all deadlines and pending batches.
    pub fn demote(&mut self) {}
    /// A lease was granted, or its time to live changed.
    pub fn granted(&mut self, _now: Tick, _id: LeaseId, _ttl_secs: i64) {}
    /// A lease is gone.
    pub fn revoked(&mut self, _id: LeaseId) {}
    /// Push the deadline out by the full time to live.
    pub fn renew(&mut self, _now: Tick, id: LeaseId) -> Result<i64, StoreError> {
        Err(StoreError::LeaseNotFound { id })
    }
    /// Milliseconds left.
    pub fn remaining(&self, _now: Tick, _id: LeaseId) -> Option<u64> {
        None
    }
    /// Time passed; collect what expired.
    pub fn handle_timeout(&mut self, _now: Tick) {}
    /// When to call `handle_timeout` next.
    pub fn poll_timeout(&self) -> Option<Tick> {
        None
    }
    /// The next batch of leases to expire through the log.
    pub fn poll_output(&mut self) -> Option<Vec<LeaseId>> {
        None
    }
    /// A batch could not be proposed: put them back.
    pub fn not_expired(&mut self, _now: Tick, _ids: &[LeaseId]) {}
}
