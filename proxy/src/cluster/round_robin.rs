//! Each endpoint in turn, exactly, over all workers. With unequal weights a smooth schedule, in which the turns of a
//! heavy endpoint are spread among those of the others instead of coming in a burst.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use pingora_load_balancing::Backend;
use pingora_load_balancing::selection::BackendSelection;

use super::picker::{Candidates, Pick, Picks};
use super::rotation::{Rotation, slot};
use crate::limits::SCHEDULE_SLOTS_MAX;

/// See the module.
#[derive(Debug)]
pub struct RoundRobin {
    candidates: Candidates,
    /// Candidate of each slot; empty if slots are the candidates themselves.
    schedule: Box<[u16]>,
    offset: u64,
}

impl RoundRobin {
    fn new(backends: &BTreeSet<Backend>, rotation: Arc<Rotation>) -> Self {
        let candidates = Candidates::new(backends, rotation);
        let schedule = if candidates.is_uniform() { Box::default() } else { smooth(&candidates.weights) };
        let addr = |index: usize| candidates.states[index].addr();
        let slots = if schedule.is_empty() {
            (0..candidates.len()).map(addr).collect()
        } else {
            schedule.iter().map(|i| addr(usize::from(*i))).collect()
        };
        let offset = candidates.rotation.arrange(slots, !schedule.is_empty());
        Self { candidates, schedule, offset }
    }

    pub(crate) fn candidates(&self) -> &Candidates {
        &self.candidates
    }

    /// The one whose turn it is. A retry takes a turn of its own, and a tried one passes its turn to the next.
    pub(crate) fn pick(&self, tried: &[SocketAddr]) -> Option<usize> {
        let slots = if self.schedule.is_empty() { self.candidates.len() } else { self.schedule.len() };
        if slots == 0 {
            return None;
        }
        let first = slot(self.candidates.rotation.turn(), self.offset, slots);
        (0..slots)
            .map(|step| {
                let slot = (first + step) % slots;
                if self.schedule.is_empty() { slot } else { usize::from(self.schedule[slot]) }
            })
            .find(|index| !self.candidates.is_tried(*index, tried))
    }
}

impl Pick for RoundRobin {
    fn candidates(&self) -> &Candidates {
        &self.candidates
    }

    fn next(&self, tried: &[SocketAddr], _rng: &mut fastrand::Rng) -> Option<usize> {
        self.pick(tried)
    }
}

impl BackendSelection for RoundRobin {
    type Iter = Picks<Self>;
    type Config = Arc<Rotation>;

    fn build_with_config(backends: &BTreeSet<Backend>, rotation: &Arc<Rotation>) -> Self {
        Self::new(backends, rotation.clone())
    }

    fn build(backends: &BTreeSet<Backend>) -> Self {
        Self::new(backends, Arc::new(Rotation::new(fastrand::u64(..))))
    }

    fn iter(self: &Arc<Self>, _key: &[u8]) -> Picks<Self> {
        Picks::new(self)
    }
}

/// One slot per unit of weight, each candidate's slots as far apart as they can be. Weights are divided by their
/// common divisor and scaled down to [`SCHEDULE_SLOTS_MAX`] slots; the lightest keeps at least one.
fn smooth(weights: &[u32]) -> Box<[u16]> {
    let divisor = weights.iter().fold(0, |a, b| gcd(a, *b)).max(1);
    let total: u64 = weights.iter().map(|w| u64::from(w / divisor)).sum();
    let max = SCHEDULE_SLOTS_MAX as u64;
    let scaled: Vec<i64> = weights
        .iter()
        .take(usize::from(u16::MAX))
        .map(|w| {
            let w = u64::from(w / divisor);
            let w = if total > max { (w * max / total).max(1) } else { w };
            i64::try_from(w).unwrap_or(i64::MAX)
        })
        .collect();
    let total: i64 = scaled.iter().sum();
    let mut credit = vec![0i64; scaled.len()];
    (0..total)
        .map(|_| {
            for (credit, weight) in credit.iter_mut().zip(&scaled) {
                *credit += weight;
            }
            // The first of the richest, so that the schedule is the same everywhere.
            let richest = (0..credit.len()).rev().max_by_key(|i| credit[*i]).unwrap_or(0);
            credit[richest] -= total;
            // Below u16::MAX by the limit above.
            richest as u16
        })
        .collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heavy_candidates_come_often_and_not_in_a_burst() {
        assert_eq!(*smooth(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(*smooth(&[20, 10]), [0, 1, 0]);
    }

    #[test]
    fn schedule_is_bounded_and_everyone_has_a_slot() {
        let schedule = smooth(&[u32::MAX, 1, 1, 1000]);
        assert!(schedule.len() <= SCHEDULE_SLOTS_MAX + 4);
        assert!((0..4).all(|i| schedule.contains(&i)));
    }
}
