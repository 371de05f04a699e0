//! Listeners, routes and clusters from a file, so that a proxy runs with no server and no gossip.
//!
//! ```yaml
//! listeners:
//!   - name: web
//!     address: 127.0.0.1:8080
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

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_meshconfig::{Document, MeshConfig};
use weft_xds_proto::resource::cluster::{CheckBy, Cluster, HealthCheck, LbPolicy, Protocol};
use weft_xds_proto::resource::endpoint::{Endpoint, EndpointHealth, EndpointSource};

use crate::config_snapshot::ClusterConfig;
use crate::limits;

mod breaker;
mod outlier;
mod slow_start;

pub use breaker::{StaticCircuitBreaker, StaticRetryBudget};
pub use outlier::{StaticOutlierDetection, StaticPanic, StaticRule};
pub use slow_start::StaticSlowStart;

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
    /// `HTTPRoute`s and the like, each a document of its own behind a line of `---`.
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
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StaticCluster {
    /// Unique.
    pub name: String,
    /// `round-robin` (default) or another of [`LbPolicy::WORDS`].
    #[serde(default)]
    pub load_balancing: Option<String>,
    /// Endpoints that are new or back get their share step by step.
    #[serde(default)]
    pub slow_start: Option<StaticSlowStart>,
    /// `http1` (default) or `http2`, without TLS.
    #[serde(default)]
    pub protocol: Option<String>,
    /// Time to connect, such as `500ms`.
    #[serde(default, with = "weft_core::config::duration::option")]
    pub connect_timeout: Option<Duration>,
    /// Active checks; none if missing.
    #[serde(default)]
    pub health_check: Option<StaticHealthCheck>,
    /// Ejection of endpoints that fail requests; on by default.
    #[serde(default)]
    pub outlier_detection: Option<StaticOutlierDetection>,
    /// What to do when few endpoints are usable.
    #[serde(default)]
    pub panic: Option<StaticPanic>,
    /// What may be under way at once.
    #[serde(default)]
    pub circuit_breaker: Option<StaticCircuitBreaker>,
    /// How many repetitions may be.
    #[serde(default)]
    pub retry_budget: Option<StaticRetryBudget>,
    /// Where it is.
    pub endpoints: Vec<StaticEndpoint>,
}

/// Active checks of a cluster.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StaticHealthCheck {
    /// GET it and want a 2xx; without it and `grpc`, a TCP connection is enough.
    #[serde(default)]
    pub path: Option<String>,
    /// CheckBy gRPC's health service for this service; empty for the whole server.
    #[serde(default)]
    pub grpc: Option<String>,
    /// Between two checks of an endpoint.
    #[serde(default, with = "weft_core::config::duration::option")]
    pub interval: Option<Duration>,
    /// For one check.
    #[serde(default, with = "weft_core::config::duration::option")]
    pub timeout: Option<Duration>,
    /// Failures in a row until an endpoint is out.
    #[serde(default)]
    pub unhealthy_threshold: Option<u32>,
    /// Successes in a row until it is back.
    #[serde(default)]
    pub healthy_threshold: Option<u32>,
}

/// One endpoint: `IP:PORT`, or a mapping with a weight.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum StaticEndpoint {
    /// `IP:PORT`.
    Address(String),
    /// With a weight.
    Weighted(WeightedEndpoint),
}

/// An endpoint with its weight.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WeightedEndpoint {
    /// `IP:PORT`.
    pub address: String,
    /// Share relative to the others, from 1.
    pub weight: u32,
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
        for cluster in &self.clusters {
            let mut bad = Vec::new();
            cluster.check(&mut bad);
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

    /// Listeners with their parsed addresses. Call it on a configuration without [`Self::problems`].
    pub fn listener_addresses(&self) -> Vec<(String, SocketAddr)> {
        self.listeners
            .iter()
            .filter_map(|l| Some((l.name.clone(), parse_address(&l.address).ok()?)))
            .collect()
    }

    /// Clusters as discovery presets. Call it on a configuration without [`Self::problems`].
    pub fn cluster_configs(&self) -> Vec<ClusterConfig> {
        self.clusters.iter().filter_map(|c| c.to_config().ok()).collect()
    }
}

