use std::collections::{HashMap, VecDeque};

use pingora_load_balancing::{Backends, LoadBalancer, discovery};
use proptest::prelude::*;

use super::*;

fn endpoints(ports: &[u16]) -> Vec<(Arc<EndpointState>, u32)> {
    ports.iter().map(|p| (EndpointState::new(SocketAddr::from(([127, 0, 0, 1], *p))), 1)).collect()
}

fn weighted(ports: &[(u16, u32)]) -> Vec<(Arc<EndpointState>, u32)> {
    ports.iter().map(|(p, w)| (EndpointState::new(SocketAddr::from(([127, 0, 0, 1], *p))), *w)).collect()
}

fn rotation() -> Arc<Rotation> {
    Arc::new(Rotation::new(12345))
}

fn picked(picker: &Picker, tried: &[SocketAddr], rng: &mut fastrand::Rng) -> Option<u16> {
    picker.pick(tried, rng).map(|e| e.addr().port())
}

/// Counts per endpoint after `n` picks.
fn counts(picker: &Picker, n: usize) -> HashMap<u16, usize> {
    let mut rng = fastrand::Rng::with_seed(7);
    let mut counts = HashMap::new();
    for _ in 0..n {
        *counts.entry(picked(picker, &[], &mut rng).unwrap()).or_default() += 1;
    }
    counts
}

/// Pearson's statistic against expected shares.
fn chi_square(counts: &HashMap<u16, usize>, expected: &[(u16, f64)]) -> f64 {
    let n: usize = counts.values().sum();
    expected
        .iter()
        .map(|(port, share)| {
            let expected = share * n as f64;
            (counts.get(port).copied().unwrap_or(0) as f64 - expected).powi(2) / expected
        })
        .sum()
}

/// SD-12, D07.
#[test]
fn round_robin_is_an_exact_cycle() {
    let picker = Picker::new(&LbPolicy::RoundRobin, &endpoints(&[1, 2, 3]), &rotation());
    let mut rng = fastrand::Rng::with_seed(1);
    let seen: Vec<_> = (0..9).map(|_| picked(&picker, &[], &mut rng).unwrap()).collect();
    assert_eq!(seen[0] % 3 + 1, seen[1]);
    assert!(seen.iter().zip(&seen[3..]).all(|(a, b)| a == b), "{seen:?}");
    assert_eq!(counts(&picker, 300), HashMap::from([(1, 100), (2, 100), (3, 100)]));
}

#[test]
fn round_robin_is_exact_over_threads() {
    let picker = Arc::new(Picker::new(&LbPolicy::RoundRobin, &endpoints(&[1, 2, 3, 4]), &rotation()));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let picker = picker.clone();
            std::thread::spawn(move || counts(&picker, 1000))
        })
        .collect();
    let mut total = HashMap::new();
    for thread in threads {
        for (port, n) in thread.join().unwrap() {
            *total.entry(port).or_insert(0) += n;
        }
    }
    assert!(total.values().all(|n| *n == 1000), "{total:?}");
}

/// P38: an update after every pick favours nobody.
#[test]
fn round_robin_stays_fair_when_the_set_changes_after_each_pick() {
    let (rotation, all) = (rotation(), endpoints(&[1, 2, 3, 4]));
    let mut rng = fastrand::Rng::with_seed(3);
    let mut counts = HashMap::<u16, usize>::new();
    for i in 0..3000 {
        let set = if i % 2 == 0 { &all[..3] } else { &all[..] };
        let picker = Picker::new(&LbPolicy::RoundRobin, set, &rotation);
        *counts.entry(picked(&picker, &[], &mut rng).unwrap()).or_default() += 1;
    }
    let (min, max) = (counts.values().min().unwrap(), counts.values().max().unwrap());
    assert!(counts.len() == 4 && max - min <= 3, "{counts:?}");
}

/// P38: proxies that start together do not all begin with the same endpoint.
#[test]
fn first_pick_of_many_proxies_is_spread() {
    let all = endpoints(&[1, 2, 3]);
    let mut rng = fastrand::Rng::with_seed(11);
    let mut counts = HashMap::new();
    for _ in 0..3000 {
        let picker = Picker::new(&LbPolicy::RoundRobin, &all, &Arc::new(Rotation::new(rng.u64(..))));
        *counts.entry(picked(&picker, &[], &mut rng).unwrap()).or_default() += 1;
    }
    // 13.8: one in a thousand with two degrees of freedom.
    assert!(chi_square(&counts, &[(1, 1. / 3.), (2, 1. / 3.), (3, 1. / 3.)]) < 13.8, "{counts:?}");
}

