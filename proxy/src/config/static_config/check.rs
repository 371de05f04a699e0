//! What is wrong with the first part of a proxy's file, each with the path of its key: keys and kinds of values by
//! shapes, as in documents, and what they mean beside each other as far as they can be read.

use std::collections::HashSet;
use std::net::SocketAddr;

use serde_json::{Map, Value};
use weft_meshconfig::policy::PolicySpec;
use weft_meshconfig::shape::{self, Field, Rule, Shape, optional, required};
use weft_meshconfig::{MeshConfig, Problem};
use weft_xds_proto::resource::cluster::{Cluster, ClusterTls};

use super::{RouteEntry, StaticConfig, describe};
use crate::limits::ENDPOINT_WEIGHT_MAX;
use crate::proxy_protocol::Network;
use crate::{config, tls};

const TEXT: Shape =
    Shape::Text(Rule { allowed: "a text that is not empty", pattern: "", check: |text| !text.is_empty() });
const ADDRESS: Shape = Shape::Text(Rule {
    allowed: "IP:PORT, such as 127.0.0.1:8080",
    pattern: "",
    check: |text| text.parse::<SocketAddr>().is_ok(),
});
const NETWORK: Shape = Shape::Text(Rule {
    allowed: "IP or IP/BITS, such as 10.0.0.0/8",
    pattern: "",
    check: |text| text.parse::<Network>().is_ok(),
});
const HOST: Shape = Shape::Text(Rule {
    allowed: "a host name without port or wildcard",
    pattern: "",
    check: |text| !text.is_empty() && !text.contains([':', '/', '*', ' ']),
});
const PATH: Shape = Shape::Text(Rule {
    allowed: "a path that starts with /",
    pattern: "^/",
    check: |text| text.starts_with('/'),
});
const TO: Shape = Shape::Text(Rule {
    allowed: "IP:PORT, such as 127.0.0.1:8080, with a port other than 0",
    pattern: "",
    check: |text| text.parse::<SocketAddr>().is_ok_and(|addr| addr.port() != 0),
});

const CERTIFICATE: Shape = Shape::Object(&[
    required("certificate-file", &TEXT, "the chain, leaf first"),
    required("key-file", &TEXT, "its key"),
]);
const TLS: Shape = Shape::Object(&[
    optional("certificates", &Shape::List(&CERTIFICATE, usize::MAX), "by the name that a client asks for"),
    optional("client-ca", &TEXT, "PEM file with the CA of clients"),
    optional("client-crl", &TEXT, "PEM file with revocation lists of that CA"),
    optional(
        "client-certificates",
        &Shape::Choice(&["required", "optional"]),
        "whether clients must show one",
    ),
    optional("min-version", &Shape::Choice(&["1.2", "1.3"]), "the oldest version of TLS"),
    optional("cipher-suites", &Shape::List(&TEXT, usize::MAX), "most wanted first"),
]);
const LISTENER: Shape = Shape::Object(&[
    required("name", &TEXT, "for people, logs and metrics"),
    required("address", &ADDRESS, "IP:PORT; port 0 for any free one"),
    optional(
        "accept-proxy",
        &Shape::List(&NETWORK, usize::MAX),
        "load balancers that speak the PROXY protocol",
    ),
    optional(
        "trusted-proxies",
        &Shape::List(&NETWORK, usize::MAX),
        "proxies whose x-forwarded-for is believed",
    ),
    optional("tls", &TLS, "TLS for clients"),
]);
const ROUTE: Shape = Shape::Object(&[
    optional("host", &HOST, "exact host; any if missing"),
    optional("path-prefix", &PATH, "whole segments; any path if missing"),
    required("cluster", &TEXT, "a cluster of this file"),
]);
const ENDPOINT: Shape = Shape::Object(&[
    required("address", &TO, "IP:PORT"),
    optional("weight", &Shape::Integer(1, ENDPOINT_WEIGHT_MAX as i64), "its share"),
    optional("labels", &Shape::Labels, "such as version, zone and priority"),
]);
/// Beside the keys of a policy.
const CLUSTER: [Field; 3] = [
    required("name", &TEXT, "of the service"),
    optional("protocol", &Shape::Choice(&["http1", "http2"]), "what endpoints speak"),
    required("endpoints", &Shape::List(&Shape::TextOr(&TO, &ENDPOINT), usize::MAX), "where it is"),
];

