//! Elections.

use bytes::Bytes;

use crate::command::{Grant, LeaseId};

/// Longest queue of candidates of one election; `Full` beyond it.
pub const CANDIDATES_MAX: usize = 65_536;

/// An election as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElectionView {
    /// Who leads, with its value.
    pub leader: Option<(Grant, Bytes)>,
    /// Who waits, head first.
    pub candidates: Vec<ElectionCandidate>,
}

/// A session that waits to lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ElectionCandidate {
    /// Its session.
    pub lease: LeaseId,
    /// The value it will lead with.
    pub value: Bytes,
    /// The key that stands for its place.
    pub candidate_key: Bytes,
}

/// The key that stands for leadership of election `name`: what observers watch.
pub fn leader_key(name: &str) -> Bytes {
    Bytes::from(name.to_owned())
}

/// What a leader key's value says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderValue {
    /// The leader's session.
    pub lease: LeaseId,
    /// The value it campaigned with or proclaimed last.
    pub value: Bytes,
}

/// Reads the value of a leader key (or a candidate's key); none if it is not one.
pub fn decode_leader(_value: &[u8]) -> Option<LeaderValue> {
    None
}
