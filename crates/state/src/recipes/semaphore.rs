//! Semaphores and locks.

use bytes::Bytes;

use crate::command::{Grant, LeaseId};

/// Longest queue of one semaphore; `Full` beyond it.
pub const WAITERS_MAX: usize = 65_536;

/// A semaphore as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SemaphoreView {
    /// Permits there are. May be below what is held, after it was lowered.
    pub limit: u32,
    /// Sessions that hold permits, oldest grant first.
    pub holders: Vec<SemaphoreHolder>,
    /// The queue, head first.
    pub waiters: Vec<SemaphoreWaiter>,
}

/// A session that holds permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SemaphoreHolder {
    /// Fencing token, lease and key.
    pub grant: Grant,
    /// As in the acquire.
    pub request_id: u64,
    /// How many.
    pub permits: u32,
}

/// A session that waits for permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SemaphoreWaiter {
    /// Its session.
    pub lease: LeaseId,
    /// As in the acquire.
    pub request_id: u64,
    /// How many.
    pub permits: u32,
    /// The key that stands for its place.
    pub waiter_key: Bytes,
}
