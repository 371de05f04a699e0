//! `weft quota [PREFIX]`.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use weft_core::config::{format_bytes, parse_bytes};
use weft_xds_proto::weft as pb;

use super::{Connection, Output};
use crate::failure::Failure;
use crate::output::{self, Format};

/// Show or set how many bytes may be stored under a prefix
///
/// Keys that exist count, with their values; history does not. At the hard mark, writes that need more are
/// refused as `database space exceeded`. Deletes always pass, and with them the quota is free again by itself.
///
/// Example: weft quota app/ --soft 48MiB --hard 64MiB
#[derive(Debug, Args)]
pub(crate) struct Quota {
    /// What keys begin with; "" is all keys but Weft's own; without it, all quotas are shown
    prefix: Option<String>,
    /// Bytes above which writes that need more are refused, such as 64MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "prefix")]
    hard: Option<u64>,
    /// Bytes above which operators are told; default: that of --hard
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "hard")]
    soft: Option<u64>,
    /// Take the quota away
    #[arg(long, requires = "prefix", conflicts_with = "hard")]
    off: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Row {
    prefix: String,
    used_bytes: u64,
    soft_bytes: u64,
    hard_bytes: u64,
}

impl Quota {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let client = self.connection.client()?;
        if let Some(prefix) = &self.prefix {
            let quota = self
                .hard
                .map(|hard_bytes| pb::Quota { soft_bytes: self.soft.unwrap_or(hard_bytes), hard_bytes });
            if quota.is_some() || self.off {
                client.set_quota(prefix.clone(), quota).await?;
            }
        }
        let rows: Vec<Row> = client
            .quotas()
            .await?
            .into_iter()
            .map(|usage| Row {
                prefix: String::from_utf8_lossy(&usage.prefix).into_owned(),
                used_bytes: usage.used_bytes,
                soft_bytes: usage.quota.map_or(0, |quota| quota.soft_bytes),
                hard_bytes: usage.quota.map_or(0, |quota| quota.hard_bytes),
            })
            .filter(|row| self.prefix.as_ref().is_none_or(|prefix| *prefix == row.prefix))
            .collect();
        output::print(match self.output.output {
            Format::Json => output::json(&rows),
            Format::Table => {
                let state = |row: &Row| match row.used_bytes {
                    used if used >= row.hard_bytes => "full",
                    used if used > row.soft_bytes => "above the soft mark",
                    _ => "ok",
                };
                let rows = rows.iter().map(|row| {
                    let [used, soft, hard] =
                        [row.used_bytes, row.soft_bytes, row.hard_bytes].map(format_bytes);
                    [format!("{:?}", row.prefix), used, soft, hard, state(row).to_owned()]
                });
                output::table(["PREFIX", "USED", "SOFT", "HARD", "STATE"], rows, "no quotas")
            }
        });
        Ok(ExitCode::SUCCESS)
    }
}
