//! Leases: what is replicated about them, and the leader's clock.
//!
//! Which leases exist, with which time to live and which keys, is replicated state and changes only in
//! `apply` (`table`). When one expires is known to the leader alone ([`Lessor`]): it proposes
//! `LeaseExpire`, so that every replica drops the keys at the same revision. What is left of long leases it notes
//! through the log from time to time (`checkpoint`), for the leader after it.

mod checkpoint;
mod lessor;
pub(crate) mod table;
mod timing_wheel;

use crate::{
    command::{LeaseGrantNumber, LeaseId},
    error::StoreError,
};
pub use checkpoint::{CHECKPOINT_STEP_SECS, CHECKPOINT_SWEEP_MS, LEASES_PER_CHECKPOINT_MAX};
pub use lessor::{LEASES_PER_EXPIRE_MAX, Lessor, RenewError};

/// Largest time to live of a lease, in seconds; etcd's limit.
pub const TTL_SECS_MAX: i64 = 9_000_000_000;

/// A point on the caller's monotonic clock, in milliseconds from an origin of the caller's choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tick(pub u64);

/// What a leader's clock needs to know of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTerms {
    /// Its id.
    pub id: LeaseId,
    /// Granted time to live.
    pub ttl_secs: i64,
    /// Changes with each grant of the id and each new time to live.
    pub grant: LeaseGrantNumber,
    /// What was left when it was last noted, if it was not renewed since.
    pub remaining_secs: Option<i64>,
}

/// Refuses a time to live that no lease can have.
pub(crate) fn check_ttl(ttl_secs: i64) -> Result<(), StoreError> {
    if (1..=TTL_SECS_MAX).contains(&ttl_secs) {
        Ok(())
    } else {
        Err(StoreError::LeaseTtlOutOfRange { seen: ttl_secs, limit: TTL_SECS_MAX })
    }
}
