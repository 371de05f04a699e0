use std::collections::HashMap;
use std::net::SocketAddr;

use proptest::prelude::*;
use weft_xds_proto::resource::cluster::LbPolicy;

use super::*;
use crate::cluster::rotation::Rotation;

fn rank(priority: u32, nearness: Nearness) -> Rank {
    Rank { priority, nearness, place: None }
}

fn standing(priority: u32, nearness: Nearness, usable: usize, total: usize) -> Standing {
    Standing { rank: rank(priority, nearness), usable, total }
}

fn by_priority(counts: &[(usize, usize)]) -> Vec<u32> {
    let levels = counts.iter().zip(0..).map(|((u, t), p)| standing(p, Nearness::Zone, *u, *t));
    shares(&levels.collect::<Vec<_>>(), None)
}

/// Envoy's documentation has these figures for two and three priorities.
#[test]
fn a_priority_gets_what_it_bears_and_leaves_the_rest() {
    assert_eq!(by_priority(&[(10, 10), (10, 10)]), [1000, 0]);
    assert_eq!(by_priority(&[(72, 100), (100, 100)]), [1000, 0], "72 % bear all");
    assert_eq!(by_priority(&[(71, 100), (100, 100)]), [994, 6]);
    assert_eq!(by_priority(&[(50, 100), (100, 100)]), [700, 300]);
    assert_eq!(by_priority(&[(25, 100), (100, 100)]), [350, 650]);
    assert_eq!(by_priority(&[(0, 100), (100, 100)]), [0, 1000]);
    assert_eq!(by_priority(&[(25, 100), (25, 100)]), [500, 500], "not enough for all: in proportion");
    assert_eq!(by_priority(&[(5, 100), (0, 100), (100, 100)]), [70, 0, 930]);
    assert_eq!(by_priority(&[(0, 3)]), [0]);
}

#[test]
fn within_a_priority_the_own_zone_comes_first() {
    use Nearness::{Elsewhere, Region, Zone};
    let healthy = [standing(0, Zone, 2, 2), standing(0, Region, 2, 2), standing(1, Zone, 2, 2)];
    assert_eq!(shares(&healthy, None), [1000, 0, 0]);
    let half = [standing(0, Zone, 1, 2), standing(0, Region, 2, 2), standing(0, Elsewhere, 9, 9)];
    assert_eq!(shares(&half, None), [700, 300, 0]);
    let gone = [standing(0, Zone, 0, 2), standing(0, Elsewhere, 8, 8), standing(1, Zone, 2, 2)];
    assert_eq!(shares(&gone, None), [0, 1000, 0], "the priority as a whole still bears everything");
}

type Members = Vec<(Arc<EndpointState>, u32)>;

fn endpoints(ports: std::ops::Range<u16>) -> Members {
    ports.map(|p| (EndpointState::new(SocketAddr::from(([127, 0, 0, 1], p))), 1)).collect()
}

fn levels(policy: &LbPolicy, shares: &[(u32, Members)], spill_above: u32) -> Levels {
    let level = |((share, endpoints), priority): (&(u32, Vec<_>), u32)| {
        let picker = Picker::new(policy, endpoints, &Arc::new(Rotation::new(7)));
        (rank(priority, Nearness::Zone), *share, picker)
    };
    Levels::new(shares.iter().zip(0..).map(level), spill_above)
}

fn counts(levels: &Levels, n: usize) -> HashMap<u16, usize> {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut counts = HashMap::new();
    for _ in 0..n {
        *counts.entry(levels.pick(&[], &mut rng).unwrap().addr().port()).or_default() += 1;
    }
    counts
}

/// D07, for every policy that does not hash.
#[test]
fn levels_get_their_shares_and_endpoints_theirs_within_them() {
    for policy in LbPolicy::PLAIN {
        let levels = levels(&policy, &[(700, endpoints(1..3)), (300, endpoints(3..6))], 0);
        let counts = counts(&levels, 20_000);
        let expected = |port: u16| if port < 3 { 7000.0 } else { 2000.0 };
        let chi: f64 = (1..6)
            .map(|port| {
                let seen = counts.get(&port).copied().unwrap_or(0) as f64;
                (seen - expected(port)).powi(2) / expected(port)
            })
            .sum();
        // Four degrees of freedom; 18.5 is passed once in a thousand seeds.
        assert!(chi < 18.5, "{policy}: {counts:?} χ² {chi}");
    }
}

#[test]
fn a_key_stays_in_its_level() {
    let levels = levels(&LbPolicy::Maglev(None), &[(500, endpoints(1..3)), (500, endpoints(3..5))], 0);
    let mut rng = fastrand::Rng::with_seed(5);
    for key in (0..100).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
        let mut pick = || levels.pick_for(Ask { key: Some(key), ..Ask::default() }, &mut rng).unwrap().addr();
        let first = pick();
        assert!((0..5).all(|_| pick() == first));
    }
}

#[test]
fn what_was_tried_in_a_level_leads_to_the_next_one_and_back() {
    let levels = levels(&LbPolicy::RoundRobin, &[(1000, endpoints(1..2)), (0, endpoints(2..3))], 0);
    let mut rng = fastrand::Rng::with_seed(1);
    let addr = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    assert_eq!(levels.pick(&[], &mut rng).unwrap().addr(), addr(1));
    assert_eq!(levels.pick(&[addr(1)], &mut rng).unwrap().addr(), addr(2));
    assert!(levels.pick(&[addr(1), addr(2)], &mut rng).is_none());
    assert!(Levels::new([], 0).pick(&[], &mut rng).is_none());
}

#[test]
fn busy_endpoints_nearby_send_requests_further_and_the_least_busy_one_has_them_if_all_are() {
    let (near, far) = (endpoints(1..2), endpoints(2..3));
    let levels = levels(&LbPolicy::LeastConnections, &[(1000, near.clone()), (0, far.clone())], 2);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut held = Vec::new();
    let mut ports = Vec::new();
    for _ in 0..5 {
        let picked = levels.pick(&[], &mut rng).unwrap();
        ports.push(picked.addr().port());
        held.push(picked.start());
    }
    assert_eq!(ports, [1, 1, 2, 2, 1], "two each, and then the first of two that are as busy");
    drop(held);
    assert_eq!(levels.pick(&[], &mut rng).unwrap().addr().port(), 1);
}

proptest! {
    /// Whatever is usable: everything is given away, nothing to whom has nothing, and nobody is passed over who bears all.
    #[test]
    fn shares_sum_up_to_the_whole(counts in prop::collection::vec((0usize..20, 0usize..20), 1..6)) {
        let counts: Vec<_> = counts.into_iter().map(|(a, b)| (a.min(b), b)).collect();
        let shares = by_priority(&counts);
        let any = counts.iter().any(|(usable, _)| *usable > 0);
        prop_assert_eq!(shares.iter().sum::<u32>(), if any { WHOLE } else { 0 });
        for ((usable, _), share) in counts.iter().zip(&shares) {
            prop_assert!(*usable > 0 || *share == 0);
        }
        if let Some((first, _)) = counts.first().filter(|(u, t)| *t > 0 && u == t) {
            prop_assert!(*first == 0 || shares[0] == WHOLE);
        }
    }
}
