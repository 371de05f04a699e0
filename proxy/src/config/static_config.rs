//! Listeners, routes and clusters from a file, so that a proxy runs with no server and no gossip.
//!
//! ```yaml
//! listeners:
//!   - name: web
//!     address: 127.0.0.1:8080
//!     accept-proxy: [10.0.0.0/8]   # load balancers that speak the PROXY protocol; leave it out for none
//!     trusted-proxies: [10.0.0.0/8]   # proxies whose x-forwarded-for is believed; leave it out for none
//!     tls: {certificates: [{certificate-file: /etc/tls/shop.pem, key-file: /etc/tls/shop.key}]}   # see `listener_tls`
//! routes:
//!   - host: shop.example       # exact, without port; leave it out for any host
//!     path-prefix: /orders     # whole segments; leave it out for any path
//!     cluster: orders
//! clusters:
//!   - name: orders
//!     load-balancing: least-connections
//!     endpoints:
//!       - 127.0.0.1:9001
//!       - address: 127.0.0.1:9002
//!         weight: 3
//!         labels: {version: "2.1.0", zone: eu-1a, priority: "1"}
//! ---
//! apiVersion: gateway.networking.k8s.io/v1     # any number of these, as `weft check` takes them
//! kind: HTTPRoute
//! metadata: {name: canary}
//! spec:
//!   parentRefs: [{kind: Service, group: "", name: orders}]
//!   rules:
//!     - backendRefs: [{name: orders, weight: 9}, {name: orders-next, weight: 1}]
//! ```
//! Texts stay texts here and are read by [`StaticConfig::problems`], so that one run names every mistake.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weft_meshconfig::policy::{Policy, PolicySpec};
use weft_meshconfig::{Document, MeshConfig, Problem};
use weft_xds_proto::resource::cluster::{Cluster, ClusterTls, Protocol};
use weft_xds_proto::resource::endpoint::{Endpoint, EndpointHealth, EndpointSource};

use super::listener_tls::ListenerTls;
use crate::config_snapshot::ClusterConfig;
use crate::limits;
use crate::proxy_protocol::Network;
use crate::tls;

/// The static part of a configuration file.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct StaticConfig {
    /// Ports to accept HTTP on.
    pub listeners: Vec<ListenerEntry>,
    /// Host and path to cluster. The most specific one wins, not the first.
    pub routes: Vec<RouteEntry>,
    /// Named sets of endpoints. Each also answers to its own name as host.
    pub clusters: Vec<StaticCluster>,
    /// `HTTPRoute`s, `TrafficPolicy`s and the like, each a document of its own behind a line of `---`.
    #[serde(skip)]
    pub documents: Vec<Document>,
}

/// One port.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ListenerEntry {
    /// For people, logs and metrics.
    pub name: String,
    /// IP:PORT; port 0 for any free one.
    pub address: String,
    /// Networks of load balancers, which tell with a PROXY protocol header who the client is.
    #[serde(default)]
    pub accept_proxy: Vec<String>,
    /// Networks of proxies that are believed what they say of earlier hops (`x-forwarded-for` and the like).
    #[serde(default)]
    pub trusted_proxies: Vec<String>,
    /// TLS for clients; plaintext without it.
    #[serde(default)]
    pub tls: Option<ListenerTls>,
}

impl ListenerEntry {
    fn networks(&self) -> Result<Vec<Network>, String> {
        self.accept_proxy.iter().map(|text| text.parse()).collect()
    }

    fn trusted(&self) -> Result<Vec<Network>, String> {
        self.trusted_proxies.iter().map(|text| text.parse()).collect()
    }
}

/// One route.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RouteEntry {
    /// Exact host without port, any case; any host if missing.
    #[serde(default)]
    pub host: Option<String>,
    /// Whole path segments: `/a` matches `/a` and `/a/b`, not `/ab`; any path if missing.
    #[serde(default)]
    pub path_prefix: Option<String>,
    /// Cluster of this file.
    pub cluster: String,
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct StaticCluster {
    /// Unique.
    pub name: String,
    /// `http1` (default) or `http2`, without TLS.
    #[serde(default)]
    pub protocol: Option<String>,
    /// Where it is.
    pub endpoints: Vec<StaticEndpoint>,
    /// How its traffic is treated: the keys of a `TrafficPolicy`, as `load-balancing`, `circuit-breaker` and so on.
    #[serde(flatten)]
    pub policy: Map<String, Value>,
}

/// One endpoint: `IP:PORT`, or a mapping with a weight and labels.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum StaticEndpoint {
    /// `IP:PORT`.
    Address(String),
    /// With a weight or labels.
    Weighted(WeightedEndpoint),
}

