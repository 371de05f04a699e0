//! Whose turn it is in a cluster, over all workers and across updates.
//!
//! One shared counter gives each request its turn. A set of endpoints maps turns to its slots by an offset. When the
//! set changes, the new offset is chosen so that the turn goes on with the endpoint that follows the last one in order
//! of addresses: no endpoint is favoured by an update, however often they come (P38).
//!
//! Worked example: slots `[a, b, c]`, offset 0, turns 0 and 1 taken: `a`, `b`. Now `b` goes and `d` comes: slots
//! `[a, c, d]`. The last one was `b`, its successor is `c`, slot 1; turn 2 must map to it: offset = 1 - 2 = -1 mod 3.
//! Turns 2, 3, 4 give `c`, `d`, `a`.
//!
//! Where weights differ, heavy endpoints have several slots, and going on with the first slot of a successor would give
//! each as much as the other if updates come as often as requests. There each update begins at another place: places a
//! golden section of the cycle apart, of which any number are spread evenly over it (Knuth, "Sorting and Searching",
//! §6.4). So each slot is as likely to be next, and shares are those of the weights in each set, however often it changes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Shared by all endpoint sets of one cluster.
#[derive(Debug)]
pub struct Rotation {
    turn: AtomicU64,
    /// Locked when a set is built, never by a request.
    layout: Mutex<Layout>,
}

/// The rotations of a cluster: one for its endpoints as they usually are, and one for each other group of them that
/// requests choose from (a priority, a zone, a subset).
#[derive(Debug)]
pub struct Rotations {
    first: Arc<Rotation>,
    phase: u64,
    /// Locked when a set is built, never by a request.
    others: Mutex<HashMap<String, Arc<Rotation>>>,
}

/// Groups whose place is remembered. Beyond it all are forgotten once: they then begin anywhere.
const GROUPS_MAX: usize = 1024;

impl Rotations {
    /// `phase` as in [`Rotation::new`].
    pub fn new(phase: u64) -> Self {
        Self { first: Arc::new(Rotation::new(phase)), phase, others: Mutex::default() }
    }

    /// That of a group; an empty name is the endpoints as they usually are.
    pub(crate) fn of(&self, group: &str) -> Arc<Rotation> {
        if group.is_empty() {
            return self.first.clone();
        }
        let mut others = self.others.lock();
        if let Some(known) = others.get(group) {
            return known.clone();
        }
        if others.len() >= GROUPS_MAX {
            others.clear();
        }
        let rotation = Arc::new(Rotation::new(self.phase));
        others.insert(group.to_owned(), rotation.clone());
        rotation
    }
}

#[derive(Debug)]
struct Layout {
    slots: Vec<SocketAddr>,
    offset: u64,
    /// Where the next weighted cycle begins, in parts of 2^64 of it.
    begin: u64,
}

/// 2^64 divided by the golden ratio.
const GOLDEN_SECTION: u64 = 0x9e37_79b9_7f4a_7c15;

impl Rotation {
    /// `phase` is a random number, so that many proxies that start together do not all begin with the same endpoint.
    pub fn new(phase: u64) -> Self {
        // The upper half is left free, so that the counter never wraps.
        let layout = Layout { slots: Vec::new(), offset: 0, begin: phase };
        Self { turn: AtomicU64::new(phase >> 1), layout: Mutex::new(layout) }
    }

    /// The next turn.
    pub fn turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// The offset to add to turns for these slots, of which each endpoint has one or, `weighted`, several; equal slots
    /// keep theirs.
    pub(crate) fn arrange(&self, slots: Vec<SocketAddr>, weighted: bool) -> u64 {
        let mut layout = self.layout.lock();
        if layout.slots == slots || slots.is_empty() {
            return layout.offset;
        }
        if !layout.slots.is_empty() {
            let next = self.turn.load(Ordering::Relaxed);
            let len = slots.len() as u64;
            let at = if weighted {
                layout.begin = layout.begin.wrapping_add(GOLDEN_SECTION);
                // Below `len`, which is small.
                ((u128::from(layout.begin) * u128::from(len)) >> 64) as u64
            } else {
                let last = layout.slots[slot(next.wrapping_sub(1), layout.offset, layout.slots.len())];
                successor(&slots, last) as u64
            };
            layout.offset = (at + len - next % len) % len;
        }
        layout.slots = slots;
        layout.offset
    }
}

/// Slot of a turn.
pub(crate) fn slot(turn: u64, offset: u64, slots: usize) -> usize {
    // Below `slots`, so it fits.
    (turn.wrapping_add(offset) % slots as u64) as usize
}

/// First slot of the smallest address above `last`, or of the smallest of all.
fn successor(slots: &[SocketAddr], last: SocketAddr) -> usize {
    let above = (0..slots.len()).filter(|i| slots[*i] > last).min_by_key(|i| slots[*i]);
    above.or_else(|| (0..slots.len()).min_by_key(|i| slots[*i])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addrs(ports: &[u16]) -> Vec<SocketAddr> {
        ports.iter().map(|p| SocketAddr::from(([127, 0, 0, 1], *p))).collect()
    }

    fn take(rotation: &Rotation, slots: &[SocketAddr], offset: u64) -> u16 {
        slots[slot(rotation.turn(), offset, slots.len())].port()
    }

    #[test]
    fn turn_goes_on_with_the_successor_of_the_last_one() {
        let rotation = Rotation::new(0);
        let before = addrs(&[1, 2, 3]);
        let offset = rotation.arrange(before.clone(), false);
        assert_eq!([take(&rotation, &before, offset), take(&rotation, &before, offset)], [1, 2]);
        let after = addrs(&[1, 3, 4]);
        let offset = rotation.arrange(after.clone(), false);
        let turns: Vec<_> = (0..4).map(|_| take(&rotation, &after, offset)).collect();
        assert_eq!(turns, [3, 4, 1, 3]);
    }

    #[test]
    fn an_update_that_changes_no_slot_changes_no_turn() {
        let rotation = Rotation::new(7);
        let slots = addrs(&[1, 2, 3]);
        let offset = rotation.arrange(slots.clone(), false);
        let first = take(&rotation, &slots, offset);
        let offset = rotation.arrange(slots.clone(), false);
        assert_eq!(take(&rotation, &slots, offset), first % 3 + 1);
    }
}
