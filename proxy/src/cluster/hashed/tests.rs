use std::sync::Arc;

use weft_xds_proto::resource::cluster::LbPolicy;

use super::*;
use crate::cluster::endpoint::EndpointState;
use crate::cluster::picker::{Ask, Picker};
use crate::cluster::rotation::Rotation;

const KEYS: u64 = 20_000;

fn endpoints(weights: &[(u8, u32)]) -> Vec<(Arc<EndpointState>, u32)> {
    weights.iter().map(|(n, w)| (EndpointState::new(SocketAddr::from(([10, 0, 0, *n], 80))), *w)).collect()
}

fn equal(n: u8) -> Vec<(Arc<EndpointState>, u32)> {
    endpoints(&(1..=n).map(|n| (n, 1)).collect::<Vec<_>>())
}

fn picker(policy: &LbPolicy, all: &[(Arc<EndpointState>, u32)]) -> Picker {
    Picker::new(policy, all, &Arc::new(Rotation::new(0)))
}

fn policies() -> [LbPolicy; 2] {
    [LbPolicy::RingHash(None), LbPolicy::Maglev(None)]
}

fn of(picker: &Picker, key: u64, tried: &[SocketAddr]) -> Option<SocketAddr> {
    let ask = Ask { key: Some(hash(&key.to_le_bytes())), tried, now: 0 };
    picker.pick_for(ask, &mut fastrand::Rng::with_seed(1)).map(|e| e.addr())
}

fn shares(picker: &Picker, all: &[(Arc<EndpointState>, u32)]) -> Vec<f64> {
    let picked: Vec<_> = (0..KEYS).map(|key| of(picker, key, &[]).unwrap()).collect();
    let share = |addr| picked.iter().filter(|p| **p == addr).count() as f64 / KEYS as f64;
    all.iter().map(|(e, _)| share(e.addr())).collect()
}

/// D07. A table is even up to chance; a ring with 160 points for each endpoint differs by about 8 %.
#[test]
fn keys_are_shared_by_weight() {
    for (policy, off_max) in policies().into_iter().zip([0.35, 0.10]) {
        let all = endpoints(&[(1, 1), (2, 1), (3, 2), (4, 4)]);
        for (seen, (_, weight)) in shares(&picker(&policy, &all), &all).iter().zip(&all) {
            let expected = f64::from(*weight) / 8.0;
            assert!((seen / expected - 1.0).abs() < off_max, "{policy}: {seen} instead of {expected}");
        }
    }
}

#[test]
fn an_endpoint_that_goes_moves_few_keys_besides_its_own() {
    for (policy, others_max) in policies().into_iter().zip([0.0, 0.03]) {
        let all = equal(10);
        let (before, after) = (picker(&policy, &all), picker(&policy, &all[1..]));
        let gone = all[0].0.addr();
        let moved = |key: &u64| {
            let was = of(&before, *key, &[]).unwrap();
            was != gone && was != of(&after, *key, &[]).unwrap()
        };
        let moved = (0..KEYS).filter(moved).count() as f64 / KEYS as f64;
        assert!(moved <= others_max, "{policy}: {moved}");
    }
}

/// P38: whatever came before, a key has its endpoint; also in another process and in the next release.
#[test]
fn a_key_has_the_same_endpoint_everywhere() {
    let hosts = |policy: &LbPolicy| {
        let picked = |key| of(&picker(policy, &equal(10)), key, &[]).map(|a| a.ip().to_string());
        (0..4).filter_map(picked).collect::<Vec<_>>().join(" ")
    };
    let seen = (hash(b"user-1"), hosts(&LbPolicy::RingHash(None)), hosts(&LbPolicy::Maglev(None)));
    let ring = "10.0.0.3 10.0.0.7 10.0.0.9 10.0.0.2".to_owned();
    let maglev = "10.0.0.10 10.0.0.8 10.0.0.10 10.0.0.9".to_owned();
    assert_eq!(seen, (14_166_554_182_431_137_624, ring, maglev));
}

#[test]
fn a_tried_endpoint_is_passed_over_for_the_same_next_one() {
    for policy in policies() {
        let all = equal(4);
        let picker = picker(&policy, &all);
        for key in 0..200 {
            let first = of(&picker, key, &[]).unwrap();
            let second = of(&picker, key, &[first]).unwrap();
            assert_ne!(first, second);
            assert_eq!(of(&picker, key, &[first]), Some(second));
            let everyone: Vec<_> = all.iter().map(|(e, _)| e.addr()).collect();
            assert_eq!(of(&picker, key, &everyone), None);
            let others: Vec<_> = everyone.iter().copied().filter(|a| *a != second).collect();
            assert_eq!(of(&picker, key, &others), Some(second));
        }
    }
}

#[test]
fn requests_without_a_key_go_to_any() {
    for policy in policies() {
        let all = equal(4);
        let picker = picker(&policy, &all);
        let mut rng = fastrand::Rng::with_seed(2);
        let mut seen: Vec<_> = (0..200).map(|_| picker.pick(&[], &mut rng).unwrap().addr()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 4, "{policy}");
        assert!(Picker::new(&policy, &[], &Arc::new(Rotation::new(0))).pick(&[], &mut rng).is_none());
    }
}

#[test]
fn extreme_weights_and_many_endpoints_are_bounded() {
    let all = endpoints(&[(1, u32::MAX), (2, 1), (3, u32::MAX)]);
    for policy in policies() {
        assert!((0..100).all(|key| of(&picker(&policy, &all), key, &[]).is_some()));
    }
    let many: Vec<_> =
        (0..300u16).map(|n| (EndpointState::new(SocketAddr::from(([10, 1, 0, 1], 1000 + n))), 1)).collect();
    for policy in policies() {
        let picker = picker(&policy, &many);
        assert!(shares(&picker, &many).iter().all(|share| *share > 0.0), "{policy}");
    }
}
