//! `weft tap`.

use std::net::IpAddr;
use std::process::ExitCode;

use clap::Args;
use serde_json::Value;
use tokio::io::AsyncBufReadExt;

use super::Output;
use super::admin::Sidecar;
use crate::failure::Failure;
use crate::output::{self, Format};

/// Requests that pass a sidecar, each as it ends
///
/// All conditions must hold. Nothing is noted while nobody looks on, and traffic never waits for whoever does: what
/// comes too fast is left out, and that is said. Ends with Ctrl-C, or after --limit requests.
///
/// Example: weft tap orders --status 5xx --min-ms 100
#[derive(Debug, Args)]
pub(crate) struct Tap {
    /// Only requests to this service; default: all
    service: Option<String>,
    /// Only calls of the local app (outbound), or calls to it (inbound)
    #[arg(long, value_name = "outbound|inbound")]
    direction: Option<String>,
    /// Only this method
    #[arg(long)]
    method: Option<String>,
    /// Only paths that begin so
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,
    /// Only answers with this status, such as 404 or 5xx
    #[arg(long)]
    status: Option<String>,
    /// Only what this happened to, as in the access log, such as upstream-timeout
    #[arg(long)]
    flag: Option<String>,
    /// Only requests of this client
    #[arg(long, value_name = "IP")]
    client: Option<IpAddr>,
    /// Only requests that took so many milliseconds, or more
    #[arg(long, value_name = "MILLISECONDS")]
    min_ms: Option<u64>,
    /// End after so many requests; default: go on
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    #[command(flatten)]
    sidecar: Sidecar,
    #[command(flatten)]
    output: Output,
}

impl Tap {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let mut query: Vec<(&str, String)> = Vec::new();
        let mut put =
            |key: &'static str, value: Option<String>| query.extend(value.map(|value| (key, value)));
        put("service", self.service);
        put("direction", self.direction);
        put("method", self.method);
        put("path", self.path);
        put("status", self.status);
        put("flag", self.flag);
        put("client", self.client.map(|ip| ip.to_string()));
        put("min-ms", self.min_ms.map(|ms| ms.to_string()));
        put("limit", self.limit.map(|n| n.to_string()));
        let mut lines = self.sidecar.beside().get("/tap", &query).await?.lines();
        while let Ok(Some(line)) = lines.next_line().await {
            output::print(match self.output.output {
                Format::Json => format!("{line}\n"),
                Format::Table => format!("{}\n", row(&line)),
            });
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// `12:00:01.204 outbound GET orders /a → 200 in 3.1 ms by 10.0.0.7:80`, with what happened to it behind.
fn row(line: &str) -> String {
    let Ok(entry) = serde_json::from_str::<Value>(line) else { return line.to_owned() };
    if let Some(dropped) = entry.get("dropped") {
        return format!("({dropped} requests were too fast to be shown)");
    }
    let text = |key: &str| entry[key].as_str().unwrap_or_default();
    let time = text("time");
    // The day is that of whoever looks on.
    let time = time.split_once('T').map_or(time, |(_, time)| time);
    let mut row = format!("{time} {} ", text("direction"));
    if text("protocol") == "TCP" {
        row.push_str(&format!("TCP {} {} bytes", text("service"), entry["bytes"]));
    } else {
        let status = entry["status"].as_u64().map_or("-".to_owned(), |status| status.to_string());
        row.push_str(&format!("{} {} {} → {status}", text("method"), text("host"), text("path")));
    }
    row.push_str(&format!(" in {} ms", entry["duration_ms"]));
    if !text("endpoint").is_empty() {
        row.push_str(&format!(" by {} of {}", text("endpoint"), text("service")));
    }
    if entry["tries"].as_u64().is_some_and(|n| n > 1) {
        row.push_str(&format!(", {} tries", entry["tries"]));
    }
    let flags: Vec<_> = entry["flags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !flags.is_empty() {
        row.push_str(&format!(" ({})", flags.join(", ")));
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_one_line_for_people() {
        let line = r#"{"time":"2026-01-02T03:04:05.678Z","direction":"outbound","client":"127.0.0.1:5","method":"GET","host":"orders","path":"/a","protocol":"HTTP/1.1","status":503,"flags":["overflow"],"bytes":3,"duration_ms":3.125,"head_ms":3,"service":"orders","route":"","endpoint":"10.0.0.7:80","tries":2,"trace_id":""}"#;
        assert_eq!(
            row(line),
            "03:04:05.678Z outbound GET orders /a → 503 in 3.125 ms by 10.0.0.7:80 of orders, 2 tries (overflow)"
        );
        assert_eq!(row(r#"{"dropped":7}"#), "(7 requests were too fast to be shown)");
        assert_eq!(row("what is this"), "what is this");
    }
}
