//! What is left of long leases, noted through the log for the leader after this one (P04).
//!
//! Renewals do not enter the log, so a new leader knows of a lease only that it was granted, and gives it all of its
//! time again: a lease of an hour that nobody renews would outlive any number of elections. So a leader notes from
//! time to time what is left, and its successor starts from there. What a holder was promised is never cut short
//! (S01): the time noted counts from a moment after the one at which it was noted, and a lease of which something
//! was noted is renewed only when the log has taken that back.
//!
//! ```text
//!        sweep: a step less is left        the command is over
//!   No ──────────────────────────► OnItsWay ─────────────────► Yes ──renewal──► TakenBack
//!    ▲                                                          ▲ └────sweep──► OnItsWay  │
//!    └────────────────────────────── taken back by the log ─────┴─────────────────────────┘
//! ```
//! At most one command about a lease is in the making, so that the log has them in their order.

use std::ops::Bound;

use crate::{
    command::{LeaseCheckpoint, LeaseGrantNumber, LeaseId},
    lease::{
        LeaseTerms, Lessor, RenewError, Tick,
        lessor::{Timed, TimedState},
    },
};

/// What is left is noted when it is less by this much than what a new leader would give: so much too long a lease
/// may live for each change of leader, and one that is renewed more often never enters the log. etcd's interval.
pub const CHECKPOINT_STEP_SECS: i64 = 300;

/// Between two sweeps over all leases, in milliseconds.
pub const CHECKPOINT_SWEEP_MS: u64 = 60_000;

/// Most leases in one command.
pub const LEASES_PER_CHECKPOINT_MAX: usize = 1_000;

/// Most leases looked at in one call, so that renewals wait for less than a millisecond.
const LEASES_PER_LOOK_MAX: usize = 10_000;

/// What the log knows, or will know, about the time left of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Noted {
    /// A new leader gives it all of its time.
    No,
    /// A command that notes this much, in seconds, is on its way.
    OnItsWay(i64),
    /// This much may have been noted.
    Yes(i64),
    /// The same, and a command that takes it back was handed out.
    TakenBack(i64),
}

impl Noted {
    /// What of an earlier time as leader may be on its way still counts, as nobody will say what became of it.
    pub(super) fn at_promotion(terms: &LeaseTerms, before: Option<&Timed>) -> Self {
        let before =
            before.filter(|before| before.grant == terms.grant).and_then(|before| before.noted.secs());
        match terms.remaining_secs.or(before) {
            Some(secs) => Self::Yes(secs),
            None => Self::No,
        }
    }

    fn secs(self) -> Option<i64> {
        match self {
            Self::No => None,
            Self::OnItsWay(secs) | Self::Yes(secs) | Self::TakenBack(secs) => Some(secs),
        }
    }

    pub(super) fn before_renewal(&mut self, id: LeaseId, grant: LeaseGrantNumber) -> Result<(), RenewError> {
        match *self {
            Self::No => Ok(()),
            Self::OnItsWay(_) => Err(RenewError::BeingNoted),
            Self::Yes(secs) | Self::TakenBack(secs) => {
                *self = Self::TakenBack(secs);
                Err(RenewError::Noted(LeaseCheckpoint { id, grant, remaining_secs: None }))
            }
        }
    }
}

/// Where the walk over all leases stands.
#[derive(Debug)]
pub(super) struct Sweep {
    /// The last lease looked at; none between sweeps.
    after: Option<LeaseId>,
    due: Tick,
}

impl Sweep {
    pub(super) fn after(now: Tick) -> Self {
        Self { after: None, due: Tick(now.0.saturating_add(CHECKPOINT_SWEEP_MS)) }
    }
}

impl Lessor {
    /// When to call [`Lessor::poll_checkpoint`] next; none while this replica does not lead or has no lease.
    pub fn next_checkpoint(&self) -> Option<Tick> {
        self.clock.as_ref().filter(|clock| !clock.leases.is_empty()).map(|clock| clock.sweep.due)
    }

    /// The next leases of which to note what is left, at most [`LEASES_PER_CHECKPOINT_MAX`]; none until the next
    /// sweep is due. May be empty: then nothing is to be noted of the leases looked at, and there are more. Say
    /// [`Lessor::checkpointed`] when the command is over.
    pub fn poll_checkpoint(&mut self, now: Tick) -> Option<Vec<LeaseCheckpoint>> {
        let clock = self.clock.as_mut()?;
        clock.now = clock.now.max(now);
        if clock.now < clock.sweep.due {
            return None;
        }
        let after = clock.sweep.after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut batch = Vec::new();
        let mut last = None;
        for (looked, (id, timed)) in clock.leases.range_mut((after, Bound::Unbounded)).enumerate() {
            if looked == LEASES_PER_LOOK_MAX || batch.len() == LEASES_PER_CHECKPOINT_MAX {
                clock.sweep.after = last;
                return Some(batch);
            }
            last = Some(*id);
            let TimedState::Running(timer) = timed.state else { continue };
            let (Noted::No | Noted::Yes(_)) = timed.noted else { continue };
            let left_ms = clock.wheel.deadline(timer).0.saturating_sub(clock.now.0);
            // Rounded up, so that it is never less than what the holder was promised.
            let left_secs = left_ms.div_ceil(1_000) as i64;
            let given = timed.noted.secs().unwrap_or(timed.ttl_secs);
            if left_secs > 0 && left_secs <= given.saturating_sub(CHECKPOINT_STEP_SECS) {
                timed.noted = Noted::OnItsWay(left_secs);
                let remaining_secs = Some(left_secs);
                batch.push(LeaseCheckpoint { id: *id, grant: timed.grant, remaining_secs });
            }
        }
        clock.sweep = Sweep::after(clock.now);
        Some(batch)
    }

    /// The command is over: it was applied, or it will not enter the log any more (but may be in it).
    pub fn checkpointed(&mut self, batch: &[LeaseCheckpoint]) {
        let Some(clock) = &mut self.clock else { return };
        for LeaseCheckpoint { id, grant, .. } in batch {
            if let Some(timed) = clock.leases.get_mut(id)
                && timed.grant == *grant
                && let Noted::OnItsWay(secs) = timed.noted
            {
                timed.noted = Noted::Yes(secs);
            }
        }
    }

    /// The log took back what was noted of a lease. To be told after each command that did.
    pub fn taken_back(&mut self, terms: LeaseTerms) {
        if terms.remaining_secs.is_none()
            && let Some(clock) = &mut self.clock
            && let Some(timed) = clock.leases.get_mut(&terms.id)
            && timed.grant == terms.grant
            && let Noted::TakenBack(_) = timed.noted
        {
            timed.noted = Noted::No;
        }
    }
}

#[cfg(test)]
mod tests;
