use std::collections::VecDeque;
use std::time::{Duration, Instant};

use weft_xds_proto::resource::cluster::{HealthCheck, OutlierDetection};

use super::*;
use crate::cluster::outlier::Cause;
use crate::config::static_config::static_endpoint;

fn pair(port: u16, health: EndpointHealth) -> (Endpoint, Arc<EndpointState>) {
    let mut endpoint = static_endpoint(std::net::SocketAddr::from(([127, 0, 0, 1], port)), 1);
    endpoint.health = health;
    let state = EndpointState::new(endpoint.address);
    (endpoint, state)
}

fn with_panic(pairs: &[(Endpoint, Arc<EndpointState>)], panic: PanicPolicy) -> EndpointSet {
    let rules = Rules { panic, ..(&LbPolicy::RoundRobin).into() };
    EndpointSet::new(pairs.to_vec(), rules, &Rotations::new(0))
}

fn set(pairs: &[(Endpoint, Arc<EndpointState>)]) -> EndpointSet {
    with_panic(pairs, PanicPolicy::Degraded)
}

/// SD-31, D05.
#[test]
fn ejected_failing_and_unhealthy_endpoints_are_never_picked() {
    let pairs = [
        pair(1, EndpointHealth::Healthy),
        pair(2, EndpointHealth::Healthy),
        pair(3, EndpointHealth::Healthy),
        pair(4, EndpointHealth::Unhealthy),
    ];
    pairs[1].1.health.lock().ejection.eject(Instant::now(), Cause::Connect, &OutlierDetection::default());
    pairs[2].1.health.lock().check.record(Err("refused".into()), &HealthCheck::default());
    let set = set(&pairs);
    let mut rng = fastrand::Rng::with_seed(1);
    assert!((0..20).all(|_| set.picker().pick(&[], &mut rng).unwrap().addr().port() == 1));
    assert_eq!(set.counts().to_string(), "1 ready, 1 ejected, 1 failing checks, 1 reported unhealthy of 4");
    assert_eq!(
        EndpointSet::new([], (&LbPolicy::Random).into(), &Rotations::new(0)).counts().to_string(),
        "it has no endpoints"
    );
}

/// P40: panic is a policy, and a state that is shown.
#[test]
fn few_usable_endpoints_are_used_alone_spared_or_helped_by_all() {
    let pairs = [
        pair(1, EndpointHealth::Healthy),
        pair(2, EndpointHealth::Unhealthy),
        pair(3, EndpointHealth::Unhealthy),
    ];
    let picked = |pairs: &[_], panic| {
        let set = with_panic(pairs, panic);
        let mut rng = fastrand::Rng::with_seed(1);
        let picks = (0..9).filter_map(|_| set.picker().pick(&[], &mut rng).map(|e| e.addr().port()));
        let mut picks: Vec<_> = picks.collect();
        picks.sort_unstable();
        picks.dedup();
        (picks, set.counts().pickable(), set.counts().to_string())
    };
    let text = |panic: &str| format!("1 ready, 2 reported unhealthy of 3{panic}");
    assert_eq!(picked(&pairs, PanicPolicy::Degraded), (vec![1], 1, text("")));
    let spread = PanicPolicy::Spread { below: 50 };
    assert_eq!(picked(&pairs, spread), (vec![1, 2, 3], 3, text("; panic: spread below 50 %")));
    let fail = PanicPolicy::Fail { below: 50 };
    assert_eq!(picked(&pairs, fail), (vec![], 0, text("; panic: fail below 50 %")));
    assert_eq!(picked(&pairs[..2], spread).0, [1], "half is not below half");
}

#[test]
fn a_degraded_endpoint_gets_a_small_share_and_an_equal_one_if_all_are() {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut share = |pairs: &[(Endpoint, Arc<EndpointState>)]| {
        let set = set(pairs);
        (0..210).filter(|_| set.picker().pick(&[], &mut rng).unwrap().addr().port() == 3).count()
    };
    let healthy = [pair(1, EndpointHealth::Healthy), pair(2, EndpointHealth::Healthy)];
    let degraded = pair(3, EndpointHealth::Degraded);
    assert_eq!(share(&[healthy.as_slice(), std::slice::from_ref(&degraded)].concat()), 10);
    let all = [pair(1, EndpointHealth::Degraded), pair(2, EndpointHealth::Degraded), degraded];
    assert_eq!(share(&all), 70);
}

