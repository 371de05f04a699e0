//! `weft server recover`.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use weft_control_plane::gate::{Gate, PeerTls, Tokens};
use weft_control_plane::raft::recover::{Other, Standing, Stopped};
use weft_control_plane::raft::restore::RESTORE_REVISIONS;

use crate::cli::Output;
use crate::failure::Failure;
use crate::flags::ServerFlags;
use crate::output::{self, Format};

/// Make one survivor a group of its own, after a majority of the servers is lost for good
///
/// Run it on the machine of a server that has survived, which must not run meanwhile. It shows how far each server's
/// log reaches, as far as they answer, and asks once. All that is in this server's log stays; what only the lost
/// servers had is lost. The group goes on under a new cluster id, which no server of the former one talks to, and with
/// a revision so far on that none comes twice: a watch from before hears `compacted`. Then start the server as always,
/// and the others with empty data folders and --join.
///
/// Flags of `weft server` that say where the server is and how it is let in by others (--config, --name,
/// --join-token-file, --peer-tls-…) stand in front: weft server --config s1.yaml recover
///
/// Example: weft server recover --data-dir /var/lib/weft
#[derive(Debug, Clone, Args)]
pub(crate) struct Recover {
    /// The data folder of the server; default: as `weft server` has it
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Also if others answer that have a leader, are enough for one, or have more in their logs
    #[arg(long)]
    force: bool,
    /// How far to move the revision on: more than the number of changes that may be lost
    #[arg(long, value_name = "REVISIONS", default_value_t = RESTORE_REVISIONS, value_parser = clap::value_parser!(i64).range(1..=i64::MAX / 4))]
    bump_revision: i64,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Server {
    server: String,
    id: String,
    address: Option<String>,
    votes: bool,
    last_term: Option<u64>,
    last_index: Option<u64>,
    says: String,
}

#[derive(Debug, Serialize)]
struct Done {
    data_dir: String,
    server: String,
    id: String,
    former_cluster: Option<String>,
    cluster: String,
    revision: i64,
    keys: u64,
    servers: Vec<Server>,
}

impl Recover {
    pub(super) async fn run(self, flags: ServerFlags) -> Result<ExitCode, Failure> {
        let mut flags = flags.layered()?;
        flags.data_dir = self.data_dir.or(flags.data_dir);
        let config = flags.into_config()?;
        let nothing = |error: &dyn std::fmt::Display| Failure::new(format!("nothing was changed: {error}"));

        let stopped = Stopped::open(&config.data_dir).map_err(|error| nothing(&error))?;
        let tokens =
            Tokens::find(&config.join_token, &config.data_dir, false).map_err(|error| nothing(&error))?;
        let tls = config.peer_tls.map(PeerTls::load).transpose().map_err(|error| nothing(&error))?;
        let others = stopped.ask_others(Arc::new(Gate::new(tokens, tls))).await;
        let servers = table(&stopped, &others);
        if self.output.output == Format::Table {
            output::print(shown(&servers));
        }
        if let Some(objection) = stopped.objection(&others).filter(|_| !self.force) {
            return Err(nothing(&format!("{objection}, or insist (--force)")));
        }
        if !self.yes && !confirmed(&others)? {
            return Err(nothing(&"not confirmed"));
        }

        let (server, id) = (stopped.name().to_owned(), stopped.id().to_string());
        let former_cluster = stopped.cluster().map(|id| id.to_string());
        let revision = stopped.machine().revision() + self.bump_revision;
        let keys = stopped.machine().key_count();
        let cluster = stopped
            .form_group(self.bump_revision)
            .map_err(|error| Failure::new(format!("not recovered, ask again: {error}")))?
            .to_string();
        let data_dir = config.data_dir.display().to_string();
        let done = Done { data_dir, server, id, former_cluster, cluster, revision, keys, servers };
        output::print(match self.output.output {
            Format::Json => output::json(&done),
            Format::Table => format!(
                "{} ({}) is the only server of the new cluster {}: revision {}, {} keys\n\
                 start it as always, without --join; the others with empty data folders and --join\n",
                done.server, done.id, done.cluster, done.revision, done.keys
            ),
        });
        Ok(ExitCode::SUCCESS)
    }
}

fn table(stopped: &Stopped, others: &[Other]) -> Vec<Server> {
    let own = Server {
        server: stopped.name().to_owned(),
        id: stopped.id().to_string(),
        address: None,
        votes: stopped.votes(),
        last_term: Some(stopped.standing().term),
        last_index: Some(stopped.standing().index),
        says: "this one".to_owned(),
    };
    let others = others.iter().map(|other| {
        let standing = other.standing.as_ref();
        Server {
            server: other.name.clone(),
            id: other.id.to_string(),
            address: Some(other.addr.to_string()),
            votes: other.votes,
            last_term: standing.ok().map(|standing| standing.term),
            last_index: standing.ok().map(|standing| standing.index),
            says: match standing {
                Ok(Standing { has_leader: true, .. }) => "answers, has a leader".to_owned(),
                Ok(_) => "answers, has no leader".to_owned(),
                Err(reason) => reason.clone(),
            },
        }
    });
    std::iter::once(own).chain(others).collect()
}

fn shown(servers: &[Server]) -> String {
    let number = |number: Option<u64>| number.map_or("?".to_owned(), |number| number.to_string());
    let rows = servers.iter().map(|server| {
        [
            server.server.clone(),
            server.id.clone(),
            server.address.clone().unwrap_or_default(),
            if server.votes { "yes" } else { "no" }.to_owned(),
            number(server.last_index),
            number(server.last_term),
            server.says.clone(),
        ]
    });
    output::table(["SERVER", "ID", "ADDRESS", "VOTES", "LAST INDEX", "TERM", "STATE"], rows, "")
}

/// Asks the person.
fn confirmed(others: &[Other]) -> Result<bool, Failure> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(Failure::new("nothing was changed: nobody can be asked here; say --yes to go on"));
    }
    let left_out: Vec<&str> = others.iter().map(|other| other.name.as_str()).collect();
    eprint!("The group goes on without {}; what only they have is lost. Go on? [y/N] ", left_out.join(", "));
    let mut answer = String::new();
    input.lock().read_line(&mut answer).map_err(|error| Failure::new(format!("standard input: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
