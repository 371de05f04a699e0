//! `weft token`.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::{Connection, Output};
use crate::failure::Failure;
use crate::output::{self, Format};

/// Log in and print a token, for programs that register over HTTP
///
/// It is valid for a day, on every server, as long as the user's password is not changed.
#[derive(Debug, Args)]
pub(crate) struct Token {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Answer {
    token: String,
}

impl Token {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let token = self.connection.client()?.token().await?.ok_or_else(|| {
            Failure::new("no token: name a user with --user, and see with `etcdctl auth status` that authentication is on")
        })?;
        output::print(match self.output.output {
            Format::Json => output::json(&Answer { token }),
            Format::Table => format!("{token}\n"),
        });
        Ok(ExitCode::SUCCESS)
    }
}
