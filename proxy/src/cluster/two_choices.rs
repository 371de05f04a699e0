//! Of two endpoints drawn at random, the better one ("the power of two choices"): by requests in flight, or by the
//! time that an answer would take (peak EWMA), or by what they report of themselves.
//!
//! Two draws are enough for loads that differ by little (Mitzenmacher, "The Power of Two Choices in Randomized Load
//! Balancing", 2001), cost the same for any number of endpoints, and many proxies do not all run to the same idle one.
//! Draws are in proportion to weights; of equal ones the first drawn is taken, so that idle endpoints get their shares.
//! Where weights differ, one that was not drawn itself has to be less busy even with this request: else a light endpoint
//! beside a heavy one, which is drawn twice most of the time, would have a request whenever it is idle.

use std::net::SocketAddr;
use std::sync::Arc;

use super::endpoint::EndpointState;
use super::picker::Candidates;

/// See the module.
#[derive(Debug)]
pub struct TwoChoices {
    candidates: Candidates,
    /// Running sums of the weights; empty if all weigh the same.
    sums: Box<[u64]>,
    by: By,
}

/// What is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// Fewer requests in flight for its weight.
    Load,
    /// A sooner answer.
    Latency,
    /// Less reported load for its capacity.
    Reported,
}

impl TwoChoices {
    pub(crate) fn new(candidates: Candidates, by: By) -> Self {
        let sums = if candidates.is_uniform() { Box::default() } else { candidates.sums() };
        Self { candidates, sums, by }
    }

    pub(crate) fn candidates(&self) -> &Candidates {
        &self.candidates
    }

    pub(crate) fn by(&self) -> By {
        self.by
    }

    /// `now` is in nanoseconds of the process clock; only for [`By::Latency`].
    pub(crate) fn pick(&self, tried: &[SocketAddr], now: u64, rng: &mut fastrand::Rng) -> Option<usize> {
        let len = self.candidates.len();
        if len == 0 {
            return None;
        }
        let (one, two) = (self.draw(rng), self.draw(rng));
        if tried.is_empty() {
            // The same one twice says nothing; its neighbour is as good as any.
            return Some(match one == two {
                true => self.better(one, (one + 1) % len, false, now),
                false => self.better(one, two, true, now),
            });
        }
        let rest = (0..len).map(|step| (one + step) % len).filter(|i| !self.candidates.is_tried(*i, tried));
        let mut rest = rest.take(2);
        let one = rest.next()?;
        Some(rest.next().map_or(one, |two| self.better(one, two, false, now)))
    }

    fn draw(&self, rng: &mut fastrand::Rng) -> usize {
        match self.sums.last() {
            Some(total) => {
                let drawn = rng.u64(..*total);
                self.sums.partition_point(|sum| *sum <= drawn)
            }
            None => rng.usize(..self.candidates.len()),
        }
    }

