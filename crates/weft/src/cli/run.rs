//! `weft run -- COMMAND…`.

mod replace;
mod sidecar;
mod supervisor;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use weft_core::config::parse_duration;
use weft_proxy::app::RunningProxy;

use super::child::Running;
use super::proxy::{self, Started};
use crate::failure::{Failure, NOT_STARTED};
use crate::flags::{ProxyFlags, start_logging};
use crate::signals;
use replace::Handed;
use sidecar::Sidecar;
pub(super) use sidecar::program;
use supervisor::{Heard, Supervisor};

/// Unless the flags say otherwise: the output is the app's.
const LOG_LEVEL: &str = "warn";

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks at whether the sidecar is ready.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Run an app together with its sidecar
///
/// Starts a sidecar with the flags of `weft proxy`, waits until it is ready, then runs COMMAND in the foreground and exits with its
/// code (128 + n after signal n), so that jobs end. COMMAND finds the address for its calls in WEFT_SIDECAR. On
/// SIGTERM or SIGINT the services are taken out of the mesh first, while everything is still served; then COMMAND
/// gets the signal, and the sidecar serves its calls until it has ended. A second signal kills it; SIGHUP is passed on. On
/// SIGUSR2 weft is upgraded while COMMAND runs on: the program that is now where weft was started from takes over the sidecar
/// as a process of its own, without a failed request, and then this process becomes that program. 124: the sidecar was not
/// ready in time, and COMMAND was not started.
///
/// Example: weft run --join 10.0.0.1:7946 --service orders=127.0.0.1:8080,check=/health -- ./orders
#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    sidecar: ProxyFlags,
    /// How long to wait for the sidecar to be ready, such as 30s; default: 60s
    #[arg(long, env = "WEFT_START_TIMEOUT", value_name = "DURATION", value_parser = parse_duration)]
    start_timeout: Option<Duration>,
    /// Also tell COMMAND to use the sidecar as its HTTP proxy, by http_proxy and HTTP_PROXY
    #[arg(long)]
    http_proxy: bool,
    /// What the program before this one in the same process hands over
    #[arg(long, hide = true, value_name = "STATE")]
    adopt: Option<Handed>,
    /// The app, with its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

impl Run {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        if self.sidecar.take_over {
            return Err(Failure::new(
                "weft run cannot take over: the app belongs to the process that started it",
            ));
        }
        let heard = Heard::listen()?;
        match self.adopt {
            Some(handed) => adopt(self.sidecar, handed, heard).await,
            None => self.start(heard).await,
        }
    }

    async fn start(self, mut heard: Heard) -> Result<ExitCode, Failure> {
        let own = match proxy::start(self.sidecar, LOG_LEVEL, &mut heard.signals).await? {
            Started::Runs(_, own) => own,
            Started::Asked(signal) => return Ok(signals::signal_exit(signal)),
        };
        let limit = self.start_timeout.unwrap_or(START_TIMEOUT);
        let outbound = own.addrs().outbound;
        let late = tokio::select! {
            late = ready(&own, limit) => late,
            signal = heard.signals.next() => {
                heard.signals.end_gracefully(None, own.drain_and_shutdown()).await;
                return Ok(signals::signal_exit(signal));
            }
        };
        let app = match late {
            None => Running::start(&self.command, &environment(outbound, self.http_proxy)),
            Some(why) => Err(Failure::with_code(
                NOT_STARTED,
                format!("the sidecar is not ready after {limit:?}, and the app was not started: {why}"),
            )),
        };
        match app {
            Ok(app) => {
                let data_dir = own.data_dir().map(PathBuf::from);
                let sidecar = Sidecar::new(Some(own), data_dir, Vec::new());
                Ok(Supervisor { app, sidecar, heard }.run().await)
            }
            Err(failure) => {
                heard.signals.end_gracefully(None, own.drain_and_shutdown()).await;
                Err(failure)
            }
        }
    }
}

/// Goes on as the supervisor of an app that another program started in this process.
async fn adopt(flags: ProxyFlags, handed: Handed, heard: Heard) -> Result<ExitCode, Failure> {
    let flags = flags.layered()?;
    start_logging(flags.log_level.as_deref(), flags.log_format, LOG_LEVEL)?;
    if handed.rehearsal {
        return Ok(ExitCode::SUCCESS);
    }
    let app = Running::adopt(handed.app().map_err(Failure::new)?, handed.own_group);
    let sidecars = handed.sidecars();
    let sidecar = Sidecar::new(None, Some(handed.data_dir), sidecars);
    signals::release();
    Ok(Supervisor { app, sidecar, heard }.run().await)
}

/// Why it is not ready when the time is over. `None` as soon as it is.
async fn ready(sidecar: &RunningProxy, limit: Duration) -> Option<String> {
    let until = tokio::time::Instant::now() + limit;
    loop {
        let why = sidecar.why_not_ready()?;
        if tokio::time::Instant::now() >= until {
            return Some(why);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What the app is told of its sidecar.
fn environment(outbound: Option<SocketAddr>, http_proxy: bool) -> Vec<(&'static str, String)> {
    let mut environment = Vec::new();
    if let Some(outbound) = outbound {
        environment.push(("WEFT_SIDECAR", outbound.to_string()));
        if http_proxy {
            // Programs read the one or the other; curl only the first.
            environment.extend(["http_proxy", "HTTP_PROXY"].map(|name| (name, format!("http://{outbound}"))));
        }
    }
    environment
}
