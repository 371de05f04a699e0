//! `weft kv get|put|del|watch|txn`.

mod shapes;

use std::io::Read;
use std::process::ExitCode;

use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use weft_client::kv::{GetOptions, KeyRange, PutOptions, SortBy};
use weft_client::watch::WatchOptions;

use super::{Connection, Output, txn_format};
use crate::failure::{FAILED, Failure};
use crate::output::{self, Format};
use crate::signals::Signals;

/// Get, put, delete, watch and transact keys
#[derive(Debug, Args)]
pub(crate) struct Kv {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Get(Get),
    Put(Put),
    Del(Del),
    Watch(Watch),
    Txn(Txn),
}

/// Read a key or a range of keys
///
/// Exits with 1 if one key was asked for and it does not exist.
#[derive(Debug, Args)]
struct Get {
    #[command(flatten)]
    keys: Keys,
    /// Read as of this revision; 0 is the current one
    #[arg(long, default_value_t = 0, value_name = "REVISION")]
    rev: i64,
    /// Most keys to answer; 0 is no limit
    #[arg(long, default_value_t = 0, value_name = "N")]
    limit: i64,
    /// Leave values out
    #[arg(long)]
    keys_only: bool,
    /// Answer only how many keys there are
    #[arg(long, conflicts_with_all = ["keys_only", "print_value_only"])]
    count_only: bool,
    /// Print values only, as they are, each with a line feed
    #[arg(long, conflicts_with = "keys_only")]
    print_value_only: bool,
    /// Sort by this property; default: by key
    #[arg(long, value_enum, value_name = "PROPERTY")]
    sort_by: Option<SortKey>,
    /// Largest first
    #[arg(long)]
    descending: bool,
    /// Let the asked server answer by itself: works without a majority, and may be stale
    #[arg(long)]
    serializable: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SortKey {
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// Store a value under a key
#[derive(Debug, Args)]
struct Put {
    /// The key
    key: String,
    /// The value; without it or as `-`, it is read from standard input
    #[arg(allow_hyphen_values = true)]
    value: Option<String>,
    /// Attach the key to this lease (hex): it is deleted when the lease ends; default: none
    #[arg(long, value_name = "HEX")]
    lease: Option<String>,
    /// Print the previous value
    #[arg(long)]
    prev_kv: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// Delete a key or a range of keys
#[derive(Debug, Args)]
struct Del {
    #[command(flatten)]
    keys: Keys,
    /// Print what was deleted
    #[arg(long)]
    prev_kv: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// Print every change of a key or a range, in order, until interrupted
///
/// Goes on through another server, without a gap, when one is lost.
#[derive(Debug, Args)]
struct Watch {
    #[command(flatten)]
    keys: Keys,
    /// First revision to print; 0 is from now on
    #[arg(long, default_value_t = 0, value_name = "REVISION")]
    rev: i64,
    /// With each change, the value before it
    #[arg(long)]
    prev_kv: bool,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// Compare, then change, in one step
///
/// Reads three blocks, each ended by an empty line: compares, operations if all hold, operations
/// otherwise. For example:
///
///   mod("color") = "0"
///
///   put color blue
///
///   get color
///
/// Compares: value, version, create, mod or lease of a key, with =, !=, < or >.
/// Operations: put KEY VALUE, get KEY [--prefix], del KEY [--prefix].
/// Exits with 0 whichever way it went.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
struct Txn {
    /// File to read; without it or as `-`, standard input
    file: Option<String>,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    output: Output,
}

/// Which keys.
#[derive(Debug, Args)]
struct Keys {
    /// The key, or the first one of a range
    key: String,
    /// End of the range, exclusive
    range_end: Option<String>,
    /// All keys that begin with KEY; an empty one means all keys
    #[arg(long)]
    prefix: bool,
    /// All keys from KEY on
    #[arg(long)]
    from_key: bool,
}

impl Keys {
    fn range(&self) -> Result<KeyRange, Failure> {
        let end = self.range_end.clone().map(Bytes::from);
        txn_format::range(self.key.clone().into(), end, self.prefix, self.from_key).map_err(Failure::new)
    }
}

impl Kv {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        match self.command {
            Command::Get(command) => command.run().await,
            Command::Put(command) => command.run().await,
            Command::Del(command) => command.run().await,
            Command::Watch(command) => command.run().await,
            Command::Txn(command) => command.run().await,
        }
    }
}

impl Get {
    async fn run(self) -> Result<ExitCode, Failure> {
        let range = self.keys.range()?;
        let single = range.is_single();
        let options = GetOptions {
            revision: self.rev,
            limit: self.limit,
            sort_by: self.sort_by.map(|key| match key {
                SortKey::Key => SortBy::Key,
                SortKey::Version => SortBy::Version,
                SortKey::Create => SortBy::Create,
                SortKey::Mod => SortBy::Mod,
                SortKey::Value => SortBy::Value,
            }),
            descending: self.descending,
            keys_only: self.keys_only,
            count_only: self.count_only,
            serializable: self.serializable,
        };
        let answer = self.connection.client()?.kv().range(range, options).await?;
        let missing = single && answer.count == 0;
        match self.output.output {
            Format::Json => output::print(output::json(&shapes::Get::from(&answer))),
            Format::Table if self.print_value_only => {
                for kv in &answer.kvs {
                    output::print([&kv.value[..], b"\n"].concat());
                }
            }
            Format::Table if self.count_only => output::print(format!("{}\n", answer.count)),
            // Said on stderr below, so that a script that reads stdout sees nothing.
            Format::Table if missing => {}
            Format::Table => output::print(shapes::table(&answer.kvs, self.keys_only)),
        }
        if missing && !self.count_only {
            eprintln!("no key {:?} at revision {}", self.keys.key, answer.revision);
            return Ok(ExitCode::from(FAILED));
        }
        if answer.more {
            eprintln!("{} of {} keys; raise --limit for more", answer.kvs.len(), answer.count);
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Put {
    async fn run(self) -> Result<ExitCode, Failure> {
        let lease = match &self.lease {
            Some(hex) => txn_format::lease(hex.as_bytes()).map_err(Failure::new)?,
            None => 0,
        };
        let value: Bytes = match self.value {
            Some(value) if value != "-" => value.into(),
            _ => read_stdin().await?.into(),
        };
        let options = PutOptions { lease, prev_kv: self.prev_kv };
        let answer = self.connection.client()?.kv().put_with(self.key, value, options).await?;
        output::print(match self.output.output {
            Format::Json => output::json(&shapes::Put::from(&answer)),
            Format::Table => {
                let prev = answer.prev_kv.as_ref();
                let prev = prev.map(|kv| format!(", was {}", output::text(&kv.value))).unwrap_or_default();
                format!("ok, revision {}{prev}\n", answer.revision)
            }
        });
        Ok(ExitCode::SUCCESS)
    }
}

impl Del {
    async fn run(self) -> Result<ExitCode, Failure> {
        let range = self.keys.range()?;
        let answer = self.connection.client()?.kv().delete(range, self.prev_kv).await?;
        output::print(match self.output.output {
            Format::Json => output::json(&shapes::Delete::from(&answer)),
            Format::Table => {
                let prev = if answer.prev_kvs.is_empty() {
                    String::new()
                } else {
                    shapes::table(&answer.prev_kvs, false)
                };
                format!("{} deleted, revision {}\n{prev}", answer.deleted, answer.revision)
            }
        });
        Ok(ExitCode::SUCCESS)
    }
}

impl Watch {
    async fn run(self) -> Result<ExitCode, Failure> {
        let mut signals = Signals::listen()?;
        let options = WatchOptions {
            start_revision: self.rev,
            prev_kv: self.prev_kv,
            ..WatchOptions::new(self.keys.range()?)
        };
        let client = self.connection.client()?;
        let mut watcher = tokio::select! {
            watcher = client.watch(options) => watcher?,
            _ = signals.next() => return Ok(ExitCode::SUCCESS),
        };
        loop {
            let events = tokio::select! {
                events = watcher.next() => events?,
                _ = signals.next() => return Ok(ExitCode::SUCCESS),
            };
            for event in &events {
                output::print(match self.output.output {
                    Format::Json => output::json_line(&shapes::Event::from(event)),
                    Format::Table => shapes::event_line(event),
                });
            }
        }
    }
}

impl Txn {
    async fn run(self) -> Result<ExitCode, Failure> {
        let (text, from) = match self.file.as_deref() {
            Some(path) if path != "-" => {
                let text = tokio::fs::read(path).await;
                (text.map_err(|error| Failure::new(format!("cannot read {path}: {error}")))?, path)
            }
            _ => (read_stdin().await?, "standard input"),
        };
        let text = String::from_utf8(text).map_err(|_| Failure::new(format!("{from} is not UTF-8 text")))?;
        let txn = txn_format::parse(&text).map_err(|error| Failure::new(format!("{from}: {error}")))?;
        let answer = self.connection.client()?.kv().txn(txn).await?;
        output::print(match self.output.output {
            Format::Json => output::json(&shapes::Txn::from(&answer)),
            Format::Table => shapes::txn_text(&answer),
        });
        Ok(ExitCode::SUCCESS)
    }
}

async fn read_stdin() -> Result<Vec<u8>, Failure> {
    let read = || {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    };
    let read = tokio::task::spawn_blocking(read).await;
    let read = read.map_err(|error| Failure::new(error.to_string()))?;
    read.map_err(|error| Failure::new(format!("cannot read standard input: {error}")))
}
