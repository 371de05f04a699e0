//! `weft semaphore NAME --limit N -- COMMAND…`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;
use weft_client::semaphore::{AcquireOptions, Permit};

use super::Connection;
use super::hold::{Holding, Wanted, position};
use crate::failure::Failure;

/// Run a command while holding permits of a semaphore
///
/// At most N permits are out at once, in order of arrival. Environment, signals and exit codes are as
/// for `weft lock`.
///
/// Example: weft semaphore db --limit 10 -- ./migrate.sh
#[derive(Debug, Args)]
pub(crate) struct Semaphore {
    /// The semaphore's name: 1 to 256 bytes
    name: String,
    /// Permits there are, for everyone who uses the name; the latest --limit counts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Permits to take at once; at most the limit
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    permits: u32,
    /// Do not wait: exit with 124 if not enough permits are free
    #[arg(long = "try", conflicts_with = "timeout")]
    try_only: bool,
    #[command(flatten)]
    holding: Holding,
    #[command(flatten)]
    connection: Connection,
    /// The command, with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Semaphore {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        if self.permits > self.limit {
            let message = format!("--permits {} is more than --limit {}", self.permits, self.limit);
            return Err(Failure::new(message));
        }
        let client = self.connection.client()?;
        let semaphore = client.semaphore(&self.name);
        let wanted =
            Wanted { what: format!("semaphore {}", self.name), name: &self.name, command: &self.command };
        let options = AcquireOptions {
            permits: self.permits,
            limit: self.limit,
            timeout: self.holding.timeout,
            try_only: self.try_only,
        };
        let acquire = |session| {
            let (semaphore, options) = (semaphore.clone(), options.clone());
            async move {
                let permit = semaphore.acquire(&session, options).await?;
                Ok(permit.as_ref().map(Permit::grant).cloned())
            }
        };
        let progress = |session: weft_client::Session| {
            let semaphore = semaphore.clone();
            async move {
                let now = semaphore.describe().await?;
                Ok(position(&now.waiters, now.holders.len(), session.lease()))
            }
        };
        self.holding.run(&client, wanted, acquire, progress).await
    }
}