/// An endpoint with its weight and labels.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WeightedEndpoint {
    /// `IP:PORT`.
    pub address: String,
    /// Share relative to the others, from 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// Such as `version`, `zone` and `priority`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

const fn one() -> u32 {
    1
}

impl StaticConfig {
    /// Everything that is wrong with it, each with its place. Empty if it is usable.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        unique("listener", self.listeners.iter().map(|l| l.name.as_str()), &mut problems);
        unique("cluster", self.clusters.iter().map(|c| c.name.as_str()), &mut problems);
        for listener in &self.listeners {
            if let Err(why) = parse_address(&listener.address) {
                problems.push(format!("listener {:?}: address {why}", listener.name));
            }
            if let Err(why) = listener.networks() {
                problems.push(format!("listener {:?}: accept-proxy: {why}", listener.name));
            }
            if let Some(Err(why)) = listener.tls.as_ref().map(ListenerTls::port) {
                problems.push(format!("listener {:?}: tls: {why}", listener.name));
            }
            if let Err(why) = listener.trusted() {
                problems.push(format!("listener {:?}: trusted-proxies: {why}", listener.name));
            }
        }
        for (i, route) in self.routes.iter().enumerate() {
            let at = format!("route {} ({})", i + 1, describe(route));
            if !self.clusters.iter().any(|c| c.name == route.cluster) {
                let known: Vec<_> = self.clusters.iter().map(|c| c.name.as_str()).collect();
                problems.push(format!(
                    "{at}: cluster {:?} is not defined; defined are: {}",
                    route.cluster,
                    known.join(", ")
                ));
            }
            if let Some(path) = route.path_prefix.as_ref().filter(|p| !p.starts_with('/')) {
                problems.push(format!("{at}: path-prefix {path:?} must start with /"));
            }
            if let Some(host) = &route.host
                && (host.is_empty() || host.contains([':', '/', '*', ' ']))
            {
                problems
                    .push(format!("{at}: host {host:?} must be a plain host name without port or wildcard"));
            }
            let same =
                |other: &RouteEntry| other.host == route.host && other.path_prefix == route.path_prefix;
            if self.routes[..i].iter().any(same) {
                problems.push(format!("{at}: the same host and path-prefix are given twice"));
            }
        }
        for (key, problem) in self.mesh_config().problems() {
            let at = key.map(|(kind, name)| format!("{kind} {name}: ")).unwrap_or_default();
            problems.push(format!("{at}{problem}"));
        }
        let policies = self.policies();
        for cluster in &self.clusters {
            let mut bad = Vec::new();
            cluster.check(policies.get(&cluster.name).map(|p| p.document.as_str()), &mut bad);
            problems.extend(bad.into_iter().map(|why| format!("cluster {:?}: {why}", cluster.name)));
        }
        problems
    }

    /// The documents together.
    pub fn mesh_config(&self) -> MeshConfig {
        let mut config = MeshConfig::default();
        for document in &self.documents {
            config.insert(document.clone(), 0);
        }
        config
    }

    /// Listeners with their parsed addresses and networks: those of `accept-proxy`, and of `trusted-proxies`. Call it on a configuration without [`Self::problems`].
    pub fn listener_addresses(&self) -> Vec<(String, SocketAddr, Vec<Network>, Vec<Network>)> {
        let parsed = |l: &ListenerEntry| {
            Some((l.name.clone(), parse_address(&l.address).ok()?, l.networks().ok()?, l.trusted().ok()?))
        };
        self.listeners.iter().filter_map(parsed).collect()
    }

    /// Clusters as discovery presets. Call it on a configuration without [`Self::problems`].
    pub fn cluster_configs(&self) -> Vec<ClusterConfig> {
        let policies = self.policies();
        let lowered = self.mesh_config().lowered();
        let config = |c: &StaticCluster| {
            let mut config = c.to_config(policies.get(&c.name)).ok()?;
            config.cluster.guard = lowered.guard(&c.name);
            Some(config)
        };
        self.clusters.iter().filter_map(config).collect()
    }

    /// Policies of the documents, by service.
    pub fn policies(&self) -> BTreeMap<String, Policy> {
        self.mesh_config().lowered().policies
    }
}

