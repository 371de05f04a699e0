//! `weft snapshot`: the whole state in one file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use weft_control_plane::backup::Backup;
use weft_control_plane::backup::file::BackupWriter;
use weft_control_plane::raft::restore::{self, RESTORE_REVISIONS};

use super::{Connection, Output};
use crate::failure::Failure;
use crate::flags::{default_data_dir, host_name};
use crate::output::{self, Format};

/// Save the whole state to a file, check such a file, and start anew from it
#[derive(Debug, Args)]
pub(crate) struct Snapshot {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Save(Save),
    Verify(Look),
    Status(Look),
    Restore(Restore),
}

/// Save the state of a running server to a file, and check the file
///
/// It is of the moment at which it began; commands go on meanwhile. The file appears whole or not at all.
///
/// Example: weft snapshot save backup.weft --endpoints 10.0.0.1:2379
#[derive(Debug, Args)]
struct Save {
    /// The file to write; one that is there is replaced at the end
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// Restore a file into memory, checking all of it; exit code 1 if that fails
///
/// Takes as much memory as the server had. Works with what `weft snapshot save`, `etcdctl snapshot save` and
/// `weft server --backup-dir` wrote.
#[derive(Debug, Args)]
struct Look {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// Make the data folder of a new server from a file
///
/// The server that starts with it forms a new group, which no server of the former one talks to; further servers
/// join it with empty folders. So that nothing that a client saw ever goes backwards, the revision starts
/// --bump-revision above that of the file, and history before it counts as compacted: a watch from before hears
/// `compacted`, and fencing tokens go on to grow.
///
/// Example: weft snapshot restore backup.weft --data-dir /var/lib/weft && weft server --data-dir /var/lib/weft
#[derive(Debug, Args)]
struct Restore {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The data folder to make; must not exist, or be empty; default: weft-data/server/NAME
    #[arg(long, env = "WEFT_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Label of the new server; default: this machine's name
    #[arg(long, env = "WEFT_NAME")]
    name: Option<String>,
    /// How far to move the revision on: more than the number of changes since the file was written
    #[arg(long, value_name = "REVISIONS", default_value_t = RESTORE_REVISIONS, value_parser = clap::value_parser!(i64).range(1..=i64::MAX / 4))]
    bump_revision: i64,
    #[command(flatten)]
    output: Output,
}

impl Snapshot {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        match self.command {
            Command::Save(save) => save.run().await,
            Command::Verify(look) => look.verify(),
            Command::Status(look) => look.status(),
            Command::Restore(restore) => restore.run(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Facts {
    file: String,
    bytes: u64,
    sha256: bool,
    revision: i64,
    compacted_revision: i64,
    keys: u64,
    data_bytes: u64,
    leases: usize,
    applied_index: u64,
    term: u64,
    hash: String,
}

impl Facts {
    fn of(path: &Path, backup: &Backup) -> Self {
        let machine = &backup.machine;
        Self {
            file: path.display().to_string(),
            bytes: backup.bytes,
            sha256: backup.has_sha256,
            revision: machine.revision(),
            compacted_revision: machine.compacted(),
            keys: machine.key_count(),
            data_bytes: machine.data_bytes(),
            leases: machine.all_lease_terms().len(),
            applied_index: machine.applied_index(),
            term: machine.applied_term(),
            hash: format!("{:016x}", machine.hash()),
        }
    }

    fn print(&self, format: Format) {
        output::print(match format {
            Format::Json => output::json(self),
            Format::Table => output::pairs(&[
                ("file", self.file.clone()),
                ("bytes", self.bytes.to_string()),
                ("revision", self.revision.to_string()),
                ("compacted", self.compacted_revision.to_string()),
                ("keys", self.keys.to_string()),
                ("data bytes", self.data_bytes.to_string()),
                ("leases", self.leases.to_string()),
                ("log index", format!("{} (term {})", self.applied_index, self.term)),
                ("hash", self.hash.clone()),
            ]),
        });
    }
}

fn read(path: &Path) -> Result<Backup, Failure> {
    Backup::read(path).map_err(|error| Failure::new(error.to_string()))
}

impl Save {
    async fn run(self) -> Result<ExitCode, Failure> {
        let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", self.file.display()));
        let mut snapshot = self.connection.client()?.snapshot().await?;
        let mut writer = BackupWriter::create(&self.file).map_err(failed)?;
        while let Some(piece) = snapshot.next().await? {
            writer.write(&piece).map_err(failed)?;
        }
        writer.sync().map_err(failed)?;
        let backup = read(writer.unfinished())?;
        writer.finish().map_err(failed)?;
        Facts::of(&self.file, &backup).print(self.output.output);
        Ok(ExitCode::SUCCESS)
    }
}

impl Look {
    fn status(self) -> Result<ExitCode, Failure> {
        Facts::of(&self.file, &read(&self.file)?).print(self.output.output);
        Ok(ExitCode::SUCCESS)
    }

    fn verify(self) -> Result<ExitCode, Failure> {
        let facts = Facts::of(&self.file, &read(&self.file)?);
        output::print(match self.output.output {
            Format::Json => output::json(&facts),
            Format::Table => format!(
                "{} is whole: revision {}, {} keys, {} leases\n",
                facts.file, facts.revision, facts.keys, facts.leases
            ),
        });
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Debug, Serialize)]
struct Done {
    data_dir: String,
    cluster: String,
    server: String,
    revision: i64,
    keys: u64,
}

impl Restore {
    fn run(self) -> Result<ExitCode, Failure> {
        let name = self.name.unwrap_or_else(host_name);
        let data_dir = self.data_dir.unwrap_or_else(|| default_data_dir("server", &name));
        let mut machine = read(&self.file)?.machine;
        if !machine.begin_epoch(self.bump_revision) {
            return Err(Failure::new(format!(
                "revision {} cannot be moved on by {}: choose a smaller --bump-revision",
                machine.revision(),
                self.bump_revision
            )));
        }
        // Only until the server starts and says where it is.
        let addr = SocketAddr::from(([127, 0, 0, 1], weft_control_plane::config::PEER_PORT));
        let restored = restore::restore(&machine, &data_dir, &name, addr)
            .map_err(|error| Failure::new(format!("nothing was restored: {error}")))?;
        let done = Done {
            data_dir: data_dir.display().to_string(),
            cluster: restored.cluster.to_string(),
            server: restored.server.to_string(),
            revision: machine.revision(),
            keys: machine.key_count(),
        };
        output::print(match self.output.output {
            Format::Json => output::json(&done),
            Format::Table => format!(
                "made {}: server {} of the new cluster {}, revision {}, {} keys\nstart it with: weft server --name {name} --data-dir {}\n",
                done.data_dir, done.server, done.cluster, done.revision, done.keys, done.data_dir
            ),
        });
        Ok(ExitCode::SUCCESS)
    }
}
