//! `weft tap`.

use std::net::IpAddr;
use std::process::ExitCode;

use clap::Args;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde_json::Value;
use tokio::io::AsyncBufReadExt;

use super::admin::{Admin, Sidecar};
use super::{Connection, Output, sidecars};
use crate::failure::Failure;
use crate::output::{self, Format};

/// Requests that pass sidecars, each as it ends
///
/// With a service, at the sidecars of all its instances that can be asked: the requests that come to it, or with
/// --direction outbound those that it makes. Without one, or with --admin, at one sidecar. All conditions must hold. Nothing is
/// noted while nobody looks on, and traffic never waits for whoever does: what comes too fast is left out, and that is
/// said. Ends with Ctrl-C, or after --limit requests.
///
/// Example: weft tap orders --status 5xx --min-ms 100
#[derive(Debug, Args)]
pub(crate) struct Tap {
    /// Only requests to this service; default: all that pass the sidecar
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
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    #[command(flatten)]
    sidecar: Sidecar,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

type Query = Vec<(&'static str, String)>;

impl Tap {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let found = match (&self.service, self.sidecar.named()) {
            (Some(service), None) => self.found(service).await,
            _ => Vec::new(),
        };
        let mut sources = Vec::new();
        let several = found.len() > 1;
        if found.is_empty() {
            let query = self.query(self.service.clone(), self.direction.clone());
            sources.push(lines(None, self.sidecar.beside(), &query).await?);
        } else {
            let outbound = self.direction.as_deref() == Some("outbound");
            let direction = self.direction.clone().unwrap_or_else(|| "inbound".to_owned());
            // What its app calls is of other services.
            let query = self.query(self.service.clone().filter(|_| !outbound), Some(direction));
            for (id, admin) in found {
                match lines(Some(id), admin, &query).await {
                    Ok(source) => sources.push(source),
                    Err(why) if several => eprintln!("not seen: {why}"),
                    Err(why) => return Err(why),
                }
            }
        }
        if sources.is_empty() {
            return Err(Failure::new("none of the sidecars answers"));
        }
        let mut all = stream::select_all(sources);
        let mut left = self.limit.unwrap_or(u64::MAX);
        while left > 0
            && let Some((id, line)) = all.next().await
        {
            output::print(match self.output.output {
                Format::Json => format!("{}\n", named(id.as_deref(), line)),
                Format::Table if several => {
                    format!("{} {}\n", id.as_deref().unwrap_or_default(), row(&line))
                }
                Format::Table => format!("{}\n", row(&line)),
            });
            left -= 1;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The sidecars of a service's instances, with the names of these. What cannot be seen is said.
    async fn found(&self, service: &str) -> Vec<(String, Admin)> {
        let known = match self.connection.client() {
            Ok(client) => sidecars::of(&client, service).await,
            Err(why) => Err(why),
        };
        let mut found = Vec::new();
        match known {
            Ok(instances) => {
                for instance in instances {
                    match instance.sidecar {
                        Ok(admin) => found.push((instance.id, admin)),
                        Err(why) => eprintln!("not seen: {why}"),
                    }
                }
            }
            Err(why) => eprintln!("the sidecars of {service} are not known: {why}"),
        }
        if found.is_empty() {
            eprintln!("looking on at the sidecar of this machine alone");
        }
        found
    }

    fn query(&self, service: Option<String>, direction: Option<String>) -> Query {
        let mut query = Query::new();
        let mut put =
            |key: &'static str, value: Option<String>| query.extend(value.map(|value| (key, value)));
        put("service", service);
        put("direction", direction);
        put("method", self.method.clone());
        put("path", self.path.clone());
        put("status", self.status.clone());
        put("flag", self.flag.clone());
        put("client", self.client.map(|ip| ip.to_string()));
        put("min-ms", self.min_ms.map(|ms| ms.to_string()));
        put("limit", self.limit.map(|n| n.to_string()));
        query
    }
}

/// What a sidecar tells, line by line, each with the name of the instance.
async fn lines(
    id: Option<String>,
    admin: Admin,
    query: &Query,
) -> Result<BoxStream<'static, (Option<String>, String)>, Failure> {
    let lines = admin.get("/tap", query).await?.lines();
    let told = stream::unfold((id, lines), async |(id, mut lines)| match lines.next_line().await {
        Ok(Some(line)) => Some(((id.clone(), line), (id, lines))),
        _ => None,
    });
    Ok(told.boxed())
}

/// The line with the instance at whose sidecar it was seen.
fn named(id: Option<&str>, line: String) -> String {
    match (id, serde_json::from_str::<Value>(&line)) {
        (Some(id), Ok(Value::Object(mut entry))) => {
            entry.insert("instance".to_owned(), id.into());
            Value::Object(entry).to_string()
        }
        _ => line,
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

    #[test]
    fn a_line_for_programs_names_the_instance_at_which_it_was_seen() {
        let named = |id, line: &str| named(id, line.to_owned());
        assert_eq!(named(None, "{\"a\":1}"), "{\"a\":1}");
        assert_eq!(named(Some("o-1"), "{\"a\":1}"), "{\"a\":1,\"instance\":\"o-1\"}");
    }
}
