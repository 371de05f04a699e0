//! What goes into SWIM and what comes out of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Message, OwnedNotification, State, Timer};
use weft_core::id::NodeId;
use weft_core::limits::GOSSIP_MEMBERS_MAX;

use super::Pool;
use crate::member_id::{MemberCodec, MemberId};
use crate::spread::Item;
use crate::wire::{self, Kind, WireError};

/// Suspects that are told directly, each probe period.
const ACCUSED_MAX: usize = 16;
/// At most one "you are down" is believed in this time, so that two members that accuse each other by mistake cannot
/// do it as fast as the network carries it (G07).
const UNDEAD_MIN: Duration = Duration::from_millis(500);
/// Updates that fit one datagram, at most: an identity takes more than 20 bytes.
const UPDATES_PER_DATAGRAM: usize = 64;

impl Pool {
    pub(super) fn handle_timer(&mut self, now: Instant, timer: Timer<MemberId>) {
        if let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &timer {
            // foca 2.0 tells a member that it is down when this timer fires, even if it refuted in time and stays up;
            // it would believe that and come back under a new identity, once for each suspicion. Without that
            // message the timer does nothing for a member that refuted, so it ends here.
            let still_accused =
                |m: &foca::Member<MemberId>| m.id() == member_id && m.incarnation() == *incarnation;
            if !self.swim.iter_members().any(still_accused) {
                return;
            }
        }
        let ends_probe = matches!(timer, Timer::ProbeRandomMember(_));
        let result = self.swim.handle_timer(timer, self.effects.at(now));
        if ends_probe {
            // SWIM starts a suspicion in this call exactly if the probe that ends here was not answered.
            let failed = self.effects.suspicion_started;
            if failed {
                self.stats.probes_failed.inc();
            }
            self.health.probe_ended(failed, self.swim.num_members());
            self.effects.multiplier = self.health.multiplier();
            self.stats.health_multiplier.set(self.effects.multiplier.into());
        }
        self.settle(now, result);
    }

    pub(super) fn handle_swim(&mut self, now: Instant, payload: &[u8]) -> Result<(), WireError> {
        let mut rest = payload;
        let header = MemberCodec.decode_header(&mut rest).map_err(|_| WireError::Malformed)?;
        if header.src.id == self.local.id {
            self.identity_conflict(now, &header.src);
            return Ok(());
        }
        if header.message == Message::TurnUndead {
            if self.undead_at.is_some_and(|at| now < at + UNDEAD_MIN) {
                self.stats.datagrams_limited.inc();
                return Ok(());
            }
            self.undead_at = Some(now);
        }
        if !self.has_room_for(&header, rest) {
            self.stats.datagrams_limited.inc();
            return Ok(());
        }
        let result = self.swim.handle_data(payload, self.effects.at(now));
        let malformed = matches!(
            result,
            Err(foca::Error::Decode(_) | foca::Error::MalformedPacket | foca::Error::DataTooBig)
        );
        self.settle(now, if malformed { Ok(()) } else { result });
        if malformed { Err(WireError::Malformed) } else { Ok(()) }
    }

    /// SWIM has no limit on members, so a datagram that names unknown ones is dropped when the table is full (G06).
    pub(super) fn has_room_for(&self, header: &Header<MemberId>, mut rest: &[u8]) -> bool {
        let known = self.swim.iter_membership_state().len();
        if known + UPDATES_PER_DATAGRAM <= GOSSIP_MEMBERS_MAX {
            return true;
        }
        let table: BTreeSet<NodeId> = self.swim.iter_membership_state().map(|m| m.id().id).collect();
        let mut unknown = usize::from(!table.contains(&header.src.id));
        if rest.len() >= 2 && header.message != Message::Broadcast {
            for _ in 0..rest.get_u16() {
                let Ok(member) = MemberCodec.decode_member(&mut rest) else { break };
                unknown += usize::from(!table.contains(&member.id().id));
            }
        }
        known + unknown <= GOSSIP_MEMBERS_MAX
    }

    pub(super) fn identity_conflict(&mut self, now: Instant, other: &MemberId) {
        self.stats.identity_conflicts.inc();
        if self.conflict_logged_at.is_none_or(|at| now > at + Duration::from_secs(60)) {
            self.conflict_logged_at = Some(now);
            tracing::error!(
                id = %self.local.id, other = %other.addr, name = %other.name,
                "another process uses our id; give each process its own --data-dir"
            );
        }
    }

    /// Does what follows from any call into SWIM.
    pub(super) fn settle(&mut self, now: Instant, result: Result<(), foca::Error>) {
        if let Err(error) = result {
            tracing::debug!("swim: {error}");
        }
        for (to, payload) in std::mem::take(&mut self.effects.sends) {
            self.send(to, wire::seal(Kind::Swim, &payload));
        }
        for note in std::mem::take(&mut self.effects.notes) {
            self.note(now, note);
        }
        let items = std::mem::take(&mut *self.inbox.lock());
        for (item, sender) in items {
            match item {
                Item::Whole(advertisement) => self.merge(now, advertisement),
                Item::Notice { owner, version } => self.pull_from(now, owner, version, sender.addr),
            }
        }
        self.touch(now);
    }

    pub(super) fn note(&mut self, now: Instant, note: OwnedNotification<MemberId>) {
        match note {
            OwnedNotification::MemberUp(m) if m.id != self.local.id => {
                tracing::info!(member = %m.name, id = %m.id, addr = %m.addr, "member up");
            }
            OwnedNotification::MemberDown(m) if m.id != self.local.id => {
                tracing::info!(member = %m.name, id = %m.id, addr = %m.addr, "member down");
            }
            OwnedNotification::Rejoin(_) => {
                self.stats.rejoins.inc();
                tracing::warn!("others declared this process down; it is back");
            }
            OwnedNotification::Idle => {
                tracing::warn!("no other member is seen any more");
                self.rejoin_backoff.reset();
                self.rejoin_at = now;
            }
            _ => {}
        }
    }

    /// Tells suspects directly that they are suspected (Lifeguard's buddy system), with a ping, so that the answer
    /// that refutes it comes straight back instead of by gossip.
    pub(super) fn accuse(&mut self, now: Instant) {
        let suspects: Vec<_> = self
            .swim
            .iter_members()
            .filter(|m| m.state() == State::Suspect)
            .take(ACCUSED_MAX)
            .cloned()
            .collect();
        self.accuse_at = (!suspects.is_empty()).then(|| now + self.timing.probe_period);
        for suspect in suspects {
            self.tell(suspect.id().clone(), Message::Ping(0), &suspect);
        }
    }

    /// Sends one SWIM message of our own making with one update.
    pub(super) fn tell(
        &mut self,
        dst: MemberId,
        message: Message<MemberId>,
        update: &foca::Member<MemberId>,
    ) {
        let to = dst.addr;
        // SWIM keeps our suspicion number to itself; 0 never overrides what they know of us.
        let header = Header { src: self.swim.identity().clone(), src_incarnation: 0, dst, message };
        let mut payload = Vec::new();
        let encoded = MemberCodec.encode_header(&header, &mut payload).and_then(|()| {
            payload.put_u16(1);
            MemberCodec.encode_member(update, &mut payload)
        });
        if encoded.is_ok() {
            self.send(to, wire::seal(Kind::Swim, &payload));
        }
    }
}