#[test]
fn a_new_endpoint_gets_its_share_step_by_step() {
    let pairs = [pair(1, EndpointHealth::Healthy), pair(2, EndpointHealth::Healthy)];
    let slow = SlowStart { window: Duration::from_secs(100), min_weight_percent: 10 };
    let came = pairs[1].1.since();
    // The first one came long before.
    pairs[1].1.health.lock().passed = Some(came + Duration::from_secs(200));
    let share = |after: u64| {
        let now = came + Duration::from_secs(200 + after);
        let rules = Rules { slow_start: Some((slow, now)), ..(&LbPolicy::RoundRobin).into() };
        let set = EndpointSet::new(pairs.to_vec(), rules, &Rotations::new(0));
        let mut rng = fastrand::Rng::with_seed(1);
        let picks = (0..330).filter(|_| set.picker().pick(&[], &mut rng).unwrap().addr().port() == 2);
        (picks.count(), set.is_warming())
    };
    assert_eq!([share(0), share(50), share(100)], [(30, true), (110, true), (165, false)]);
}

/// Three that have long been in and one that just came, after so many seconds of 100; the new one is the last.
fn warming(after: u64) -> (Vec<(Endpoint, Arc<EndpointState>)>, EndpointSet) {
    let pairs: Vec<_> = (1..5).map(|port| pair(port, EndpointHealth::Healthy)).collect();
    let came = pairs[3].1.since() + Duration::from_secs(200);
    pairs[3].1.health.lock().passed = Some(came);
    let slow = SlowStart { window: Duration::from_secs(100), min_weight_percent: 10 };
    let now = came + Duration::from_secs(after);
    let rules = Rules { slow_start: Some((slow, now)), ..(&LbPolicy::LeastRequest).into() };
    let set = EndpointSet::new(pairs.clone(), rules, &Rotations::new(0));
    (pairs, set)
}

/// D07. χ² with one degree of freedom passes 10.8 once in a thousand seeds.
#[test]
fn a_new_endpoint_gets_its_share_step_by_step_under_least_request() {
    for (after, weight) in [(0, 0.1), (10, 0.1), (25, 0.25), (50, 0.5), (75, 0.75), (100, 1.0)] {
        let (_, set) = warming(after);
        let mut rng = fastrand::Rng::with_seed(41);
        let picks = (0..20_000).filter(|_| set.picker().pick(&[], &mut rng).unwrap().addr().port() == 4);
        let (seen, expected) = (picks.count() as f64, 20_000.0 * weight / (3.0 + weight));
        let chi = (seen - expected).powi(2) * (1.0 / expected + 1.0 / (20_000.0 - expected));
        assert!(chi < 10.8, "after {after} s: {seen} instead of {expected}, χ² {chi}");
    }
}

/// An endpoint that just came is the least busy one, and must not be overrun for that.
#[test]
fn a_new_endpoint_is_not_overrun_where_the_others_are_busy() {
    for (after, weight) in [(0, 0.1), (50, 0.5), (100, 1.0)] {
        let (pairs, set) = warming(after);
        let mut rng = fastrand::Rng::with_seed(43);
        let mut held: Vec<_> =
            pairs[..3].iter().flat_map(|(_, state)| (0..50).map(|_| state.start())).collect();
        for _ in 0..400 {
            held.push(set.picker().pick(&[], &mut rng).unwrap().start());
        }
        let (busy, share) = (f64::from(pairs[3].1.active()), 550.0 * weight / (3.0 + weight));
        assert!((busy - share).abs() < 5.0, "after {after} s: {busy} instead of {share}");
    }
}

