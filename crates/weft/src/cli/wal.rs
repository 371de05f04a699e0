//! `weft wal`: the log of a server that does not run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use weft_control_plane::raft::describe_entry;
use weft_control_plane::wal::disk::FolderDisk;
use weft_control_plane::wal::inspect::{self, Report};
use weft_control_plane::wal::record::{LogPosition, Record};
use weft_control_plane::wal::{Disk, WalError, segment};

use super::Output;
use crate::failure::{FAILED, Failure};
use crate::output::{self, Format};

/// Look at the log of a server that does not run
#[derive(Debug, Args)]
pub(crate) struct Wal {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Verify(Look),
    Dump(Dump),
}

/// Check every record, as a start would, and change nothing
///
/// Says where the first bad record is, and whether it is torn (the end that a crash leaves; a start cuts it off,
/// and nothing acknowledged is lost) or damaged (a start refuses; exit code 1). Holds one segment in memory.
///
/// Example: weft wal verify /var/lib/weft
#[derive(Debug, Args)]
struct Look {
    /// The data folder of a server, or the log's folder in it
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// Print every record, one a line, up to the first that is damaged
///
/// Example: weft wal dump /var/lib/weft --output json | jq 'select(.record == "entry")'
#[derive(Debug, Args)]
struct Dump {
    #[command(flatten)]
    look: Look,
}

impl Wal {
    pub(crate) async fn run(self) -> Result<ExitCode, Failure> {
        match self.command {
            Command::Verify(look) => look.verify(),
            Command::Dump(dump) => dump.run(),
        }
    }
}

impl Look {
    fn verify(self) -> Result<ExitCode, Failure> {
        let disk = open(&self.dir)?;
        let report = inspect::inspect(&disk, |_, _, _| {}).map_err(|e| Failure::new(e.to_string()))?;
        let verdict = Verdict::of(&disk, &report);
        output::print(match self.output.output {
            Format::Json => output::json(&verdict),
            Format::Table => verdict.text(),
        });
        Ok(verdict.exit_code())
    }
}

impl Dump {
    fn run(self) -> Result<ExitCode, Failure> {
        let disk = open(&self.look.dir)?;
        let format = self.look.output.output;
        let report = inspect::inspect(&disk, |segment, offset, record| {
            output::print(match format {
                Format::Json => output::json_line(&Line::of(segment, offset, record)),
                Format::Table => Line::of(segment, offset, record).text(),
            });
        });
        let report = report.map_err(|e| Failure::new(e.to_string()))?;
        let verdict = Verdict::of(&disk, &report);
        if let Some(bad) = &verdict.bad {
            output::print(match format {
                Format::Json => output::json_line(&verdict),
                Format::Table => bad.text(),
            });
        }
        Ok(verdict.exit_code())
    }
}

/// The log's folder: that of a data folder, or the one that was named.
fn open(dir: &Path) -> Result<FolderDisk, Failure> {
    let inside = dir.join("wal");
    let (data_dir, folder) =
        if inside.is_dir() { (Some(dir), inside) } else { (dir.parent(), dir.to_path_buf()) };
    let failed = |e: std::io::Error| Failure::new(format!("{}: {e}", folder.display()));
    if let Some(data_dir) = data_dir
        && weft_core::fsio::is_in_use(data_dir).map_err(failed)?
    {
        return Err(Failure::new(format!(
            "{} is in use by a server, which writes its log all the time: stop it first, or look at a copy",
            data_dir.display()
        )));
    }
    let disk = FolderDisk::existing(&folder).map_err(failed)?;
    let names = disk.list().map_err(failed)?;
    if names.iter().any(|name| segment::parse_file_name(name).is_some()) {
        return Ok(disk);
    }
    Err(Failure::new(format!(
        "{} holds no log: no file in it is named like 0000000000000001.wal",
        folder.display()
    )))
}

#[derive(Debug, Serialize)]
struct Verdict {
    /// `whole`, `torn` or `damaged`.
    state: &'static str,
    segments: Vec<SegmentLine>,
    spares: usize,
    spare_bytes: u64,
    first_index: Option<u64>,
    last: Option<Position>,
    committed: Option<Position>,
    purged: Option<Position>,
    vote: Option<VoteLine>,
    bad: Option<Bad>,
}

#[derive(Debug, Serialize)]
struct SegmentLine {
    file: String,
    state: String,
    records: u64,
    entries: u64,
    end: u64,
    file_bytes: u64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Position {
    term: u64,
    index: u64,
}

impl From<LogPosition> for Position {
    fn from(position: LogPosition) -> Self {
        Self { term: position.term, index: position.index }
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (term {})", self.index, self.term)
    }
}

#[derive(Debug, Serialize)]
struct VoteLine {
    term: u64,
    server: String,
    committed: bool,
}

/// The first record that does not read back.
#[derive(Debug, Serialize)]
struct Bad {
    /// `torn` or `damaged`.
    kind: &'static str,
    file: String,
    offset: Option<u64>,
    reason: String,
}

impl Bad {
    fn text(&self) -> String {
        let at = self.offset.map(|offset| format!(" at offset {offset}")).unwrap_or_default();
        let meaning = match self.kind {
            "torn" => "the end that a crash leaves: a start cuts it off, and nothing acknowledged is lost",
            _ => "a server would not start with it",
        };
        format!("{}: {}{at}: {}\n({meaning})\n", self.kind, self.file, self.reason)
    }
}

impl Verdict {
    fn of(disk: &FolderDisk, report: &Report) -> Self {
        let torn = report.torn.as_ref().map(|torn| Bad {
            kind: "torn",
            file: disk.path(&segment::file_name(torn.segment)).display().to_string(),
            offset: Some(torn.offset),
            reason: torn.reason.clone(),
        });
        let damaged = report.damage.as_ref().map(|error| {
            let (file, offset) = match error {
                WalError::Damaged { file, offset, .. } => (file, Some(*offset)),
                WalError::Version { file, .. }
                | WalError::MissingSegment { file }
                | WalError::Io { file, .. }
                | WalError::Gone { folder: file } => (file, None),
            };
            let reason = match error {
                WalError::Damaged { reason, .. } => reason.clone(),
                other => other.to_string(),
            };
            Bad { kind: "damaged", file: file.display().to_string(), offset, reason }
        });
        let bad = damaged.or(torn);
        Self {
            state: bad.as_ref().map_or("whole", |bad| bad.kind),
            segments: report
                .segments
                .iter()
                .map(|s| SegmentLine {
                    file: segment::file_name(s.segment),
                    state: s.state.to_string(),
                    records: s.records,
                    entries: s.entries,
                    end: s.end,
                    file_bytes: s.file_bytes,
                })
                .collect(),
            spares: report.spares.len(),
            spare_bytes: report.spares.iter().map(|(_, bytes)| bytes).sum(),
            first_index: report.entries.as_ref().map(|entries| entries.start),
            last: report.last.map(Position::from),
            committed: report.committed.map(Position::from),
            purged: report.purged.map(Position::from),
            vote: report.vote.map(|vote| VoteLine {
                term: vote.term,
                server: format!("{:016x}", vote.node),
                committed: vote.committed,
            }),
            bad,
        }
    }

