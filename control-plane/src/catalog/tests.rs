use std::net::{IpAddr, Ipv4Addr};

use super::*;
use weft_core::id::NodeId;

fn endpoint(id: &str, port: u16, health: InstanceHealth) -> CatalogEndpoint {
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    CatalogEndpoint {
        service: "web".into(),
        instance_id: id.into(),
        host: ip.to_string(),
        address: Some(SocketAddr::new(ip, port)),
        port,
        health,
        source: Source::Gossip { member: NodeId(7), member_name: "p".into() },
        age: Duration::from_secs(3),
        metadata: BTreeMap::new(),
        health_path: None,
    }
}

fn ids(endpoints: &[&CatalogEndpoint]) -> Vec<String> {
    endpoints.iter().map(|e| e.instance_id.clone()).collect()
}

#[test]
fn a_view_is_swapped_whole_and_announced() {
    let catalog = Catalog::detached();
    let mut changes = catalog.changes();
    let all = vec![endpoint("b", 2, InstanceHealth::Critical), endpoint("a", 1, InstanceHealth::Passing)];
    catalog.set_endpoints("web", all, Some(LbPolicy::Random));
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    let summary = &catalog.services()[0];
    assert_eq!((summary.healthy, summary.total, &summary.load_balancing), (1, 2, &LbPolicy::Random));
    assert_eq!(summary.sources, ["gossip"]);
    let endpoints = catalog.endpoints("web");
    assert_eq!(ids(&endpoints.iter().collect::<Vec<_>>()), ["a", "b"]);
    assert!(endpoints[0].age >= Duration::from_secs(3));

    catalog.set_endpoints("web", Vec::new(), None);
    assert!(catalog.services().is_empty() && catalog.endpoints("web").is_empty());
    assert!(changes.has_changed().unwrap());
    assert_eq!(catalog.load_balancing("web"), LbPolicy::RoundRobin);
}

/// SD-31, D05.
#[test]
fn critical_instances_are_never_healthy_and_suspects_only_when_nothing_passes() {
    let passing = endpoint("a", 1, InstanceHealth::Passing);
    let suspect = endpoint("b", 2, InstanceHealth::Suspect);
    let critical = endpoint("c", 3, InstanceHealth::Critical);
    assert_eq!(ids(&healthy(&[passing, suspect.clone(), critical.clone()])), ["a"]);
    assert_eq!(ids(&healthy(&[suspect, critical.clone()])), ["b"]);
    assert!(healthy(&[critical]).is_empty());
}

#[test]
fn an_instance_by_host_name_says_why_proxies_do_not_get_it() {
    let mut named = endpoint("db", 5432, InstanceHealth::Passing);
    assert_eq!(named.why_no_address(), None);
    (named.host, named.address) = ("db.example.com".into(), None);
    assert!(named.why_no_address().unwrap().contains("db.example.com"));
}
