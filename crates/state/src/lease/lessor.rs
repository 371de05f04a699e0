//! The leader's clock for leases.
//!
//! ```text
//!            granted, promote                    deadline passed
//!  (unknown) ───────────────► Running ◄──renew──┐ ─────────────► Expiring ──revoked──► (unknown)
//!                                └──────────────┘ ◄── not_expired ──┘
//! ```
//!
//! Only the leader runs one. It never ends a lease: it says which ones have passed their deadline, and the
//! driver proposes `LeaseExpire`. From then on a renewal is refused, so that nobody is told that a lease
//! lives on while its end is on its way into the log (S01). When the command is applied the driver says
//! `revoked`; when it could not be committed, `not_expired`. How much time long leases have left is noted through
//! the log for the next leader, see [`super::checkpoint`].

use std::collections::{BTreeMap, VecDeque};

use crate::{
    command::{LeaseCheckpoint, LeaseGrantNumber, LeaseId},
    defect::{Defect, planted},
    error::StoreError,
    lease::{
        LeaseTerms, Tick,
        checkpoint::{Noted, Sweep},
        timing_wheel::{TimerId, TimingWheel},
    },
};

/// Most leases in one batch to expire, so that the command they become stays small.
pub const LEASES_PER_EXPIRE_MAX: usize = 1_000;

/// How long after [`Lessor::not_expired`] a lease is tried again, in milliseconds. Long enough for a
/// leader that lost its quorum not to spin, short against any time to live.
const EXPIRE_RETRY_MS: u64 = 500;

/// The leader's clock for leases. Renewals are constant time and never enter the log.
///
/// Ticks must not go backwards; one that does is taken as the latest one seen.
#[derive(Debug, Default)]
pub struct Lessor {
    /// None while this replica does not lead.
    pub(super) clock: Option<Clock>,
}

#[derive(Debug)]
pub(super) struct Clock {
    pub(super) now: Tick,
    pub(super) wheel: TimingWheel,
    /// Ordered by id, as ids are chosen by clients: a hash map could be made slow.
    pub(super) leases: BTreeMap<LeaseId, Timed>,
    batches: VecDeque<Vec<(LeaseId, LeaseGrantNumber)>>,
    pub(super) sweep: Sweep,
}

#[derive(Debug)]
pub(super) struct Timed {
    pub(super) ttl_secs: i64,
    pub(super) grant: LeaseGrantNumber,
    pub(super) state: TimedState,
    pub(super) noted: Noted,
}

/// Why a lease is not renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RenewError {
    /// It is unknown or its deadline has passed.
    Gone(StoreError),
    /// What is left of it is being noted: ask again when that is over.
    BeingNoted,
    /// What is left of it was noted, and a new leader would start from that: have this applied first, then ask
    /// again.
    Noted(LeaseCheckpoint),
}

#[derive(Debug)]
pub(super) enum TimedState {
    Running(TimerId),
    /// In a batch, or in a command that the batch became.
    Expiring,
}

impl Lessor {
    /// A lessor that is not promoted: it knows no lease and expires nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether this replica keeps time at present. While it does not, [`Lessor::renew`] knows no lease,
    /// which says nothing about whether the lease exists.
    pub fn is_promoted(&self) -> bool {
        self.clock.is_some()
    }

    /// Leases whose time is kept.
    pub fn len(&self) -> usize {
        self.clock.as_ref().map_or(0, |clock| clock.leases.len())
    }

    /// Whether no lease's time is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// This replica became leader, and has applied all that earlier ones committed. It cannot know what renewals
    /// the former leader answered last, so every lease gets its full time again, or what was noted of it: then it
    /// was not renewed since (P04). And `extension_ms` more for clients to find the new leader. Of an earlier
    /// promotion it keeps only what may still be on its way into the log.
    pub fn promote(&mut self, now: Tick, leases: impl IntoIterator<Item = LeaseTerms>, extension_ms: u64) {
        let before = self.clock.take();
        let mut clock = Clock {
            now,
            wheel: TimingWheel::new(now),
            leases: BTreeMap::new(),
            batches: VecDeque::new(),
            sweep: Sweep::after(now),
        };
        for mut terms in leases {
            if planted(Defect::EarlyRevoke) {
                terms.ttl_secs /= 2;
            }
            let before = before.as_ref().and_then(|before| before.leases.get(&terms.id));
            let noted = Noted::at_promotion(&terms, before);
            clock.start(terms, extension_ms);
            if let Some(timed) = clock.leases.get_mut(&terms.id) {
                timed.noted = noted;
            }
        }
        self.clock = Some(clock);
    }

