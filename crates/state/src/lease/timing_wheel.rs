//! A hierarchical timing wheel: insert, remove and postpone in constant time for any number of timers.
//!
//! Level 0 has a slot for each of the next 64 turns, level 1 for each of the next 64 × 64, and so on. A
//! timer sits on the level of the highest 6-bit digit in which its turn differs from the current one; when
//! the wheel reaches its slot it moves down or fires. A bit per slot says where timers are, so that the
//! next slot is found without walking empty ones.
//!
//! Postponing does not move a timer: it only overwrites its deadline. The slot it sits in comes up early,
//! and the timer is then put where it belongs. A renewal thus costs one write, and a lease that is renewed
//! many times in its life moves once.

use crate::{command::LeaseId, lease::Tick};

/// Milliseconds in one turn of the wheel, as a power of two: 32 ms. A lease is never early and at most
/// this much late; leases that end close together end in one batch.
const TURN_MS_LOG2: u32 = 5;

const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// Enough for every turn of a 64-bit clock.
const LEVELS: usize = (64 - TURN_MS_LOG2 as usize).div_ceil(SLOT_BITS as usize);

/// A timer in the wheel; valid until it fires or is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimerId(u32);

/// Deadlines of leases.
#[derive(Debug)]
pub(super) struct TimingWheel {
    /// Every timer whose slot is at or before this turn has fired or moved down.
    turn: u64,
    timers: Vec<Timer>,
    /// Head of the list of unused entries of `timers`.
    free: u32,
    /// Heads of the lists of timers, by level and slot.
    slots: [[u32; SLOTS]; LEVELS],
    occupied: [u64; LEVELS],
}

#[derive(Debug)]
struct Timer {
    lease: LeaseId,
    deadline: Tick,
    next: u32,
    prev: u32,
    level: u8,
    slot: u8,
}

/// End of a list.
const NONE: u32 = u32::MAX;

impl TimingWheel {
    pub(super) fn new(now: Tick) -> Self {
        Self {
            turn: now.0 >> TURN_MS_LOG2,
            timers: Vec::new(),
            free: NONE,
            slots: [[NONE; SLOTS]; LEVELS],
            occupied: [0; LEVELS],
        }
    }

    /// Arms a timer. A deadline that has passed fires on the next turn.
    pub(super) fn insert(&mut self, lease: LeaseId, deadline: Tick) -> TimerId {
        let timer = Timer { lease, deadline, next: NONE, prev: NONE, level: 0, slot: 0 };
        let id = if self.free == NONE {
            let id =
                u32::try_from(self.timers.len()).expect("leases of one process fit in memory, 2^32 do not");
            self.timers.push(timer);
            id
        } else {
            let id = self.free;
            self.free = self.timers[id as usize].next;
            self.timers[id as usize] = timer;
            id
        };
        self.link(id);
        TimerId(id)
    }

    /// Disarms a timer.
    pub(super) fn remove(&mut self, id: TimerId) {
        self.unlink(id.0);
        self.release(id.0);
    }

    /// Moves a deadline to a later time; an earlier one would be noticed late.
    pub(super) fn postpone(&mut self, id: TimerId, deadline: Tick) {
        let timer = &mut self.timers[id.0 as usize];
        debug_assert!(timer.deadline <= deadline);
        timer.deadline = deadline;
    }

    pub(super) fn deadline(&self, id: TimerId) -> Tick {
        self.timers[id.0 as usize].deadline
    }

    /// When the wheel next has something to do. May be before the next deadline, never after its turn.
    pub(super) fn next(&self) -> Option<Tick> {
        self.next_slot().map(|(_, _, turn)| Tick(turn << TURN_MS_LOG2))
    }

    /// Turns the wheel to `now` and answers the leases whose deadline has passed; their timers are gone.
    pub(super) fn advance(&mut self, now: Tick, mut fired: impl FnMut(LeaseId)) {
        let target = now.0 >> TURN_MS_LOG2;
        while let Some((level, slot, turn)) = self.next_slot()
            && turn <= target
        {
            self.turn = turn;
            let mut id = std::mem::replace(&mut self.slots[level][slot], NONE);
            self.occupied[level] &= !(1 << slot);
            while id != NONE {
                let timer = &self.timers[id as usize];
                let next = timer.next;
                if due(timer.deadline) <= turn {
                    fired(timer.lease);
                    self.release(id);
                } else {
                    self.link(id);
                }
                id = next;
            }
        }
        self.turn = self.turn.max(target);
    }

