//! Looks at the log of a server that does not run: what is in it, and whether it reads back. Changes nothing, and
//! holds one segment in memory at a time.

use super::{
    WalError,
    disk::Disk,
    record::{LogPosition, Record, Vote},
    recovery::{TornTail, Walked, numbers, read},
    segment::{self, HEADER_BYTES},
};

/// What a look at a log found.
#[derive(Debug)]
pub struct Report {
    /// The segments in order, up to the damaged one if there is one.
    pub segments: Vec<SegmentReport>,
    /// Spare files and their bytes.
    pub spares: Vec<(String, u64)>,
    /// First index of the entries that are there, and one past the last.
    pub entries: Option<std::ops::Range<u64>>,
    /// Position of the last entry, purged ones included.
    pub last: Option<LogPosition>,
    /// The last vote.
    pub vote: Option<Vote>,
    /// The last known commit index.
    pub committed: Option<LogPosition>,
    /// The last purged entry.
    pub purged: Option<LogPosition>,
    /// The end that a crash left half-written. A start cuts it off and loses nothing that was acknowledged.
    pub torn: Option<TornTail>,
    /// Why a server would not start with this log.
    pub damage: Option<WalError>,
}

/// One segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentReport {
    /// Its number.
    pub segment: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Where its records end.
    pub end: u64,
    /// Records in it.
    pub records: u64,
    /// Log entries in it, those that are void by now included.
    pub entries: u64,
    /// Its part.
    pub state: SegmentState,
}

/// A segment's part in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentState {
    /// Full; it has a successor.
    Sealed,
    /// The one that is written next.
    Current,
    /// Made, and not in use yet.
    Unused,
    /// It, or what follows it, does not read back.
    Damaged,
}

impl std::fmt::Display for SegmentState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sealed => "sealed",
            Self::Current => "current",
            Self::Unused => "unused",
            Self::Damaged => "damaged",
        })
    }
}

/// Goes over the whole log; `visit` sees each record with its segment's number and its offset, up to the first
/// that is damaged.
///
/// # Errors
/// If the folder cannot be listed. What is wrong with the log itself is in the report.
pub fn inspect(disk: &dyn Disk, mut visit: impl FnMut(u64, u64, &Record)) -> Result<Report, WalError> {
    let numbers = numbers(disk)?;
    let mut walked = Walked::default();
    let mut segments = Vec::new();
    let mut damage = None;
    for (place, number) in numbers.iter().copied().enumerate() {
        if place > 0 && numbers[place - 1] + 1 != number {
            let file = disk.path(&segment::file_name(numbers[place - 1] + 1));
            damage = Some(WalError::MissingSegment { file });
            break;
        }
        let mut report = SegmentReport {
            segment: number,
            file_bytes: 0,
            end: HEADER_BYTES as u64,
            records: 0,
            entries: 0,
            state: SegmentState::Damaged,
        };
        let added = read(disk, number).and_then(|bytes| {
            report.file_bytes = bytes.len() as u64;
            walked.add(disk, number, &bytes, &mut |offset, record| {
                report.records += 1;
                report.entries += u64::from(matches!(record, Record::Entry(_)));
                visit(number, offset, &record);
            })
        });
        if added.is_ok() {
            let summary = walked.segments.last().filter(|summary| summary.segment == number);
            report.end = summary.map_or(report.end, |summary| summary.end);
            report.state = match summary {
                Some(summary) if summary.sealed => SegmentState::Sealed,
                Some(_) => SegmentState::Current,
                None => SegmentState::Unused,
            };
        }
        segments.push(report);
        if let Err(error) = added {
            damage = Some(error);
            break;
        }
    }
    if damage.is_none() {
        damage = walked.finish(disk).err();
    }
    let names = disk.list().map_err(|source| WalError::Io { file: disk.path(""), source })?;
    let mut spares: Vec<(String, u64)> = names
        .into_iter()
        .filter(|name| segment::parse_spare_name(name).is_some())
        .map(|name| disk.len(&name).map(|bytes| (name.clone(), bytes)).unwrap_or((name, 0)))
        .collect();
    spares.sort();
    let Walked { replay, torn, .. } = walked;
    Ok(Report {
        segments,
        spares,
        entries: replay.entries.indexes(),
        last: replay.last(),
        vote: replay.vote,
        committed: replay.committed,
        purged: replay.purged,
        torn,
        damage,
    })
}

#[cfg(test)]
mod tests;