impl StaticCluster {
    fn check(&self, beside: Option<&str>, problems: &mut Vec<String>) {
        if let Err(why) = crate::config::check_service_name(&self.name) {
            problems.push(format!("name {why}"));
        }
        if self.endpoints.is_empty() {
            problems.push("has no endpoints".to_owned());
        }
        let mut seen = HashSet::new();
        for endpoint in &self.endpoints {
            for (key, value) in endpoint.labels() {
                if let Err(why) = crate::config::check_label(key, value) {
                    problems.push(format!("endpoint {}: {why}", endpoint.text()));
                }
            }
            match endpoint.parse() {
                Err(why) => problems.push(format!("endpoint {why}")),
                Ok((addr, _)) if !seen.insert(addr) => {
                    problems.push(format!("endpoint {addr} is given twice"));
                }
                Ok(_) => {}
            }
        }
        if let Err(why) = self.protocol() {
            problems.push(why);
        }
        problems.extend(self.policy_problems().iter().map(ToString::to_string));
        if let Ok(ClusterConfig { cluster: Cluster { tls: Some(ClusterTls::Originate(tls)), .. }, .. }) =
            self.to_config(None)
            && let Err(why) = tls::client::check(&tls)
        {
            problems.push(format!("tls: {why}"));
        }
        if let Some(document) = beside.filter(|_| !self.policy.is_empty()) {
            let keys: Vec<_> = self.policy.keys().map(String::as_str).collect();
            problems.push(format!(
                "{} given here, and TrafficPolicy {document} is for it; allowed is one of the two",
                keys.join(", ")
            ));
        }
    }

    /// What is wrong with the keys of its policy, each with its path within the cluster.
    pub fn policy_problems(&self) -> Vec<Problem> {
        PolicySpec::from_file(&self.policy, &["name", "protocol", "endpoints"]).1
    }

    fn protocol(&self) -> Result<Protocol, String> {
        match self.protocol.as_deref() {
            None | Some("http1") => Ok(Protocol::Http1),
            Some("http2") => Ok(Protocol::Http2),
            Some(other) => Err(format!("protocol {other:?} is unknown; allowed are http1, http2")),
        }
    }

    fn to_config(&self, beside: Option<&Policy>) -> Result<ClusterConfig, String> {
        let mut cluster = Cluster {
            protocol: self.protocol()?,
            // Without being asked for, endpoints of a file are not checked.
            health_check: None,
            ..Cluster::with_defaults(&self.name)
        };
        PolicySpec::from_file(&self.policy, &[]).0.apply(&mut cluster);
        if let Some(policy) = beside {
            policy.spec.apply(&mut cluster);
        }
        let mut endpoints = Vec::with_capacity(self.endpoints.len());
        for endpoint in &self.endpoints {
            let (address, weight) = endpoint.parse()?;
            let metadata = endpoint.labels().clone();
            endpoints.push(Endpoint { metadata, ..static_endpoint(address, weight) });
        }
        endpoints.sort_by_key(|e| e.address);
        Ok(ClusterConfig { cluster, endpoints, version: "static".to_owned() })
    }
}

impl StaticEndpoint {
    fn text(&self) -> &str {
        match self {
            Self::Address(text) => text,
            Self::Weighted(endpoint) => &endpoint.address,
        }
    }

    fn labels(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        match self {
            Self::Address(_) => &NONE,
            Self::Weighted(endpoint) => &endpoint.labels,
        }
    }

    fn parse(&self) -> Result<(SocketAddr, u32), String> {
        let (text, weight) = match self {
            Self::Address(text) => (text, 1),
            Self::Weighted(endpoint) => (&endpoint.address, endpoint.weight),
        };
        let address = parse_address(text)?;
        if address.port() == 0 {
            return Err(format!("{text:?}: port 0 is no address to send to"));
        }
        if weight == 0 || weight > limits::ENDPOINT_WEIGHT_MAX {
            return Err(format!(
                "{text}: weight {weight} is not between 1 and {}",
                limits::ENDPOINT_WEIGHT_MAX
            ));
        }
        Ok((address, weight))
    }
}

pub(crate) fn static_endpoint(address: SocketAddr, weight: u32) -> Endpoint {
    Endpoint {
        address,
        instance_id: address.to_string(),
        health: EndpointHealth::Healthy,
        weight,
        source: EndpointSource::Static,
        owner: String::new(),
        metadata: Default::default(),
    }
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is no IP:PORT, such as 127.0.0.1:8080"))
}

fn describe(route: &RouteEntry) -> String {
    let host = route.host.as_deref().unwrap_or("any host");
    match &route.path_prefix {
        Some(path) => format!("{host}{path}"),
        None => host.to_owned(),
    }
}