#[test]
fn round_robin_respects_weights_exactly() {
    let picker = Picker::new(&LbPolicy::RoundRobin, &weighted(&[(1, 5), (2, 1), (3, 2)]), &rotation());
    assert_eq!(counts(&picker, 800), HashMap::from([(1, 500), (2, 100), (3, 200)]));
}

/// SD-13, D07.
#[test]
fn random_is_uniform_and_respects_weights() {
    let picker = Picker::new(&LbPolicy::Random, &endpoints(&[1, 2, 3]), &rotation());
    let uniform = counts(&picker, 9000);
    assert!(chi_square(&uniform, &[(1, 1. / 3.), (2, 1. / 3.), (3, 1. / 3.)]) < 13.8, "{uniform:?}");
    let picker = Picker::new(&LbPolicy::Random, &weighted(&[(1, 1), (2, 10), (3, 10)]), &rotation());
    let shares = counts(&picker, 9000);
    assert!(chi_square(&shares, &[(1, 1. / 21.), (2, 10. / 21.), (3, 10. / 21.)]) < 13.8, "{shares:?}");
}

/// SD-14, D07.
#[test]
fn least_connections_takes_the_least_busy_and_equal_ones_in_turn() {
    let all = endpoints(&[1, 2, 3]);
    let picker = Picker::new(&LbPolicy::LeastConnections, &all, &rotation());
    assert_eq!(counts(&picker, 300), HashMap::from([(1, 100), (2, 100), (3, 100)]), "idle ones in turn");
    let _busy = [all[0].0.start(), all[0].0.start(), all[1].0.start(), all[2].0.start(), all[2].0.start()];
    assert_eq!(counts(&picker, 10), HashMap::from([(2, 10)]));
}

#[test]
fn least_connections_counts_load_by_weight() {
    let all = weighted(&[(1, 3), (2, 1)]);
    let picker = Picker::new(&LbPolicy::LeastConnections, &all, &rotation());
    let mut rng = fastrand::Rng::with_seed(1);
    let mut active = Vec::new();
    for _ in 0..8 {
        active.push(picker.pick(&[], &mut rng).unwrap().start());
    }
    assert_eq!((all[0].0.active(), all[1].0.active()), (6, 2));
}

#[test]
fn no_policy_gives_a_tried_endpoint_or_anything_from_nothing() {
    let all = weighted(&[(1, 1), (2, 7), (3, 2)]);
    let mut rng = fastrand::Rng::with_seed(5);
    for policy in LbPolicy::PLAIN.into_iter().chain([LbPolicy::RingHash(None), LbPolicy::Maglev(None)]) {
        let picker = Picker::new(&policy, &all, &rotation());
        for _ in 0..50 {
            let mut tried = Tried::new();
            while let Some(next) = picker.pick(&tried, &mut rng) {
                assert!(!tried.contains(&next.addr()));
                tried.push(next.addr());
            }
            assert_eq!(tried.len(), 3, "{policy}: each once");
        }
        assert!(Picker::new(&policy, &[], &rotation()).pick(&[], &mut rng).is_none());
    }
}

/// The algorithms also work under pingora's own balancer.
#[tokio::test]
async fn algorithms_work_under_pingoras_load_balancer() {
    async fn balancer<S>(all: &[(Arc<EndpointState>, u32)], rotation: &Arc<Rotation>) -> LoadBalancer<S>
    where
        S: BackendSelection<Config = Arc<Rotation>> + 'static,
        S::Iter: BackendIter,
    {
        let backends = all.iter().map(|(state, weight)| backend(state, *weight)).collect();
        let backends = Backends::new(discovery::Static::new(backends));
        let balancer = LoadBalancer::<S>::from_backends_with_config(backends, Some(rotation.clone()));
        balancer.update().await.unwrap();
        balancer
    }
    let (all, rotation) = (endpoints(&[1, 2, 3]), rotation());
    let port = |b: &Backend| match &b.addr {
        BackendAddr::Inet(addr) => addr.port(),
        other => panic!("{other:?}"),
    };
    let turns = balancer::<RoundRobin>(&all, &rotation).await;
    let seen: Vec<_> = (0..6).map(|_| port(&turns.select(b"", 16).unwrap())).collect();
    assert!(seen[..3] == seen[3..] && seen[0] % 3 + 1 == seen[1], "{seen:?}");
    let _busy = (all[0].0.start(), all[2].0.start());
    let least = balancer::<LeastConnections>(&all, &rotation).await;
    assert!((0..5).all(|_| port(&least.select(b"", 16).unwrap()) == 2), "it sees the same load");
    let random = balancer::<Random>(&all, &rotation).await;
    let refused = random.select_with(b"", 16, |b, healthy| healthy && port(b) == 3).unwrap();
    assert_eq!(port(&refused), 3, "it gives each candidate");
}

