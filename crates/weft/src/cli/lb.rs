//! `weft lb SERVICE [POLICY]`.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use weft_xds_proto::resource::cluster::LbPolicy;

use super::{Connection, Output};
use crate::failure::Failure;
use crate::output::{self, Format};

/// Show or set how proxies balance over a service
///
/// A change reaches every proxy within moments and drops no request. What a TrafficPolicy says of loadBalancing wins:
/// while it does, this command shows it and changes nothing.
#[derive(Debug, Args)]
pub(crate) struct Lb {
    /// Service name
    service: String,
    /// New policy; without it, the present one is shown. One of round-robin, random, least-connections,
    /// least-request, peak-ewma, ring-hash:KEY, maglev:KEY, where KEY is header=NAME, cookie=NAME or source
    policy: Option<LbPolicy>,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Answer {
    service: String,
    load_balancing: String,
    /// The document that says so, such as `TrafficPolicy orders`; absent if none does.
    #[serde(skip_serializing_if = "String::is_empty")]
    by: String,
    /// Of the change; absent if nothing was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    revision: Option<i64>,
}

impl Lb {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let mesh = self.connection.client()?.mesh();
        let answer = match self.policy {
            Some(policy) => {
                let name = policy.to_string();
                let revision = mesh.set_load_balancing(&self.service, &name).await?;
                Answer {
                    service: self.service,
                    load_balancing: name,
                    by: String::new(),
                    revision: Some(revision),
                }
            }
            None => {
                let services = mesh.services().await?;
                let known: Vec<_> = services.iter().map(|service| service.name.clone()).collect();
                let found = services.into_iter().find(|service| service.name == self.service);
                let service = found.ok_or_else(|| {
                    let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                    Failure::new(format!("no service {:?}; known: {known}", self.service))
                })?;
                Answer {
                    service: service.name,
                    load_balancing: service.load_balancing,
                    by: service.load_balancing_by,
                    revision: None,
                }
            }
        };
        output::print(match self.output.output {
            Format::Json => output::json(&answer),
            Format::Table if answer.by.is_empty() => {
                format!("{}: {}\n", answer.service, answer.load_balancing)
            }
            Format::Table => format!("{}: {} (by {})\n", answer.service, answer.load_balancing, answer.by),
        });
        Ok(ExitCode::SUCCESS)
    }
}
