//! Advertisements as SWIM broadcasts: whole if small, else as a notice that a newer one can be fetched.
//!
//! A notice is passed on only by members that have fetched the record, so whoever sends one has it.

use std::convert::Infallible;
use std::sync::Arc;

use foca::{BroadcastHandler, Invalidates};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use weft_core::id::NodeId;

use crate::instance::{Advertisement, RecordVersion};
use crate::member_id::MemberId;
use crate::wire;

/// Largest broadcast. A datagram also carries up to three identities and some updates; a broadcast that never
/// fits beside them would wait in the queue for ever.
pub(crate) const BROADCAST_BYTES_MAX: usize = 600;

/// One broadcast.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Item {
    /// The record itself.
    Whole(Advertisement),
    /// It is too large for a datagram; fetch it over a stream.
    Notice { owner: NodeId, version: RecordVersion },
}

impl Item {
    /// The form in which an advertisement is spread.
    pub(crate) fn encode(advertisement: &Advertisement) -> Vec<u8> {
        let whole = wire::encode(&Self::Whole(advertisement.clone()));
        if whole.len() <= BROADCAST_BYTES_MAX {
            return whole;
        }
        wire::encode(&Self::Notice { owner: advertisement.owner, version: advertisement.version })
    }

    fn key(&self) -> Key {
        match self {
            Self::Whole(a) => Key { owner: a.owner, version: a.version },
            Self::Notice { owner, version } => Key { owner: *owner, version: *version },
        }
    }
}

/// What a queued broadcast is about. A newer one of the same owner replaces it, so the queue holds at most one an owner.
#[derive(Debug)]
pub(crate) struct Key {
    owner: NodeId,
    version: RecordVersion,
}

impl Invalidates for Key {
    fn invalidates(&self, other: &Self) -> bool {
        self.owner == other.owner && self.version >= other.version
    }
}

/// Received broadcasts with their senders, until the pool looks at them right after the call.
pub(crate) type Inbox = Arc<Mutex<Vec<(Item, MemberId)>>>;

/// Collects what comes in, and lets out only what the pool itself adds: it decides what is news.
#[derive(Debug, Default)]
pub(crate) struct Spreader {
    pub(crate) inbox: Inbox,
}

impl BroadcastHandler<MemberId> for Spreader {
    type Key = Key;
    type Error = Infallible;

    fn receive_item(&mut self, data: &[u8], sender: Option<&MemberId>) -> Result<Option<Key>, Infallible> {
        // One bad item must not keep the others of its datagram from being read.
        let Ok(item) = wire::decode::<Item>(data) else {
            return Ok(None);
        };
        match sender {
            None => Ok(Some(item.key())),
            Some(sender) => {
                // Bounded by the datagram it came in.
                self.inbox.lock().push((item, sender.clone()));
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::tests::{advertisement, record};

    #[test]
    fn a_small_record_is_spread_whole_and_a_large_one_by_notice() {
        let small = advertisement(1, 1, 1, vec![record("a", "1")]);
        assert_eq!(wire::decode::<Item>(&Item::encode(&small)), Ok(Item::Whole(small)));
        let large = advertisement(1, 1, 2, (0..100).map(|i| record("a", &i.to_string())).collect());
        let bytes = Item::encode(&large);
        assert!(bytes.len() <= BROADCAST_BYTES_MAX);
        assert_eq!(
            wire::decode::<Item>(&bytes),
            Ok(Item::Notice { owner: large.owner, version: large.version })
        );
    }

    #[test]
    fn newer_broadcasts_replace_older_ones_of_the_same_owner_only() {
        let key = |owner, seq| Key { owner: NodeId(owner), version: RecordVersion { incarnation: 1, seq } };
        assert!(key(1, 2).invalidates(&key(1, 1)));
        assert!(key(1, 2).invalidates(&key(1, 2)));
        assert!(!key(1, 1).invalidates(&key(1, 2)));
        assert!(!key(2, 2).invalidates(&key(1, 1)));
    }
}
