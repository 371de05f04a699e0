//! Withdrawing what we advertise so that we know when it is known (P46): those who are up are told directly, again and again,
//! until each has said that it shows nothing of it any more. Those who are suspected or go down are not waited for.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weft_core::id::NodeId;

use super::{Output, Pool};
use crate::instance::RecordVersion;
use crate::member::MemberState;
use crate::wire::{self, Heard, Kind, WireError, Withdrawal};

/// Between two times that a member is told.
const TELL_AGAIN: Duration = Duration::from_millis(100);
/// Members told directly; in a larger pool the others hear of it as of everything else.
const TOLD_MAX: usize = 1024;
/// Answers that wait for the next refresh.
const ANSWERS_MAX: usize = 1024;

/// Both halves.
#[derive(Debug, Default)]
pub(super) struct Withdrawals {
    /// Who has not yet heard of ours.
    unheard: BTreeMap<NodeId, SocketAddr>,
    again_at: Option<Instant>,
    /// Whose we show no more, once the view is refreshed, and who wants to know it.
    answers: Vec<(SocketAddr, Heard)>,
}

impl Withdrawals {
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.again_at
    }
}

impl Pool {
    /// Withdraws our instances, and asks all members that are up to say when they have.
    pub fn withdraw(&mut self, now: Instant) {
        if self.left {
            return;
        }
        self.put_own(Vec::new());
        let up =
            self.members.iter().filter(|m| m.state == MemberState::Alive && m.member.id != self.local.id);
        self.withdrawals.unheard = up.take(TOLD_MAX).map(|m| (m.member.id, m.member.gossip_addr)).collect();
        self.tell_unheard(now);
        let result = self.swim.gossip(self.effects.at(now));
        self.settle(now, result);
    }

    /// Members that may still use what was withdrawn. Not those that are suspected: they are told on, and count again when
    /// they are back.
    pub fn unheard(&self) -> usize {
        let alive = |id: &&NodeId| self.state_of(**id) == Some(MemberState::Alive);
        self.withdrawals.unheard.keys().filter(alive).count()
    }

    fn state_of(&self, id: NodeId) -> Option<MemberState> {
        let found = self.members.binary_search_by_key(&id, |m| m.member.id).ok();
        found.map(|at| self.members[at].state)
    }

    pub(super) fn tell_unheard(&mut self, now: Instant) {
        let mut unheard = std::mem::take(&mut self.withdrawals.unheard);
        unheard.retain(|id, _| self.state_of(*id).is_some_and(|state| state != MemberState::Down));
        self.withdrawals.unheard = unheard;
        let to: Vec<_> = self.withdrawals.unheard.values().copied().collect();
        self.withdrawals.again_at = (!to.is_empty()).then(|| now + TELL_AGAIN);
        let Some(record) = self.records.get(self.local.id).cloned().filter(|_| !to.is_empty()) else {
            return;
        };
        let bytes = wire::datagram(Kind::Withdrawal, &Withdrawal { record });
        for to in to {
            self.send(to, bytes.clone());
        }
    }

    pub(super) fn handle_withdrawal(
        &mut self,
        now: Instant,
        from: SocketAddr,
        withdrawal: Withdrawal,
    ) -> Result<(), WireError> {
        let Withdrawal { record } = withdrawal;
        let (owner, version) = (record.owner, record.version);
        if !record.instances.is_empty() || owner == self.local.id {
            return Err(WireError::Malformed);
        }
        self.merge(now, record);
        // Of an owner that is not known here nothing is shown either.
        if self.records.version(owner).is_some_and(|known| known < version) {
            return Ok(());
        }
        if self.withdrawals.answers.len() >= ANSWERS_MAX {
            self.stats.datagrams_limited.inc();
            return Ok(());
        }
        self.withdrawals.answers.push((from, Heard { by: self.local.id, owner, version }));
        self.touch(now);
        Ok(())
    }

    /// Everything that was taken in is shown now.
    pub(super) fn answer_withdrawals(&mut self) {
        for (to, heard) in std::mem::take(&mut self.withdrawals.answers) {
            self.outputs.push_back(Output::Datagram { to, bytes: wire::datagram(Kind::Heard, &heard) });
        }
    }

    pub(super) fn handle_heard(&mut self, heard: &Heard) -> Result<(), WireError> {
        let own = RecordVersion { incarnation: self.local.incarnation, seq: self.seq };
        if heard.owner != self.local.id {
            return Err(WireError::Malformed);
        }
        if heard.version >= own {
            self.withdrawals.unheard.remove(&heard.by);
        }
        Ok(())
    }
}
