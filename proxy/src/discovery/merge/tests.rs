use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use weft_core::id::NodeId;
use weft_gossip::{InstanceRecord, Member, RecordVersion, Role};
use weft_xds_proto::resource::cluster::{LbPolicy, Protocol};
use weft_xds_proto::resource::endpoint::ClusterLoadAssignment;

use super::*;

fn addr(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn told(port: u16, source: EndpointSource, owner: &str) -> Endpoint {
    Endpoint {
        address: addr(port),
        instance_id: format!("i{port}"),
        health: EndpointHealth::Healthy,
        weight: 1,
        source,
        owner: owner.to_owned(),
        metadata: BTreeMap::new(),
    }
}

fn registered(port: u16) -> Endpoint {
    told(port, EndpointSource::Registry, "1f")
}

fn pair(endpoints: Vec<Endpoint>) -> Pair {
    let cluster = Cluster { lb_policy: LbPolicy::Random, ..Cluster::with_defaults("s") };
    Pair {
        cluster: Arc::new(cluster),
        assignment: Arc::new(ClusterLoadAssignment { cluster_name: "s".to_owned(), endpoints }),
        version: "v".to_owned(),
    }
}

fn advertised(port: u16, owner: &str, health: InstanceHealth) -> CatalogInstance {
    CatalogInstance {
        record: InstanceRecord {
            service: "s".to_owned(),
            instance_id: format!("i{port}"),
            address: addr(port),
            health,
            metadata: BTreeMap::new(),
        },
        owner: NodeId(1),
        owner_name: owner.to_owned(),
        version: RecordVersion { incarnation: 1, seq: 1 },
        since: Instant::now(),
    }
}

fn owners(members: &[(&str, MemberState)]) -> Owners {
    let view = |(name, state): &(&str, MemberState)| MemberView {
        member: Member {
            id: NodeId(1),
            name: name.to_string(),
            role: Role::Proxy,
            gossip_addr: addr(1),
            incarnation: 1,
        },
        state: *state,
        since: Instant::now(),
    };
    Owners::new(&members.iter().map(view).collect::<Vec<_>>())
}

fn ports(config: &ClusterConfig) -> Vec<u16> {
    config.endpoints.iter().map(|e| e.address.port()).collect()
}

#[test]
fn a_service_that_neither_source_knows_is_none() {
    let owners = owners(&[]);
    assert_eq!(merge("s", None, Some(GossipInput { instances: &[], owners: &owners }), true), None);
    assert_eq!(merge("s", None, None, false), None);
}

#[test]
fn registry_and_gossip_are_united_and_sorted_by_address() {
    let owners = owners(&[("west", MemberState::Alive)]);
    let instances = [advertised(2, "west", InstanceHealth::Passing)];
    let gossip = Some(GossipInput { instances: &instances, owners: &owners });
    let c = merge("s", Some(&pair(vec![registered(3), registered(1)])), gossip, true).unwrap();
    assert_eq!(ports(&c), [1, 2, 3]);
    assert_eq!(c.endpoints[1].source, EndpointSource::Gossip);
    assert_eq!((c.cluster.lb_policy, c.version.as_str()), (LbPolicy::Random, "v + gossip"));
}

/// Discovery works when no server lives: an instance with a sidecar appears by gossip alone.
#[test]
fn a_service_that_gossip_alone_knows_is_usable_with_defaults() {
    let owners = owners(&[("west", MemberState::Alive)]);
    let mut i = advertised(2, "west", InstanceHealth::Passing);
    i.record.metadata.insert("protocol".to_owned(), "http2".to_owned());
    let instances = [i];
    let gossip = Some(GossipInput { instances: &instances, owners: &owners });
    let c = merge("s", None, gossip, false).unwrap();
    assert_eq!(c.cluster, Cluster { protocol: Protocol::Http2, ..Cluster::with_defaults("s") });
    assert_eq!(ports(&c), [2]);
}

#[test]
fn our_own_gossip_wins_over_what_a_server_repeats_of_it() {
    let owners = owners(&[("west", MemberState::Suspect)]);
    let instances = [advertised(2, "west", InstanceHealth::Suspect)];
    let gossip = Some(GossipInput { instances: &instances, owners: &owners });
    let theirs = pair(vec![told(2, EndpointSource::Gossip, "west")]);
    let c = merge("s", Some(&theirs), gossip, true).unwrap();
    assert_eq!(c.endpoints.len(), 1);
    assert_eq!(c.endpoints[0].health, EndpointHealth::Degraded);
}

#[test]
fn a_repeated_endpoint_goes_when_our_pool_holds_its_owner_for_down() {
    let theirs = pair(vec![told(2, EndpointSource::Gossip, "west"), registered(3)]);
    for (state, connected, expected) in [
        (MemberState::Down, true, vec![3]),
        (MemberState::Down, false, vec![3]),
        // A server's word is fresh only while it is connected.
        (MemberState::Alive, true, vec![2, 3]),
        (MemberState::Alive, false, vec![3]),
    ] {
        let owners = owners(&[("west", state)]);
        let gossip = Some(GossipInput { instances: &[], owners: &owners });
        let c = merge("s", Some(&theirs), gossip, connected).unwrap();
        assert_eq!(ports(&c), expected, "{state:?} {connected}");
    }
}

#[test]
fn a_repeated_endpoint_of_an_owner_we_never_heard_of_stays() {
    let theirs = pair(vec![told(2, EndpointSource::Gossip, "east")]);
    let owners = owners(&[("west", MemberState::Alive)]);
    for connected in [true, false] {
        let gossip = Some(GossipInput { instances: &[], owners: &owners });
        assert_eq!(ports(&merge("s", Some(&theirs), gossip, connected).unwrap()), [2]);
    }
}

#[test]
fn a_member_that_came_back_under_its_name_counts_as_up() {
    let owners = owners(&[("west", MemberState::Down), ("west", MemberState::Alive)]);
    let theirs = pair(vec![told(2, EndpointSource::Gossip, "west")]);
    let gossip = Some(GossipInput { instances: &[], owners: &owners });
    assert_eq!(ports(&merge("s", Some(&theirs), gossip, true).unwrap()), [2]);
}

#[test]
fn without_a_pool_everything_the_server_says_is_used() {
    let theirs = pair(vec![told(2, EndpointSource::Gossip, "west"), registered(3)]);
    assert_eq!(ports(&merge("s", Some(&theirs), None, false).unwrap()), [2, 3]);
}

#[test]
fn an_address_of_both_sources_is_one_endpoint_with_the_worse_health() {
    let owners = owners(&[("west", MemberState::Alive)]);
    let instances = [advertised(3, "west", InstanceHealth::Critical)];
    let gossip = Some(GossipInput { instances: &instances, owners: &owners });
    let c = merge("s", Some(&pair(vec![registered(3)])), gossip, true).unwrap();
    assert_eq!(c.endpoints.len(), 1);
    let e = &c.endpoints[0];
    assert_eq!((e.source, e.health), (EndpointSource::Registry, EndpointHealth::Unhealthy));
}

#[test]
fn a_known_service_without_endpoints_is_a_cluster_not_an_absence() {
    assert_eq!(ports(&merge("s", Some(&pair(vec![])), None, true).unwrap()), [0; 0]);
}

#[test]
fn an_instance_that_does_not_say_where_it_is_is_left_out() {
    let owners = owners(&[]);
    let mut nowhere = advertised(2, "west", InstanceHealth::Passing);
    nowhere.record.address = ([0, 0, 0, 0], 80).into();
    let instances = [nowhere, advertised(0, "west", InstanceHealth::Passing)];
    assert_eq!(merge("s", None, Some(GossipInput { instances: &instances, owners: &owners }), true), None);
}
