use super::*;

fn registered(id: &str, host: &str, port: u16, revision: u64) -> Claim {
    Claim {
        instance_id: id.into(),
        host: host.into(),
        port,
        health: InstanceHealth::Passing,
        source: Source::Registry { lease: revision as i64 },
        metadata: BTreeMap::new(),
        health_path: None,
        version: (revision, 0),
        since: Instant::now(),
        duplicate: false,
    }
}

fn gossiped(id: &str, host: &str, port: u16, member: u64, version: (u64, u64)) -> Claim {
    Claim {
        source: Source::Gossip { member: NodeId(member), member_name: format!("m{member}") },
        version,
        ..registered(id, host, port, 0)
    }
}

fn ids(claims: &[Claim]) -> Vec<&str> {
    claims.iter().map(|c| c.instance_id.as_str()).collect()
}

#[test]
fn claims_to_different_addresses_are_all_kept_in_order() {
    let merged = merge(
        vec![registered("c", "10.0.0.3", 80, 2), registered("a", "10.0.0.1", 80, 1)],
        vec![gossiped("b", "10.0.0.2", 80, 7, (1, 1))],
    );
    assert_eq!(ids(&merged), ["a", "b", "c"]);
    assert!(merged.iter().all(|c| !c.duplicate));
}

#[test]
fn one_address_claimed_by_both_is_one_instance_with_the_health_of_gossip() {
    let mut sick = gossiped("side", "10.0.0.1", 80, 7, (1, 1));
    sick.health = InstanceHealth::Critical;
    sick.metadata.insert("zone".into(), "b".into());
    let mut by_api = registered("api", "10.0.0.1", 80, 5);
    by_api.metadata.insert("zone".into(), "a".into());
    by_api.metadata.insert("version".into(), "1.2".into());
    by_api.health_path = Some("/health".into());

    let merged = merge(vec![by_api], vec![sick]);

    assert_eq!(ids(&merged), ["side"]);
    assert_eq!(merged[0].health, InstanceHealth::Critical);
    assert_eq!(merged[0].source.as_str(), "gossip");
    assert_eq!(merged[0].metadata["zone"], "b");
    assert_eq!(merged[0].metadata["version"], "1.2");
    assert_eq!(merged[0].health_path.as_deref(), Some("/health"));
}

/// G09: what gossip withdrew does not come back by way of another source's copy.
#[test]
fn a_withdrawn_advertisement_leaves_only_what_its_own_owner_registered() {
    let by_api = registered("api", "10.0.0.1", 80, 5);
    let merged = merge(vec![by_api.clone()], vec![]);
    assert_eq!(merged, [by_api]);
    assert!(merge(vec![], vec![]).is_empty());
}

#[test]
fn a_member_that_came_back_under_a_new_identity_replaces_its_former_self() {
    let old = gossiped("x", "10.0.0.1", 80, 9, (100, 8));
    let new = gossiped("x", "10.0.0.1", 80, 3, (200, 1));
    for order in [vec![old.clone(), new.clone()], vec![new.clone(), old]] {
        assert_eq!(merge(vec![], order), std::slice::from_ref(&new));
    }
}

#[test]
fn registrations_of_one_address_stay_visible_and_only_the_newest_gets_traffic() {
    let merged =
        merge(vec![registered("old", "10.0.0.1", 80, 4), registered("new", "10.0.0.1", 80, 9)], vec![]);
    assert_eq!(ids(&merged), ["new", "old"]);
    assert_eq!(merged.iter().map(|c| c.duplicate).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn another_port_of_the_same_host_is_another_instance() {
    let merged = merge(vec![registered("a", "h", 80, 1)], vec![gossiped("b", "h", 81, 1, (1, 1))]);
    assert_eq!(merged.len(), 2);
    assert_eq!(merged[0].address(), None);
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn claim() -> impl Strategy<Value = Claim> {
        (0u8..4, 0u8..3, 0u8..2, any::<bool>(), 0u64..3, 0u64..3).prop_map(
            |(id, host, port, gossip, v, m)| {
                let (id, host, port) = (format!("i{id}"), format!("10.0.0.{host}"), 80 + u16::from(port));
                // One instant for all, since equality is checked on whole claims.
                if gossip { gossiped(&id, &host, port, m, (v, 0)) } else { registered(&id, &host, port, v) }
            },
        )
    }

    fn split(claims: &[Claim]) -> (Vec<Claim>, Vec<Claim>) {
        claims.iter().cloned().partition(|c| matches!(c.source, Source::Registry { .. }))
    }

    proptest! {
        #[test]
        fn every_claimed_address_gets_traffic_exactly_once(claims in prop::collection::vec(claim(), 0..12)) {
            let (mut r, g) = split(&claims);
            r.sort_by(|a, b| a.instance_id.cmp(&b.instance_id));
            r.dedup_by(|a, b| a.instance_id == b.instance_id);
            let wanted: std::collections::BTreeSet<_> =
                r.iter().chain(&g).map(|c| (c.host.clone(), c.port)).collect();
            let merged = merge(r, g);
            let mut seen: Vec<_> =
                merged.iter().filter(|c| !c.duplicate).map(|c| (c.host.clone(), c.port)).collect();
            seen.sort();
            prop_assert_eq!(seen, wanted.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn gossip_always_decides_the_health_of_its_addresses(claims in prop::collection::vec(claim(), 0..12)) {
            let (r, g) = split(&claims);
            let gossiped: Vec<_> = g.iter().map(|c| (c.host.clone(), c.port)).collect();
            for c in merge(r, g) {
                if gossiped.contains(&(c.host.clone(), c.port)) {
                    prop_assert_eq!(c.source.as_str(), "gossip");
                }
            }
        }
    }
}
