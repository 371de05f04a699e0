//! What a member hands to the process that goes on in its place, so that the pool notices nothing: the same life goes on.
//!
//! It is held by one process at a time. Who has handed it over must be silent, and either takes it up again or ends
//! without leaving the pool.

use serde::{Deserialize, Serialize};
use weft_core::id::NodeId;

use crate::instance::{Advertisement, InstanceRecord};
use crate::member::Member;
use crate::member_id::{self, MemberId};
use crate::wire::{self, WireError};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continuation {
    pub(crate) identity: MemberId,
    /// Version of its own advertisement.
    pub(crate) seq: u64,
    /// The others, with their states.
    pub(crate) members: Vec<foca::Member<MemberId>>,
    /// Everyone's, its own included.
    pub(crate) records: Vec<Advertisement>,
    /// As in the file of known peers.
    pub(crate) peers: String,
}

impl Continuation {
    /// For [`Self::decode`] of the same version.
    pub fn encode(&self) -> Vec<u8> {
        wire::encode(self)
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// If it is something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let read: Self = wire::decode(bytes)?;
        let sound = member_id::all_sound(&read.members)
            && member_id::all_sound(&[foca::Member::alive(read.identity.clone())]);
        if sound { Ok(read) } else { Err(WireError::Malformed) }
    }

    /// Whose it is.
    pub fn id(&self) -> NodeId {
        self.identity.id
    }

    /// Its life; the process that goes on lives the same.
    pub fn incarnation(&self) -> u64 {
        self.identity.incarnation
    }

    /// What the member advertises.
    pub fn instances(&self) -> &[InstanceRecord] {
        let own = self.records.iter().find(|record| record.owner == self.identity.id);
        own.map_or(&[], |record| &record.instances)
    }

    /// The identity under which `member` goes on. One that has another name, role or address is a renewal: what it
    /// advertises stays valid, and the pool takes it over as it does after a mistaken suspicion.
    pub(crate) fn identity_of(&self, member: &Member) -> MemberId {
        let same = MemberId { renewals: self.identity.renewals, ..MemberId::new(member) };
        if same == self.identity {
            return same;
        }
        MemberId { renewals: self.identity.renewals.saturating_add(1), ..same }
    }
}
