//! What stands around every datagram and frame, and the messages that are ours rather than SWIM's.
//!
//! ```text
//! datagram:  "wg" | version 1 | key id 0 | kind | payload             (max. GOSSIP_DATAGRAM_BYTES_MAX)
//! frame:     length u32 | "wg" | version 1 | key id 0 | kind | payload (max. GOSSIP_FRAME_BYTES_MAX)
//! ```
//! The key id names the pool's encryption key. Only 0 (none) exists; anything else is dropped, so a member that
//! encrypts is never half understood (G10).

use bytes::{BufMut, Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use weft_core::id::NodeId;
use weft_core::limits::{GOSSIP_DATAGRAM_BYTES_MAX, GOSSIP_FRAME_BYTES_MAX};

use crate::instance::{Advertisement, RecordVersion};
use crate::member_id::MemberId;

const MAGIC: [u8; 2] = *b"wg";
const VERSION: u8 = 1;
const KEY_NONE: u8 = 0;

/// Bytes before the payload.
pub(crate) const ENVELOPE_BYTES: usize = 5;

/// What the payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// SWIM's own message.
    Swim = 0,
    /// [`Hello`].
    Hello = 1,
    /// [`Welcome`].
    Welcome = 2,
    /// [`Frame`], on streams only.
    Frame = 3,
    /// [`Withdrawal`].
    Withdrawal = 4,
    /// [`Heard`].
    Heard = 5,
}

/// Why something from the network was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not from a Weft pool.
    #[error("does not start as a message of a pool")]
    Foreign,
    /// From a pool that speaks another version.
    #[error("is of version {seen}, this is version {VERSION}")]
    Version {
        /// The version.
        seen: u8,
    },
    /// Encrypted with a key that this process does not have.
    #[error("is encrypted with key {seen}, which is not known here")]
    Key {
        /// The key id.
        seen: u8,
    },
    /// Larger than allowed.
    #[error("has {seen} bytes, the limit is {limit}")]
    TooLarge {
        /// Its size.
        seen: usize,
        /// The limit.
        limit: usize,
    },
    /// The payload is not what its kind says.
    #[error("cannot be decoded")]
    Malformed,
}

/// Sent to an address of which only HOST:PORT is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub from: MemberId,
    /// The address that was called, so that a process that calls itself learns that it is its own.
    pub to: SocketAddr,
    /// Comes back in the [`Welcome`]; one that nobody asked for is dropped.
    pub nonce: u64,
}

/// The answer: whom to announce oneself to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Welcome {
    pub from: MemberId,
    pub to: SocketAddr,
    pub nonce: u64,
}

/// Its sender's instances are to be used no more; answered by [`Heard`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Withdrawal {
    pub record: Advertisement,
}

/// The sender shows nothing of `owner` that is older than `version`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Heard {
    pub by: NodeId,
    pub owner: NodeId,
    pub version: RecordVersion,
}

/// One step of an anti-entropy session; see [`crate::sync`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Frame {
    /// Caller to called: whom I see, and which versions I have.
    Offer { from: MemberId, members: Vec<foca::Member<MemberId>>, digest: Vec<(NodeId, RecordVersion)> },
    /// Either way: what you lack.
    Records(Vec<Advertisement>),
    /// Called to caller, last: whom I see, and whose records I want.
    Want { members: Vec<foca::Member<MemberId>>, owners: Vec<NodeId> },
    /// Caller to called, last.
    End,
}

/// Puts a payload in its envelope.
pub(crate) fn seal(kind: Kind, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(ENVELOPE_BYTES + payload.len());
    put_envelope(&mut out, kind);
    out.put_slice(payload);
    out.freeze()
}

/// Encodes a message as one datagram. Ours are far smaller than the limit.
pub(crate) fn datagram(kind: Kind, message: &impl Serialize) -> Bytes {
    seal(kind, &encode(message))
}

/// Encodes a frame with its length.
///
/// # Errors
/// If it is beyond the limit; callers split what they send, so only a record beyond its own limit gets here.
pub(crate) fn frame(frame: &Frame) -> Result<Bytes, WireError> {
    let payload = encode(frame);
    let len = ENVELOPE_BYTES + payload.len();
    if len > GOSSIP_FRAME_BYTES_MAX {
        return Err(WireError::TooLarge { seen: len, limit: GOSSIP_FRAME_BYTES_MAX });
    }
    let mut out = BytesMut::with_capacity(4 + len);
    out.put_u32(u32::try_from(len).expect("the limit is far below 4 GiB"));
    put_envelope(&mut out, Kind::Frame);
    out.put_slice(&payload);
    Ok(out.freeze())
}

/// Size of a frame from its first four bytes.
///
/// # Errors
/// If it is beyond the limit; the stream is not read further.
pub(crate) fn frame_len(prefix: [u8; 4]) -> Result<usize, WireError> {
    let seen = u32::from_be_bytes(prefix) as usize;
    if seen > GOSSIP_FRAME_BYTES_MAX {
        return Err(WireError::TooLarge { seen, limit: GOSSIP_FRAME_BYTES_MAX });
    }
    Ok(seen)
}

