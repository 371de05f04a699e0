//! `weft services`.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use weft_client::proto::weft as pb;

use super::{Connection, Output};
use crate::failure::Failure;
use crate::output::{self, Format};

/// List all services with their healthy and total instances
#[derive(Debug, Args)]
pub(crate) struct Services {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Listing {
    services: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    healthy: u32,
    total: u32,
    load_balancing: String,
    sources: Vec<String>,
}

impl From<pb::Service> for Row {
    fn from(service: pb::Service) -> Self {
        Self {
            name: service.name,
            healthy: service.healthy,
            total: service.total,
            load_balancing: service.load_balancing,
            sources: service.sources,
        }
    }
}

impl Services {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let services = self.connection.client()?.mesh().services().await?;
        let listing = Listing { services: services.into_iter().map(Row::from).collect() };
        output::print(render(&listing, self.output.output));
        Ok(ExitCode::SUCCESS)
    }
}

fn render(listing: &Listing, format: Format) -> String {
    match format {
        Format::Json => output::json(listing),
        Format::Table => output::table(
            ["SERVICE", "HEALTHY", "TOTAL", "BALANCING", "SOURCES"],
            listing.services.iter().map(|row| {
                let sources = row.sources.join(",");
                [
                    row.name.clone(),
                    row.healthy.to_string(),
                    row.total.to_string(),
                    row.load_balancing.clone(),
                    sources,
                ]
            }),
            "no services: register one over HTTP (POST /register) or run `weft proxy --service NAME=IP:PORT`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_field_names_are_stable() {
        let row = Row {
            name: "orders".to_owned(),
            healthy: 2,
            total: 3,
            load_balancing: "round-robin".to_owned(),
            sources: vec!["registry".to_owned()],
        };
        let listing = Listing { services: vec![row] };
        let json: serde_json::Value = serde_json::from_str(&render(&listing, Format::Json)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"services": [{
                "name": "orders", "healthy": 2, "total": 3,
                "load_balancing": "round-robin", "sources": ["registry"],
            }]})
        );
        assert_eq!(
            render(&listing, Format::Table),
            "SERVICE  HEALTHY  TOTAL  BALANCING    SOURCES\norders   2        3      round-robin  registry\n"
        );
    }
}
