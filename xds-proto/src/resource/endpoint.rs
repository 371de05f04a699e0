//! EDS: where the instances of a service are, and who says so.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use serde::Serialize;

use super::{InvalidResource, Validator, labels, number_to_proto};

/// All endpoints of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterLoadAssignment {
    /// Service name.
    pub cluster_name: String,
    /// Sorted by address; addresses are unique. Empty: the service is known and has no instance.
    pub endpoints: Vec<Endpoint>,
}

/// One instance of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Where to send requests.
    pub address: SocketAddr,
    /// Unique within the service.
    pub instance_id: String,
    /// As its source says.
    pub health: EndpointHealth,
    /// Share of the traffic relative to other endpoints; at least 1.
    pub weight: u32,
    /// Who told of it.
    pub source: EndpointSource,
    /// Whose record it is: a gossip member's name, or a registry lease in hex.
    pub owner: String,
    /// Labels given at registration. Where it stands and its priority are among them ([`super::labels`]); what another
    /// control plane says of these in fields of their own is read into labels.
    pub metadata: BTreeMap<String, String>,
}

/// Sorted by address, each address once. Where several sources claim one address, the record of the first source in
/// the order registry, gossip, static stays, with the worst of their healths: the registry knows that an instance
/// was not deregistered, its sidecar knows that it fails.
pub fn unique_by_address(mut endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
    endpoints.sort_by(|a, b| {
        (a.address, a.source, &a.instance_id, &a.owner).cmp(&(b.address, b.source, &b.instance_id, &b.owner))
    });
    endpoints.dedup_by(|later, kept| {
        let same = later.address == kept.address;
        if same {
            kept.health = kept.health.max(later.health);
        }
        same
    });
    endpoints
}

/// What its source says of an endpoint's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum EndpointHealth {
    /// Gets traffic.
    Healthy,
    /// Gets traffic only as far as healthy ones do not suffice; its owner is suspected to be down.
    Degraded,
    /// Gets no traffic.
    Unhealthy,
}

impl EndpointHealth {
    /// Lower-case word for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl fmt::Display for EndpointHealth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who told of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum EndpointSource {
    /// It was registered with the control plane.
    Registry,
    /// Its own sidecar advertises it by gossip.
    Gossip,
    /// It stands in a configuration file.
    Static,
}

impl EndpointSource {
    /// Lower-case word, as in endpoint metadata and for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registry => "registry",
            Self::Gossip => "gossip",
            Self::Static => "static",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Registry, Self::Gossip, Self::Static].into_iter().find(|s| s.as_str() == word)
    }
}

impl fmt::Display for EndpointSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Namespace of our own data in endpoint metadata.
const NAMESPACE: &str = "weft";

/// That of Envoy's subsets.
const SUBSETS: &str = "envoy.lb";

impl TryFrom<pb::ClusterLoadAssignment> for ClusterLoadAssignment {
    type Error = InvalidResource;

    fn try_from(p: pb::ClusterLoadAssignment) -> Result<Self, InvalidResource> {
        let v = Validator { kind: "ClusterLoadAssignment", name: &p.cluster_name };
        let cluster_name = v.name("cluster_name")?;
        if p.policy.as_ref().is_some_and(|p| !p.drop_overloads.is_empty()) {
            return Err(v.error("policy.drop_overloads", "set", "unset"));
        }
        let mut endpoints = Vec::with_capacity(p.endpoints.iter().map(|l| l.lb_endpoints.len()).sum());
        let mut seen = HashSet::new();
        for (i, locality) in p.endpoints.iter().enumerate() {
            if locality.priority > labels::PRIORITY_MAX {
                return Err(v.error(
                    format!("endpoints[{i}].priority"),
                    locality.priority.to_string(),
                    format!("0 to {}", labels::PRIORITY_MAX),
                ));
            }
            for (j, lb) in locality.lb_endpoints.iter().enumerate() {
                let path = At { locality: i, endpoint: j };
                let mut endpoint = endpoint(&v, path, lb)?;
                place(locality, &mut endpoint);
                if !seen.insert(endpoint.address) {
                    return Err(v.error(
                        path.to_string(),
                        format!("{} a second time", endpoint.address),
                        "each address once",
                    ));
                }
                endpoints.push(endpoint);
            }
        }
        endpoints.sort_unstable_by_key(|e| e.address);
        Ok(Self { cluster_name, endpoints })
    }
}

/// Where an endpoint stands. Thousands come at once and few are bad, so it is put into words only for these.
#[derive(Clone, Copy)]
struct At {
    locality: usize,
    endpoint: usize,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "endpoints[{}].lb_endpoints[{}]", self.locality, self.endpoint)
    }
}

