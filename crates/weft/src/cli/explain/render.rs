//! What is known of a request, for people.

use serde_json::Value;

use crate::output;

pub(super) fn render(told: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "none".to_owned(),
        other => other.to_string(),
    };
    let asked = &told["request"];
    let mut lines = Vec::new();
    let request = format!("{} {} of {}", text(&asked["method"]), text(&asked["path"]), text(&asked["host"]));
    lines.push(("request", request));
    if let Some(caller) = told.get("caller") {
        let identity = caller["identity"].as_str().unwrap_or("without a certificate");
        let from = caller["address"].as_str().map(|ip| format!(", from {ip}")).unwrap_or_default();
        lines.push(("caller", format!("{}, {identity}{from}", text(&caller["source"]))));
    }
    if let Some(asked) = told.get("asked") {
        lines.push(("asked", text(asked)));
    }
    lines.push(("verdict", format!("{}: {}", text(&told["verdict"]), text(&told["why"]))));
    if let Some(by) = told.get("found_by") {
        lines.push(("found by", text(by)));
    }
    if let Some(route) = told.get("route") {
        lines.push(("route", text(route)));
    }
    for (key, label) in [
        ("timeout_ms", "timeout, ms"),
        ("try_timeout_ms", "per try, ms"),
        ("retry", "retry"),
        ("rate_limit", "rate limit"),
        ("hedge_after_ms", "hedge after, ms"),
    ] {
        if let Some(value) = told.get(key).filter(|value| !value.is_null()) {
            lines.push((label, text(value)));
        }
    }
    let mut out = output::pairs(&lines);
    for backend in told["backends"].as_array().into_iter().flatten() {
        let subset = match &backend["subset"] {
            Value::String(subset) => format!(" with {subset}"),
            _ => String::new(),
        };
        out.push_str(&format!("\n{} % to {}{subset}\n", backend["share_percent"], text(&backend["service"])));
        let cluster = &backend["cluster"];
        if cluster.is_null() {
            out.push_str("  not known here yet\n");
            continue;
        }
        let rows = cluster["endpoints"].as_array().into_iter().flatten().map(|endpoint| {
            let mut status = text(&endpoint["status"]);
            if let Some(cause) = endpoint["ejected"]["cause"].as_str() {
                status.push_str(&format!(" ({cause})"));
            } else if let Some(why) = endpoint["check_error"].as_str() {
                status.push_str(&format!(" ({why})"));
            }
            let labels = endpoint["metadata"].as_object().into_iter().flatten();
            let labels: Vec<_> = labels.map(|(key, value)| format!("{key}={}", text(value))).collect();
            [
                text(&endpoint["address"]),
                status,
                text(&endpoint["source"]),
                text(&endpoint["owner"]),
                format!("{} s", endpoint["age_secs"]),
                text(&endpoint["active"]),
                labels.join(","),
            ]
        });
        let head = ["ENDPOINT", "STATUS", "SOURCE", "OWNER", "AGE", "ACTIVE", "LABELS"];
        out.push_str(&output::table(head, rows, "it has no endpoints"));
        if let Some(admission) = backend.get("admission") {
            out.push_str(&admitted(admission));
        }
    }
    out
}

/// What its sidecars make of the caller.
fn admitted(told: &Value) -> String {
    let verdict = |told: &Value| {
        let text = |key: &str| told[key].as_str().unwrap_or("-").to_owned();
        let status = told["status"].as_u64().map(|status| format!(" {status}")).unwrap_or_default();
        format!("{}{status}, {}", text("verdict"), text("why"))
    };
    let mut out = format!("caller: {}\n", verdict(told));
    if let Some(asked) = told["asked"].as_str() {
        out.push_str(&format!("        by {asked}\n"));
    }
    for other in told["differs"].as_array().into_iter().flatten() {
        let ids: Vec<_> =
            other["instances"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        out.push_str(&format!("        {} by {}\n", verdict(other), ids.join(", ")));
    }
    if let Some(note) = told["note"].as_str() {
        out.push_str(&format!("        {note}\n"));
    }
    let policies = told["policies"].as_array().into_iter().flatten();
    let rows: Vec<_> = policies
        .map(|policy| {
            ["name", "action", "mode", "rule"].map(|key| policy[key].as_str().unwrap_or("none").to_owned())
        })
        .collect();
    if !rows.is_empty() {
        out.push_str(&output::table(["POLICY", "ACTION", "MODE", "FOR IT BY"], rows, ""));
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn route_shares_and_endpoints_are_told_with_their_provenance() {
        let told = json!({
            "request": {"host": "orders", "method": "GET", "path": "/a"},
            "verdict": "forwarded", "why": "to one of 1 endpoints of orders with version=^1, by round-robin",
            "found_by": "routes of the service", "route": "r/main", "timeout_ms": 5000, "retry": null,
            "backends": [{"service": "orders", "share_percent": 95.0, "subset": "version=^1", "cluster": {"endpoints": [
                {"address": "10.0.0.7:80", "status": "ejected", "ejected": {"cause": "connect"}, "source": "gossip",
                 "owner": "west-1", "age_secs": 7, "active": 0, "metadata": {"version": "1.2"}},
            ]}, "admission": {"verdict": "DENY", "status": 403, "why": "no AuthorizationPolicy allows it", "policies": [
                {"name": "callers", "action": "ALLOW", "mode": "Enforce", "rule": null},
            ], "asked": "the sidecar of one", "differs": [
                {"instances": ["two"], "verdict": "ALLOW", "why": "no AuthorizationPolicy is for this service"},
            ], "note": "a note"}}, {"service": "next", "share_percent": 5.0, "subset": null, "cluster": null}],
        });
        let text = render(&told);
        for part in [
            "GET /a of orders",
            "forwarded: to one of 1",
            "r/main",
            "5000",
            "95.0 % to orders with version=^1",
            "ejected (connect)",
            "gossip",
            "west-1",
            "version=1.2",
            "5.0 % to next",
            "not known here yet",
            "caller: DENY 403, no AuthorizationPolicy allows it",
            "        by the sidecar of one\n        ALLOW, no AuthorizationPolicy is for this service by two\n        a note\n",
            "callers  ALLOW   Enforce  none",
        ] {
            assert!(text.contains(part), "{part} not in\n{text}");
        }
    }
}
