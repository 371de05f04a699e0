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
        "listener web: listeners[1].name: \"web\" is given twice",
        "listener web: listeners[0].address: \"nowhere\"; allowed is IP:PORT",
        "route any host: routes[0].cluster: \"missing\" is not defined; defined are: Orders, b, c",
        "routes[0].path-prefix: \"x\"; allowed is a path that starts with /",
        "routes[0].host: \"a:80\"; allowed is a host name without port or wildcard",
        "cluster Orders: clusters[0].name: \"Orders\" has 'O'; a to z, 0 to 9 and - are allowed",
        "clusters[0].endpoints: none; at least one is needed",
        "cluster b: clusters[1].load-balancing: \"fastest\"",
        "clusters[1].protocol: \"spdy\"; allowed are http1, http2",
        "clusters[1].endpoints[0]: \"not-an-address\"",
        "clusters[1].endpoints[1]: \"127.0.0.1:0\"; allowed is IP:PORT, such as 127.0.0.1:8080, with a port other than 0",
        "clusters[1].endpoints[2].weight: 0; allowed is a whole number from 1 to 256",
        "clusters[1].endpoints[2].labels.priority: label priority is \"first\"; allowed: a number from 0 to 128",
        "clusters[2].endpoints[1]: 127.0.0.1:1 is given twice",
        "cluster c: clusters[2].outlier-detection.max-ejection-percent: 101; allowed is a whole number from 0 to 100",
        "clusters[2].colour: unknown key; allowed are name, protocol, endpoints, load-balancing, ",
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
    assert!(
        problems
            .contains("clusters[0].load-balancing: given here, and TrafficPolicy p is for the same service"),
        "{problems}"
    );
}

/// What cannot be read hides nothing of the rest, and is not complained of a second time.
#[test]
fn mistakes_in_kinds_and_in_meaning_are_told_together_and_once() {
    let json = serde_json::json!({
        "workers": 3,
        "listeners": [5, {"nam": "web"}, {"name": 7, "address": "127.0.0.1:1", "accept-proxy": ["ten"],
            "tls": {"certificates": [{"certificate-file": "/a"}, 3], "min-version": 1.3}}],
        "routes": [{"host": "*"}, {"host": "*", "cluster": "b"}, {"cluster": "a"}, {"cluster": "a"}],
        "clusters": [{"name": "a", "endpoints": [7, "127.0.0.1:1", {"address": "127.0.0.1:1"}]}, {}, "x"],
    });
    let problems = StaticConfig::problems_of(json, &MeshConfig::default());
    let told: Vec<_> = problems.iter().map(|(_, problem)| problem.to_string()).collect();
    let expected = [
        "listeners[0]: the number 5; allowed is a mapping",
        "listeners[1].nam: unknown key; allowed are name, address, accept-proxy, trusted-proxies, tls; did you mean name?",
        "listeners[1]: name is missing: for people, logs and metrics",
        "listeners[1]: address is missing: IP:PORT; port 0 for any free one",
        "listeners[2].accept-proxy[0]: \"ten\"; allowed is IP or IP/BITS, such as 10.0.0.0/8",
        "listeners[2].tls.certificates[0]: key-file is missing: its key",
        "listeners[2].tls.certificates[1]: \"3\"; allowed is a mapping",
        "routes[0].host: \"*\"; allowed is a host name without port or wildcard",
        "routes[0]: cluster is missing: a cluster of this file",
        "routes[1].host: \"*\"; allowed is a host name without port or wildcard",
        "clusters[0].endpoints[0]: the number 7; allowed is IP:PORT, such as 127.0.0.1:8080, with a port other than 0, in \
         quotes if it looks like something else, or a mapping",
        "clusters[1]: name is missing: of the service",
        "clusters[1]: endpoints is missing: where it is",
        "clusters[2]: \"x\"; allowed is a mapping",
        "routes[1].cluster: \"b\" is not defined; defined are: a; did you mean a?",
        "routes[3]: the same host and path-prefix are given twice",
        "clusters[0].endpoints[2]: 127.0.0.1:1 is given twice",
    ];
    assert_eq!(told, expected);
    let lists = serde_json::json!({"listeners": {}, "routes": null, "clusters": "a"});
    let told = StaticConfig::problems_of(lists, &MeshConfig::default());
    let told: Vec<_> = told.iter().map(|(_, problem)| problem.to_string()).collect();
    assert_eq!(told, ["listeners: a mapping; allowed is a list", "clusters: \"a\"; allowed is a list"]);
}
