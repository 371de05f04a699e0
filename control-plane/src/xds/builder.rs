//! Catalogue and configuration to snapshot. Pure: the same give the same resources and versions on every server.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;
use weft_gossip::InstanceHealth;
use weft_meshconfig::lower::Lowered;
use weft_xds_proto::envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use weft_xds_proto::envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment as AssignmentProto;
use weft_xds_proto::envoy_types::pb::envoy::config::route::v3::RouteConfiguration as RoutesProto;
use weft_xds_proto::envoy_types::pb::google::protobuf::Any;
use weft_xds_proto::envoy_types::util::pack_any;
use weft_xds_proto::resource::cluster::{CheckBy, Cluster, HealthCheck, LbPolicy};
use weft_xds_proto::resource::endpoint::{
    ClusterLoadAssignment, Endpoint, EndpointHealth, EndpointSource, unique_by_address,
};
use weft_xds_proto::resource::route::{Action, OUTBOUND, RouteConfiguration};
use weft_xds_proto::resource::{content_version, grpc_target, labels};
use weft_xds_proto::type_url::ResourceType;

use super::config_snapshot::{ConfigSnapshot, Resource};

/// What the builder needs to know of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// As set with `weft lb`, or the default; a policy may say otherwise.
    pub lb_policy: LbPolicy,
    /// Its instances, in any order.
    pub instances: Vec<InstanceView>,
}

/// What the builder needs to know of one instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceView {
    /// Unique within the service.
    pub instance_id: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Effective health.
    pub health: InstanceHealth,
    /// Registry or gossip.
    pub source: EndpointSource,
    /// The lease in hex, or the member's name.
    pub owner: String,
    /// Labels. `protocol` chooses HTTP/2, `weight` the share of traffic.
    pub metadata: BTreeMap<String, String>,
    /// For active checks.
    pub health_path: Option<String>,
}

/// Builds a snapshot. What equals its predecessor is taken over from it, not encoded again.
///
/// Beside the services there are those that routes are for or lead to, though they may have no instance now: a cluster
/// without endpoints is an answer (503), a missing one would leave clients waiting for it.
pub fn build(services: &[ServiceView], config: &Lowered, previous: &ConfigSnapshot) -> ConfigSnapshot {
    let mut resources: Vec<(ResourceType, Arc<Resource>)> = Vec::with_capacity(4 * services.len() + 1);
    let known: BTreeSet<&str> = services.iter().map(|s| s.name.as_str()).collect();
    let led_to = config.all().flat_map(RouteConfiguration::clusters);
    // What may be asked of a service does not go with its last instance.
    let led_to: BTreeSet<&str> = led_to.chain(config.guards.keys().map(String::as_str)).collect();
    let empty = led_to.difference(&known).map(|name| ServiceView {
        name: (*name).to_owned(),
        lb_policy: LbPolicy::default(),
        instances: Vec::new(),
    });
    let empty: Vec<ServiceView> = empty.collect();
    let mut selectors = selectors(config);
    for service in services.iter().chain(&empty) {
        let name = service.name.as_str();
        let (mut cluster, assignment) = (cluster(service), load_assignment(service));
        if let Some(policy) = config.policies.get(name) {
            policy.spec.apply(&mut cluster);
        }
        cluster.guard = config.guard(name);
        cluster.subsets.selectors = selectors.remove(name).unwrap_or_default();
        resources.push(resource(previous, ResourceType::Cluster, name, &cluster, |c| {
            pack_any(ClusterProto::from(c))
        }));
        resources.push(resource(previous, ResourceType::Endpoint, name, &assignment, |a| {
            pack_any(AssignmentProto::from(a))
        }));
    }
    let with_routes = config.services.keys().map(String::as_str);
    let targets: BTreeSet<&str> = known.into_iter().chain(led_to).chain(with_routes).collect();
    for name in targets {
        let own = config.services.get(name);
        let faults = own.is_some_and(has_faults);
        resources.push(resource(previous, ResourceType::Listener, name, &(TARGET_FORM, faults), |_| {
            pack_any(grpc_target::listener(name, faults))
        }));
        resources.push(match own {
            Some(config) => {
                resource(previous, ResourceType::Route, name, config, |c| pack_any(RoutesProto::from(c)))
            }
            None => resource(previous, ResourceType::Route, name, &TARGET_FORM, |_| {
                pack_any(grpc_target::route_configuration(name))
            }),
        });
    }
    let outbound = config.outbound();
    resources.push(resource(previous, ResourceType::Route, OUTBOUND, &outbound, |c| {
        pack_any(RoutesProto::from(c))
    }));
    ConfigSnapshot::new(resources)
}

