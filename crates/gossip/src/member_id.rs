//! The identity that SWIM passes around: who, where, and which life of it.
//!
//! ```text
//! process start: incarnation grows, renewals = 0        (a new life: wins over all of the former)
//! declared down by mistake: renewals + 1                (same life: its advertisement stays valid)
//! ```
//! Name and role ride along: they are small, fixed for a process, and then no member is ever known without them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Identity, PostcardCodec};
use serde::{Deserialize, Serialize};
use weft_core::id::NodeId;
use weft_core::limits::MEMBER_NAME_BYTES_MAX;

use crate::member::{Member, Role};

/// A member's identity on the wire.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberId {
    /// The unique part: SWIM keeps one entry for each.
    pub id: NodeId,
    /// Where its datagrams go.
    pub addr: SocketAddr,
    /// Grows with each process start.
    pub incarnation: u64,
    /// Grows each time the running process was declared down and came back.
    pub renewals: u32,
    /// Label.
    pub name: Arc<str>,
    /// What it does.
    pub role: Role,
}

impl MemberId {
    /// First identity of a process.
    pub fn new(member: &Member) -> Self {
        Self {
            id: member.id,
            addr: member.gossip_addr,
            incarnation: member.incarnation,
            renewals: 0,
            name: member.name.as_str().into(),
            role: member.role.clone(),
        }
    }

    /// As shown to the rest of the process.
    pub fn to_member(&self) -> Member {
        Member {
            id: self.id,
            name: self.name.as_ref().to_owned(),
            role: self.role.clone(),
            gossip_addr: self.addr,
            incarnation: self.incarnation,
        }
    }

    /// Whether a peer could have sent this in good faith.
    fn is_sound(&self) -> bool {
        self.id.0 != 0 && self.name.len() <= MEMBER_NAME_BYTES_MAX && self.addr.port() != 0
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({}@{} {}.{})", self.name, self.id, self.addr, self.incarnation, self.renewals)
    }
}

impl Identity for MemberId {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        Some(Self { renewals: self.renewals.checked_add(1)?, ..self.clone() })
    }

    fn addr(&self) -> NodeId {
        self.id
    }

    /// The later life wins (G03, G07). The address only breaks ties, which take two processes with one data folder.
    fn win_addr_conflict(&self, other: &Self) -> bool {
        (self.incarnation, self.renewals, self.addr) > (other.incarnation, other.renewals, other.addr)
    }
}

/// Postcard, with a look at what was decoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemberCodec;

impl Codec<MemberId> for MemberCodec {
    type Error = postcard::Error;

    fn encode_header(&mut self, header: &Header<MemberId>, buf: impl BufMut) -> Result<(), Self::Error> {
        PostcardCodec.encode_header(header, buf)
    }

    fn decode_header(&mut self, buf: impl Buf) -> Result<Header<MemberId>, Self::Error> {
        let header: Header<MemberId> = PostcardCodec.decode_header(buf)?;
        if header.src.is_sound() && header.dst.is_sound() {
            Ok(header)
        } else {
            Err(postcard::Error::SerdeDeCustom)
        }
    }

    fn encode_member(
        &mut self,
        member: &foca::Member<MemberId>,
        buf: impl BufMut,
    ) -> Result<(), Self::Error> {
        PostcardCodec.encode_member(member, buf)
    }

    fn decode_member(&mut self, buf: impl Buf) -> Result<foca::Member<MemberId>, Self::Error> {
        let member: foca::Member<MemberId> = PostcardCodec.decode_member(buf)?;
        if member.id().is_sound() { Ok(member) } else { Err(postcard::Error::SerdeDeCustom) }
    }
}

/// Whether all members that came in one frame are sound.
pub(crate) fn all_sound(members: &[foca::Member<MemberId>]) -> bool {
    members.iter().all(|member| member.id().is_sound())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(incarnation: u64) -> MemberId {
        MemberId {
            id: NodeId(7),
            addr: "127.0.0.1:7946".parse().unwrap(),
            incarnation,
            renewals: 0,
            name: "a".into(),
            role: Role::Proxy,
        }
    }

    /// G03, G07: order is total and only grows, so two members cannot accuse each other's old lives for ever.
    #[test]
    fn later_lives_win_and_earlier_ones_never_do() {
        let first = identity(10);
        let renewed = first.renew().unwrap().renew().unwrap();
        let restarted = identity(11);
        assert!(renewed.win_addr_conflict(&first) && !first.win_addr_conflict(&renewed));
        assert!(restarted.win_addr_conflict(&renewed) && !renewed.win_addr_conflict(&restarted));
        assert!(!first.win_addr_conflict(&first.clone()));
    }

    #[test]
    fn renewals_end_instead_of_wrapping() {
        let last = MemberId { renewals: u32::MAX, ..identity(1) };
        assert!(last.renew().is_none());
    }

    #[test]
    fn three_identities_of_the_longest_name_leave_room_in_a_datagram() {
        let addr: SocketAddr = "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535".parse().unwrap();
        let longest = MemberId {
            id: NodeId(u64::MAX),
            addr,
            incarnation: u64::MAX,
            renewals: u32::MAX,
            name: "n".repeat(MEMBER_NAME_BYTES_MAX).into(),
            role: Role::Server { grpc_addr: addr, http_addr: addr, peer_addr: addr },
        };
        let size = postcard::to_stdvec(&longest).unwrap().len();
        let needed = 3 * size + crate::spread::BROADCAST_BYTES_MAX;
        assert!(needed < weft_core::limits::GOSSIP_DATAGRAM_BYTES_MAX - 32, "{size}");
    }

    #[test]
    fn identities_out_of_range_are_refused() {
        for bad in [
            MemberId { id: NodeId(0), ..identity(1) },
            MemberId { name: "n".repeat(MEMBER_NAME_BYTES_MAX + 1).into(), ..identity(1) },
            MemberId { addr: "127.0.0.1:0".parse().unwrap(), ..identity(1) },
        ] {
            let mut buf = Vec::new();
            MemberCodec.encode_member(&foca::Member::alive(bad), &mut buf).unwrap();
            assert!(MemberCodec.decode_member(&buf[..]).is_err());
        }
    }
}
