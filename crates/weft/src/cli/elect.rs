//! `weft elect NAME -- COMMAND…` and `weft elect NAME --observe`.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use weft_client::election::{Election, Leader, Leadership};

use super::hold::{Holding, Wanted};
use super::{Connection, Output};
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::signals::Signals;

/// Run a command while leading an election, or follow who leads
///
/// Stands for leader, in order of arrival, and runs COMMAND while leading. Environment, signals and exit
/// codes are as for `weft lock`.
///
/// Examples: weft elect scheduler --value host-1 -- ./scheduler.sh
///           weft elect scheduler --observe
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Elect {
    /// The election's name: 1 to 256 bytes
    name: String,
    /// What observers see while this candidate leads; default: this machine's name
    #[arg(long, conflicts_with = "observe")]
    value: Option<String>,
    /// Print the leader now and after each change, until interrupted
    #[arg(long)]
    observe: bool,
    #[command(flatten)]
    holding: Holding,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
    /// The command, with its arguments
    #[arg(
        last = true,
        required_unless_present = "observe",
        conflicts_with = "observe",
        value_name = "COMMAND"
    )]
    command: Vec<OsString>,
}

#[derive(Debug, Serialize)]
struct Seen {
    has_leader: bool,
    fence: i64,
    /// Hex; empty without a leader.
    lease: String,
    value: String,
    revision: i64,
}

impl From<&Leader> for Seen {
    fn from(seen: &Leader) -> Self {
        let leader = seen.leader.as_ref();
        Self {
            has_leader: leader.is_some(),
            fence: leader.map_or(0, |(grant, _)| grant.fence),
            lease: leader.map(|(grant, _)| format!("{:x}", grant.lease)).unwrap_or_default(),
            value: leader.map(|(_, value)| output::text(value)).unwrap_or_default(),
            revision: seen.revision,
        }
    }
}

impl Elect {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        let client = self.connection.client()?;
        let election = client.election(&self.name);
        if self.observe {
            return observe(&election, self.output.output).await;
        }
        let wanted =
            Wanted { what: format!("election {}", self.name), name: &self.name, command: &self.command };
        let value = self.value.clone().unwrap_or_else(crate::flags::host_name);
        let acquire = |session| {
            let (election, value, timeout) = (election.clone(), value.clone(), self.holding.timeout);
            async move {
                let leadership = election.campaign(&session, value, timeout).await?;
                Ok(leadership.as_ref().map(Leadership::grant).cloned())
            }
        };
        let progress = |_| {
            let election = election.clone();
            async move {
                let leader = election.observe().await?.next().await?;
                Ok(match leader.leader {
                    Some((grant, value)) => {
                        format!(", led by {} (fence {})", output::text(&value), grant.fence)
                    }
                    None => String::new(),
                })
            }
        };
        self.holding.run(&client, wanted, acquire, progress).await
    }
}

async fn observe(election: &Election, format: Format) -> Result<ExitCode, Failure> {
    let mut signals = Signals::listen()?;
    let mut observer = tokio::select! {
        observer = election.observe() => observer?,
        _ = signals.next() => return Ok(ExitCode::SUCCESS),
    };
    loop {
        let leader = tokio::select! {
            leader = observer.next() => leader?,
            _ = signals.next() => return Ok(ExitCode::SUCCESS),
        };
        let seen = Seen::from(&leader);
        output::print(match format {
            Format::Json => output::json_line(&seen),
            Format::Table if seen.has_leader => {
                format!("leader {}  fence {}  lease {}\n", seen.value, seen.fence, seen.lease)
            }
            Format::Table => "no leader\n".to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use weft_client::semaphore::Grant;

    use super::*;

    #[test]
    fn json_field_names_are_stable() {
        let grant = Grant { fence: 5, revision: 5, lease: 255, key: "k".to_owned() };
        let leader = Leader { leader: Some((grant, "a".into())), revision: 7 };
        assert_eq!(
            serde_json::to_value(Seen::from(&leader)).unwrap(),
            serde_json::json!({"has_leader": true, "fence": 5, "lease": "ff", "value": "a", "revision": 7})
        );
        let nobody = Leader { leader: None, revision: 8 };
        assert_eq!(serde_json::to_value(Seen::from(&nobody)).unwrap()["has_leader"], false);
    }
}
