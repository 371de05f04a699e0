//! Any endpoint, with a chance in proportion to its weight.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use pingora_load_balancing::Backend;
use pingora_load_balancing::selection::BackendSelection;

use super::picker::{Candidates, Pick, Picks};
use super::rotation::Rotation;

/// See the module.
#[derive(Debug)]
pub struct Random {
    candidates: Candidates,
    /// Running sums of the weights; empty if all weigh the same.
    sums: Box<[u64]>,
}

impl Random {
    fn new(backends: &BTreeSet<Backend>, rotation: Arc<Rotation>) -> Self {
        let candidates = Candidates::new(backends, rotation);
        let sums = if candidates.is_uniform() { Box::default() } else { candidates.sums() };
        Self { candidates, sums }
    }

    pub(crate) fn candidates(&self) -> &Candidates {
        &self.candidates
    }

    pub(crate) fn pick(&self, tried: &[SocketAddr], rng: &mut fastrand::Rng) -> Option<usize> {
        if tried.is_empty() {
            return match self.sums.last() {
                Some(total) => {
                    let drawn = rng.u64(..*total);
                    Some(self.sums.partition_point(|sum| *sum <= drawn))
                }
                None if self.candidates.len() == 0 => None,
                None => Some(rng.usize(..self.candidates.len())),
            };
        }
        // Rare: draw among the rest.
        let weight = |i: &usize| u64::from(self.candidates.weights[*i]);
        let rest = || (0..self.candidates.len()).filter(|i| !self.candidates.is_tried(*i, tried));
        let total: u64 = rest().map(|i| weight(&i)).sum();
        if total == 0 {
            return None;
        }
        let mut drawn = rng.u64(..total);
        rest().find(|i| {
            let weight = weight(i);
            let found = drawn < weight;
            drawn = drawn.saturating_sub(weight);
            found
        })
    }
}

impl Pick for Random {
    fn candidates(&self) -> &Candidates {
        &self.candidates
    }

    fn next(&self, tried: &[SocketAddr], rng: &mut fastrand::Rng) -> Option<usize> {
        self.pick(tried, rng)
    }
}

impl BackendSelection for Random {
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
