//! What this proxy would do with a request of the local app, and why, without sending it (`/explain`, `weft explain`).
//!
//! Where no sidecar can be asked, the same is told of what servers say of the mesh ([`by_documents`]). What the other side
//! then makes of the request is [`admission()`].

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method, Request, request};
use serde_json::{Value, json};
use weft_core::metrics::Registry;
use weft_meshconfig::lower::Lowered;
use weft_xds_proto::resource::route::GRPC_RETRIABLE;
use weft_xds_proto::resource::subset::Subset;

use crate::admin::clusters::cluster_json;
use crate::cluster::endpoint_set::EndpointView;
use crate::cluster::security::ProxyTls;
use crate::cluster::state::Cluster;
use crate::config_snapshot::{ClusterConfig, ConfigSnapshot};
use crate::http::routed::replace_path;
use crate::http::target::{self, Target};
use crate::mesh_view::{MeshState, MeshView};
use crate::route::compiled::{Action, Backend, Forward, Route};
use crate::route::host::service;
use crate::route::matcher::Seen;
use crate::route::{host, path};
use crate::static_routes::StaticRoutes;
use crate::telemetry::metrics::{Direction, Metrics};

pub(crate) mod admission;

pub use admission::{Caller, Sent, admission};

/// The request that is asked about, of pairs such as `host=orders`, `path=/a`, `method=GET` and `header=NAME:VALUE`. `also`: the
/// other pairs that whoever asks takes.
///
/// # Errors
/// Says which pair is none, and what is allowed.
pub fn question(
    pairs: impl IntoIterator<Item = (String, String)>,
    also: &[&str],
) -> Result<request::Parts, String> {
    let (mut host, mut path, mut method) = (None, "/".to_owned(), Method::GET);
    let mut headers = Vec::new();
    for (key, value) in pairs {
        match key.as_str() {
            "host" => host = Some(value),
            "path" if value.starts_with('/') => path = value,
            "path" => return Err(format!("path: {value:?}; allowed is a path, with its slash")),
            "method" => {
                method =
                    value.parse().map_err(|_| format!("method: {value:?}; allowed is one such as GET"))?;
            }
            "header" => {
                let allowed = || format!("header: {value:?}; allowed is NAME:VALUE");
                let (name, value) = value.split_once(':').ok_or_else(allowed)?;
                let name: HeaderName = name.trim().parse().map_err(|_| allowed())?;
                let value: HeaderValue = value.trim().parse().map_err(|_| allowed())?;
                headers.push((name, value));
            }
            other => {
                let allowed = [&["host", "path", "method", "header"], also].concat().join(", ");
                return Err(format!("{other}: unknown; allowed are {allowed}"));
            }
        }
    }
    let host = host.ok_or("host is missing: the service or host that is called")?;
    let mut request = Request::builder().method(method).uri(&path).header("host", host);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(()).map_err(|why| format!("no request: {why}"))?;
    Ok(request.into_parts().0)
}

/// The same by what servers say: what the documents of the mesh mean, and services as far as they are given.
pub fn by_documents(documents: Lowered, clusters: Vec<ClusterConfig>, head: &request::Parts) -> Value {
    let state = MeshState::new(
        Direction::Outbound,
        StaticRoutes::default(),
        Metrics::new(Registry::new()),
        ProxyTls::default(),
    );
    let clusters = clusters.into_iter().map(|mut config| {
        // Nothing is connected to, so files of certificates are not looked for.
        config.cluster.tls = None;
        (config.cluster.name.clone(), Arc::new(config))
    });
    state.apply(&ConfigSnapshot {
        clusters: clusters.collect(),
        routes: documents.services.into_iter().map(|(name, routes)| (name, Arc::new(routes))).collect(),
        hosts: documents.hosts.map(Arc::new),
        ..ConfigSnapshot::default()
    });
    explain(&state.view(), head)
}