/// Few requests at a time, of which one that has none yet would get the next whenever it is idle.
#[test]
fn a_new_endpoint_beside_one_other_does_not_get_half_of_few_requests() {
    let (pairs, _) = warming(0);
    let slow = SlowStart { window: Duration::from_secs(100), min_weight_percent: 10 };
    let now = pairs[3].1.since() + Duration::from_secs(200);
    let rules = Rules { slow_start: Some((slow, now)), ..(&LbPolicy::LeastRequest).into() };
    let set = EndpointSet::new(pairs[2..].to_vec(), rules, &Rotations::new(0));
    let (mut rng, mut new, mut under_way) = (fastrand::Rng::with_seed(47), 0, VecDeque::new());
    for _ in 0..10_000 {
        let picked = set.picker().pick(&[], &mut rng).unwrap();
        new += u32::from(picked.addr().port() == 4);
        under_way.push_back(picked.start());
        if under_way.len() > 2 {
            under_way.pop_front();
        }
    }
    // Its share is a tenth of what the other has: 909.
    assert!((700..1500).contains(&new), "{new} of 10,000");
}

/// Zones of a set, with what each gets in thousandths.
#[test]
fn zones_with_few_endpoints_are_not_preferred_and_dead_ones_take_nothing_along() {
    let here = Place { region: "eu".to_owned(), zone: "a".to_owned() };
    let shares = |zones: &[(&str, EndpointHealth)], min_endpoints| {
        let pair = |(i, (zone, health)): (usize, &(&str, EndpointHealth))| {
            let mut pair = pair(i as u16 + 1, *health);
            let labels = [("region", "eu"), ("zone", zone)];
            pair.0.metadata.extend(labels.map(|(k, v)| (k.to_owned(), v.to_owned())));
            pair
        };
        let pairs: Vec<_> = zones.iter().enumerate().map(pair).collect();
        let rule = ZoneAware { min_endpoints, ..ZoneAware::default() };
        let here = Surroundings::at(here.clone());
        let rules = Rules { zone_aware: Some((rule, &here)), ..(&LbPolicy::RoundRobin).into() };
        let set = EndpointSet::new(pairs, rules, &Rotations::new(0));
        let shares = set.picker().shares().into_iter();
        shares.map(|(rank, share)| (rank.nearness, share)).collect::<Vec<_>>()
    };
    let (up, down) = (EndpointHealth::Healthy, EndpointHealth::Unhealthy);
    use Nearness::{Region, Zone};
    assert_eq!(shares(&[("a", up), ("b", up)], 1), [(Zone, 1000), (Region, 0)]);
    assert_eq!(shares(&[("a", up), ("b", up)], 2), [(Region, 1000)], "one is too few");
    assert_eq!(shares(&[("a", down), ("b", up)], 1), [(Region, 1000)]);
    assert_eq!(shares(&[("a", up), ("a", down), ("b", up)], 1), [(Zone, 700), (Region, 300)]);
}

/// The choice of a subset is made once and shared, and priorities hold within it.
#[test]
fn a_subset_is_chosen_from_its_members_alone() {
    let pairs: Vec<_> = (1..7u16)
        .map(|port| {
            let mut pair = pair(port, EndpointHealth::Healthy);
            pair.0.metadata.insert("version".to_owned(), (port % 2).to_string());
            pair
        })
        .collect();
    let set = set(&pairs);
    let odd = Arc::new(Subset::new([("version", "1")]).unwrap());
    let (rules, rotations) = (Rules::from(&LbPolicy::RoundRobin), Rotations::new(0));
    let levels = set.subset(&odd, rules, &rotations);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut picks: Vec<_> = (0..3).map(|_| levels.pick(&[], &mut rng).unwrap().addr().port()).collect();
    picks.sort_unstable();
    assert_eq!((picks, levels.len()), (vec![1, 3, 5], 3));
    assert!(Arc::ptr_eq(&levels, &set.subset(&Arc::new((*odd).clone()), rules, &rotations)));
    let none = Arc::new(Subset::new([("version", "9")]).unwrap());
    assert!(set.subset(&none, rules, &rotations).pick(&[], &mut rng).is_none());
}

#[test]
fn a_set_does_not_change_when_a_state_does() {
    let pairs = [pair(1, EndpointHealth::Healthy)];
    let before = set(&pairs);
    pairs[0].1.health.lock().ejection.eject(Instant::now(), Cause::Connect, &OutlierDetection::default());
    assert_eq!(before.counts().usable, 1);
    assert_eq!(set(&pairs).counts().ejected, 1);
    pairs[0].1.health.lock().ejection.expire(Instant::now() + Duration::from_secs(60));
    assert_eq!(set(&pairs).counts().usable, 1);
}
