//! Anti-entropy sessions: when they start, and what each frame does. The exchange itself is drawn in [`crate::sync`].

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::{IteratorRandom, SliceRandom};
use weft_core::id::NodeId;
use weft_core::limits::{GOSSIP_MEMBERS_MAX, GOSSIP_SESSIONS_SERVED_MAX, GOSSIP_SESSIONS_STARTED_MAX};

use super::{Output, Pool, Pull, StreamId};
use crate::instance::RecordVersion;
use crate::member::MemberState;
use crate::member_id::{self, MemberId};
use crate::sync::{self, Session};
use crate::wire::{self, Frame};

/// How long a broadcast may take before a record is fetched, at most; random, so that not all fetch at once.
const PULL_AFTER_MAX: Duration = Duration::from_millis(400);
/// After the first try that brought nothing; doubles with each.
const PULL_AGAIN: Duration = Duration::from_secs(1);
/// Waiting when all sessions are taken.
const PULL_BUSY: Duration = Duration::from_millis(200);
/// Doublings of [`PULL_AGAIN`].
const PULL_TRIES_MAX: u32 = 6;

impl Pool {
    /// Someone opened a stream to us. `None`: there are too many; close it.
    pub fn handle_accept(&mut self) -> Option<StreamId> {
        let served = self.sessions.values().filter(|s| !s.is_ours()).count();
        if self.left || served >= GOSSIP_SESSIONS_SERVED_MAX {
            self.stats.syncs_refused.inc();
            return None;
        }
        let stream = self.next_stream();
        self.sessions.insert(stream, Session::Accepted);
        Some(stream)
    }

    /// A stream ended, or could not be opened, or took too long.
    pub fn handle_stream_closed(&mut self, stream: StreamId) {
        if self.sessions.remove(&stream).is_some() {
            self.stats.syncs_failed.inc();
        }
    }

    /// A frame came, without its length.
    pub fn handle_frame(&mut self, now: Instant, stream: StreamId, bytes: &[u8]) {
        let Some(session) = self.sessions.get(&stream).copied() else {
            // One of ours that is over, or that the driver has not closed yet.
            return;
        };
        let frame = wire::open_frame(bytes);
        let next = match (session, frame) {
            (Session::Accepted, Ok(Frame::Offer { from, members, digest })) => {
                self.answer(now, stream, from, members, &digest)
            }
            (Session::Called | Session::Answered, Ok(Frame::Records(records))) => {
                for record in records {
                    self.merge(now, record);
                }
                Some(session)
            }
            (Session::Called, Ok(Frame::Want { members, owners })) => {
                self.give(now, stream, members, &owners);
                None
            }
            (Session::Answered, Ok(Frame::End)) => {
                self.stats.syncs_served.inc();
                None
            }
            (_, frame) => {
                let why = frame.err().map_or_else(|| "is out of order".to_owned(), |e| e.to_string());
                tracing::debug!(?stream, "closed a stream: a frame {why}");
                self.stats.syncs_failed.inc();
                None
            }
        };
        match next {
            Some(next) => {
                self.sessions.insert(stream, next);
            }
            None => {
                self.sessions.remove(&stream);
                self.outputs.push_back(Output::Close { stream });
            }
        }
        self.touch(now);
    }

    pub(super) fn start_session(&mut self, to: SocketAddr) -> bool {
        let ours = self.sessions.values().filter(|s| s.is_ours()).count();
        if ours >= GOSSIP_SESSIONS_STARTED_MAX {
            return false;
        }
        self.stats.syncs_started.inc();
        let stream = self.next_stream();
        self.sessions.insert(stream, Session::Called);
        self.outputs.push_back(Output::Connect { stream, to });
        let digest = self.offered().map(|a| (a.owner, a.version)).collect();
        let offer = Frame::Offer { from: self.swim.identity().clone(), members: self.sample(), digest };
        self.send_frame(stream, &offer);
        true
    }

    /// Starts the periodic session and those that fetch a record, when due.
    pub(super) fn start_due_sessions(&mut self, now: Instant) {
        if self.sync_at <= now {
            let every = self.timing.sync_every(self.active.len());
            self.sync_at = now + every.mul_f64(self.rng.random_range(0.75..1.25));
            let partner = self.active.values().copied().choose(&mut self.rng);
            if let Some(partner) = partner {
                self.start_session(partner);
            }
        }
        let due: Vec<NodeId> = self.pulls.iter().filter(|(_, p)| p.at <= now).map(|(id, _)| *id).collect();
        for owner in due {
            let Some(pull) = self.pulls.get(&owner).copied() else { continue };
            if self.records.version(owner) >= Some(pull.want) || !self.active.contains_key(&owner) {
                self.pulls.remove(&owner);
                continue;
            }
            let next = if self.start_session(pull.from) {
                let wait = PULL_AGAIN * 2u32.pow(pull.tries);
                Pull { at: now + wait, tries: (pull.tries + 1).min(PULL_TRIES_MAX), ..pull }
            } else {
                Pull { at: now + PULL_BUSY, ..pull }
            };
            self.pulls.insert(owner, next);
        }
    }