/// The same by what a proxy knows.
pub(crate) fn explain(view: &MeshView, head: &request::Parts) -> Value {
    let refused = |why: String| json!({ "verdict": "refused", "why": why });
    let target = match target::of(head) {
        Ok(target) => target,
        Err(error) => return refused(error.to_string()),
    };
    let path = match path::normalise(head.uri.path()) {
        Ok(path) => path,
        Err(why) => return refused(why.to_string()),
    };
    let seen = Seen::of(head, &path);
    let request = json!({ "host": target.host, "method": head.method.as_str(), "path": path });
    let asked = Asked { view, head, target: &target, path: &path };
    let told = |rest: Value| with(json!({ "request": request }), rest);
    let tables =
        [("routes of hosts in the file", &*view.routes), ("routes of hosts in the mesh", &view.hosts.table)];
    for (of, table) in tables {
        if let Some(route) = table.host(&target.host).and_then(|host| host.select(&seen)) {
            return told(asked.routed(of, route));
        }
    }
    let Some(name) = service(&target.host) else {
        return told(json!({
            "verdict": "not found",
            "why": format!("host {:?} has no routes here and is no name of a service", target.host),
        }));
    };
    if let Some(routes) = view.services.get(name) {
        return told(match routes.table.host(&target.host).and_then(|host| host.select(&seen)) {
            Some(route) => asked.routed("routes of the service", route),
            None => json!({
                "verdict": "not found",
                "why": format!("service {name} has routes, and none is for this request"),
            }),
        });
    }
    let (verdict, why) = verdict(view, name, None);
    told(json!({
        "verdict": verdict, "why": why, "found_by": "the service of this name, which has no routes",
        "backends": [asked.backend(name, None, 100.0)],
    }))
}

/// What is asked about.
struct Asked<'a> {
    view: &'a MeshView,
    head: &'a request::Parts,
    target: &'a Target,
    /// In its normal form.
    path: &'a str,
}

fn with(mut told: Value, rest: Value) -> Value {
    if let (Value::Object(told), Value::Object(rest)) = (&mut told, rest) {
        told.extend(rest);
    }
    told
}

impl Asked<'_> {
    fn routed(&self, of: &str, route: &Route) -> Value {
        let told = json!({
            "found_by": of, "route": route.name,
            "rate_limit": route.rate_limit.as_ref().map(|(limit, _)| json!({
                "requests": limit.requests, "per_ms": limit.per.as_millis() as u64, "burst": limit.burst,
            })),
            "fault": route.fault.is_some(), "cache": route.cache.is_some(), "cors": route.cors.is_some(),
            "compression": route.compression.is_some(),
            "hedge_after_ms": route.hedge.map(|hedge| hedge.after.as_millis() as u64),
        });
        with(
            told,
            match &route.action {
                Action::Forward(to) => self.forwarded(route, to),
                Action::Redirect(redirect) => json!({
                    "verdict": "redirected",
                    "why": format!("the route answers {} itself", redirect.status.as_u16()),
                }),
                Action::Respond { status, .. } => json!({
                    "verdict": "answered", "why": format!("the route answers {} itself", status.as_u16()),
                }),
            },
        )
    }

    fn forwarded(&self, route: &Route, to: &Forward) -> Value {
        let all: Vec<(&Backend, f64)> = to.shares().collect();
        // Good if any way is good: which one is drawn for each request.
        let verdicts: Vec<_> = all.iter().map(|(b, _)| verdict(self.view, &b.cluster, Some(b))).collect();
        let (word, why) = verdicts
            .iter()
            .find(|(word, _)| *word != "forwarded")
            .or(verdicts.first())
            .cloned()
            .unwrap_or(("refused", "the route has no backend".to_owned()));
        let millis = |t: Option<std::time::Duration>| t.map(|t| t.as_millis() as u64);
        let backend = |(backend, share): &(&Backend, f64)| {
            self.backend(&backend.cluster, Some((route, to, backend)), *share)
        };
        json!({
            "verdict": word, "why": why,
            "timeout_ms": millis(to.timeout), "try_timeout_ms": millis(to.try_timeout),
            "retry": to.retry.as_ref().map(|r| {
                let named = |(code, name, _): &(u8, &'static str, _)| r.grpc_codes.contains(code).then_some(*name);
                let grpc_codes: Vec<_> = GRPC_RETRIABLE.iter().filter_map(named).collect();
                json!({ "attempts": r.attempts, "codes": r.codes, "grpc_codes": grpc_codes })
            }),
            "rewrites_path": to.path.is_some(), "host": to.host,
            "mirrors": to.mirrors.iter().map(|m| &m.cluster).collect::<Vec<_>>(),
            "backends": all.iter().map(backend).collect::<Vec<_>>(),
        })
    }

    fn backend(&self, name: &str, by: Option<(&Route, &Forward, &Backend)>, percent: f64) -> Value {
        let subset = by.and_then(|(_, _, backend)| backend.subset.as_ref());
        let known = self.view.clusters.get(name);
        let mut cluster = known.map(|cluster| cluster_json(cluster));
        let used = known.and_then(|cluster| part(cluster, subset));
        if let (Some(Value::Object(cluster)), Some(subset)) = (&mut cluster, &used)
            && let Some(Value::Array(endpoints)) = cluster.get_mut("endpoints")
        {
            endpoints.retain(|endpoint| {
                let labels = serde_json::from_value(endpoint["metadata"].clone()).unwrap_or_default();
                subset.contains(&labels)
            });
        }
        json!({
            "service": name, "share_percent": percent, "subset": subset.map(|s| s.to_string()),
            "cluster": cluster, "sent": self.sent(by),
        })
    }

    /// As [`crate::http::routed`] makes it. None if the route makes nothing usable of it.
    fn sent(&self, by: Option<(&Route, &Forward, &Backend)>) -> Option<Sent> {
        let mut head = self.head.clone();
        let mut path = self.path.to_owned();
        let mut host = &self.target.authority;
        if let Some((route, to, backend)) = by {
            if let Some(rewrite) = &to.path {
                path = rewrite.path(&path, route.matcher.matched_len(&path));
            }
            host = to.host.as_ref().unwrap_or(host);
            route.request_headers.apply(&mut head.headers);
            backend.request_headers.apply(&mut head.headers);
        }
        replace_path(&mut head, &path)?;
        Some(Sent::of(&head, host::normalise(host).ok()?.into_owned(), head.uri.path()))
    }
}