fn unique<'a>(what: &str, names: impl Iterator<Item = &'a str>, problems: &mut Vec<String>) {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            problems.push(format!("{what} {name:?} is given twice"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use std::time::Duration;

    use weft_xds_proto::resource::cluster::{LbPolicy, PanicPolicy, RetryLimit};

    use super::*;

    fn parse(yaml: &str) -> StaticConfig {
        weft_core::config::parse_yaml(Path::new("t.yaml"), yaml).unwrap()
    }

    #[test]
    fn a_file_with_all_keys_becomes_listeners_and_clusters() {
        let config = parse(
            "
listeners: [{name: web, address: '127.0.0.1:0'}]
routes: [{host: orders, path-prefix: /a, cluster: orders}, {cluster: orders}]
clusters:
  - name: orders
    load-balancing: least-connections
    protocol: http2
    connect-timeout: 200ms
    health-check: {path: /health, interval: 2s}
    outlier-detection: {consecutive-failures: 2, max-ejection-percent: 10}
    circuit-breaker: {max-requests: 100, max-connections: 10, max-pending: 5}
    retry-budget: {percent: 10}
    panic: {policy: fail, below: 30}
    endpoints:
      - 127.0.0.1:9002
      - {address: '127.0.0.1:9001', weight: 3}
",
        );
        assert_eq!(config.problems(), Vec::<String>::new());
        assert_eq!(config.listener_addresses().len(), 1);
        let clusters = config.cluster_configs();
        let c = &clusters[0];
        assert_eq!(c.cluster.lb_policy, LbPolicy::LeastConnections);
        assert_eq!(c.cluster.protocol, Protocol::Http2);
        assert_eq!(c.cluster.connect_timeout, Duration::from_millis(200));
        assert_eq!(c.cluster.outlier_detection.consecutive_failures, 2);
        assert_eq!(c.cluster.panic, PanicPolicy::Fail { below: 30 });
        let b = c.cluster.breaker;
        assert_eq!((b.max_requests, b.max_connections, b.max_pending), (100, 10, 5));
        assert_eq!(b.retries, RetryLimit::Budget { percent: 10, min: 3 });
        assert_eq!(c.cluster.health_check.as_ref().unwrap().interval, Duration::from_secs(2));
        let weights: Vec<_> = c.endpoints.iter().map(|e| (e.address.port(), e.weight)).collect();
        assert_eq!(weights, [(9001, 3), (9002, 1)], "sorted by address");
    }

    #[test]
    fn every_problem_is_named_with_its_place() {
        let config = parse(
            "
listeners: [{name: web, address: nowhere}, {name: web, address: '127.0.0.1:1'}]
routes: [{host: 'a:80', path-prefix: x, cluster: missing}]
clusters:
  - {name: Orders, endpoints: []}
  - {name: b, load-balancing: fastest, protocol: spdy, endpoints: [not-an-address, '127.0.0.1:0', {address: '127.0.0.1:1', weight: 0, labels: {priority: first}}]}
  - {name: c, endpoints: ['127.0.0.1:1', '127.0.0.1:1'], outlier-detection: {max-ejection-percent: 101}, colour: red}
",
        );
        let problems = config.problems().join("\n");
        for part in [
            "listener \"web\" is given twice",
            "\"nowhere\"",
            "\"missing\" is not defined",
            "must start with /",
            "plain host name",
            "has 'O'",
            "has no endpoints",
            "\"fastest\"",
            "\"spdy\"",
            "\"not-an-address\"",
            "port 0",
            "weight 0",
            "label priority is \"first\"; allowed: a number from 0 to 128",
            "127.0.0.1:1 is given twice",
            "cluster \"c\": outlier-detection.max-ejection-percent: 101; allowed is a whole number from 0 to 100",
            "cluster \"c\": colour: unknown key; allowed are name, protocol, endpoints, load-balancing, ",
        ] {
            assert!(problems.contains(part), "{part} not in\n{problems}");
        }
    }

    #[test]
    fn a_policy_document_is_for_a_cluster_that_says_nothing_itself() {
        let policy = serde_json::json!({
            "apiVersion": "weft.dev/v1", "kind": "TrafficPolicy", "metadata": {"name": "p"},
            "spec": {"targetRef": {"kind": "Service", "name": "orders"}, "circuitBreaker": {"maxRequests": 7}},
        });
        let mut config = parse("clusters: [{name: orders, endpoints: ['127.0.0.1:1']}]");
        config.documents.push(Document::new(policy).unwrap());
        assert_eq!(config.problems(), Vec::<String>::new());
        let cluster = config.cluster_configs().remove(0).cluster;
        assert_eq!((cluster.breaker.max_requests, cluster.health_check), (7, None));
        config.clusters[0].policy.insert("load-balancing".to_owned(), "random".into());
        let problems = config.problems().join("\n");
        assert!(problems.contains("load-balancing given here, and TrafficPolicy p is for it"), "{problems}");
    }
}