    /// This replica no longer leads: forget all deadlines and batches.
    pub fn demote(&mut self) {
        self.clock = None;
    }

    /// A lease was granted, or granted a new time to live: it has its full time from now. Nothing happens
    /// unless promoted.
    pub fn granted(&mut self, now: Tick, terms: LeaseTerms) {
        if let Some(clock) = &mut self.clock {
            clock.see(now);
            clock.start(terms, 0);
        }
    }

    /// A lease is gone; nothing happens if it is not known.
    pub fn revoked(&mut self, id: LeaseId) {
        if let Some(clock) = &mut self.clock {
            clock.forget(id);
        }
    }

    /// The lease has its full time again from now; answers it in seconds.
    ///
    /// # Errors
    /// `Gone` if it is unknown or its deadline has passed, also when `handle_timeout` has not yet noticed; the
    /// others see [`RenewError`].
    pub fn renew(&mut self, now: Tick, id: LeaseId) -> Result<i64, RenewError> {
        let gone = RenewError::Gone(StoreError::LeaseNotFound { id });
        let Some(clock) = &mut self.clock else { return Err(gone) };
        clock.see(now);
        match clock.leases.get_mut(&id) {
            Some(Timed { ttl_secs, grant, state: TimedState::Running(timer), noted })
                if clock.wheel.deadline(*timer) > clock.now =>
            {
                noted.before_renewal(id, *grant)?;
                // After a promotion the deadline may be beyond the full time; it is never shortened.
                let deadline = after(clock.now, *ttl_secs, 0).max(clock.wheel.deadline(*timer));
                clock.wheel.postpone(*timer, deadline);
                Ok(*ttl_secs)
            }
            _ => Err(gone),
        }
    }

    /// Milliseconds left; 0 once the deadline has passed; none if unknown.
    pub fn remaining(&self, now: Tick, id: LeaseId) -> Option<u64> {
        let clock = self.clock.as_ref()?;
        Some(match &clock.leases.get(&id)?.state {
            TimedState::Running(timer) => clock.wheel.deadline(*timer).0.saturating_sub(now.max(clock.now).0),
            TimedState::Expiring => 0,
        })
    }

    /// Time passed: collects what expired. Safe to call early or twice.
    pub fn handle_timeout(&mut self, now: Tick) {
        if let Some(clock) = &mut self.clock {
            clock.see(now);
            clock.expire();
        }
    }

    /// When to call [`Lessor::handle_timeout`] next. May be earlier than the first deadline.
    pub fn poll_timeout(&self) -> Option<Tick> {
        self.clock.as_ref()?.wheel.next()
    }

    /// The next batch of leases to expire through the log, each with the grant whose time is up; at most
    /// [`LEASES_PER_EXPIRE_MAX`].
    pub fn poll_output(&mut self) -> Option<Vec<(LeaseId, LeaseGrantNumber)>> {
        self.clock.as_mut()?.batches.pop_front()
    }

    /// A batch could not be committed: its leases that are still there can be renewed again, and expire
    /// again shortly if they are not. Those that were granted again meanwhile are left alone.
    pub fn not_expired(&mut self, batch: &[(LeaseId, LeaseGrantNumber)]) {
        let Some(clock) = &mut self.clock else { return };
        for (id, grant) in batch {
            if let Some(timed) = clock.leases.get_mut(id)
                && timed.grant == *grant
                && matches!(timed.state, TimedState::Expiring)
            {
                let retry = Tick(clock.now.0.saturating_add(EXPIRE_RETRY_MS));
                timed.state = TimedState::Running(clock.wheel.insert(*id, retry));
            }
        }
    }
}

impl Clock {
    fn see(&mut self, now: Tick) {
        self.now = self.now.max(now);
    }

