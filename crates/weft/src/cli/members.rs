//! `weft members`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use weft_client::proto::weft as pb;

use super::{Connection, Output};
use crate::failure::Failure;
use crate::output::{self, Format};

/// Show who is in the gossip pool, as the asked server sees it
#[derive(Debug, Args)]
pub(crate) struct Members {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Listing {
    members: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    name: String,
    id: String,
    role: String,
    gossip_address: String,
    state: String,
    incarnation: u64,
    since_ms: u64,
}

impl From<pb::Member> for Row {
    fn from(member: pb::Member) -> Self {
        Self {
            name: member.name,
            id: member.id,
            role: member.role,
            gossip_address: member.gossip_address,
            state: member.state,
            incarnation: member.incarnation,
            since_ms: member.since_ms,
        }
    }
}

impl Members {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let members = self.connection.client()?.mesh().members().await?;
        let listing = Listing { members: members.into_iter().map(Row::from).collect() };
        output::print(render(&listing, self.output.output));
        Ok(ExitCode::SUCCESS)
    }
}

fn render(listing: &Listing, format: Format) -> String {
    match format {
        Format::Json => output::json(listing),
        Format::Table => output::table(
            ["NAME", "ROLE", "STATE", "FOR", "GOSSIP ADDRESS", "ID"],
            listing.members.iter().map(|row| {
                let since = output::span(Duration::from_millis(row.since_ms));
                [
                    row.name.clone(),
                    row.role.clone(),
                    row.state.clone(),
                    since,
                    row.gossip_address.clone(),
                    row.id.clone(),
                ]
            }),
            "no members",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_field_names_are_stable() {
        let row = Row {
            name: "s1".to_owned(),
            id: "00ff".to_owned(),
            role: "server".to_owned(),
            gossip_address: "127.0.0.1:7946".to_owned(),
            state: "alive".to_owned(),
            incarnation: 3,
            since_ms: 5000,
        };
        let listing = Listing { members: vec![row] };
        let json: serde_json::Value = serde_json::from_str(&render(&listing, Format::Json)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"members": [{
                "name": "s1", "id": "00ff", "role": "server", "gossip_address": "127.0.0.1:7946",
                "state": "alive", "incarnation": 3, "since_ms": 5000,
            }]})
        );
    }
}