/// The part of a cluster that gets what is for a part; none: all of it.
fn part(cluster: &Cluster, asked: Option<&Arc<Subset>>) -> Option<Arc<Subset>> {
    cluster.subset_or_fallback(asked?.clone()).map(|(subset, _)| subset)
}

/// What becomes of a request to a cluster now, and why.
fn verdict(view: &MeshView, name: &str, backend: Option<&Backend>) -> (&'static str, String) {
    let Some(cluster) = view.clusters.get(name) else {
        return match view.absent.get(name) {
            Some(message) => ("not found", message.clone()),
            None => {
                ("unknown", format!("nobody has asked for service {name} yet; the first request asks for it"))
            }
        };
    };
    let asked = backend.and_then(|b| b.subset.as_ref());
    let (usable, part) = match (asked, part(cluster, asked)) {
        (None, _) => (cluster.endpoints.picker().len(), String::new()),
        (Some(asked), None) => (cluster.endpoints.picker().len(), format!(", for want of one with {asked}")),
        (Some(asked), Some(used)) if used == *asked => (cluster.subset(&used).len(), format!(" with {used}")),
        (Some(asked), Some(used)) => {
            (cluster.subset(&used).len(), format!(" with {used}, for want of one with {asked}"))
        }
    };
    if usable == 0 {
        return (
            "refused",
            format!("no endpoint of {name}{part} may be asked: {}", cluster.endpoints.counts()),
        );
    }
    let endpoints = cluster.endpoints.endpoints();
    let place = |view: &EndpointView| cluster.security().place(view.endpoint.address);
    let refused: Vec<_> = endpoints.iter().filter_map(|view| place(view).err()).collect();
    if let Some(why) = refused.first().filter(|_| refused.len() == endpoints.len()) {
        return ("refused", format!("no endpoint of {name} can be connected to: {why}"));
    }
    let full = cluster.shared.load.requests() >= cluster.config.cluster.breaker.max_requests;
    if full {
        return ("refused", format!("the circuit breaker of {name} is full"));
    }
    let policy = &cluster.config.cluster.lb_policy;
    ("forwarded", format!("to one of {usable} endpoints of {name}{part}, by {policy}"))
}