/// Everything that is wrong with it, each with what it stands in (`listener web`).
pub(super) fn problems(mut json: Value, documents: &MeshConfig) -> Vec<(String, Problem)> {
    let mut problems = Vec::new();
    let Value::Object(sections) = &mut json else { return Vec::new() };
    sections.retain(|key, _| StaticConfig::SECTIONS.contains(&key.as_str()));
    for (section, shape) in [("listeners", &LISTENER), ("routes", &ROUTE)] {
        for (i, entry) in entries(sections, section, &mut problems) {
            entry.as_object_mut().into_iter().flat_map(Map::values_mut).for_each(texts);
            if !shape::check(shape, entry, &format!("{section}[{i}]"), &mut problems) {
                *entry = Value::Object(Map::new());
            }
            without_wrong(entry);
        }
    }
    for (i, entry) in entries(sections, "clusters", &mut problems) {
        cluster(entry, &format!("clusters[{i}]"), &mut problems);
    }
    match serde_json::from_value::<StaticConfig>(json) {
        Ok(read) => {
            meaning(&read, documents, &mut problems);
            problems.into_iter().map(|problem| (title(&read, &problem.at), problem)).collect()
        }
        // Cannot be: what has another shape was taken out.
        Err(why) => {
            problems.push(Problem::new("", why.to_string()));
            problems.into_iter().map(|problem| (String::new(), problem)).collect()
        }
    }
}

/// The entries of a section with their numbers; a section that is no list is taken out.
fn entries<'a>(
    sections: &'a mut Map<String, Value>,
    name: &str,
    problems: &mut Vec<Problem>,
) -> impl Iterator<Item = (usize, &'a mut Value)> + use<'a> {
    const ANY: Shape = Shape::List(&Shape::Object(&[]), 0);
    if sections.get(name).is_some_and(|value| !value.is_array()) {
        let mut value = sections.remove(name).unwrap_or_default();
        if !value.is_null() {
            shape::check(&ANY, &mut value, name, problems);
        }
    }
    sections.get_mut(name).and_then(Value::as_array_mut).into_iter().flatten().enumerate()
}

/// Where nothing but texts is allowed, YAML's plain numbers are texts too.
fn texts(value: &mut Value) {
    match value {
        Value::Number(_) | Value::Bool(_) => *value = Value::String(value.to_string()),
        Value::Array(items) => items.iter_mut().for_each(texts),
        Value::Object(entries) => entries.values_mut().for_each(texts),
        Value::Null | Value::String(_) => {}
    }
}

/// Takes out of lists what was wrong and is nothing now.
fn without_wrong(entry: &mut Value) {
    match entry {
        Value::Array(items) => {
            items.retain(|item| !item.is_null());
            items.iter_mut().for_each(without_wrong);
        }
        Value::Object(keys) => {
            if let Some(Value::Array(certificates)) = keys.get_mut("certificates") {
                // It is there, so that nobody asks for one.
                let wrong = certificates.iter_mut().filter(|item| item.is_null());
                wrong.for_each(|item| *item = Value::Object(Map::new()));
            }
            keys.values_mut().for_each(without_wrong);
        }
        _ => {}
    }
}

/// Checks the keys of a cluster and leaves what is right.
fn cluster(entry: &mut Value, at: &str, problems: &mut Vec<Problem>) {
    let own = CLUSTER.map(|field| field.name);
    let mut policy = Map::new();
    if let Value::Object(keys) = entry {
        (*keys, policy) = std::mem::take(keys).into_iter().partition(|(key, _)| own.contains(&key.as_str()));
        keys.get_mut("name").into_iter().for_each(texts);
        if keys.get("endpoints").and_then(Value::as_array).is_some_and(Vec::is_empty) {
            problems.push(Problem::new(format!("{at}.endpoints"), "none; at least one is needed"));
        }
    }
    if !shape::check(&Shape::Object(&CLUSTER), entry, at, problems) {
        *entry = Value::Object(Map::new());
    }
    let below = |path: String| if path.is_empty() { at.to_owned() } else { format!("{at}.{path}") };
    let (spec, wrong) = PolicySpec::from_file(&policy, &own);
    if wrong.is_empty() {
        let mut meant = Cluster::with_defaults("");
        spec.apply(&mut meant);
        if let Some(ClusterTls::Originate(tls)) = &meant.tls
            && let Err(why) = tls::client::check(tls)
        {
            problems.push(Problem::new(below("tls".to_owned()), why));
        }
    }
    problems.extend(wrong.into_iter().map(|p| Problem { at: below(p.at), ..p }));
    if let Value::Object(keys) = entry {
        if let Some(Value::Array(endpoints)) = keys.get_mut("endpoints") {
            // An address of nothing, so that the others keep their numbers.
            let wrong = endpoints.iter_mut().filter(|endpoint| endpoint.is_null());
            wrong.for_each(|endpoint| *endpoint = Value::String(String::new()));
        }
        keys.extend(policy);
    }
}

/// What its parts mean beside each other. What was wrong and taken out is empty.
fn meaning(config: &StaticConfig, documents: &MeshConfig, problems: &mut Vec<Problem>) {
    let names = |section, names: Vec<&str>, problems: &mut Vec<Problem>| {
        for i in given_before(&names) {
            problems
                .push(Problem::new(format!("{section}[{i}].name"), format!("{:?} is given twice", names[i])));
        }
    };
    names("listeners", config.listeners.iter().map(|l| l.name.as_str()).collect(), problems);
    let defined: Vec<_> = config.clusters.iter().map(|c| c.name.as_str()).collect();
    names("clusters", defined.clone(), problems);
    for (i, name) in defined.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
        if let Err(why) = config::check_service_name(name) {
            problems.push(Problem::new(format!("clusters[{i}].name"), format!("{name:?} {why}")));
        }
    }
    for (i, tls) in config.listeners.iter().enumerate().filter_map(|(i, l)| Some((i, l.tls.as_ref()?))) {
        problems.extend(
            tls.problems()
                .into_iter()
                .map(|(key, why)| Problem::new(format!("listeners[{i}].tls.{key}"), why)),
        );
    }
    let wrong = |i: &usize| problems.iter().any(|problem| problem.at.starts_with(&format!("routes[{i}]")));
    let whole: HashSet<_> = (0..config.routes.len()).filter(|i| !wrong(i)).collect();
    for (i, route) in config.routes.iter().enumerate() {
        if !route.cluster.is_empty() && !defined.contains(&route.cluster.as_str()) {
            let all: Vec<_> = defined.iter().copied().filter(|name| !name.is_empty()).collect();
            let near = shape::near(&route.cluster, all.iter().copied());
            let why = format!("{:?} is not defined; defined are: {}{near}", route.cluster, all.join(", "));
            problems.push(Problem::new(format!("routes[{i}].cluster"), why));
        }
        let same = |other: &RouteEntry| other.host == route.host && other.path_prefix == route.path_prefix;
        if whole.contains(&i) && (0..i).any(|j| whole.contains(&j) && same(&config.routes[j])) {
            problems
                .push(Problem::new(format!("routes[{i}]"), "the same host and path-prefix are given twice"));
        }
    }
    let policies = documents.lowered().policies;
    for (i, cluster) in config.clusters.iter().enumerate() {
        endpoints(cluster, &format!("clusters[{i}].endpoints"), problems);
        let Some(policy) = policies.get(&cluster.name) else { continue };
        let why = "is for the same service; allowed is one of the two";
        for key in cluster.policy.keys() {
            let message = format!("given here, and TrafficPolicy {} {why}", policy.document);
            let problem = Problem { at: format!("clusters[{i}]"), key: Some(key.clone()), message };
            // What is no key at all was told already.
            if !problems.iter().any(|told| told.at == problem.at && told.key == problem.key) {
                problems.push(problem);
            }
        }
    }
}

