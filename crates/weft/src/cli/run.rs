//! `weft run -- COMMAND…`.

mod sidecar;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::pin::pin;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use weft_core::config::parse_duration;
use weft_proxy::app::RunningProxy;

use super::child::Running;
use super::proxy::{self, Started};
use crate::failure::{Failure, NOT_STARTED};
use crate::flags::ProxyFlags;
use crate::signals::{self, Signals};
use sidecar::Sidecar;
pub(super) use sidecar::program;

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks at whether the sidecar is ready.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Run an app together with its sidecar
///
/// Starts a sidecar with the flags of `weft proxy`, waits until it is ready, then runs COMMAND in the foreground and exits with its
/// code (128 + n after signal n), so that jobs end. COMMAND finds the address for its calls in WEFT_SIDECAR. On
/// SIGTERM or SIGINT the services are taken out of the mesh first, while everything is still served; then COMMAND
/// gets the signal, and the sidecar serves its calls until it has ended. A second signal kills it; SIGHUP is passed on. On
/// SIGUSR2 the sidecar alone is upgraded: the program that is now where weft was started from takes over as a process of its
/// own, without a failed request, and the app runs on. 124: the
/// sidecar was not ready in time, and COMMAND was not started.
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
        let mut signals = Signals::listen()?;
        let own = match proxy::start(self.sidecar, "warn", &mut signals).await? {
            Started::Runs(_, own) => own,
            Started::Asked(signal) => return Ok(signals::signal_exit(signal)),
        };
        let limit = self.start_timeout.unwrap_or(START_TIMEOUT);
        let outbound = own.addrs().outbound;
        let late = tokio::select! {
            late = ready(&own, limit) => late,
            signal = signals.next() => {
                signals.end_gracefully(None, own.drain_and_shutdown()).await;
                return Ok(signals::signal_exit(signal));
            }
        };
        let mut sidecar = Sidecar::new(own, sidecar::program(), sidecar::arguments(std::env::args_os()));
        let ended = match late {
            None => {
                let environment = environment(outbound, self.http_proxy);
                supervise(&self.command, &environment, &mut sidecar, &mut signals).await.map(ExitCode::from)
            }
            Some(why) => {
                let message =
                    format!("the sidecar is not ready after {limit:?}, and the app was not started: {why}");
                Err(Failure::with_code(NOT_STARTED, message))
            }
        };
        signals.end_gracefully(None, sidecar.end()).await;
        ended
    }
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

/// Runs the app to its end. Answers its exit code.
async fn supervise(
    command: &[OsString],
    environment: &[(&str, String)],
    sidecar: &mut Sidecar,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    let mut upgrades = signal(SignalKind::user_defined2())
        .map_err(|error| Failure::new(format!("cannot listen for signals: {error}")))?;
    let mut app = Running::start(command, environment)?;
    let asked = loop {
        tokio::select! {
            code = app.ended() => return code,
            () = sidecar.tend() => {}
            Some(()) = upgrades.recv() => sidecar.upgrade(),
            signal = signals.next() => match signal == Signal::HUP.as_raw() {
                true => app.forward(signal),
                // The app gets it once its callers have gone elsewhere.
                false => break signal,
            },
        }
    };
    let mut withdrawn = false;
    let mut withdrawing = pin!(sidecar.withdraw());
    loop {
        tokio::select! {
            code = app.ended() => return code,
            () = &mut withdrawing, if !withdrawn => {
                withdrawn = true;
                app.forward(asked);
            }
            signal = signals.next() => match signal == Signal::HUP.as_raw() {
                true => app.forward(signal),
                false => {
                    eprintln!("second signal: killing the app");
                    app.signal(Signal::KILL);
                }
            },
        }
    }
}
