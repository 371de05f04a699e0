//! How much history a leader keeps: when to propose a compaction, and to which revision.
//!
//! A pure policy beside the state machine, like [`crate::lease::Lessor`]: the caller brings the time. Every
//! server feeds it, so that a new leader knows how old its history is; only the leader proposes what it
//! answers. Nothing of it is replicated but the `Compact` commands.

use std::collections::VecDeque;

use crate::{command::Revision, lease::Tick, machine::Machine};

/// Unless told otherwise, a change can be read and watched from for this long, in milliseconds: an hour lets
/// a client resume its watch after a deployment, a long pause or a night's restart of its machine without
/// reading everything again.
pub const HISTORY_AGE_MAX_MS: u64 = 60 * 60 * 1000;

/// Unless told otherwise, this many of the newest changes can be read and watched from. Each takes about 100
/// bytes beside its value; at 1,000 changes a second it is a bit over eight minutes.
pub const HISTORY_CHANGES_MAX: u64 = 500_000;

/// Unless told otherwise, history takes no more memory than what exists now, in bytes, but may always take
/// [`HISTORY_BYTES_MIN`]: a store of a few thousand keys that are written all the time would else be mostly its own past.
/// When it is exceeded the older half goes. Values may be 1.5 MiB each, so that a number of changes alone does
/// not bound memory.
pub const HISTORY_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// See [`HISTORY_BYTES_MAX`]. About 70,000 changes of 256 bytes.
pub const HISTORY_BYTES_MIN: u64 = 24 * 1024 * 1024;

/// What a change takes beside the value that it replaced: its place in the order of changes, and the version's numbers.
const CHANGE_BYTES: u64 = 100;

/// How much history is kept. Whichever limit is reached first counts; 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryLimits {
    /// Milliseconds for which a change stays readable. Counted from when this process saw it, so that a
    /// restart starts it anew.
    pub age_max_ms: u64,
    /// Changes that stay readable.
    pub changes_max: u64,
    /// Bytes that changes take, with the values that were replaced or deleted. Smaller than what one burst writes
    /// between two looks, it is exceeded until the next. None: as [`HISTORY_BYTES_MAX`] says.
    pub bytes_max: Option<u64>,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { age_max_ms: HISTORY_AGE_MAX_MS, changes_max: HISTORY_CHANGES_MAX, bytes_max: None }
    }
}

/// The policy, with what it remembers.
#[derive(Debug)]
pub struct Retention {
    limits: HistoryLimits,
    /// Which revision was current when, oldest first, at least `age_max_ms / SAMPLES` apart.
    samples: VecDeque<(Tick, Revision)>,
}

/// Samples over the age limit: history is up to one part of so many older than the limit says.
const SAMPLES: u64 = 30;

impl Retention {
    /// Has seen nothing yet.
    pub fn new(limits: HistoryLimits) -> Self {
        Self { limits, samples: VecDeque::new() }
    }

    /// The revision to compact to, if any. To be called every second or more often, on every server; `now` must not
    /// go back.
    pub fn due(&mut self, now: Tick, machine: &Machine) -> Option<Revision> {
        let by_age = self.by_age(now, machine.revision());
        let by_size = self.by_changes(machine).max(self.by_bytes(machine));
        by_age.max(by_size).filter(|revision| *revision > machine.compacted())
    }

    fn by_age(&mut self, now: Tick, current: Revision) -> Option<Revision> {
        let age_max = self.limits.age_max_ms;
        if age_max == 0 {
            return None;
        }
        let is_new = |(at, revision): &(Tick, Revision)| {
            // The first sample of a revision says when it was surely there; later ones add nothing.
            now.0.saturating_sub(at.0) >= age_max / SAMPLES && *revision != current
        };
        if self.samples.back().is_none_or(is_new) {
            self.samples.push_back((now, current));
        }
        let old = self.samples.partition_point(|(at, _)| at.0.saturating_add(age_max) <= now.0);
        // The last of them stays: it is the answer until it is carried out.
        self.samples.drain(..old.saturating_sub(1));
        self.samples.front().filter(|_| old > 0).map(|(_, revision)| *revision)
    }

    fn by_changes(&self, machine: &Machine) -> Option<Revision> {
        let max = self.limits.changes_max;
        if max == 0 || machine.history_held().changes <= max {
            return None;
        }
        // A part more than needed, so that a busy server does not compact at each look.
        machine.revision_keeping(max - max / 4)
    }

    fn by_bytes(&self, machine: &Machine) -> Option<Revision> {
        let held = machine.history_held();
        let present = machine.data_bytes().saturating_sub(held.bytes);
        let max = self.limits.bytes_max.unwrap_or(present.clamp(HISTORY_BYTES_MIN, HISTORY_BYTES_MAX));
        // What an earlier compaction gives back is not known before it has.
        if max == 0 || held.bytes + held.changes * CHANGE_BYTES <= max || held.backlog > 0 {
            return None;
        }
        machine.revision_keeping(held.changes / 2)
    }
}