fn endpoint(v: &Validator<'_>, path: At, lb: &pb::LbEndpoint) -> Result<Endpoint, InvalidResource> {
    let address = match &lb.host_identifier {
        Some(pb::lb_endpoint::HostIdentifier::Endpoint(e)) => address(v, path, e.address.as_ref())?,
        Some(pb::lb_endpoint::HostIdentifier::EndpointName(n)) => {
            return Err(v.error(format!("{path}.endpoint_name"), format!("{n:?}"), "an inline endpoint"));
        }
        None => return Err(v.error(format!("{path}.endpoint"), "nothing", "an address")),
    };
    let health = match core::HealthStatus::try_from(lb.health_status) {
        Ok(core::HealthStatus::Unknown | core::HealthStatus::Healthy) => EndpointHealth::Healthy,
        Ok(core::HealthStatus::Degraded) => EndpointHealth::Degraded,
        Ok(core::HealthStatus::Unhealthy | core::HealthStatus::Draining | core::HealthStatus::Timeout) => {
            EndpointHealth::Unhealthy
        }
        Err(_) => {
            return Err(v.error(
                format!("{path}.health_status"),
                lb.health_status.to_string(),
                "a HealthStatus, 0 to 5",
            ));
        }
    };
    let weight = v.number(
        format_args!("{path}.load_balancing_weight"),
        lb.load_balancing_weight.as_ref(),
        1,
        (1, u32::MAX),
    )?;
    let mut endpoint = Endpoint {
        address,
        instance_id: String::new(),
        health,
        weight,
        // Another control plane says nothing of provenance; what it sends is its registry.
        source: EndpointSource::Registry,
        owner: String::new(),
        metadata: BTreeMap::new(),
    };
    if let Some(ours) = lb.metadata.as_ref().and_then(|m| m.filter_metadata.get(NAMESPACE)) {
        provenance(v, path, ours, &mut endpoint)?;
    }
    let said = |namespace| lb.metadata.as_ref().and_then(|m| m.filter_metadata.get(namespace));
    if let Some(said) = said(SUBSETS) {
        add_labels(said, str::to_owned, &mut endpoint);
    }
    if let Some(said) = said(labels::SOCKET_MATCH) {
        add_labels(said, labels::socket_match, &mut endpoint);
    }
    if endpoint.instance_id.is_empty() {
        endpoint.instance_id = address.to_string();
    }
    Ok(endpoint)
}

/// What stands about a group of endpoints, as labels of each; its own say more, as our servers number priorities anew.
fn place(group: &pb::LocalityLbEndpoints, endpoint: &mut Endpoint) {
    let locality = group.locality.as_ref();
    let mut set = |key: &str, value: Option<&String>| {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            endpoint.metadata.entry(key.to_owned()).or_insert_with(|| value.clone());
        }
    };
    set(labels::REGION, locality.map(|l| &l.region));
    set(labels::ZONE, locality.map(|l| &l.zone));
    set(labels::PRIORITY, Some(group.priority.to_string()).filter(|_| group.priority > 0).as_ref());
}

/// Labels, where Envoy looks for them. Lists and the like are passed over.
fn add_labels(said: &Struct, label: impl Fn(&str) -> String, endpoint: &mut Endpoint) {
    for (key, value) in &said.fields {
        if let Some(text) = text_of(value) {
            endpoint.metadata.entry(label(key)).or_insert(text);
        }
    }
}

/// Numbers and flags are texts here.
pub(super) fn text_of(value: &Value) -> Option<String> {
    match &value.kind {
        Some(Kind::StringValue(text)) => Some(text.clone()),
        Some(Kind::NumberValue(n)) => Some(n.to_string()),
        Some(Kind::BoolValue(b)) => Some(b.to_string()),
        _ => None,
    }
}

fn address(
    v: &Validator<'_>,
    path: At,
    address: Option<&core::Address>,
) -> Result<SocketAddr, InvalidResource> {
    use core::socket_address::{PortSpecifier, Protocol};
    let field = |part: &str| format!("{path}.endpoint.address{part}");
    let socket = match address.and_then(|a| a.address.as_ref()) {
        Some(core::address::Address::SocketAddress(s)) => s,
        Some(core::address::Address::Pipe(p)) => {
            return Err(v.error(field(""), format!("pipe {:?}", p.path), "a socket_address"));
        }
        Some(core::address::Address::EnvoyInternalAddress(_)) => {
            return Err(v.error(field(""), "envoy_internal_address", "a socket_address"));
        }
        None => return Err(v.error(field(""), "nothing", "a socket_address")),
    };
    if socket.protocol != Protocol::Tcp as i32 {
        return Err(v.error(field(".protocol"), "UDP", "TCP"));
    }
    let ip: IpAddr = socket.address.parse().map_err(|_| {
        let seen: String = socket.address.chars().take(64).collect();
        v.error(field(".address"), format!("{seen:?}"), "an IPv4 or IPv6 address")
    })?;
    let port = match &socket.port_specifier {
        Some(PortSpecifier::PortValue(p)) => {
            u16::try_from(*p).ok().filter(|p| *p != 0).ok_or_else(|| p.to_string())
        }
        Some(PortSpecifier::NamedPort(n)) => Err(format!("{n:?}")),
        None => Err("nothing".to_owned()),
    };
    let port = port.map_err(|seen| v.error(field(".port_value"), seen, "1 to 65535"))?;
    Ok(SocketAddr::new(ip, port))
}

