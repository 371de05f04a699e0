//! `weft server remove | promote | transfer | recover`.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use weft_client::proto::weft as pb;

use super::recover::Recover;
use crate::cli::{Connection, Output};
use crate::failure::Failure;
use crate::flags::ServerFlags;
use crate::output::{self, Format};

/// What to change of the group.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum GroupCommand {
    /// Take a server out of the group
    ///
    /// The server ends, and does not start again with its data; to have the machine back in the group, start it with
    /// an empty data folder and --join. Refused if fewer than a majority of the servers that are left answer.
    ///
    /// Example: weft server remove s3
    Remove(Remove),
    /// Make a learner (weft server --learner) a voter, once it has the log
    Promote(Named),
    /// Hand leadership to a server, such as before work on the machine of the leader
    Transfer(Named),
    Recover(Recover),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Remove {
    #[command(flatten)]
    named: Named,
    /// Also if the servers that are left cannot decide anything until more of them are back
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Named {
    /// Name of the server, or its id as `weft status` shows it
    server: String,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Report {
    server: String,
    id: String,
    done: &'static str,
}

impl GroupCommand {
    /// `flags`: those in front of the command; only a recovery needs them.
    pub(crate) async fn run(self, flags: ServerFlags) -> Result<ExitCode, Failure> {
        let (named, force, done) = match self {
            Self::Remove(Remove { named, force }) => (named, Some(force), "removed"),
            Self::Promote(named) => (named, None, "promoted"),
            Self::Transfer(named) => (named, None, "leads"),
            Self::Recover(recover) => return recover.run(flags).await,
        };
        let client = named.connection.client()?;
        let servers = client.mesh().status().await?.servers;
        let server = find(&servers, &named.server)?;
        match (force, done) {
            (Some(force), _) => client.remove_server(server.id, force).await?,
            (None, "promoted") => client.promote_server(server.id).await?,
            (None, _) => client.transfer_leadership(server.id).await?,
        }
        let report = Report { server: server.name.clone(), id: id_of(server), done };
        output::print(match named.output.output {
            Format::Json => output::json(&report),
            Format::Table => match report.done {
                "leads" => format!("{} ({}) leads\n", report.server, report.id),
                done => format!("{} ({}) is {done}\n", report.server, report.id),
            },
        });
        Ok(ExitCode::SUCCESS)
    }
}

fn id_of(server: &pb::ServerStatus) -> String {
    format!("{:016x}", server.id)
}

/// The one server with this name or id.
fn find<'s>(servers: &'s [pb::ServerStatus], wanted: &str) -> Result<&'s pb::ServerStatus, Failure> {
    let found: Vec<_> = servers.iter().filter(|s| s.name == wanted || id_of(s) == wanted).collect();
    let all = |servers: &[&pb::ServerStatus]| {
        servers.iter().map(|s| format!("{} ({})", s.name, id_of(s))).collect::<Vec<_>>().join(", ")
    };
    match found[..] {
        [server] => Ok(server),
        [] => {
            let known = all(&servers.iter().collect::<Vec<_>>());
            Err(Failure::new(format!("no server {wanted:?} in the group; its servers are {known}")))
        }
        ref several => {
            Err(Failure::new(format!("{wanted:?} is the name of {}: say which by its id", all(several))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_found_by_name_or_id_and_an_ambiguous_name_is_refused() {
        let server = |name: &str, id| pb::ServerStatus { name: name.to_owned(), id, ..Default::default() };
        let servers = [server("s1", 0xa), server("s2", 0xb), server("s2", 0xc)];
        assert_eq!(find(&servers, "s1").ok().map(|s| s.id), Some(0xa));
        assert_eq!(find(&servers, "000000000000000c").ok().map(|s| s.id), Some(0xc));
        let unknown = find(&servers, "s9").expect_err("unknown").to_string();
        assert!(unknown.contains("s9") && unknown.contains("s1 (000000000000000a)"), "{unknown}");
        let ambiguous = find(&servers, "s2").expect_err("two").to_string();
        assert!(ambiguous.contains("000000000000000b") && ambiguous.contains("by its id"), "{ambiguous}");
    }
}
