//! `weft check`, `weft apply`, `weft get`, `weft delete`, `weft schema`: routes and policies, as documents.

mod files;

use std::process::ExitCode;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde::Serialize;
use serde_json::Value;
use weft_client::proto::weft as pb;
use weft_meshconfig::document::located;
use weft_meshconfig::{Kind, Problem, schema};

pub(crate) use self::files::Check;
use self::files::{Files, Found};
use super::{Connection, Output};
use crate::failure::Failure;
use crate::output::{self, Format};

/// Create or replace routes and policies; all or none
///
/// They reach every proxy within moments. Nothing is changed if there is a mistake anywhere.
///
/// Example: weft apply -f canary.yaml
#[derive(Debug, Args)]
pub(crate) struct Apply {
    #[command(flatten)]
    files: Files,
    /// Check against what is stored, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// Show routes or policies, or one with all that it says (with --output json)
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// What
    #[arg(value_enum)]
    what: Resource,
    /// Only the one of this name
    name: Option<String>,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// Take a route or a policy out
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// What
    #[arg(value_enum)]
    what: Resource,
    /// Its name
    name: String,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// Print the JSON Schema of routes and policies, for editors
///
/// Example: weft schema > weft.schema.json
#[derive(Debug, Args)]
pub(crate) struct Schema {
    /// Of one kind alone; default: all
    #[arg(value_enum)]
    kind: Option<KindName>,
}

/// What to show or take out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Resource {
    /// HTTPRoutes and GRPCRoutes
    #[value(alias = "route")]
    Routes,
    /// HTTPRoutes
    #[value(alias = "httproute")]
    Httproutes,
    /// GRPCRoutes
    #[value(alias = "grpcroute")]
    Grpcroutes,
    /// HTTPRouteFilters
    #[value(aliases = ["filter", "httproutefilter", "httproutefilters"])]
    Filters,
    /// TrafficPolicies
    #[value(aliases = ["policy", "trafficpolicy", "trafficpolicies"])]
    Policies,
    /// AuthorizationPolicies
    #[value(aliases = ["authorizationpolicy", "authorizationpolicies"])]
    Authz,
    /// RequestAuthentications
    #[value(aliases = ["requestauthentication", "requestauthentications"])]
    Tokens,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KindName {
    /// HTTPRoute
    Httproute,
    /// GRPCRoute
    Grpcroute,
    /// HTTPRouteFilter
    Httproutefilter,
    /// TrafficPolicy
    Trafficpolicy,
    /// AuthorizationPolicy
    Authorizationpolicy,
    /// RequestAuthentication
    Requestauthentication,
}

impl Resource {
    fn kinds(self) -> &'static [Kind] {
        match self {
            Self::Routes => &[Kind::HttpRoute, Kind::GrpcRoute],
            Self::Httproutes => &[Kind::HttpRoute],
            Self::Grpcroutes => &[Kind::GrpcRoute],
            Self::Filters => &[Kind::HttpRouteFilter],
            Self::Policies => &[Kind::TrafficPolicy],
            Self::Authz => &[Kind::AuthorizationPolicy],
            Self::Tokens => &[Kind::RequestAuthentication],
        }
    }
}

/// A document with where it stands.
#[derive(Debug, Serialize)]
struct Applied {
    dry_run: bool,
    revision: i64,
    documents: Vec<OutcomeRow>,
}

#[derive(Debug, Serialize)]
struct OutcomeRow {
    kind: String,
    name: String,
    outcome: String,
}

impl Apply {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let found = self.files.read()?;
        let documents = found.iter().map(|f| Bytes::from(f.document.to_bytes())).collect();
        let answer = self.connection.client()?.config().apply(documents, self.dry_run).await?;
        if !answer.problems.is_empty() {
            let lines: Vec<_> = answer.problems.into_iter().map(|p| line(&found, p)).collect();
            return Err(Failure::new(lines.join("\n")));
        }
        let rows = answer.outcomes.into_iter().map(|o| OutcomeRow {
            kind: o.kind,
            name: o.name,
            outcome: o.outcome,
        });
        let applied = Applied { dry_run: self.dry_run, revision: answer.revision, documents: rows.collect() };
        output::print(match self.output.output {
            Format::Json => output::json(&applied),
            Format::Table => output::table(
                ["KIND", "NAME", if applied.dry_run { "WOULD BE" } else { "OUTCOME" }],
                applied.documents.iter().map(|d| [d.kind.clone(), d.name.clone(), d.outcome.clone()]),
                "nothing was given",
            ),
        });
        Ok(ExitCode::SUCCESS)
    }
}

/// What the server found, with its place in the files.
fn line(found: &[Found], problem: pb::ConfigProblem) -> String {
    let key = (!problem.key.is_empty()).then_some(problem.key);
    let text = Problem { at: problem.path, key, message: problem.message };
    match usize::try_from(problem.document).ok().and_then(|i| found.get(i)) {
        Some(f) => format!("{}:{}", f.file, located(&f.node, &f.document.title(), text)),
        None => text.to_string(),
    }
}

#[derive(Debug, Serialize)]
struct Listing {
    documents: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    kind: String,
    name: String,
    revision: i64,
    version: i64,
    document: Value,
}