fn provenance(
    v: &Validator<'_>,
    path: At,
    ours: &Struct,
    endpoint: &mut Endpoint,
) -> Result<(), InvalidResource> {
    let at = |key: &str| format!("{path}.metadata[{NAMESPACE}].{key}");
    for (key, value) in &ours.fields {
        match (key.as_str(), &value.kind) {
            ("source", Some(Kind::StringValue(s))) => {
                endpoint.source = EndpointSource::from_word(s)
                    .ok_or_else(|| v.error(at(key), format!("{s:?}"), "registry, gossip or static"))?;
            }
            ("owner", Some(Kind::StringValue(s))) => endpoint.owner.clone_from(s),
            ("instance_id", Some(Kind::StringValue(s))) => endpoint.instance_id.clone_from(s),
            ("metadata", Some(Kind::StructValue(labels))) => {
                for (label, value) in &labels.fields {
                    let Some(Kind::StringValue(text)) = &value.kind else {
                        return Err(v.error(format!("{}.{label}", at(key)), "no text", "text"));
                    };
                    endpoint.metadata.insert(label.clone(), text.clone());
                }
            }
            ("source" | "owner" | "instance_id", _) => return Err(v.error(at(key), "no text", "text")),
            ("metadata", _) => return Err(v.error(at(key), "no struct", "a struct of texts")),
            // A later release may add keys; old proxies go on working.
            _ => {}
        }
    }
    Ok(())
}

impl From<&ClusterLoadAssignment> for pb::ClusterLoadAssignment {
    fn from(c: &ClusterLoadAssignment) -> Self {
        // gRPC wants priorities without a gap, so they are numbered anew; the labels keep what was said.
        let mut groups: BTreeMap<u32, BTreeMap<(String, String), Vec<&Endpoint>>> = BTreeMap::new();
        for e in &c.endpoints {
            let labels::Place { region, zone } = labels::Place::of(&e.metadata);
            let places = groups.entry(labels::priority(&e.metadata)).or_default();
            places.entry((region, zone)).or_default().push(e);
        }
        let mut localities = Vec::new();
        for (priority, places) in (0u32..).zip(groups.into_values()) {
            for ((region, zone), endpoints) in places {
                let weight = endpoints.iter().fold(0u32, |sum, e| sum.saturating_add(e.weight));
                localities.push(pb::LocalityLbEndpoints {
                    // gRPC skips a locality that is unset or has no weight (A27), and spreads over them by weight.
                    locality: Some(core::Locality { region, zone, ..core::Locality::default() }),
                    load_balancing_weight: Some(number_to_proto(weight)),
                    lb_endpoints: endpoints.into_iter().map(endpoint_to_proto).collect(),
                    priority,
                    ..pb::LocalityLbEndpoints::default()
                });
            }
        }
        Self { cluster_name: c.cluster_name.clone(), endpoints: localities, ..Self::default() }
    }
}

fn endpoint_to_proto(e: &Endpoint) -> pb::LbEndpoint {
    use core::socket_address::PortSpecifier;
    pb::LbEndpoint {
        host_identifier: Some(pb::lb_endpoint::HostIdentifier::Endpoint(pb::Endpoint {
            address: Some(core::Address {
                address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                    address: e.address.ip().to_string(),
                    port_specifier: Some(PortSpecifier::PortValue(e.address.port().into())),
                    ..core::SocketAddress::default()
                })),
            }),
            ..pb::Endpoint::default()
        })),
        health_status: match e.health {
            EndpointHealth::Healthy => core::HealthStatus::Healthy,
            EndpointHealth::Degraded => core::HealthStatus::Degraded,
            EndpointHealth::Unhealthy => core::HealthStatus::Unhealthy,
        } as i32,
        load_balancing_weight: Some(number_to_proto(e.weight)),
        metadata: Some(core::Metadata {
            filter_metadata: [(NAMESPACE.to_owned(), provenance_to_proto(e))]
                .into_iter()
                .chain((!e.metadata.is_empty()).then(|| (SUBSETS.to_owned(), labels_to_proto(e))))
                .collect(),
            ..core::Metadata::default()
        }),
    }
}

fn text(s: &str) -> Value {
    Value { kind: Some(Kind::StringValue(s.to_owned())) }
}

fn labels_to_proto(e: &Endpoint) -> Struct {
    Struct { fields: e.metadata.iter().map(|(k, v)| (k.clone(), text(v))).collect() }
}

fn provenance_to_proto(e: &Endpoint) -> Struct {
    Struct {
        fields: [
            ("source".to_owned(), text(e.source.as_str())),
            ("owner".to_owned(), text(&e.owner)),
            ("instance_id".to_owned(), text(&e.instance_id)),
        ]
        .into(),
    }
}

#[cfg(test)]
mod tests;
