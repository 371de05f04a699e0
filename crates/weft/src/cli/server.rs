//! `weft server`.

mod group;
mod recover;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use weft_control_plane::app;

use self::group::GroupCommand;
use crate::failure::Failure;
use crate::flags::{ServerFlags, start_logging};
use crate::signals::Signals;
use crate::{notify, output};

/// What may follow the flags.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ServerCommand {
    Join(Join),
    #[command(flatten)]
    Change(GroupCommand),
}

/// Run a server that joins a group: `--join` as a command
///
/// Example: weft server --name s2 --data-dir /var/lib/weft/s2 join 10.0.0.1:7946
#[derive(Debug, Clone, Args)]
pub(crate) struct Join {
    /// Gossip addresses of members, any of them
    #[arg(required = true, value_name = "HOST:PORT", value_delimiter = ',')]
    members: Vec<String>,
}

impl Join {
    /// Puts the members beside those that `--join` names.
    pub(crate) fn put_into(self, flags: &mut ServerFlags) {
        flags.join.get_or_insert_default().extend(self.members);
    }
}

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
    notify::ready();
    crate::start_pages::let_go_after_start();
    let signal = signals.next().await;
    tracing::info!(signal, "stopping");
    notify::stopping();
    Ok(signals.end_gracefully(None, server.shutdown()).await)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        flags: ServerFlags,
    }

    #[test]
    fn join_as_a_command_adds_to_the_flag_and_needs_a_member() {
        let mut flags = Cli::parse_from(["server", "--join", "a:1", "--name", "s2", "join", "b:2,c:3"]).flags;
        let Some(ServerCommand::Join(join)) = flags.command.take() else { panic!("{:?}", flags.command) };
        join.put_into(&mut flags);
        assert_eq!(flags.join.as_deref(), Some(["a:1", "b:2", "c:3"].map(str::to_owned).as_slice()));
        assert!(Cli::try_parse_from(["server", "join"]).is_err());
    }

    /// Others on a machine see command lines.
    #[test]
    fn a_join_token_is_no_flag() {
        let refused = Cli::try_parse_from(["server", "--join-token", "secret"]);
        assert!(refused.is_err_and(|e| e.to_string().contains("--join-token-file")));
    }
}