proptest! {
    /// Against the obvious model: whatever the loads and weights, nobody has less than the one picked.
    #[test]
    fn least_connections_never_picks_a_busier_one(loads in prop::collection::vec((0u32..20, 1u32..10), 1..12)) {
        let all: Vec<_> = loads
            .iter()
            .enumerate()
            .map(|(i, (_, w))| (EndpointState::new(SocketAddr::from(([127, 0, 0, 1], i as u16 + 1))), *w))
            .collect();
        let _active: Vec<_> =
            all.iter().zip(&loads).flat_map(|((e, _), (n, _))| (0..*n).map(|_| e.start()).collect::<Vec<_>>()).collect();
        let picker = Picker::new(&LbPolicy::LeastConnections, &all, &rotation());
        let best = picker.pick(&[], &mut fastrand::Rng::with_seed(1)).unwrap();
        let load = |i: usize| f64::from(all[i].0.active() + 1) / f64::from(all[i].1);
        let picked = usize::from(best.addr().port()) - 1;
        prop_assert!((0..all.len()).all(|i| load(picked) <= load(i) + 1e-9));
    }

    /// Round robin with any weights gives each its exact share over one cycle.
    #[test]
    fn round_robin_shares_are_exact_over_a_cycle(weights in prop::collection::vec(1u32..20, 1..8)) {
        let all: Vec<_> = weights.iter().enumerate().map(|(i, w)| (i as u16 + 1, *w)).collect();
        let picker = Picker::new(&LbPolicy::RoundRobin, &weighted(&all), &rotation());
        let cycle: u32 = weights.iter().sum();
        let counts = counts(&picker, cycle as usize);
        for (port, weight) in all {
            prop_assert_eq!(counts.get(&port).copied().unwrap_or(0), weight as usize);
        }
    }
}

/// D07 and P38 for every policy: whatever comes and goes between any two requests, nobody is favoured. With a key at
/// random, hashing is no exception.
#[test]
fn no_policy_favours_anybody_while_endpoints_come_and_go() {
    for policy in LbPolicy::PLAIN.into_iter().chain([LbPolicy::RingHash(None), LbPolicy::Maglev(None)]) {
        let hashes = policy.hashes();
        // Tables of hashing policies are dear to build, and their shares differ by design.
        let (rounds, bound) = if hashes { (400, 60.0) } else { (8_000, 20.5) };
        let (all, rotation) = (endpoints(&[1, 2, 3, 4, 5, 6]), rotation());
        let mut rng = fastrand::Rng::with_seed(17);
        let (mut seen, mut expected) = ([0.0; 6], [0.0; 6]);
        for _ in 0..rounds {
            let mut set: Vec<_> = all.clone();
            rng.shuffle(&mut set);
            set.truncate(rng.usize(3..=6));
            let picker = Picker::new(&policy, &set, &rotation);
            let picks = if hashes { 20 } else { 1 };
            for _ in 0..picks {
                seen[usize::from(picked(&picker, &[], &mut rng).unwrap()) - 1] += 1.0;
            }
            for (endpoint, _) in &set {
                expected[usize::from(endpoint.addr().port()) - 1] += f64::from(picks) / set.len() as f64;
            }
        }
        let chi: f64 = seen.iter().zip(expected).map(|(s, e)| (s - e).powi(2) / e).sum();
        // Five degrees of freedom; 20.5 is passed once in a thousand seeds.
        assert!(chi < bound, "{policy}: {seen:?}, expected {expected:?}, χ² {chi}");
    }
}