impl StaticCluster {
    fn check(&self, problems: &mut Vec<String>) {
        if let Err(why) = crate::config::check_service_name(&self.name) {
            problems.push(format!("name {why}"));
        }
        if self.endpoints.is_empty() {
            problems.push("has no endpoints".to_owned());
        }
        let mut seen = HashSet::new();
        for endpoint in &self.endpoints {
            match endpoint.parse() {
                Err(why) => problems.push(format!("endpoint {why}")),
                Ok((addr, _)) if !seen.insert(addr) => {
                    problems.push(format!("endpoint {addr} is given twice"));
                }
                Ok(_) => {}
            }
        }
        if let Err(why) = self.policy() {
            problems.push(why);
        }
        if let Err(why) = self.protocol() {
            problems.push(why);
        }
        if self.connect_timeout.is_some_and(|t| t.is_zero()) {
            problems.push("connect-timeout must be longer than 0".to_owned());
        }
        if let Some(check) = &self.health_check {
            if let Some(path) = check.path.as_ref().filter(|p| !p.starts_with('/')) {
                problems.push(format!("health-check: path {path:?} must start with /"));
            }
            if check.path.is_some() && check.grpc.is_some() {
                problems.push("health-check: path and grpc exclude each other".to_owned());
            }
            if check.interval.is_some_and(|t| t < limits::HEALTH_CHECK_INTERVAL_MIN) {
                problems.push(format!(
                    "health-check: interval must be at least {:?}",
                    limits::HEALTH_CHECK_INTERVAL_MIN
                ));
            }
            if check.timeout.is_some_and(|t| t.is_zero()) {
                problems.push("health-check: timeout must be longer than 0".to_owned());
            }
            if check.unhealthy_threshold == Some(0) || check.healthy_threshold == Some(0) {
                problems.push("health-check: thresholds start at 1".to_owned());
            }
        }
        problems.extend(self.outlier_detection.iter().flat_map(|o| o.problems()));
        problems.extend(self.slow_start.iter().flat_map(|s| s.problems(self.policy().ok().as_ref())));
        problems.extend(self.panic.iter().filter_map(|p| p.parse().err()));
        problems.extend(breaker::problems(self.circuit_breaker.as_ref(), self.retry_budget.as_ref()));
        let (check, outlier) = (self.health_check.as_ref(), self.outlier_detection.as_ref());
        for (what, time) in [
            ("connect-timeout", self.connect_timeout),
            ("health-check: interval", check.and_then(|c| c.interval)),
            ("health-check: timeout", check.and_then(|c| c.timeout)),
            ("outlier-detection: base-ejection-time", outlier.and_then(|o| o.base_ejection_time)),
            ("outlier-detection: max-ejection-time", outlier.and_then(|o| o.max_ejection_time)),
            ("outlier-detection: interval", outlier.and_then(|o| o.interval)),
        ] {
            if time.is_some_and(|t| t > limits::CLUSTER_TIME_MAX) {
                problems.push(format!("{what} must be at most {:?}", limits::CLUSTER_TIME_MAX));
            }
        }
    }

    fn policy(&self) -> Result<LbPolicy, String> {
        match &self.load_balancing {
            None => Ok(LbPolicy::RoundRobin),
            Some(text) => text
                .parse()
                .map_err(|_| format!("load-balancing {text:?} is unknown; allowed are {}", LbPolicy::WORDS)),
        }
    }