/// Takes a datagram out of its envelope.
pub(crate) fn open_datagram(bytes: &[u8]) -> Result<(Kind, &[u8]), WireError> {
    if bytes.len() > GOSSIP_DATAGRAM_BYTES_MAX {
        return Err(WireError::TooLarge { seen: bytes.len(), limit: GOSSIP_DATAGRAM_BYTES_MAX });
    }
    match open(bytes)? {
        (Kind::Frame, _) => Err(WireError::Malformed),
        opened => Ok(opened),
    }
}

/// Decodes a frame, without its length.
pub(crate) fn open_frame(bytes: &[u8]) -> Result<Frame, WireError> {
    match open(bytes)? {
        (Kind::Frame, payload) => decode(payload),
        _ => Err(WireError::Malformed),
    }
}

/// Decodes a payload; what is left over makes it malformed.
pub(crate) fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, WireError> {
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Ok(message),
        _ => Err(WireError::Malformed),
    }
}

/// Encodes a payload.
pub(crate) fn encode(message: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(message).expect("our types have known lengths and vectors do not fill up")
}

fn put_envelope(out: &mut BytesMut, kind: Kind) {
    out.put_slice(&MAGIC);
    out.put_slice(&[VERSION, KEY_NONE, kind as u8]);
}

fn open(bytes: &[u8]) -> Result<(Kind, &[u8]), WireError> {
    let [m0, m1, version, key, kind, payload @ ..] = bytes else {
        return Err(WireError::Foreign);
    };
    if [*m0, *m1] != MAGIC {
        return Err(WireError::Foreign);
    }
    if *version != VERSION {
        return Err(WireError::Version { seen: *version });
    }
    if *key != KEY_NONE {
        return Err(WireError::Key { seen: *key });
    }
    let kind = match kind {
        0 => Kind::Swim,
        1 => Kind::Hello,
        2 => Kind::Welcome,
        3 => Kind::Frame,
        4 => Kind::Withdrawal,
        5 => Kind::Heard,
        _ => return Err(WireError::Malformed),
    };
    Ok((kind, payload))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::member::Role;

    fn hello() -> Hello {
        let addr = "127.0.0.1:1".parse().unwrap();
        let from = MemberId {
            id: NodeId(1),
            addr,
            incarnation: 2,
            renewals: 0,
            name: "a".into(),
            role: Role::Proxy,
        };
        Hello { from, to: addr, nonce: 9 }
    }

    #[test]
    fn a_datagram_comes_out_as_it_went_in() {
        let bytes = datagram(Kind::Hello, &hello());
        let (kind, payload) = open_datagram(&bytes).unwrap();
        assert_eq!((kind, decode::<Hello>(payload).unwrap()), (Kind::Hello, hello()));
    }

    #[test]
    fn a_frame_comes_out_as_it_went_in() {
        let want = Frame::Want { members: vec![foca::Member::alive(hello().from)], owners: vec![NodeId(3)] };
        let bytes = frame(&want).unwrap();
        let len = frame_len(bytes[..4].try_into().unwrap()).unwrap();
        assert_eq!(len, bytes.len() - 4);
        assert_eq!(open_frame(&bytes[4..]).unwrap(), want);
    }

    /// G10: other pools, versions and keys are told apart and dropped.
    #[test]
    fn other_pools_versions_and_keys_are_refused() {
        let good = datagram(Kind::Hello, &hello());
        let with = |at: usize, byte: u8| {
            let mut bytes = good.to_vec();
            bytes[at] = byte;
            open_datagram(&bytes).map(|_| ()).unwrap_err()
        };
        assert_eq!(with(0, b'x'), WireError::Foreign);
        assert_eq!(with(2, 2), WireError::Version { seen: 2 });
        assert_eq!(with(3, 1), WireError::Key { seen: 1 });
        assert_eq!(with(4, 9), WireError::Malformed);
        assert_eq!(with(4, Kind::Frame as u8), WireError::Malformed);
        assert_eq!(open_datagram(&good[..3]), Err(WireError::Foreign));
    }

    #[test]
    fn sizes_beyond_the_limits_are_refused() {
        let seen = GOSSIP_DATAGRAM_BYTES_MAX + 1;
        assert!(matches!(open_datagram(&vec![0; seen]), Err(WireError::TooLarge { .. })));
        assert!(matches!(frame_len([0xff; 4]), Err(WireError::TooLarge { .. })));
    }

    #[test]
    fn bytes_after_the_message_make_it_malformed() {
        let mut payload = encode(&hello());
        payload.push(0);
        assert_eq!(decode::<Hello>(&payload), Err(WireError::Malformed));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = open_datagram(&bytes);
            let mut sealed = vec![b'w', b'g', 1, 0, 3];
            sealed.extend(&bytes);
            let _ = open_frame(&sealed);
            let _ = decode::<Hello>(&bytes);
        }
    }
}