    /// `drawn` says whether the second one was.
    fn better(&self, one: usize, two: usize, drawn: bool, now: u64) -> usize {
        let state = |i: usize| -> &Arc<EndpointState> { &self.candidates.states[i] };
        let second = match self.by {
            By::Load => {
                let load = |i: usize| u64::from(state(i).active());
                let weight = |i: usize| u64::from(self.candidates.weights[i]);
                let more = u64::from(!drawn && !self.sums.is_empty());
                (load(two) + more) * weight(one) < load(one) * weight(two)
            }
            By::Latency => state(two).cost(now) < state(one).cost(now),
            By::Reported => state(two).reported_share() < state(one).reported_share(),
        };
        if second { two } else { one }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::picker::{Ask, Picker};
    use crate::cluster::rotation::Rotation;
    use weft_xds_proto::resource::cluster::LbPolicy;

    fn endpoints(weights: &[u32]) -> Vec<(Arc<EndpointState>, u32)> {
        let addr = |i: usize| SocketAddr::from(([127, 0, 0, 1], 1 + i as u16));
        weights.iter().enumerate().map(|(i, w)| (EndpointState::new(addr(i)), *w)).collect()
    }

    fn picker(policy: &LbPolicy, all: &[(Arc<EndpointState>, u32)]) -> Picker {
        Picker::new(policy, all, &Arc::new(Rotation::new(0)))
    }

    fn shares(picker: &Picker, n: usize, of: usize) -> Vec<usize> {
        let mut rng = fastrand::Rng::with_seed(11);
        let mut counts = vec![0; of];
        for _ in 0..n {
            counts[usize::from(picker.pick(&[], &mut rng).unwrap().addr().port()) - 1] += 1;
        }
        counts
    }

    /// D07. χ² with 3 degrees of freedom passes 16.3 once in a thousand seeds.
    #[test]
    fn idle_endpoints_get_requests_by_their_weights() {
        for weights in [[1, 1, 1, 1], [1, 2, 3, 4]] {
            let counts = shares(&picker(&LbPolicy::LeastRequest, &endpoints(&weights)), 20_000, 4);
            let total: u32 = weights.iter().sum();
            let chi: f64 = counts
                .iter()
                .zip(weights)
                .map(|(seen, w)| {
                    let expected = 20_000.0 * f64::from(w) / f64::from(total);
                    (*seen as f64 - expected).powi(2) / expected
                })
                .sum();
            // Drawing the same one twice gives its neighbour a try, which is no win among idle ones.
            assert!(chi < 16.3, "{counts:?} χ² {chi}");
        }
    }

    /// With requests that stay, loads differ by no more than a few; by chance alone they would by dozens.
    #[test]
    fn requests_that_stay_are_spread_evenly() {
        let all = endpoints(&[1; 10]);
        let picker = picker(&LbPolicy::LeastRequest, &all);
        let mut rng = fastrand::Rng::with_seed(5);
        let _held: Vec<_> = (0..1000).map(|_| picker.pick(&[], &mut rng).unwrap().start()).collect();
        let loads: Vec<u32> = all.iter().map(|(e, _)| e.active()).collect();
        assert!(loads.iter().all(|n| (95..=105).contains(n)), "{loads:?}");
    }

    /// P38: an update after each pick favours nobody, since no pick depends on the one before.
    #[test]
    fn the_first_pick_after_an_update_favours_nobody() {
        let all = endpoints(&[1; 4]);
        let mut rng = fastrand::Rng::with_seed(3);
        let mut counts = [0.0; 4];
        for _ in 0..4000 {
            let picked = picker(&LbPolicy::LeastRequest, &all).pick(&[], &mut rng).unwrap().addr().port();
            counts[usize::from(picked) - 1] += 1.0;
        }
        let chi: f64 = counts.iter().map(|n| (n - 1000.0_f64).powi(2) / 1000.0).sum();
        assert!(chi < 16.3, "{counts:?} χ² {chi}");
    }

    #[test]
    fn slow_endpoints_get_little_and_recover() {
        let all = endpoints(&[1; 4]);
        let picker = picker(&LbPolicy::PeakEwma, &all);
        assert!(picker.needs_time());
        let second = 1_000_000_000;
        for (i, (endpoint, _)) in all.iter().enumerate() {
            endpoint.latency.observe(second, if i == 0 { second } else { second / 1000 });
        }
        let count = |now: u64| {
            let mut rng = fastrand::Rng::with_seed(9);
            let ask = Ask { now, ..Ask::default() };
            (0..1000).filter(|_| picker.pick_for(ask, &mut rng).unwrap().addr().port() == 1).count()
        };
        assert!(count(second) < 100, "only where it was drawn twice");
        for (endpoint, _) in &all[1..] {
            endpoint.latency.observe(120 * second, second / 1000);
        }
        assert!(count(120 * second) > 100, "nobody has heard of it for two minutes");
    }

    #[test]
    fn a_tried_endpoint_is_never_picked_and_the_last_one_always() {
        let all = endpoints(&[3, 1, 1]);
        let addr = |i: usize| all[i].0.addr();
        for policy in [LbPolicy::LeastRequest, LbPolicy::PeakEwma] {
            let picker = picker(&policy, &all);
            let mut rng = fastrand::Rng::with_seed(1);
            for _ in 0..100 {
                assert_ne!(picker.pick(&[addr(0)], &mut rng).unwrap().addr(), addr(0));
                assert_eq!(picker.pick(&[addr(0), addr(2)], &mut rng).unwrap().addr(), addr(1));
                assert!(picker.pick(&[addr(0), addr(1), addr(2)], &mut rng).is_none());
            }
        }
    }
}