/// The sets of labels by which routes tell instances of a service apart, by service. Envoy knows no ranges of versions.
fn selectors(config: &Lowered) -> BTreeMap<&str, BTreeSet<BTreeSet<String>>> {
    let mut all: BTreeMap<&str, BTreeSet<BTreeSet<String>>> = BTreeMap::new();
    for route in config.all().flat_map(|c| &c.virtual_hosts).flat_map(|h| &h.routes) {
        let Action::Forward(forward) = &route.action else { continue };
        for backend in &forward.backends {
            let exact = backend.subset.texts().filter(|(.., range)| !range);
            let keys: BTreeSet<String> = exact.map(|(key, ..)| key.to_owned()).collect();
            if !keys.is_empty() {
                all.entry(&backend.cluster).or_default().insert(keys);
            }
        }
    }
    all
}

fn has_faults(config: &RouteConfiguration) -> bool {
    config.virtual_hosts.iter().flat_map(|h| &h.routes).any(|r| r.policy.fault.is_some())
}

/// Stands for the content of listeners and routes, which depends on the name alone. To be changed with their form.
const TARGET_FORM: &str = "target-1";

fn resource<T: Serialize>(
    previous: &ConfigSnapshot,
    t: ResourceType,
    name: &str,
    content: &T,
    encode: impl FnOnce(&T) -> Any,
) -> (ResourceType, Arc<Resource>) {
    let version = content_version(content);
    let resource = match previous.of(t).get(name) {
        Some(same) if same.version == version => same.clone(),
        _ => Arc::new(Resource { name: name.to_owned(), version, body: encode(content) }),
    };
    (t, resource)
}

fn cluster(service: &ServiceView) -> Cluster {
    Cluster {
        lb_policy: service.lb_policy.clone(),
        protocol: labels::protocol(service.instances.iter().map(|i| &i.metadata)),
        health_check: Some(HealthCheck { by: CheckBy::path(health_path(service)), ..HealthCheck::default() }),
        ..Cluster::with_defaults(service.name.clone())
    }
}

/// A check holds for a whole cluster: the path that most instances give, the first in order among equals. None if
/// some instance gives none, since a GET could fail on a healthy one while a connection does not.
fn health_path(service: &ServiceView) -> Option<String> {
    let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
    for instance in &service.instances {
        *votes.entry(instance.health_path.as_deref()?).or_default() += 1;
    }
    let most = votes.values().copied().max()?;
    votes.into_iter().find(|(_, n)| *n == most).map(|(path, _)| path.to_owned())
}

