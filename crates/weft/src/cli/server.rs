//! `weft server`.

pub(crate) mod group;
mod recover;

use std::net::SocketAddr;
use std::process::ExitCode;

use weft_control_plane::app;

use crate::failure::Failure;
use crate::flags::{ServerFlags, start_logging};
use crate::output;
use crate::signals::Signals;

/// Runs a server until it is asked to end. The flags are whole already.
pub(crate) async fn run(flags: ServerFlags) -> Result<ExitCode, Failure> {
    start_logging(flags.log_level.as_deref(), flags.log_format, "info")?;
    crate::descriptors::raise_limit();
    let mut signals = Signals::listen()?;
    let config = flags.into_config()?;
    let (name, data_dir, advertised) = (config.name.clone(), config.data_dir.clone(), config.advertised());
    let server = tokio::select! {
        server = app::start(config) => {
            server.map_err(|error| Failure::new(format!("server {name} does not start: {error}")))?
        }
        signal = signals.next() => return Ok(crate::signals::signal_exit(signal)),
    };
    let addrs = server.addrs();
    // Checked by `start`; the address that listens may be 0.0.0.0, where nobody can be joined.
    let join = SocketAddr::new(advertised.unwrap_or(addrs.gossip.ip()), addrs.gossip.port());
    let block = output::pairs(&[
        ("  gRPC", format!("{:21}  etcd v3, weft.v1, xDS", addrs.grpc)),
        ("  HTTP", format!("{:21}  registry, /livez, /readyz, /metrics", addrs.http)),
        ("  DNS", addrs.dns.to_string()),
        ("  peers", addrs.peer.to_string()),
        ("  gossip", format!("{:21}  others join with --join {join}", addrs.gossip)),
        ("  data", data_dir.display().to_string()),
    ]);
    let block = match server.made_token() {
        Some(path) => format!(
            "{block}  token   {}: servers that join need it, with --join-token-file\n",
            path.display()
        ),
        None => block,
    };
    let ready = serde_json::json!({
        "role": "server", "name": name, "data_dir": data_dir,
        "grpc": addrs.grpc, "http": addrs.http, "dns": addrs.dns, "peer": addrs.peer, "gossip": addrs.gossip,
    });
    output::print(format!("weft server {name}\n{block}ready {ready}\n"));
    let signal = signals.next().await;
    tracing::info!(signal, "stopping");
    Ok(signals.end_gracefully(None, server.shutdown()).await)
}
