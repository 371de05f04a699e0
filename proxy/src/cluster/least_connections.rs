//! The endpoint with the fewest requests in flight for its weight, among all; equal ones in turn.
//!
//! In flight are this proxy's requests, over all its workers. HTTP/2 puts many on one connection, so requests and not
//! connections are what tells busy endpoints apart.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use pingora_load_balancing::Backend;
use pingora_load_balancing::selection::BackendSelection;

use super::picker::{Candidates, Pick, Picks};
use super::rotation::{Rotation, slot};

/// See the module.
#[derive(Debug)]
pub struct LeastConnections {
    candidates: Candidates,
}

impl LeastConnections {
    pub(crate) fn candidates(&self) -> &Candidates {
        &self.candidates
    }

    pub(crate) fn pick(&self, tried: &[SocketAddr]) -> Option<usize> {
        let len = self.candidates.len();
        if len == 0 {
            return None;
        }
        // Ties go to the first one seen, and where the scan starts moves on with each request.
        let first = slot(self.candidates.rotation.turn(), 0, len);
        let mut best: Option<(usize, u64, u64)> = None;
        for index in (first..len).chain(0..first) {
            if self.candidates.is_tried(index, tried) {
                continue;
            }
            // The load that it would have, so that idle endpoints differ by weight as well.
            let load = u64::from(self.candidates.states[index].active()) + 1;
            let weight = u64::from(self.candidates.weights[index]);
            if best.is_none_or(|(_, best_load, best_weight)| load * best_weight < best_load * weight) {
                best = Some((index, load, weight));
            }
        }
        best.map(|(index, ..)| index)
    }
}

impl Pick for LeastConnections {
    fn candidates(&self) -> &Candidates {
        &self.candidates
    }

    fn next(&self, tried: &[SocketAddr], _rng: &mut fastrand::Rng) -> Option<usize> {
        self.pick(tried)
    }
}

impl BackendSelection for LeastConnections {
    type Iter = Picks<Self>;
    type Config = Arc<Rotation>;

    fn build_with_config(backends: &BTreeSet<Backend>, rotation: &Arc<Rotation>) -> Self {
        Self { candidates: Candidates::new(backends, rotation.clone()) }
    }

    fn build(backends: &BTreeSet<Backend>) -> Self {
        Self::build_with_config(backends, &Arc::new(Rotation::new(fastrand::u64(..))))
    }

    fn iter(self: &Arc<Self>, _key: &[u8]) -> Picks<Self> {
        Picks::new(self)
    }
}