/// D07 with weights: whatever comes and goes between any two requests, an endpoint has its share of the weight of each
/// set that it is in.
#[test]
fn weights_count_while_endpoints_come_and_go() {
    // Of idle endpoints this one takes the heaviest.
    let plain = LbPolicy::PLAIN.into_iter().filter(|policy| *policy != LbPolicy::LeastConnections);
    for policy in plain.chain([LbPolicy::RingHash(None), LbPolicy::Maglev(None)]) {
        let of = under_churn(&policy, 0);
        let chi: f64 = of.iter().map(|(seen, expected)| (seen - expected).powi(2) / expected).sum();
        // As where all weigh the same.
        let bound = if policy.hashes() { 60.0 } else { 20.5 };
        assert!(chi < bound, "{policy}: {of:?}, χ² {chi}");
    }
}

/// The same while requests stay for some time. Few of them have to go somewhere as a whole: shares are less exact.
#[test]
fn weights_count_while_endpoints_come_and_go_and_are_busy() {
    for (policy, under_way, off_max) in [
        (LbPolicy::LeastRequest, 4, 0.3),
        (LbPolicy::LeastRequest, 24, 0.1),
        (LbPolicy::LeastRequest, 96, 0.1),
        (LbPolicy::LeastConnections, 96, 0.15),
    ] {
        let of = under_churn(&policy, under_way);
        let off = of.iter().map(|(seen, expected)| (seen / expected - 1.0).abs()).fold(0.0, f64::max);
        assert!(off < off_max, "{policy} with {under_way} under way: {of:?}, off by {off}");
    }
}

/// How many requests each of several endpoints gets, and how many are its share, with so many under way.
fn under_churn(policy: &LbPolicy, under_way: usize) -> Vec<(f64, f64)> {
    let (all, rotation) = (weighted(&[(1, 1), (2, 2), (3, 3), (4, 5), (5, 8), (6, 5)]), rotation());
    let mut rng = fastrand::Rng::with_seed(29);
    let mut of = vec![(0.0, 0.0); all.len()];
    let mut held = VecDeque::new();
    // Tables of hashing policies are dear to build.
    let (rounds, picks) = if policy.hashes() { (400, 50) } else { (20_000, 1) };
    for _ in 0..rounds {
        let mut set = all.clone();
        rng.shuffle(&mut set);
        set.truncate(rng.usize(3..=6));
        let picker = Picker::new(policy, &set, &rotation);
        for _ in 0..picks {
            let endpoint = picker.pick(&[], &mut rng).unwrap();
            of[usize::from(endpoint.addr().port()) - 1].0 += 1.0;
            held.push_back(endpoint.start());
            if held.len() > under_way {
                held.pop_front();
            }
        }
        let total: u32 = set.iter().map(|(_, weight)| weight).sum();
        for (endpoint, weight) in &set {
            let share = f64::from(*weight) / f64::from(total);
            of[usize::from(endpoint.addr().port()) - 1].1 += f64::from(picks) * share;
        }
    }
    of
}

/// Peak EWMA under churn: one that is ten times as slow gets little, whoever else comes and goes.
#[test]
fn peak_ewma_spares_a_slow_endpoint_under_churn() {
    const MS: u64 = 1_000_000;
    let (all, rotation) = (endpoints(&[1, 2, 3, 4, 5, 6]), rotation());
    let mut rng = fastrand::Rng::with_seed(23);
    let mut seen = [0_u32; 6];
    let mut now = 1000 * MS;
    for _ in 0..6_000 {
        let mut set: Vec<_> = all[1..].to_vec();
        rng.shuffle(&mut set);
        set.truncate(rng.usize(3..=5));
        set.push(all[0].clone());
        let picker = Picker::new(&LbPolicy::PeakEwma, &set, &rotation);
        let endpoint = picker.pick_for(Ask { now, ..Ask::default() }, &mut rng).unwrap();
        let port = usize::from(endpoint.addr().port());
        seen[port - 1] += 1;
        now += 3 * MS;
        endpoint.latency.observe(now, if port == 1 { 50 * MS } else { 5 * MS });
    }
    let others = f64::from(seen[1..].iter().sum::<u32>()) / 5.0;
    assert!(f64::from(seen[0]) < others / 5.0, "{seen:?}");
    let (min, max) = (seen[1..].iter().min().unwrap(), seen[1..].iter().max().unwrap());
    assert!(f64::from(*max) < f64::from(*min) * 1.5, "the others are alike: {seen:?}");
}
