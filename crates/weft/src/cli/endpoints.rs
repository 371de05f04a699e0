//! `weft endpoints SERVICE`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use weft_client::proto::weft as pb;

use super::{Connection, Output};
use crate::failure::Failure;
use crate::output::{self, Format};

/// Show where a service is: address, health, source, owner and age of each instance
#[derive(Debug, Args)]
pub(crate) struct Endpoints {
    /// Service name
    service: String,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Listing {
    service: String,
    endpoints: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    instance_id: String,
    address: String,
    health: String,
    source: String,
    owner: String,
    age_ms: u64,
    metadata: BTreeMap<String, String>,
}

impl From<pb::Endpoint> for Row {
    fn from(endpoint: pb::Endpoint) -> Self {
        Self {
            instance_id: endpoint.instance_id,
            address: endpoint.address,
            health: endpoint.health,
            source: endpoint.source,
            owner: endpoint.owner,
            age_ms: endpoint.age_ms,
            metadata: endpoint.metadata.into_iter().collect(),
        }
    }
}

impl Endpoints {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let endpoints = self.connection.client()?.mesh().endpoints(&self.service).await?;
        let listing =
            Listing { service: self.service, endpoints: endpoints.into_iter().map(Row::from).collect() };
        output::print(render(&listing, self.output.output));
        Ok(ExitCode::SUCCESS)
    }
}

fn render(listing: &Listing, format: Format) -> String {
    match format {
        Format::Json => output::json(listing),
        Format::Table => output::table(
            ["INSTANCE", "ADDRESS", "HEALTH", "SOURCE", "OWNER", "AGE", "METADATA"],
            listing.endpoints.iter().map(|row| {
                let metadata: Vec<_> =
                    row.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
                [
                    row.instance_id.clone(),
                    row.address.clone(),
                    row.health.clone(),
                    row.source.clone(),
                    row.owner.clone(),
                    output::span(Duration::from_millis(row.age_ms)),
                    metadata.join(","),
                ]
            }),
            &format!("service {} has no instances; `weft services` lists what is known", listing.service),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_field_names_are_stable() {
        let row = Row {
            instance_id: "o-1".to_owned(),
            address: "127.0.0.1:80".to_owned(),
            health: "passing".to_owned(),
            source: "registry".to_owned(),
            owner: "1f".to_owned(),
            age_ms: 1500,
            metadata: [("version".to_owned(), "2".to_owned())].into(),
        };
        let listing = Listing { service: "orders".to_owned(), endpoints: vec![row] };
        let json: serde_json::Value = serde_json::from_str(&render(&listing, Format::Json)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"service": "orders", "endpoints": [{
                "instance_id": "o-1", "address": "127.0.0.1:80", "health": "passing", "source": "registry",
                "owner": "1f", "age_ms": 1500, "metadata": {"version": "2"},
            }]})
        );
        let table = render(&listing, Format::Table);
        assert!(table.contains("1s") && table.contains("version=2"), "{table}");
    }

    #[test]
    fn no_instances_is_said_with_what_to_do() {
        let listing = Listing { service: "orders".to_owned(), endpoints: Vec::new() };
        let text = render(&listing, Format::Table);
        assert!(text.contains("orders") && text.contains("weft services"), "{text}");
    }
}