    /// Someone has a record that is too large to be broadcast.
    pub(super) fn pull_from(&mut self, now: Instant, owner: NodeId, want: RecordVersion, from: SocketAddr) {
        let is_news = self.records.version(owner) < Some(want);
        let is_planned = self.pulls.get(&owner).is_some_and(|p| p.want >= want);
        if owner != self.local.id && is_news && !is_planned {
            let at = now + self.jitter();
            self.pulls.insert(owner, Pull { at, from, want, tries: 0 });
        }
    }

    /// Every member advertises, if only that it has nothing. Of one that is up, and of whose present life nothing is
    /// known, it is fetched; and nothing is fetched of those that are gone.
    pub(super) fn schedule_pulls(&mut self, now: Instant) {
        self.pulls.retain(|owner, _| self.active.contains_key(owner));
        let members = self.members.clone();
        for view in members.iter().filter(|v| v.state != MemberState::Down) {
            let member = &view.member;
            let want = RecordVersion { incarnation: member.incarnation, seq: 0 };
            if !self.pulls.contains_key(&member.id) {
                self.pull_from(now, member.id, want, member.gossip_addr);
            }
        }
    }

    fn jitter(&mut self) -> Duration {
        PULL_AFTER_MAX.mul_f64(self.rng.random_range(0.25..1.0))
    }

    fn answer(
        &mut self,
        now: Instant,
        stream: StreamId,
        from: MemberId,
        members: Vec<foca::Member<MemberId>>,
        digest: &[(NodeId, RecordVersion)],
    ) -> Option<Session> {
        if from.id == self.local.id {
            self.identity_conflict(now, &from);
            return None;
        }
        if !member_id::all_sound(&[foca::Member::alive(from.clone())]) || !member_id::all_sound(&members) {
            self.stats.syncs_failed.inc();
            return None;
        }
        self.apply(now, std::iter::once(foca::Member::alive(from)).chain(members));
        let frames = sync::frames(sync::lacking(self.offered(), digest));
        let owners = sync::wanted(|owner| self.records.version(owner), digest);
        let want = Frame::Want { members: self.sample(), owners };
        for frame in frames.iter().chain([&want]) {
            self.send_frame(stream, frame);
        }
        Some(Session::Answered)
    }

    fn give(
        &mut self,
        now: Instant,
        stream: StreamId,
        members: Vec<foca::Member<MemberId>>,
        owners: &[NodeId],
    ) {
        if member_id::all_sound(&members) {
            self.apply(now, members.into_iter());
        }
        let frames = sync::frames(owners.iter().filter_map(|owner| self.records.get(*owner)));
        for frame in frames.iter().chain([&Frame::End]) {
            self.send_frame(stream, frame);
        }
    }

    fn apply(&mut self, now: Instant, members: impl Iterator<Item = foca::Member<MemberId>>) {
        let known: std::collections::BTreeSet<NodeId> =
            self.swim.iter_membership_state().map(|m| m.id().id).collect();
        let mut room = GOSSIP_MEMBERS_MAX.saturating_sub(known.len());
        let fitting = members.filter(|m| {
            let fits = known.contains(&m.id().id) || room > 0;
            room -= usize::from(fits && !known.contains(&m.id().id));
            fits
        });
        let result = self.swim.apply_many(fitting, true, self.effects.at(now));
        self.settle(now, result);
    }

    /// Records of owners that are up, and ours.
    fn offered(&self) -> impl Iterator<Item = &crate::instance::Advertisement> {
        self.records.iter().filter(|a| a.owner == self.local.id || self.active.contains_key(&a.owner))
    }

    /// Members that are up; of a very large pool, some.
    fn sample(&mut self) -> Vec<foca::Member<MemberId>> {
        let mut members: Vec<_> = self.swim.iter_members().cloned().collect();
        if members.len() > sync::MEMBERS_PER_FRAME_MAX {
            members.shuffle(&mut self.rng);
            members.truncate(sync::MEMBERS_PER_FRAME_MAX);
        }
        members
    }

    fn send_frame(&mut self, stream: StreamId, frame: &Frame) {
        match wire::frame(frame) {
            Ok(bytes) => self.outputs.push_back(Output::Frame { stream, bytes }),
            Err(error) => tracing::error!("a frame of ours {error}"),
        }
    }

    fn next_stream(&mut self) -> StreamId {
        self.streams += 1;
        StreamId(self.streams)
    }
}
