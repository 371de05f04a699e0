//! `weft proxy`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitCode, Stdio};

use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use weft_proxy::app::{self, Event, RunningProxy};
use weft_proxy::config::BoundListener;

use crate::failure::Failure;
use crate::flags::{ProxyFlags, start_logging};
use crate::notify;
use crate::output;
use crate::signals::Signals;

/// Runs a sidecar until it is asked to end, then drains it.
pub(crate) async fn run(flags: ProxyFlags) -> Result<ExitCode, Failure> {
    let mut signals = Signals::listen()?;
    let mut upgrades = signal(SignalKind::user_defined2())
        .map_err(|error| Failure::new(format!("cannot listen for signals: {error}")))?;
    let (name, mut proxy) = match start(flags, "info", &mut signals).await? {
        Started::Runs(name, proxy) => (name, proxy),
        Started::Asked(signal) => return Ok(crate::signals::signal_exit(signal)),
    };
    let addrs = proxy.addrs();
    let listener = |address: Option<SocketAddr>, use_of_it: &str| match address {
        Some(address) => format!("{address:21}  {use_of_it}"),
        None => "off".to_owned(),
    };
    let declared = |all: &[BoundListener], label: &'static str| -> Vec<(&'static str, String)> {
        let line = |one: &BoundListener| {
            (label, format!("{:21}  {} of service {}", one.address, one.protocol, one.service))
        };
        all.iter().map(line).collect()
    };
    let mut lines =
        vec![("  outbound", listener(addrs.outbound, "calls of the local app, by Host or as HTTP_PROXY"))];
    let captured =
        |addr: &SocketAddr| ("  capture", format!("{addr:21}  connections that the kernel redirects"));
    lines.extend(addrs.captures.iter().map(captured));
    lines.extend(declared(&addrs.upstreams, "  upstream"));
    lines.push(("  inbound", listener(addrs.inbound, "calls to the local services")));
    let captured = |addr: &SocketAddr| {
        ("  capture-inbound", format!("{addr:21}  connections to local services that the kernel redirects"))
    };
    lines.extend(addrs.inbound_captures.iter().map(captured));
    lines.extend(declared(&addrs.inbound_tcp, "  inbound-tcp"));
    lines.push(("  admin", format!("{:21}  /ready, /clusters, /config_dump, /metrics", addrs.admin)));
    lines.push(("  gossip", listener(addrs.gossip, "members")));
    let block = output::pairs(&lines);
    let ready = serde_json::json!({
        "role": "proxy", "name": name, "outbound": addrs.outbound, "inbound": addrs.inbound,
        "admin": addrs.admin, "gossip": addrs.gossip,
        "captures": addrs.captures, "upstreams": addrs.upstreams, "inbound_tcp": addrs.inbound_tcp,
        "inbound_captures": addrs.inbound_captures,
    });
    output::print(format!("weft proxy {name}\n{block}ready {ready}\n"));
    notify::ready();
    let program = super::run::program();
    let mut successor: Option<Child> = None;
    loop {
        let ended = async {
            match &mut successor {
                Some(successor) => successor.wait().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            signal = signals.next() => {
                tracing::info!(signal, "draining");
                notify::stopping();
                break;
            }
            Some(()) = upgrades.recv() => match proxy.data_dir() {
                Some(_) => successor = upgrade(&program),
                None => {
                    notify::reloading();
                    tracing::error!("this proxy cannot be upgraded while it runs: it has no --data-dir");
                    notify::ready();
                }
            },
            ended = ended => {
                successor = None;
                let ended = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                tracing::error!(ended, "the new process did not take over; going on");
                notify::ready();
            }
            event = proxy.event() => match event {
                Event::TakenOver | Event::Stop => break,
                Event::Withdraw(_done) => proxy.withdraw().await,
            },
        }
    }
    Ok(signals.end_gracefully(None, proxy.drain_and_shutdown()).await)
}

/// Starts the program that is now where this one was, to take over. It outlives this process.
fn upgrade(program: &Path) -> Option<Child> {
    notify::reloading();
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env("WEFT_TAKE_OVER", "true").stdin(Stdio::null());
    let started = command.spawn();
    if let Err(error) = &started {
        tracing::error!(program = %program.display(), %error, "the new process cannot be started; going on");
        notify::ready();
    }
    started.ok()
}

/// What came of a start.
pub(crate) enum Started {
    /// It runs under this name, and all its ports listen.
    Runs(String, Box<RunningProxy>),
    /// This signal came first.
    Asked(i32),
}

/// Starts a sidecar, and logging at `log_level` unless the flags say otherwise.
pub(crate) async fn start(
    flags: ProxyFlags,
    log_level: &str,
    signals: &mut Signals,
) -> Result<Started, Failure> {
    let flags = flags.layered()?;
    start_logging(flags.log_level.as_deref(), flags.log_format, log_level)?;
    crate::descriptors::raise_limit();
    let servers = resolve(flags.server.as_deref().unwrap_or_default()).await?;
    let mut config = flags.into_config(servers)?;
    if config.services.is_empty() && config.inbound.take().is_some() {
        tracing::warn!(
            "inbound is off: there is no service to receive for; name one with --service NAME=IP:PORT"
        );
    }
    let name = config.name.clone();
    tokio::select! {
        proxy = app::start(config) => match proxy {
            Ok(proxy) => {
                crate::start_pages::let_go_after_start();
                Ok(Started::Runs(name, Box::new(proxy)))
            }
            Err(error) => Err(Failure::new(format!("proxy {name} does not start: {error}"))),
        },
        signal = signals.next() => Ok(Started::Asked(signal)),
    }
}

/// Servers may be named by host name; each name stands for all its addresses.
async fn resolve(servers: &[String]) -> Result<Vec<SocketAddr>, Failure> {
    let mut all = Vec::new();
    for server in servers {
        let found = tokio::net::lookup_host(server.as_str()).await;
        let found = found.map_err(|error| {
            Failure::new(format!("server {server:?}: {error}; expected HOST:PORT, such as 127.0.0.1:2379"))
        })?;
        all.extend(found.filter(|address| !all.contains(address)).collect::<Vec<_>>());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn servers_are_addresses_or_names() {
        let found = resolve(&["127.0.0.1:1".to_owned(), "127.0.0.1:1".to_owned()]).await.unwrap();
        assert_eq!(found, ["127.0.0.1:1".parse().unwrap()]);
        let refused = resolve(&["nowhere".to_owned()]).await.unwrap_err().to_string();
        assert!(refused.contains("nowhere") && refused.contains("HOST:PORT"), "{refused}");
    }
}
