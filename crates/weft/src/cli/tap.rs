//! `weft tap`.

mod follow;

use std::net::IpAddr;
use std::process::ExitCode;

use clap::Args;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde_json::Value;
use tokio::io::AsyncBufReadExt;
use weft_proxy::telemetry::tap::Filter;

use super::admin::Sidecar;
use super::{Connection, Output};
use crate::failure::Failure;
use crate::output::{self, Format};
use follow::Follow;

/// Requests that pass sidecars, each as it ends
///
/// With a service, at the sidecars of all its instances that can be asked, also of those that come later: the requests that
/// come to it, or with --direction outbound those that it makes. Without one, or with --admin, at one sidecar. All conditions must hold. Nothing is
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

/// A line, with the instance at whose sidecar it was seen if one was looked for.
type Seen = (Option<String>, String);

impl Tap {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        if let (Some(service), None) = (&self.service, self.sidecar.named())
            && let Some(all) = self.follow(service).await?
        {
            return self.show(all).await;
        }
        let query = self.query(self.service.clone(), self.direction.clone());
        let lines = self.sidecar.beside().get("/tap", &query).await?.lines();
        let all = stream::try_unfold(lines, async |mut lines| {
            let broke_off = |error| Failure::new(format!("the sidecar broke off: {error}"));
            Ok(lines.next_line().await.map_err(broke_off)?.map(|line| ((None, line), lines)))
        });
        self.show(all.boxed()).await
    }

    /// Until there is no more, or there were enough.
    async fn show(&self, mut all: BoxStream<'_, Result<Seen, Failure>>) -> Result<ExitCode, Failure> {
        let mut left = self.limit.unwrap_or(u64::MAX);
        while left > 0
            && let Some(seen) = all.next().await
        {
            let (id, line) = seen?;
            output::print(match (self.output.output, id) {
                (Format::Json, id) => format!("{}\n", named(id.as_deref(), line)),
                (Format::Table, Some(id)) => format!("{id} {}\n", row(&line)),
                (Format::Table, None) => format!("{}\n", row(&line)),
            });
            left -= 1;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What the sidecars of a service's instances see. None if it has instances and none of them can be asked, or if no
    /// server says which there are.
    async fn follow(
        &self,
        service: &str,
    ) -> Result<Option<BoxStream<'static, Result<Seen, Failure>>>, Failure> {
        let outbound = self.direction.as_deref() == Some("outbound");
        let direction = self.direction.clone().unwrap_or_else(|| "inbound".to_owned());
        // What its app calls is of other services.
        let query = self.query(Some(service.to_owned()).filter(|_| !outbound), Some(direction));
        let begun = match self.connection.client() {
            Ok(client) => Follow::begin(&client, service, query.clone()).await,
            Err(why) => Err(why),
        };
        let Some(follow) = begun.unwrap_or_else(|why| {
            eprintln!("the sidecars of {service} are not known: {why}");
            None
        }) else {
            eprintln!("looking on at the sidecar of this machine alone");
            return Ok(None);
        };
        // A sidecar that refuses is asked again; so what all of them would refuse is refused here.
        let pairs = query.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Filter::from_query(&pairs, &[]).map_err(Failure::new)?;
        let seen = stream::try_unfold(follow, async |mut follow| Ok(Some((follow.next().await?, follow))));
        Ok(Some(seen.boxed()))
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
        query
    }
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