fn endpoints(cluster: &super::StaticCluster, at: &str, problems: &mut Vec<Problem>) {
    let texts: Vec<_> = cluster.endpoints.iter().map(super::StaticEndpoint::text).collect();
    let addresses: Vec<_> = cluster.endpoints.iter().map(super::StaticEndpoint::address).collect();
    for (j, endpoint) in cluster.endpoints.iter().enumerate() {
        for (key, value) in endpoint.labels() {
            if let Err(why) = config::check_label(key, value) {
                let at = format!("{at}[{j}].labels");
                problems.push(Problem { at, key: Some(key.clone()), message: why });
            }
        }
        if addresses[j].is_some() && addresses[..j].contains(&addresses[j]) {
            problems.push(Problem::new(format!("{at}[{j}]"), format!("{} is given twice", texts[j])));
        }
    }
}

/// The numbers of names that stood there before.
fn given_before(names: &[&str]) -> Vec<usize> {
    let mut seen = HashSet::new();
    (0..names.len()).filter(|i| !names[*i].is_empty() && !seen.insert(names[*i])).collect()
}

/// What the path leads into, for people.
fn title(config: &StaticConfig, at: &str) -> String {
    let named =
        |what: &str, name: &str| if name.is_empty() { String::new() } else { format!("{what} {name}") };
    let numbered = at
        .split_once('[')
        .and_then(|(section, rest)| Some((section, rest.split_once(']')?.0.parse::<usize>().ok()?)));
    match numbered {
        Some(("listeners", i)) => config.listeners.get(i).map(|l| named("listener", &l.name)),
        Some(("routes", i)) => config.routes.get(i).map(|r| named("route", &describe(r))),
        Some(("clusters", i)) => config.clusters.get(i).map(|c| named("cluster", &c.name)),
        _ => None,
    }
    .unwrap_or_default()
}
