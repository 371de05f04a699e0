use proptest::prelude::*;
use prost::Message;

use super::*;

fn one(address: &str) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        instance_id: "i-1".to_owned(),
        health: EndpointHealth::Healthy,
        weight: 1,
        source: EndpointSource::Gossip,
        owner: "west-1".to_owned(),
        metadata: BTreeMap::from([("version".to_owned(), "2".to_owned())]),
    }
}

fn assignment(addresses: &[&str]) -> pb::ClusterLoadAssignment {
    let endpoints = addresses.iter().map(|a| one(a)).collect();
    (&ClusterLoadAssignment { cluster_name: "orders".to_owned(), endpoints }).into()
}

fn refused(change: impl FnOnce(&mut pb::LbEndpoint)) -> InvalidResource {
    let mut p = assignment(&["10.0.0.1:80"]);
    change(&mut p.endpoints[0].lb_endpoints[0]);
    ClusterLoadAssignment::try_from(p).unwrap_err()
}

fn socket(p: &mut pb::LbEndpoint) -> &mut core::SocketAddress {
    let Some(pb::lb_endpoint::HostIdentifier::Endpoint(e)) = &mut p.host_identifier else { panic!() };
    let Some(core::address::Address::SocketAddress(s)) = &mut e.address.as_mut().unwrap().address else {
        panic!()
    };
    s
}

prop_compose! {
    fn endpoint_of(port: u16)(
        ip in any::<[u8; 4]>(),
        v6 in proptest::option::of(any::<[u8; 16]>()),
        instance_id in "[a-z0-9-]{1,20}",
        health in prop::sample::select(vec![EndpointHealth::Healthy, EndpointHealth::Degraded, EndpointHealth::Unhealthy]),
        weight in 1u32..,
        source in prop::sample::select(vec![EndpointSource::Registry, EndpointSource::Gossip, EndpointSource::Static]),
        owner in ".{0,20}",
        metadata in proptest::collection::btree_map(".{0,10}", ".{0,20}", 0..4),
    ) -> Endpoint {
        let ip = v6.map_or(IpAddr::from(ip), IpAddr::from);
        Endpoint { address: SocketAddr::new(ip, port), instance_id, health, weight, source, owner, metadata }
    }
}

fn load_assignment() -> impl Strategy<Value = ClusterLoadAssignment> {
    (0u16..6).prop_flat_map(|n| {
        let endpoints: Vec<_> = (1..=n).map(endpoint_of).collect();
        ("[a-z][a-z0-9-]{0,62}", endpoints).prop_map(|(cluster_name, mut endpoints)| {
            endpoints.sort_by_key(|e| e.address);
            ClusterLoadAssignment { cluster_name, endpoints }
        })
    })
}

proptest! {
    #[test]
    fn a_load_assignment_survives_the_wire(c in load_assignment()) {
        let bytes = pb::ClusterLoadAssignment::from(&c).encode_to_vec();
        let back = pb::ClusterLoadAssignment::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(ClusterLoadAssignment::try_from(back).unwrap(), c);
    }

    #[test]
    fn any_bytes_are_decoded_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(p) = pb::ClusterLoadAssignment::decode(bytes.as_slice()) {
            let _ = ClusterLoadAssignment::try_from(p);
        }
    }
}

#[test]
fn endpoints_are_sorted_by_address() {
    let c =
        ClusterLoadAssignment::try_from(assignment(&["10.0.0.2:80", "10.0.0.1:81", "10.0.0.1:80"])).unwrap();
    let order: Vec<_> = c.endpoints.iter().map(|e| e.address.to_string()).collect();
    assert_eq!(order, ["10.0.0.1:80", "10.0.0.1:81", "10.0.0.2:80"]);
}

#[test]
fn error_names_the_endpoint_and_its_field() {
    let e = refused(|p| socket(p).address = "db.local".to_owned());
    assert_eq!(
        e.to_string(),
        r#"ClusterLoadAssignment "orders": endpoints[0].lb_endpoints[0].endpoint.address.address: seen "db.local", allowed an IPv4 or IPv6 address"#
    );
}

#[test]
fn ports_out_of_range_are_refused() {
    for port in [0, 65_536, u32::MAX] {
        let e = refused(|p| {
            socket(p).port_specifier = Some(core::socket_address::PortSpecifier::PortValue(port));
        });
        assert_eq!((e.seen, e.allowed.as_str()), (port.to_string(), "1 to 65535"));
    }
}

#[test]
fn an_address_given_twice_is_refused() {
    let e = ClusterLoadAssignment::try_from(assignment(&["10.0.0.1:80", "10.0.0.1:80"])).unwrap_err();
    assert_eq!(e.seen, "10.0.0.1:80 a second time");
}

