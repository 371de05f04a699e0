//! The choice among the usable endpoints of a cluster.
//!
//! Round robin, random and least connections implement pingora-load-balancing's selection traits, so that they also
//! work under its `LoadBalancer`. A request here does not go through that (it costs several times a pick, and swaps endpoints and
//! health separately): it calls [`Picker::pick`] on the picker of its own snapshot.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use pingora_core::protocols::l4::socket::SocketAddr as BackendAddr;
use pingora_load_balancing::selection::{BackendIter, BackendSelection};
use pingora_load_balancing::{Backend, Extensions};
use smallvec::SmallVec;
use weft_xds_proto::resource::cluster::LbPolicy;

use super::endpoint::EndpointState;
use super::hashed::{Maglev, Ring};
use super::least_connections::LeastConnections;
use super::random::Random;
use super::rotation::Rotation;
use super::round_robin::RoundRobin;
use super::two_choices::{By, TwoChoices};

/// Endpoints that a request has tried already; few.
pub type Tried = SmallVec<[SocketAddr; 4]>;

/// The balancing policy over the usable endpoints of one moment.
#[derive(Debug)]
pub enum Picker {
    /// Each in turn.
    RoundRobin(Arc<RoundRobin>),
    /// Any.
    Random(Arc<Random>),
    /// The least busy one.
    LeastConnections(Arc<LeastConnections>),
    /// The better one of two.
    TwoChoices(Box<TwoChoices>),
    /// The one of the key.
    Ring(Box<Ring>),
    /// The one of the key.
    Maglev(Box<Maglev>),
}

/// What a choice depends on, beside the endpoints.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask<'a> {
    /// Of the request, where the policy hashes one; without, any will do.
    pub key: Option<u64>,
    /// Not these.
    pub tried: &'a [SocketAddr],
    /// In nanoseconds of the process clock, where [`Picker::needs_time`].
    pub now: u64,
}

impl Picker {
    /// Over these endpoints with their weights; `rotation` is the cluster's.
    pub fn new(policy: &LbPolicy, endpoints: &[(Arc<EndpointState>, u32)], rotation: &Arc<Rotation>) -> Self {
        let backends: BTreeSet<Backend> =
            endpoints.iter().map(|(state, weight)| backend(state, *weight)).collect();
        let candidates = || Candidates::new(&backends, rotation.clone());
        match policy {
            LbPolicy::RoundRobin => {
                Self::RoundRobin(Arc::new(BackendSelection::build_with_config(&backends, rotation)))
            }
            LbPolicy::Random => {
                Self::Random(Arc::new(BackendSelection::build_with_config(&backends, rotation)))
            }
            LbPolicy::LeastConnections => {
                Self::LeastConnections(Arc::new(BackendSelection::build_with_config(&backends, rotation)))
            }
            LbPolicy::LeastRequest => Self::TwoChoices(Box::new(TwoChoices::new(candidates(), By::Load))),
            LbPolicy::PeakEwma => Self::TwoChoices(Box::new(TwoChoices::new(candidates(), By::Latency))),
            LbPolicy::LowestLoad => Self::TwoChoices(Box::new(TwoChoices::new(candidates(), By::Reported))),
            LbPolicy::RingHash(_) => Self::Ring(Box::new(Ring::new(candidates()))),
            LbPolicy::Maglev(_) => Self::Maglev(Box::new(Maglev::new(candidates()))),
        }
    }

    /// Any endpoint that is not among the tried ones; `None` if there is none left.
    pub fn pick(&self, tried: &[SocketAddr], rng: &mut fastrand::Rng) -> Option<&Arc<EndpointState>> {
        self.pick_for(Ask { tried, ..Ask::default() }, rng)
    }