fn load_assignment(service: &ServiceView) -> ClusterLoadAssignment {
    let endpoints = service
        .instances
        .iter()
        .filter(|i| i.address.port() != 0)
        .map(|i| Endpoint {
            address: i.address,
            instance_id: i.instance_id.clone(),
            health: match i.health {
                InstanceHealth::Passing => EndpointHealth::Healthy,
                InstanceHealth::Suspect => EndpointHealth::Degraded,
                InstanceHealth::Critical => EndpointHealth::Unhealthy,
            },
            weight: labels::weight(&i.metadata),
            source: i.source,
            owner: i.owner.clone(),
            metadata: i.metadata.clone(),
        })
        .collect();
    ClusterLoadAssignment { cluster_name: service.name.clone(), endpoints: unique_by_address(endpoints) }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use weft_meshconfig::policy::Policy;
    use weft_xds_proto::resource::cluster::Protocol;

    use super::*;

    fn build(services: &[ServiceView], previous: &ConfigSnapshot) -> ConfigSnapshot {
        super::build(services, &Lowered::default(), previous)
    }

    fn instance(id: &str, address: &str) -> InstanceView {
        InstanceView {
            instance_id: id.to_owned(),
            address: address.parse().unwrap(),
            health: InstanceHealth::Passing,
            source: EndpointSource::Registry,
            owner: "1f".to_owned(),
            metadata: BTreeMap::from([
                ("version".to_owned(), "1".to_owned()),
                ("zone".to_owned(), "a".to_owned()),
            ]),
            health_path: Some("/health".to_owned()),
        }
    }

    fn service(name: &str, instances: Vec<InstanceView>) -> ServiceView {
        ServiceView { name: name.to_owned(), lb_policy: LbPolicy::RoundRobin, instances }
    }

    fn endpoints(snapshot: &ConfigSnapshot, name: &str) -> Vec<Endpoint> {
        let body = &snapshot.of(ResourceType::Endpoint).get(name).unwrap().body;
        let proto = AssignmentProto::decode(body.value.as_slice()).unwrap();
        ClusterLoadAssignment::try_from(proto).unwrap().endpoints
    }

    fn built_cluster(s: ServiceView) -> Cluster {
        let snapshot = build(std::slice::from_ref(&s), &ConfigSnapshot::default());
        let body = &snapshot.of(ResourceType::Cluster).get(&s.name).unwrap().body;
        Cluster::try_from(ClusterProto::decode(body.value.as_slice()).unwrap()).unwrap()
    }

    #[test]
    fn order_of_instances_does_not_change_versions() {
        let (a, b) = (instance("a", "10.0.0.1:80"), instance("b", "10.0.0.2:80"));
        let one = build(&[service("s", vec![a.clone(), b.clone()])], &ConfigSnapshot::default());
        let two = build(&[service("s", vec![b, a])], &ConfigSnapshot::default());
        for t in ResourceType::PUSH_ORDER {
            assert_eq!(one.of(t).version(), two.of(t).version());
        }
    }

    #[test]
    fn unchanged_resources_are_taken_over_not_encoded_again() {
        let before = build(
            &[service("s", vec![instance("a", "10.0.0.1:80")]), service("t", vec![])],
            &ConfigSnapshot::default(),
        );
        let after = build(
            &[
                service("s", vec![instance("a", "10.0.0.1:80"), instance("b", "10.0.0.2:80")]),
                service("t", vec![]),
            ],
            &before,
        );
        let same = |t, n| Arc::ptr_eq(before.of(t).get(n).unwrap(), after.of(t).get(n).unwrap());
        assert!(!same(ResourceType::Endpoint, "s"));
        for (t, n) in [
            (ResourceType::Cluster, "s"),
            (ResourceType::Listener, "s"),
            (ResourceType::Cluster, "t"),
            (ResourceType::Endpoint, "t"),
        ] {
            assert!(same(t, n), "{t} {n}");
        }
    }

    #[test]
    fn a_known_service_without_instances_has_an_empty_load_assignment() {
        let snapshot = build(&[service("s", vec![])], &ConfigSnapshot::default());
        assert_eq!(endpoints(&snapshot, "s"), []);
    }

    #[test]
    fn health_of_the_catalogue_reaches_the_endpoint() {
        let mut instances = Vec::new();
        for (i, health) in [InstanceHealth::Passing, InstanceHealth::Suspect, InstanceHealth::Critical]
            .into_iter()
            .enumerate()
        {
            instances.push(InstanceView { health, ..instance("a", &format!("10.0.0.{i}:80")) });
        }
        let snapshot = build(&[service("s", instances)], &ConfigSnapshot::default());
        let healths: Vec<_> = endpoints(&snapshot, "s").iter().map(|e| e.health).collect();
        assert_eq!(healths, [EndpointHealth::Healthy, EndpointHealth::Degraded, EndpointHealth::Unhealthy]);
    }

    #[test]
    fn an_address_claimed_by_registry_and_gossip_is_one_endpoint() {
        let gossip = InstanceView {
            source: EndpointSource::Gossip,
            owner: "west-1".to_owned(),
            health: InstanceHealth::Critical,
            ..instance("a", "10.0.0.1:80")
        };
        let snapshot =
            build(&[service("s", vec![gossip, instance("a", "10.0.0.1:80")])], &ConfigSnapshot::default());
        let e = endpoints(&snapshot, "s");
        assert_eq!(e.len(), 1);
        assert_eq!((e[0].source, e[0].health), (EndpointSource::Registry, EndpointHealth::Unhealthy));
    }

    #[test]
    fn a_health_path_is_used_if_all_instances_have_one_else_a_connection() {
        let with = instance("a", "10.0.0.1:80");
        let without = InstanceView { health_path: None, ..instance("b", "10.0.0.2:80") };
        let c = built_cluster(service("s", vec![with.clone()]));
        assert_eq!(c.health_check.unwrap().by, CheckBy::Get("/health".to_owned()));
        let c = built_cluster(service("s", vec![with, without]));
        assert_eq!(c.health_check.unwrap().by, CheckBy::Connect);
    }

    #[test]
    fn labels_choose_protocol_and_weight() {
        let mut i = instance("a", "10.0.0.1:80");
        i.metadata
            .extend([("protocol".to_owned(), "grpc".to_owned()), ("weight".to_owned(), "7".to_owned())]);
        let s = service("s", vec![i]);
        let snapshot = build(std::slice::from_ref(&s), &ConfigSnapshot::default());
        assert_eq!(endpoints(&snapshot, "s")[0].weight, 7);
        assert_eq!(built_cluster(s).protocol, Protocol::Http2);
    }

    #[test]
    fn changing_the_policy_changes_the_cluster_alone() {
        let s = service("s", vec![instance("a", "10.0.0.1:80")]);
        let before = build(std::slice::from_ref(&s), &ConfigSnapshot::default());
        let after = build(&[ServiceView { lb_policy: LbPolicy::Random, ..s }], &before);
        let changed: Vec<_> = ResourceType::PUSH_ORDER
            .into_iter()
            .filter(|t| before.of(*t).version() != after.of(*t).version())
            .collect();
        assert_eq!(changed, [ResourceType::Cluster]);
    }

    #[test]
    fn a_policy_changes_its_service_alone_and_wins_over_what_was_set_for_it() {
        let services = ["s", "t"].map(|name| ServiceView {
            lb_policy: LbPolicy::Random,
            ..service(name, vec![instance(name, "10.0.0.1:80")])
        });
        let before = build(&services, &ConfigSnapshot::default());
        let spec =
            serde_json::json!({"loadBalancing": "least-request", "circuitBreaker": {"maxRequests": 7}});
        let policy = Policy { document: "p".to_owned(), spec: serde_json::from_value(spec).unwrap() };
        let config = Lowered { policies: [("s".to_owned(), policy)].into(), ..Lowered::default() };
        let after = super::build(&services, &config, &before);
        let resource =
            |snapshot: &ConfigSnapshot, name| snapshot.of(ResourceType::Cluster).get(name).unwrap().clone();
        let s = &resource(&after, "s").body;
        let s = Cluster::try_from(ClusterProto::decode(s.value.as_slice()).unwrap()).unwrap();
        assert_eq!((s.lb_policy, s.breaker.max_requests), (LbPolicy::LeastRequest, 7));
        assert_eq!(s.health_check.unwrap().by, CheckBy::Get("/health".to_owned()), "as its instances say");
        assert!(Arc::ptr_eq(&resource(&before, "t"), &resource(&after, "t")));
    }

    fn routes(name: &str, to: &str) -> Lowered {
        let config = RouteConfiguration { name: name.to_owned(), ..RouteConfiguration::plain(to) };
        Lowered { services: [(name.to_owned(), config)].into(), ..Lowered::default() }
    }

    #[test]
    fn routes_of_a_service_replace_its_plain_ones_and_what_they_lead_to_is_there() {
        let services = [service("s", vec![instance("a", "10.0.0.1:80")])];
        let before = build(&services, &ConfigSnapshot::default());
        let after = super::build(&services, &routes("s", "next"), &before);
        let route = |snapshot: &ConfigSnapshot, name: &str| {
            let body = snapshot.of(ResourceType::Route).get(name).unwrap().body.clone();
            RouteConfiguration::try_from(RoutesProto::decode(body.value.as_slice()).unwrap()).unwrap()
        };
        assert!(route(&before, "s").is_plain());
        assert_eq!(route(&after, "s").clusters(), ["next"]);
        assert_eq!(endpoints(&after, "next"), [], "it has no instances yet");
        assert!(route(&after, OUTBOUND).virtual_hosts.is_empty(), "it is there, so that nobody waits for it");
        let again = build(&services, &after);
        assert_eq!(
            again.of(ResourceType::Route).get("s").unwrap().version,
            before.of(ResourceType::Route).get("s").unwrap().version
        );
    }

    #[test]
    fn a_name_with_routes_and_no_instances_is_a_target_and_no_cluster() {
        let snapshot = super::build(&[], &routes("split", "a"), &ConfigSnapshot::default());
        let has = |t: ResourceType, name: &str| snapshot.of(t).get(name).is_some();
        assert!(has(ResourceType::Route, "split") && has(ResourceType::Listener, "split"));
        assert!(!has(ResourceType::Cluster, "split") && has(ResourceType::Cluster, "a"));
    }

    /// Envoy makes subsets by the labels that it is told of, and passes over what routes ask for otherwise.
    #[test]
    fn labels_that_routes_ask_for_are_told_in_the_cluster() {
        let mut config = routes("s", "s");
        let routes = config.services.get_mut("s").unwrap();
        let Action::Forward(forward) = &mut routes.virtual_hosts[0].routes[0].action else { unreachable!() };
        let wanted = [("version", "^1"), ("region", "eu"), ("shard", "7")];
        forward.backends[0].subset = weft_xds_proto::resource::subset::Subset::new(wanted).unwrap();
        let services = [service("s", vec![instance("a", "10.0.0.1:80")]), service("t", vec![])];
        let snapshot = super::build(&services, &config, &ConfigSnapshot::default());
        let cluster = |name: &str| {
            let body = &snapshot.of(ResourceType::Cluster).get(name).unwrap().body;
            Cluster::try_from(ClusterProto::decode(body.value.as_slice()).unwrap()).unwrap()
        };
        let keys = ["region", "shard"].map(str::to_owned);
        assert_eq!(cluster("s").subsets.selectors, [keys.into()].into());
        assert!(cluster("t").subsets.selectors.is_empty());
    }
}
