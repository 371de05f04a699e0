//! `weft explain`.

use std::process::ExitCode;

use clap::Args;
use http::header::AUTHORIZATION;
use serde_json::Value;

use super::admin::{Admin, Sidecar};
use super::{Connection, Output};
use crate::failure::Failure;
use crate::output::{self, Format};

mod admitted;
mod between;
mod render;

/// What would become of a request, and why, without sending it
///
/// Tells the route, the services it leads to with their shares, and each endpoint with its health, who told of it, and
/// what keeps it from being asked: by what the sidecar of the caller knows. With SRC, one of that service's own is found
/// and asked, and so are those of DST: whether they let the caller in, and by which rule of which policy.
///
/// Example: weft explain web orders --path /api/7 --header x-canary:1
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The service that calls, or its SPIFFE ID; without it, whoever uses the sidecar that is asked
    #[arg(value_name = "SRC")]
    first: String,
    /// The service or host that is called
    #[arg(value_name = "DST")]
    second: Option<String>,
    /// Path of the request, with its query
    #[arg(long, default_value = "/")]
    path: String,
    /// Method of the request
    #[arg(long, default_value = "GET")]
    method: String,
    /// A header field of the request; repeat it
    #[arg(long, value_name = "NAME:VALUE")]
    header: Vec<String>,
    #[command(flatten)]
    sidecar: Sidecar,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// As pairs of a query.
type Question = Vec<(&'static str, String)>;

impl Explain {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let (source, host) = match self.second {
            Some(host) => (Some(self.first), host),
            None => (None, self.first),
        };
        let mut question = vec![("host", host), ("path", self.path), ("method", self.method)];
        question.extend(self.header.into_iter().map(|field| ("header", field)));
        let mut told = match source {
            None => ask(self.sidecar.beside(), &question).await?,
            Some(source) => {
                between::explain(&self.connection.client()?, &source, self.sidecar.named(), &question).await?
            }
        };
        hide_tokens(&mut told);
        output::print(match self.output.output {
            Format::Json => output::json(&told),
            Format::Table => render::render(&told),
        });
        // So that a script can ask.
        let refused = told["verdict"] == "refused" || told["verdict"] == "not found";
        let denied = |backend: &Value| {
            let told = &backend["admission"];
            let differing = told["differs"].as_array().into_iter().flatten();
            [told].into_iter().chain(differing).any(|told| told["verdict"] == "DENY")
        };
        Ok(if refused || told["backends"].as_array().is_some_and(|all| all.iter().any(denied)) {
            ExitCode::from(2)
        } else {
            ExitCode::SUCCESS
        })
    }
}

/// What is shown may be kept, or passed on; whoever asks knows the token.
fn hide_tokens(told: &mut Value) {
    let backends = told.get_mut("backends").and_then(Value::as_array_mut).into_iter().flatten();
    let sent = backends.filter_map(|backend| backend.pointer_mut("/sent/headers")?.as_array_mut());
    for field in sent.flatten() {
        if field[0] == AUTHORIZATION.as_str() {
            field[1] = "(hidden)".into();
        }
    }
}

async fn ask(sidecar: Admin, question: &Question) -> Result<Value, Failure> {
    let text = sidecar.get_whole("/explain", question).await?;
    serde_json::from_str(&text)
        .map_err(|error| Failure::new(format!("the sidecar's answer cannot be read: {error}")))
}