#[test]
fn a_weight_of_zero_and_an_unknown_health_are_refused() {
    let e = refused(|p| p.load_balancing_weight = Some(number_to_proto(0)));
    assert!(e.field.ends_with("load_balancing_weight"));
    assert!(refused(|p| p.health_status = 17).field.ends_with("health_status"));
}

#[test]
fn place_and_priority_of_another_control_plane_become_labels() {
    let mut p = assignment(&["10.0.0.1:80"]);
    let locality = core::Locality { region: "eu".to_owned(), zone: "a".to_owned(), ..Default::default() };
    let group = &mut p.endpoints[0];
    (group.priority, group.locality) = (1, Some(locality));
    let lb = &mut group.lb_endpoints[0].metadata.as_mut().unwrap().filter_metadata;
    let value = |kind| Value { kind: Some(kind) };
    let fields = [
        ("stage".to_owned(), value(Kind::StringValue("prod".to_owned()))),
        ("shard".to_owned(), value(Kind::NumberValue(7.0))),
    ];
    lb.get_mut(SUBSETS).unwrap().fields.extend(fields);
    let c = ClusterLoadAssignment::try_from(p).unwrap();
    let labels: Vec<_> = c.endpoints[0].metadata.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels, ["priority=1", "region=eu", "shard=7", "stage=prod", "version=2", "zone=a"]);
    let mut p = assignment(&["10.0.0.1:80"]);
    p.endpoints[0].priority = 129;
    assert_eq!(ClusterLoadAssignment::try_from(p).unwrap_err().field, "endpoints[0].priority");
}

/// gRPC refuses priorities with a gap, and a locality that stands twice.
#[test]
fn places_are_groups_and_priorities_are_numbered_without_a_gap() {
    let at = |address: &str, labels: &[(&str, &str)]| {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Endpoint { metadata: labels.collect(), ..one(address) }
    };
    let endpoints = vec![
        at("10.0.0.1:80", &[("zone", "a")]),
        at("10.0.0.2:80", &[("zone", "b"), ("priority", "7")]),
        Endpoint { weight: 3, ..at("10.0.0.3:80", &[("zone", "a")]) },
    ];
    let c = ClusterLoadAssignment { cluster_name: "orders".to_owned(), endpoints };
    let p = pb::ClusterLoadAssignment::from(&c);
    let groups: Vec<_> = p
        .endpoints
        .iter()
        .map(|g| {
            let zone = g.locality.as_ref().unwrap().zone.as_str();
            (g.priority, zone, g.lb_endpoints.len(), g.load_balancing_weight.unwrap().value)
        })
        .collect();
    assert_eq!(groups, [(0, "a", 2, 4), (1, "b", 1, 1)]);
    assert_eq!(ClusterLoadAssignment::try_from(p).unwrap(), c, "the labels keep what was said");
}

#[test]
fn draining_and_timed_out_endpoints_get_no_traffic() {
    for status in [core::HealthStatus::Draining, core::HealthStatus::Timeout, core::HealthStatus::Unhealthy] {
        let mut p = assignment(&["10.0.0.1:80"]);
        p.endpoints[0].lb_endpoints[0].health_status = status as i32;
        let c = ClusterLoadAssignment::try_from(p).unwrap();
        assert_eq!(c.endpoints[0].health, EndpointHealth::Unhealthy);
    }
}

#[test]
fn an_endpoint_of_a_foreign_control_plane_counts_as_registered() {
    let mut p = assignment(&["10.0.0.1:80"]);
    p.endpoints[0].lb_endpoints[0].metadata = None;
    let e = ClusterLoadAssignment::try_from(p).unwrap().endpoints.remove(0);
    assert_eq!((e.source, e.instance_id.as_str()), (EndpointSource::Registry, "10.0.0.1:80"));
}

#[test]
fn wrong_provenance_is_refused() {
    let e = refused(|p| {
        let m = p.metadata.as_mut().unwrap().filter_metadata.get_mut(NAMESPACE).unwrap();
        m.fields.insert("source".to_owned(), Value { kind: Some(Kind::StringValue("rumour".to_owned())) });
    });
    assert_eq!(e.allowed, "registry, gossip or static");
}

#[test]
fn an_address_of_two_sources_keeps_the_registry_record_and_the_worse_health() {
    let gossip = Endpoint { health: EndpointHealth::Unhealthy, ..one("10.0.0.1:80") };
    let registry =
        Endpoint { source: EndpointSource::Registry, owner: "7f".to_owned(), ..one("10.0.0.1:80") };
    let merged = unique_by_address(vec![gossip, one("10.0.0.0:80"), registry.clone()]);
    assert_eq!(merged, [one("10.0.0.0:80"), Endpoint { health: EndpointHealth::Unhealthy, ..registry }]);
}
