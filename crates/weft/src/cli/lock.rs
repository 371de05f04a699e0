//! `weft lock NAME -- COMMAND…`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;
use weft_client::semaphore::Permit;

use super::Connection;
use super::hold::{Holding, Wanted, position};
use crate::failure::Failure;

/// Run a command while holding a lock
///
/// Waits for the lock, in order of arrival, then runs COMMAND in the foreground and exits with its code
/// (128 + n after signal n). COMMAND finds the fencing token in WEFT_FENCE, the session's lease (hex) in
/// WEFT_LEASE and the name in WEFT_NAME. SIGTERM and SIGINT are forwarded. If the session is lost, the
/// command is stopped before anyone else can hold the lock, and the exit code is 75. 124: not granted in
/// time.
///
/// Example: weft lock deploy --timeout 5m -- ./deploy.sh
#[derive(Debug, Args)]
pub(crate) struct Lock {
    /// The lock's name: 1 to 251 bytes
    name: String,
    /// Do not wait: exit with 124 if it is taken
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

impl Lock {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let client = self.connection.client()?;
        let lock = client.lock(&self.name);
        let wanted = Wanted { what: format!("lock {}", self.name), name: &self.name, command: &self.command };
        let acquire = |session| {
            let lock = lock.clone();
            let (try_only, timeout) = (self.try_only, self.holding.timeout);
            async move {
                let permit = match (try_only, timeout) {
                    (true, _) => lock.try_acquire(&session).await?,
                    (false, Some(timeout)) => lock.acquire_within(&session, timeout).await?,
                    (false, None) => Some(lock.acquire(&session).await?),
                };
                Ok(permit.as_ref().map(Permit::grant).cloned())
            }
        };
        let progress = |session: weft_client::Session| {
            let lock = lock.clone();
            async move {
                let now = lock.describe().await?;
                Ok(position(&now.waiters, now.holders.len(), session.lease()))
            }
        };
        self.holding.run(&client, wanted, acquire, progress).await
    }
}
