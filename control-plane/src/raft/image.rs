//! The state of a running server as bytes, for backups and for clients that ask for a snapshot.

use std::sync::Arc;

use bytes::Bytes;
use weft_state::{
    command::Revision,
    machine::{ImageWalk, WalkLost},
};

use super::state_machine::Replica;

/// Bytes of a piece, about.
const PIECE_BYTES: usize = 256 * 1024;

/// An image of one moment that is read piece by piece while commands go on. What the state keeps for it is given
/// back when it is dropped.
pub struct StateImage {
    replica: Arc<Replica>,
    walk: ImageWalk,
    revision: Revision,
    applied_index: u64,
    done: bool,
}

impl StateImage {
    pub(super) fn begin(replica: Arc<Replica>) -> Self {
        let (walk, revision, applied_index) = replica.begin_image();
        Self { replica, walk, revision, applied_index, done: false }
    }

    /// The revision of its moment.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The last log entry that it has.
    pub fn applied_index(&self) -> u64 {
        self.applied_index
    }

    /// The next bytes; none if that was all. Takes a millisecond or so.
    ///
    /// # Errors
    /// If a snapshot from the leader has taken the state's place: begin anew.
    pub fn next_piece(&mut self) -> Result<Option<Bytes>, WalkLost> {
        let mut piece = Vec::with_capacity(PIECE_BYTES + PIECE_BYTES / 4);
        while !self.done && piece.len() < PIECE_BYTES {
            // The lock is let go after each step, so that a command waits for one at most.
            self.done = !self.replica.read(|machine| machine.image_step(&mut self.walk, &mut piece))?;
        }
        Ok((!piece.is_empty()).then(|| piece.into()))
    }
}