    fn start(&mut self, terms: LeaseTerms, extension_ms: u64) {
        let LeaseTerms { id, ttl_secs, grant, remaining_secs } = terms;
        self.forget(id);
        let secs = remaining_secs.unwrap_or(ttl_secs);
        let timer = self.wheel.insert(id, after(self.now, secs, extension_ms));
        let state = TimedState::Running(timer);
        self.leases.insert(id, Timed { ttl_secs, grant, state, noted: Noted::No });
    }

    fn forget(&mut self, id: LeaseId) {
        // A command that already names it is harmless, also when the id is granted anew: it names the grant
        // (S06). A batch that is not yet a command need not become one.
        match self.leases.remove(&id).map(|timed| timed.state) {
            Some(TimedState::Running(timer)) => self.wheel.remove(timer),
            Some(TimedState::Expiring) => {
                for batch in &mut self.batches {
                    batch.retain(|(expiring, _)| *expiring != id);
                }
                self.batches.retain(|batch| !batch.is_empty());
            }
            None => {}
        }
    }

    fn expire(&mut self) {
        let Self { now, wheel, leases, batches, .. } = self;
        wheel.advance(*now, |id| {
            let timed = leases.get_mut(&id).expect("a timer's lease is known until the timer is gone");
            timed.state = TimedState::Expiring;
            match batches.back_mut() {
                Some(batch) if batch.len() < LEASES_PER_EXPIRE_MAX => batch.push((id, timed.grant)),
                _ => batches.push_back(vec![(id, timed.grant)]),
            }
        });
    }
}

