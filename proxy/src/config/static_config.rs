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
//! Texts stay texts here and are read by `check`, so that one run names every mistake.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weft_meshconfig::policy::{Policy, PolicySpec};
use weft_meshconfig::{Document, MeshConfig, Problem};
use weft_xds_proto::resource::cluster::{Cluster, Protocol};
use weft_xds_proto::resource::endpoint::{Endpoint, EndpointHealth, EndpointSource};

mod check;

use super::listener_tls::ListenerTls;
use crate::config_snapshot::ClusterConfig;
use crate::proxy_protocol::Network;

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
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ListenerEntry {
    /// For people, logs and metrics.
    pub name: String,
    /// IP:PORT; port 0 for any free one.
    pub address: String,
    /// Networks of load balancers, which tell with a PROXY protocol header who the client is.
    pub accept_proxy: Vec<String>,
    /// Networks of proxies that are believed what they say of earlier hops (`x-forwarded-for` and the like).
    pub trusted_proxies: Vec<String>,
    /// TLS for clients; plaintext without it.
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
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct RouteEntry {
    /// Exact host without port, any case; any host if missing.
    pub host: Option<String>,
    /// Whole path segments: `/a` matches `/a` and `/a/b`, not `/ab`; any path if missing.
    pub path_prefix: Option<String>,
    /// Cluster of this file.
    pub cluster: String,
}

/// One cluster.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct StaticCluster {
    /// Unique.
    pub name: String,
    /// `http1` (default) or `http2`, without TLS.
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
    #[serde(default)]
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
    /// Keys of the file.
    pub const SECTIONS: [&str; 3] = ["listeners", "routes", "clusters"];

    /// Everything that is wrong with it, each with the path of its key. Empty if it is usable.
    pub fn problems(&self) -> Vec<String> {
        let documents = self.mesh_config();
        let own = serde_json::to_value(self).map(|json| check::problems(json, &documents));
        let mut problems: Vec<_> = match own {
            Ok(own) => own.into_iter().map(|(title, problem)| named(&title, &problem)).collect(),
            // Cannot be: it was read from such a value.
            Err(why) => vec![why.to_string()],
        };
        for (key, problem) in documents.problems() {
            let title = key.map(|(kind, name)| format!("{kind} {name}")).unwrap_or_default();
            problems.push(named(&title, &problem));
        }
        problems
    }

    /// The same of a file's first part, as far as it can be read, each with what it stands in. Keys that are flags are
    /// not looked at.
    pub fn problems_of(json: Value, documents: &MeshConfig) -> Vec<(String, Problem)> {
        check::problems(json, documents)
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
            Some((l.name.clone(), l.address.parse().ok()?, l.networks().ok()?, l.trusted().ok()?))
        };
        self.listeners.iter().filter_map(parsed).collect()
    }

    /// Clusters as discovery presets. Call it on a configuration without [`Self::problems`].
    pub fn cluster_configs(&self) -> Vec<ClusterConfig> {
        let policies = self.policies();
        let lowered = self.mesh_config().lowered();
        let config = |c: &StaticCluster| {
            let mut config = c.to_config(policies.get(&c.name))?;
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
    fn to_config(&self, beside: Option<&Policy>) -> Option<ClusterConfig> {
        let mut cluster = Cluster {
            protocol: match self.protocol.as_deref() {
                Some("http2") => Protocol::Http2,
                _ => Protocol::Http1,
            },
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
            let metadata = endpoint.labels().clone();
            endpoints.push(Endpoint { metadata, ..static_endpoint(endpoint.address()?, endpoint.weight()) });
        }
        endpoints.sort_by_key(|e| e.address);
        Some(ClusterConfig { cluster, endpoints, version: "static".to_owned() })
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

    fn address(&self) -> Option<SocketAddr> {
        self.text().parse().ok()
    }

    fn weight(&self) -> u32 {
        match self {
            Self::Address(_) => 1,
            Self::Weighted(endpoint) => endpoint.weight,
        }
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

fn describe(route: &RouteEntry) -> String {
    let host = route.host.as_deref().unwrap_or("any host");
    match &route.path_prefix {
        Some(path) => format!("{host}{path}"),
        None => host.to_owned(),
    }
}

fn named(title: &str, problem: &Problem) -> String {
    if title.is_empty() { problem.to_string() } else { format!("{title}: {problem}") }
}

#[cfg(test)]
mod tests;