    /// Level, slot and first turn of the next slot that holds timers.
    ///
    /// The lowest level comes first: all its timers share the higher digits of the current turn, which
    /// those of higher levels exceed.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        self.occupied.iter().enumerate().find(|(_, occupied)| **occupied != 0).map(|(level, occupied)| {
            let slot = occupied.trailing_zeros();
            let digit = level as u32 * SLOT_BITS;
            // Shifts of 64 and more can occur on the highest level only, where no higher digit is left.
            let higher = u64::MAX.checked_shl(digit + SLOT_BITS).unwrap_or(0);
            (level, slot as usize, (self.turn & higher) | (u64::from(slot) << digit))
        })
    }

    fn link(&mut self, id: u32) {
        // At least one turn ahead, so that the level exists and the slot is not the one being emptied.
        let turn = due(self.timers[id as usize].deadline).max(self.turn + 1);
        let level = ((turn ^ self.turn).ilog2() / SLOT_BITS) as usize;
        let slot = (turn >> (level as u32 * SLOT_BITS)) as usize % SLOTS;
        let head = std::mem::replace(&mut self.slots[level][slot], id);
        self.occupied[level] |= 1 << slot;
        let timer = &mut self.timers[id as usize];
        (timer.level, timer.slot, timer.prev, timer.next) = (level as u8, slot as u8, NONE, head);
        if head != NONE {
            self.timers[head as usize].prev = id;
        }
    }

    fn unlink(&mut self, id: u32) {
        let Timer { next, prev, level, slot, .. } = self.timers[id as usize];
        let (level, slot) = (level as usize, slot as usize);
        if next != NONE {
            self.timers[next as usize].prev = prev;
        }
        if prev != NONE {
            self.timers[prev as usize].next = next;
        } else {
            self.slots[level][slot] = next;
            if next == NONE {
                self.occupied[level] &= !(1 << slot);
            }
        }
    }

    fn release(&mut self, id: u32) {
        self.timers[id as usize].next = self.free;
        self.free = id;
    }
}

/// First turn at which a deadline has passed.
fn due(deadline: Tick) -> u64 {
    deadline.0.div_ceil(1 << TURN_MS_LOG2)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u64),
        Remove(usize),
        Postpone(usize, u64),
        Advance(u64),
    }

    fn delay() -> impl Strategy<Value = u64> {
        prop_oneof![0..200u64, 0..100_000u64, 0..10_000_000_000_000u64]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => delay().prop_map(Step::Insert),
            1 => (0..50usize).prop_map(Step::Remove),
            2 => ((0..50usize), delay()).prop_map(|(which, by)| Step::Postpone(which, by)),
            3 => delay().prop_map(Step::Advance),
        ]
    }

    proptest! {
        #[test]
        fn fires_each_timer_once_never_early_and_at_most_a_turn_late(
            start in prop_oneof![Just(0), 0..u64::MAX / 2],
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let mut now = start;
            let mut wheel = TimingWheel::new(Tick(now));
            let mut armed: BTreeMap<LeaseId, (TimerId, u64)> = BTreeMap::new();
            for (lease, step) in (1..).zip(steps) {
                let nth = |which: usize| {
                    armed.keys().nth(which % armed.len().max(1)).copied()
                };
                match step {
                    Step::Insert(delay) => {
                        armed.insert(lease, (wheel.insert(lease, Tick(now + delay)), now + delay));
                    }
                    Step::Remove(which) => if let Some(lease) = nth(which) {
                        wheel.remove(armed.remove(&lease).unwrap().0);
                    }
                    Step::Postpone(which, by) => if let Some(lease) = nth(which) {
                        let (timer, deadline) = armed.get_mut(&lease).unwrap();
                        *deadline += by;
                        wheel.postpone(*timer, Tick(*deadline));
                        prop_assert_eq!(wheel.deadline(*timer), Tick(*deadline));
                    }
                    Step::Advance(by) => {
                        now += by;
                        let mut fired = Vec::new();
                        wheel.advance(Tick(now), |lease| fired.push(lease));
                        for lease in fired {
                            let (_, deadline) = armed.remove(&lease).expect("fired once");
                            prop_assert!(deadline <= now, "early by {}", deadline - now);
                        }
                    }
                }
                let earliest = armed.values().map(|(_, deadline)| *deadline).min();
                prop_assert_eq!(wheel.next().is_some(), earliest.is_some());
                if let (Some(next), Some(earliest)) = (wheel.next(), earliest) {
                    let turn_ms = 1 << TURN_MS_LOG2;
                    prop_assert!(next.0 < earliest.max(now) + 2 * turn_ms, "{next:?} {earliest} {now}");
                    prop_assert!(earliest + 2 * turn_ms > now, "late: {earliest} at {now}");
                }
            }
        }
    }
}