    /// Endpoints to choose from.
    pub fn len(&self) -> usize {
        match self {
            Self::RoundRobin(p) => p.candidates().len(),
            Self::Random(p) => p.candidates().len(),
            Self::LeastConnections(p) => p.candidates().len(),
            Self::TwoChoices(p) => p.candidates().len(),
            Self::Ring(p) => p.candidates().len(),
            Self::Maglev(p) => p.candidates().len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether answers' times matter, and so the time of the choice.
    pub fn needs_time(&self) -> bool {
        matches!(self, Self::TwoChoices(p) if p.by() == By::Latency)
    }

    /// An endpoint for a request; `None` if there is none left.
    pub fn pick_for(&self, ask: Ask<'_>, rng: &mut fastrand::Rng) -> Option<&Arc<EndpointState>> {
        let Ask { key, tried, now } = ask;
        let key_of = |rng: &mut fastrand::Rng| key.unwrap_or_else(|| rng.u64(..));
        match self {
            Self::Ring(p) => p.pick(key_of(rng), tried).map(|i| &p.candidates().states[i]),
            Self::Maglev(p) => p.pick(key_of(rng), tried).map(|i| &p.candidates().states[i]),
            Self::TwoChoices(p) => p.pick(tried, now, rng).map(|i| &p.candidates().states[i]),
            Self::RoundRobin(p) => p.pick(tried).map(|i| &p.candidates().states[i]),
            Self::Random(p) => p.pick(tried, rng).map(|i| &p.candidates().states[i]),
            Self::LeastConnections(p) => p.pick(tried).map(|i| &p.candidates().states[i]),
        }
    }
}

/// An endpoint as the selection traits know it, with its state in `ext`.
pub fn backend(state: &Arc<EndpointState>, weight: u32) -> Backend {
    let mut ext = Extensions::new();
    ext.insert(state.clone());
    // Weights are at most 2^32, which fits in a usize on all our platforms; scaled ones are far below.
    Backend { addr: BackendAddr::Inet(state.addr()), weight: weight.max(1) as usize, ext }
}

/// What every algorithm chooses from.
#[derive(Debug)]
pub struct Candidates {
    backends: Box<[Backend]>,
    /// Same order.
    pub(crate) states: Box<[Arc<EndpointState>]>,
    pub(crate) weights: Box<[u32]>,
    pub(crate) rotation: Arc<Rotation>,
}

impl Candidates {
    /// Backends without a state of ours (made by others) get a fresh one. Unix sockets are left out.
    pub(crate) fn new(backends: &BTreeSet<Backend>, rotation: Arc<Rotation>) -> Self {
        let usable: Vec<(Backend, Arc<EndpointState>)> =
            backends.iter().filter_map(|b| Some((b.clone(), state_of(b)?))).collect();
        let weights =
            usable.iter().map(|(b, _)| u32::try_from(b.weight).unwrap_or(u32::MAX).max(1)).collect();
        let (backends, states): (Vec<_>, Vec<_>) = usable.into_iter().unzip();
        Self { backends: backends.into(), states: states.into(), weights, rotation }
    }

    pub(crate) fn len(&self) -> usize {
        self.states.len()
    }

    /// Running sums of the weights.
    pub(crate) fn sums(&self) -> Box<[u64]> {
        let sum = |sum: &mut u64, weight: &u32| {
            *sum += u64::from(*weight);
            Some(*sum)
        };
        self.weights.iter().scan(0, sum).collect()
    }

    /// In order of addresses, as backends are.
    pub(crate) fn index_of(&self, addr: SocketAddr) -> Option<usize> {
        self.states.binary_search_by_key(&addr, |s| s.addr()).ok()
    }

    pub(crate) fn is_tried(&self, index: usize, tried: &[SocketAddr]) -> bool {
        !tried.is_empty() && tried.contains(&self.states[index].addr())
    }

    /// Whether all weigh the same.
    pub(crate) fn is_uniform(&self) -> bool {
        self.weights.windows(2).all(|w| w[0] == w[1])
    }
}

fn state_of(backend: &Backend) -> Option<Arc<EndpointState>> {
    let BackendAddr::Inet(addr) = backend.addr else { return None };
    let known = backend.ext.get::<Arc<EndpointState>>().cloned();
    Some(known.unwrap_or_else(|| EndpointState::new(addr)))
}

/// An algorithm that can be asked again with what it gave so far.
pub trait Pick {
    /// What it chooses from.
    fn candidates(&self) -> &Candidates;

    /// Index of the next candidate that is not among the tried ones.
    fn next(&self, tried: &[SocketAddr], rng: &mut fastrand::Rng) -> Option<usize>;
}

/// For callers of the selection traits: each candidate once, the best one first.
pub struct Picks<P> {
    picker: Arc<P>,
    tried: Tried,
    rng: fastrand::Rng,
}

impl<P: Pick> Picks<P> {
    pub(crate) fn new(picker: &Arc<P>) -> Self {
        Self { picker: picker.clone(), tried: Tried::new(), rng: fastrand::Rng::new() }
    }
}

impl<P: Pick> BackendIter for Picks<P> {
    fn next(&mut self) -> Option<&Backend> {
        let index = self.picker.next(&self.tried, &mut self.rng)?;
        let candidates = self.picker.candidates();
        self.tried.push(candidates.states[index].addr());
        Some(&candidates.backends[index])
    }
}

#[cfg(test)]
mod tests;