fn after(now: Tick, ttl_secs: i64, extension_ms: u64) -> Tick {
    let ttl_ms = ttl_secs.max(0).cast_unsigned().saturating_mul(1_000);
    Tick(now.0.saturating_add(ttl_ms).saturating_add(extension_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expired(lessor: &mut Lessor, now: u64) -> Vec<LeaseId> {
        lessor.handle_timeout(Tick(now));
        std::iter::from_fn(|| lessor.poll_output()).flatten().map(|(id, _)| id).collect()
    }

    /// A lease's first grant.
    fn terms(id: LeaseId, ttl_secs: i64) -> LeaseTerms {
        LeaseTerms { id, ttl_secs, grant: 1, remaining_secs: None }
    }

    fn promoted(leases: &[(LeaseId, i64)]) -> Lessor {
        let mut lessor = Lessor::new();
        lessor.promote(Tick(0), leases.iter().map(|(id, ttl_secs)| terms(*id, *ttl_secs)), 0);
        lessor
    }

    #[test]
    fn lease_expires_at_its_deadline_and_once() {
        let mut lessor = promoted(&[(1, 10)]);
        assert_eq!(lessor.remaining(Tick(4_000), 1), Some(6_000));
        assert_eq!(expired(&mut lessor, 9_999), [0; 0]);
        assert_eq!(expired(&mut lessor, 10_031), [1]);
        assert_eq!(expired(&mut lessor, 60_000), [0; 0], "once");
        assert_eq!(lessor.remaining(Tick(10_031), 1), Some(0));
    }

    #[test]
    fn poll_timeout_leads_a_driver_to_every_expiry() {
        let mut lessor = promoted(&[(1, 1), (2, 70), (3, 5_000), (4, 9_000_000_000)]);
        let mut seen = Vec::new();
        let mut calls = 0;
        while let Some(next) = lessor.poll_timeout() {
            calls += 1;
            for id in expired(&mut lessor, next.0) {
                seen.push((id, next.0 / 1_000));
                lessor.revoked(id);
            }
        }
        assert_eq!(seen, [(1, 1), (2, 70), (3, 5_000), (4, 9_000_000_000)]);
        assert!(calls < 60, "{calls} wake-ups for four leases");
        assert!(lessor.is_empty());
    }

    #[test]
    fn renewed_lease_has_its_full_time_again() {
        let mut lessor = promoted(&[(1, 10)]);
        for now in (0..100_000).step_by(5_000) {
            assert_eq!(lessor.renew(Tick(now), 1), Ok(10));
            assert_eq!(expired(&mut lessor, now), [0; 0]);
        }
        assert_eq!(lessor.remaining(Tick(95_000), 1), Some(10_000));
        assert_eq!(expired(&mut lessor, 105_031), [1]);
    }

    /// S01
    #[test]
    fn renewal_is_refused_from_the_deadline_on() {
        let mut lessor = promoted(&[(1, 10)]);
        assert_eq!(
            lessor.renew(Tick(10_000), 1),
            Err(RenewError::Gone(StoreError::LeaseNotFound { id: 1 })),
            "not yet noticed"
        );
        assert_eq!(expired(&mut lessor, 10_031), [1]);
        assert_eq!(
            lessor.renew(Tick(10_031), 1),
            Err(RenewError::Gone(StoreError::LeaseNotFound { id: 1 })),
            "in a batch"
        );
    }

    #[test]
    fn batch_that_was_not_committed_can_be_renewed_or_expires_again() {
        let mut lessor = promoted(&[(1, 10), (2, 10), (3, 10)]);
        assert_eq!(expired(&mut lessor, 10_031).len(), 3);
        lessor.revoked(3);
        lessor.not_expired(&[(1, 1), (2, 1), (3, 1)]);
        assert_eq!(lessor.len(), 2, "the revoked one stays gone");
        assert_eq!(lessor.renew(Tick(10_100), 1), Ok(10));
        assert_eq!(expired(&mut lessor, 10_700), [2]);
    }

    /// S02: a new leader grants one full time and a stated extension, not more.
    #[test]
    fn promotion_gives_every_lease_its_full_time_and_the_extension() {
        let mut lessor = promoted(&[(1, 10)]);
        lessor.demote();
        assert!(!lessor.is_promoted());
        assert_eq!(expired(&mut lessor, 20_000), [0; 0]);
        assert_eq!(lessor.poll_timeout(), None);
        lessor.granted(Tick(20_000), terms(2, 10));
        assert!(lessor.is_empty(), "a follower keeps no time");
        lessor.promote(Tick(30_000), [terms(1, 10)], 2_000);
        assert_eq!(lessor.remaining(Tick(30_000), 1), Some(12_000));
        assert_eq!(lessor.renew(Tick(30_001), 1), Ok(10));
        assert_eq!(lessor.remaining(Tick(30_001), 1), Some(11_999), "a renewal never shortens");
        assert_eq!(expired(&mut lessor, 42_031), [1]);
    }

    /// S06
    #[test]
    fn id_that_is_granted_anew_is_not_expired_by_the_former_leases_deadline() {
        let mut lessor = promoted(&[(1, 10), (2, 10)]);
        lessor.handle_timeout(Tick(10_031));
        lessor.revoked(1);
        lessor.granted(Tick(10_031), LeaseTerms { grant: 2, ..terms(1, 10) });
        assert_eq!(expired(&mut lessor, 10_031), [2]);
        assert_eq!(lessor.remaining(Tick(10_031), 1), Some(10_000));
        lessor.granted(Tick(11_000), LeaseTerms { grant: 3, ..terms(1, 1) });
        lessor.handle_timeout(Tick(12_031));
        let batch = lessor.poll_output().expect("a shorter time to live counts at once");
        assert_eq!(batch, [(1, 3)], "and the batch names the grant");
        lessor.not_expired(&[(1, 2)]);
        assert_eq!(
            lessor.remaining(Tick(12_031), 1),
            Some(0),
            "what became of an earlier grant says nothing"
        );
        lessor.not_expired(&batch);
        assert_eq!(lessor.renew(Tick(12_100), 1), Ok(1));
    }

    /// S03
    #[test]
    fn hundred_thousand_leases_expire_in_bounded_batches_and_without_delay() {
        let mut lessor = Lessor::new();
        lessor.promote(Tick(7), (1..=100_000).map(|id| terms(id, 10 + id % 20)), 0);
        lessor.handle_timeout(Tick(7 + 19_999));
        let batches: Vec<_> = std::iter::from_fn(|| lessor.poll_output()).collect();
        assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), 50_000);
        assert!(batches.iter().all(|batch| batch.len() <= LEASES_PER_EXPIRE_MAX));
    }

    #[test]
    fn clock_that_steps_back_changes_nothing() {
        let mut lessor = promoted(&[(1, 10)]);
        assert_eq!(expired(&mut lessor, 9_000), [0; 0]);
        assert_eq!(lessor.renew(Tick(1_000), 1), Ok(10));
        assert_eq!(lessor.remaining(Tick(0), 1), Some(10_000));
    }
}
