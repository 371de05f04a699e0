//! `weft explain`.

use std::process::ExitCode;

use clap::Args;
use serde_json::Value;

use super::Output;
use super::admin::Sidecar;
use crate::failure::Failure;
use crate::output::{self, Format};

/// What a sidecar would do with a request of its app, and why, without sending it
///
/// Tells the route, the services it leads to with their shares, and each endpoint with its health, who told of it, and
/// what keeps it from being asked.
///
/// Example: weft explain orders --path /api/7 --header x-canary:1
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The service or host that is called
    host: String,
    /// Path of the request, with its query
    #[arg(long, default_value = "/")]
    path: String,
    /// Method of the request
    #[arg(long, default_value = "GET")]
    method: String,
    /// A header field of the request; repeat it
    #[arg(long, value_name = "NAME:VALUE")]
    header: Vec<String>,
    #[command(flatten)]
    sidecar: Sidecar,
    #[command(flatten)]
    output: Output,
}

impl Explain {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let mut query = vec![("host", self.host), ("path", self.path), ("method", self.method)];
        query.extend(self.header.into_iter().map(|field| ("header", field)));
        let text = self.sidecar.get_whole("/explain", &query).await?;
        let told: Value = serde_json::from_str(&text)
            .map_err(|error| Failure::new(format!("the sidecar's answer cannot be read: {error}")))?;
        output::print(match self.output.output {
            Format::Json => text,
            Format::Table => render(&told),
        });
        // So that a script can ask.
        Ok(if told["verdict"] == "refused" || told["verdict"] == "not found" {
            ExitCode::from(2)
        } else {
            ExitCode::SUCCESS
        })
    }
}

fn render(told: &Value) -> String {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "none".to_owned(),
        other => other.to_string(),
    };
    let asked = &told["request"];
    let request = format!("{} {} of {}", text(&asked["method"]), text(&asked["path"]), text(&asked["host"]));
    let mut lines = vec![("request", request)];
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
            ]}}, {"service": "next", "share_percent": 5.0, "subset": null, "cluster": null}],
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
        ] {
            assert!(text.contains(part), "{part} not in\n{text}");
        }
    }
}