    fn protocol(&self) -> Result<Protocol, String> {
        match self.protocol.as_deref() {
            None | Some("http1") => Ok(Protocol::Http1),
            Some("http2") => Ok(Protocol::Http2),
            Some(other) => Err(format!("protocol {other:?} is unknown; allowed are http1, http2")),
        }
    }

    fn to_config(&self) -> Result<ClusterConfig, String> {
        let mut cluster = Cluster::with_defaults(&self.name);
        cluster.lb_policy = self.policy()?;
        cluster.protocol = self.protocol()?;
        cluster.breaker = breaker::breaker(self.circuit_breaker.as_ref(), self.retry_budget.as_ref());
        if let Some(timeout) = self.connect_timeout {
            cluster.connect_timeout = timeout;
        }
        cluster.health_check = self.health_check.as_ref().map(StaticHealthCheck::with_defaults);
        if let Some(outlier) = &self.outlier_detection {
            cluster.outlier_detection = outlier.with_defaults();
        }
        cluster.slow_start = self.slow_start.as_ref().map(StaticSlowStart::with_defaults);
        if let Some(panic) = &self.panic {
            cluster.panic = panic.parse()?;
        }
        let mut endpoints = Vec::with_capacity(self.endpoints.len());
        for endpoint in &self.endpoints {
            let (address, weight) = endpoint.parse()?;
            endpoints.push(static_endpoint(address, weight));
        }
        endpoints.sort_by_key(|e| e.address);
        Ok(ClusterConfig { cluster, endpoints, version: "static".to_owned() })
    }
}

impl StaticHealthCheck {
    fn with_defaults(&self) -> HealthCheck {
        let defaults = HealthCheck::default();
        HealthCheck {
            by: match &self.grpc {
                Some(service) => CheckBy::Grpc(service.clone()),
                None => CheckBy::path(self.path.clone()),
            },
            interval: self.interval.unwrap_or(defaults.interval),
            timeout: self.timeout.unwrap_or(defaults.timeout),
            unhealthy_threshold: self.unhealthy_threshold.unwrap_or(defaults.unhealthy_threshold),
            healthy_threshold: self.healthy_threshold.unwrap_or(defaults.healthy_threshold),
        }
    }
}

impl StaticEndpoint {
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

    use weft_xds_proto::resource::cluster::{PanicPolicy, RetryLimit};

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
  - {name: b, load-balancing: fastest, protocol: spdy, endpoints: [not-an-address, '127.0.0.1:0', {address: '127.0.0.1:1', weight: 0}]}
  - {name: c, endpoints: ['127.0.0.1:1', '127.0.0.1:1'], outlier-detection: {max-ejection-percent: 101}}
  - {name: d, endpoints: ['127.0.0.1:1'], connect-timeout: 2h, health-check: {interval: 90000h, timeout: 2h}, outlier-detection: {base-ejection-time: 90000h, max-ejection-time: 2h}}
  - {name: e, endpoints: ['127.0.0.1:1'], circuit-breaker: {max-requests: 0}, retry-budget: {percent: 200}, slow-start: {window: 1ms, min-weight-percent: 0}, load-balancing: random, health-check: {path: /, grpc: a}, panic: {policy: scream}, outlier-detection: {interval: 10ms, latency: {threshold: 1}}}
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
            "127.0.0.1:1 is given twice",
            "101",
            "connect-timeout must be at most 3600s",
            "interval must be at most 3600s",
            "health-check: timeout must be at most 3600s",
            "base-ejection-time must be at most 3600s",
            "max-ejection-time must be at most 3600s",
            "max-requests 0 lets nothing through",
            "\"scream\" is unknown",
            "window must be 1s to 1h",
            "min-weight-percent 0 is not between 1 and 100",
            "no slow-start under random",
            "path and grpc exclude each other",
            "interval must be at least 1s",
            "latency: threshold 1 is not between 2 and 100",
            "percent 200 is not between 0 and 100",
        ] {
            assert!(problems.contains(part), "{part} not in\n{problems}");
        }
    }
}
