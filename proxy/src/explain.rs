//! `/explain`: what this proxy would do with a request of the local app, and why, without sending it.

use http::{HeaderName, HeaderValue, Method, Request, StatusCode, request};
use serde_json::{Value, json};

use super::AdminState;
use super::clusters::cluster_json;
use crate::http::target;
use crate::mesh_view::MeshView;
use crate::route::compiled::{Action, Backend, Forward, Route};
use crate::route::host::service;
use crate::route::matcher::Seen;
use crate::route::path;

/// The answer, or what is wrong with the question: `host=orders&path=/a&method=GET&header=NAME:VALUE`.
pub(super) fn json(state: &AdminState, query: &str) -> Result<Value, (StatusCode, String)> {
    let head = request(query).map_err(|why| (StatusCode::BAD_REQUEST, format!("{why}\n")))?;
    let view = state.outbound.view();
    Ok(explain(&view, &head))
}

fn request(query: &str) -> Result<request::Parts, String> {
    let (mut host, mut path, mut method) = (None, "/".to_owned(), Method::GET);
    let mut headers = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = super::pair(pair)?;
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
            other => return Err(format!("{other}: unknown; allowed are host, path, method, header")),
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

fn explain(view: &MeshView, head: &request::Parts) -> Value {
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
    let asked = json!({ "host": target.host, "method": head.method.as_str(), "path": path });
    let tables =
        [("routes of hosts in the file", &*view.routes), ("routes of hosts in the mesh", &view.hosts.table)];
    for (of, table) in tables {
        if let Some(route) = table.host(&target.host).and_then(|host| host.select(&seen)) {
            return routed(view, asked, of, route);
        }
    }
    let Some(name) = service(&target.host) else {
        return json!({
            "request": asked, "verdict": "not found",
            "why": format!("host {:?} has no routes here and is no name of a service", target.host),
        });
    };
    if let Some(routes) = view.services.get(name) {
        return match routes.table.host(&target.host).and_then(|host| host.select(&seen)) {
            Some(route) => routed(view, asked, "routes of the service", route),
            None => json!({
                "request": asked, "verdict": "not found",
                "why": format!("service {name} has routes, and none is for this request"),
            }),
        };
    }
    let verdict = verdict(view, name, None);
    json!({
        "request": asked, "verdict": verdict.0, "why": verdict.1,
        "found_by": "the service of this name, which has no routes", "backends": [backend(view, name, None, 100.0)],
    })
}

fn routed(view: &MeshView, asked: Value, of: &str, route: &Route) -> Value {
    let mut told = json!({
        "request": asked, "found_by": of, "route": route.name,
        "rate_limit": route.rate_limit.as_ref().map(|(limit, _)| json!({
            "requests": limit.requests, "per_ms": limit.per.as_millis() as u64, "burst": limit.burst,
        })),
        "fault": route.fault.is_some(), "cache": route.cache.is_some(), "cors": route.cors.is_some(),
        "compression": route.compression.is_some(),
        "hedge_after_ms": route.hedge.map(|hedge| hedge.after.as_millis() as u64),
    });
    let rest = match &route.action {
        Action::Forward(to) => forwarded(view, to),
        Action::Redirect(redirect) => json!({
            "verdict": "redirected", "why": format!("the route answers {} itself", redirect.status.as_u16()),
        }),
        Action::Respond { status, .. } => json!({
            "verdict": "answered", "why": format!("the route answers {} itself", status.as_u16()),
        }),
    };
    if let (Value::Object(told), Value::Object(rest)) = (&mut told, rest) {
        told.extend(rest);
    }
    told
}

fn forwarded(view: &MeshView, to: &Forward) -> Value {
    let all: Vec<(&Backend, f64)> = to.shares().collect();
    // Good if any way is good: which one is drawn for each request.
    let verdicts: Vec<_> = all.iter().map(|(b, _)| verdict(view, &b.cluster, Some(b))).collect();
    let (word, why) = verdicts
        .iter()
        .find(|(word, _)| *word != "forwarded")
        .or(verdicts.first())
        .cloned()
        .unwrap_or(("refused", "the route has no backend".to_owned()));
    let millis = |t: Option<std::time::Duration>| t.map(|t| t.as_millis() as u64);
    json!({
        "verdict": word, "why": why,
        "timeout_ms": millis(to.timeout), "try_timeout_ms": millis(to.try_timeout),
        "retry": to.retry.as_ref().map(|r| json!({ "attempts": r.attempts, "codes": r.codes })),
        "rewrites_path": to.path.is_some(), "host": to.host,
        "mirrors": to.mirrors.iter().map(|m| &m.cluster).collect::<Vec<_>>(),
        "backends": all.iter().map(|(b, share)| backend(view, &b.cluster, Some(b), *share)).collect::<Vec<_>>(),
    })
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
    let subset = backend.and_then(|b| b.subset.as_ref());
    let usable = match subset {
        Some(subset) => cluster.subset(subset).len(),
        None => cluster.endpoints.picker().len(),
    };
    let part = subset.map(|s| format!(" with {s}")).unwrap_or_default();
    if usable == 0 {
        return (
            "refused",
            format!("no endpoint of {name}{part} may be asked: {}", cluster.endpoints.counts()),
        );
    }
    let full = cluster.shared.load.requests() >= cluster.config.cluster.breaker.max_requests;
    if full {
        return ("refused", format!("the circuit breaker of {name} is full"));
    }
    let policy = &cluster.config.cluster.lb_policy;
    ("forwarded", format!("to one of {usable} endpoints of {name}{part}, by {policy}"))
}

fn backend(view: &MeshView, name: &str, backend: Option<&Backend>, percent: f64) -> Value {
    let subset = backend.and_then(|b| b.subset.as_ref());
    let mut cluster = view.clusters.get(name).map(|cluster| cluster_json(cluster));
    if let (Some(Value::Object(cluster)), Some(subset)) = (&mut cluster, subset)
        && let Some(Value::Array(endpoints)) = cluster.get_mut("endpoints")
    {
        endpoints.retain(|endpoint| {
            let labels = serde_json::from_value(endpoint["metadata"].clone()).unwrap_or_default();
            subset.contains(&labels)
        });
    }
    json!({
        "service": name, "share_percent": percent, "subset": subset.map(|s| s.to_string()), "cluster": cluster,
    })
}