impl Get {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let config = self.connection.client()?.config();
        let mut rows = Vec::new();
        for kind in self.what.kinds() {
            for d in config.list(kind.as_str(), self.name.as_deref().unwrap_or_default()).await? {
                let document = serde_json::from_slice(&d.json).unwrap_or(Value::Null);
                rows.push(Row {
                    kind: d.kind,
                    name: d.name,
                    revision: d.mod_revision,
                    version: d.version,
                    document,
                });
            }
        }
        if let Some(name) = self.name.filter(|_| rows.is_empty()) {
            return Err(Failure::new(format!("no {} named {name:?}", kinds(self.what))));
        }
        let listing = Listing { documents: rows };
        output::print(render(&listing, self.output.output));
        Ok(ExitCode::SUCCESS)
    }
}

fn kinds(what: Resource) -> String {
    let kinds: Vec<_> = what.kinds().iter().map(|k| k.as_str()).collect();
    kinds.join(" or ")
}

fn render(listing: &Listing, format: Format) -> String {
    match format {
        Format::Json => output::json(listing),
        Format::Table => output::table(
            ["KIND", "NAME", "FOR", "SAYS", "REVISION"],
            listing.documents.iter().map(|row| {
                [
                    row.kind.clone(),
                    row.name.clone(),
                    used_for(&row.document),
                    says(&row.document),
                    row.revision.to_string(),
                ]
            }),
            "none: write one and `weft apply -f FILE`",
        ),
    }
}

/// The number of a route's rules, or the keys that another document gives.
fn says(document: &Value) -> String {
    let Some(Value::Object(spec)) = document.get("spec") else { return String::new() };
    match spec.get("rules").and_then(Value::as_array) {
        Some(rules) if rules.len() == 1 => "1 rule".to_owned(),
        Some(rules) => format!("{} rules", rules.len()),
        None => spec.keys().filter(|k| *k != "targetRef").cloned().collect::<Vec<_>>().join(","),
    }
}

/// Services and hosts that a document is for.
fn used_for(document: &Value) -> String {
    let list = |pointer: &str| document.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let services = list("/spec/parentRefs").filter_map(|p| p.get("name")?.as_str());
    let hosts = list("/spec/hostnames").filter_map(Value::as_str);
    let target = document.pointer("/spec/targetRef/name").and_then(Value::as_str);
    services.chain(hosts).chain(target).collect::<Vec<_>>().join(",")
}

impl Delete {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let config = self.connection.client()?.config();
        let mut there = Vec::new();
        for kind in self.what.kinds() {
            if !config.list(kind.as_str(), &self.name).await?.is_empty() {
                there.push(*kind);
            }
        }
        let kind = match there.as_slice() {
            [kind] => *kind,
            [] => return Err(Failure::new(format!("no {} named {:?}", kinds(self.what), self.name))),
            _ => {
                let text = "there are an HTTPRoute and a GRPCRoute of that name; say httproute or grpcroute";
                return Err(Failure::new(text));
            }
        };
        let revision = config.delete(kind.as_str(), &self.name).await?;
        output::print(match self.output.output {
            Format::Json => {
                let row = serde_json::json!({"kind": kind.as_str(), "name": self.name, "revision": revision});
                output::json(&row)
            }
            Format::Table => format!("{kind} {}: deleted\n", self.name),
        });
        Ok(ExitCode::SUCCESS)
    }
}

impl Schema {
    pub(crate) fn run(self) -> ExitCode {
        let kind = self.kind.map(|kind| match kind {
            KindName::Httproute => Kind::HttpRoute,
            KindName::Grpcroute => Kind::GrpcRoute,
            KindName::Httproutefilter => Kind::HttpRouteFilter,
            KindName::Trafficpolicy => Kind::TrafficPolicy,
            KindName::Authorizationpolicy => Kind::AuthorizationPolicy,
            KindName::Requestauthentication => Kind::RequestAuthentication,
        });
        output::print(output::json(&schema::json(kind)));
        ExitCode::SUCCESS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_field_names_are_stable() {
        let document = serde_json::json!({"spec": {"parentRefs": [{"name": "orders"}], "rules": [{}, {}]}});
        let row =
            Row { kind: "HTTPRoute".to_owned(), name: "r".to_owned(), revision: 7, version: 1, document };
        let spec = serde_json::json!({"targetRef": {"kind": "Service", "name": "orders"}, "panic": {}, "loadBalancing": "random"});
        let policy = Row {
            kind: "TrafficPolicy".to_owned(),
            name: "p".to_owned(),
            revision: 8,
            version: 1,
            document: serde_json::json!({ "spec": spec }),
        };
        let listing = Listing { documents: vec![row, policy] };
        let json: Value = serde_json::from_str(&render(&listing, Format::Json)).unwrap();
        assert_eq!(json["documents"][0]["revision"], 7);
        assert_eq!(json["documents"][0]["document"]["spec"]["parentRefs"][0]["name"], "orders");
        assert_eq!(
            render(&listing, Format::Table),
            "KIND           NAME  FOR     SAYS                 REVISION\n\
             HTTPRoute      r     orders  2 rules              7\n\
             TrafficPolicy  p     orders  loadBalancing,panic  8\n"
        );
    }
}