    fn exit_code(&self) -> ExitCode {
        if self.state == "damaged" { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
    }

    fn text(&self) -> String {
        let rows = self.segments.iter().map(|s| {
            [
                s.file.clone(),
                s.state.clone(),
                s.records.to_string(),
                s.entries.to_string(),
                s.end.to_string(),
                s.file_bytes.to_string(),
            ]
        });
        let mut text =
            output::table(["SEGMENT", "STATE", "RECORDS", "ENTRIES", "END", "BYTES"], rows, "no segments");
        let or_none = |position: Option<Position>| position.map_or("none".to_owned(), |p| p.to_string());
        let vote = self.vote.as_ref().map_or("none".to_owned(), |vote| {
            let won = if vote.committed { ", won" } else { "" };
            format!("server {} in term {}{won}", vote.server, vote.term)
        });
        text.push('\n');
        text.push_str(&output::pairs(&[
            ("state", self.state.to_owned()),
            ("first entry", self.first_index.map_or("none".to_owned(), |index| index.to_string())),
            ("last entry", or_none(self.last)),
            ("committed", or_none(self.committed)),
            ("purged", or_none(self.purged)),
            ("vote", vote),
            ("spares", format!("{} ({} bytes)", self.spares, self.spare_bytes)),
        ]));
        if let Some(bad) = &self.bad {
            text.push('\n');
            text.push_str(&bad.text());
        }
        text
    }
}

/// One record of a dump.
#[derive(Debug, Serialize)]
struct Line {
    segment: String,
    offset: u64,
    record: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

impl Line {
    fn of(segment: u64, offset: u64, record: &Record) -> Self {
        let name = match record {
            Record::Mark(_) => "mark",
            Record::Entry(_) => "entry",
            Record::Vote(_) => "vote",
            Record::Committed(_) => "committed",
            Record::TruncateFrom(_) => "truncate-from",
            Record::Purge(_) => "purge",
            Record::Seal(_) => "seal",
        };
        let segment = segment::file_name(segment);
        let mut line =
            Self { segment, offset, record: name, term: None, index: None, bytes: None, detail: None };
        match record {
            Record::Mark(mark) => line.detail = Some(format!("synced up to offset {}", mark.synced)),
            Record::Entry(entry) => {
                (line.term, line.index) = (Some(entry.position.term), Some(entry.position.index));
                line.bytes = Some(entry.payload.len());
                line.detail = Some(describe_entry(entry).unwrap_or_else(|why| format!("unreadable: {why}")));
            }
            Record::Vote(vote) => {
                line.term = Some(vote.term);
                let won = if vote.committed { ", won" } else { "" };
                line.detail = Some(format!("for server {:016x}{won}", vote.node));
            }
            Record::Committed(position) | Record::Purge(position) => {
                (line.term, line.index) = (Some(position.term), Some(position.index));
            }
            Record::TruncateFrom(index) => line.index = Some(*index),
            Record::Seal(_) => {}
        }
        line
    }

    fn text(&self) -> String {
        let mut text = format!("{} {:>9} {:13}", self.segment, self.offset, self.record);
        if let Some(index) = self.index {
            text.push_str(&format!(" index {index}"));
        }
        if let Some(term) = self.term {
            text.push_str(&format!(" term {term}"));
        }
        if let Some(bytes) = self.bytes {
            text.push_str(&format!(" {bytes} bytes"));
        }
        if let Some(detail) = &self.detail {
            text.push_str(&format!("  {detail}"));
        }
        text.push('\n');
        text
    }
}
