//! Reads the log back after a stop of any kind.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{
    WalError,
    disk::Disk,
    record::{self, Decoded, Entry, LogPosition, Record, Vote},
    replay::Replay,
    segment::{self, HEADER_BYTES, Header},
};

/// What was on disk.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The last vote.
    pub vote: Option<Vote>,
    /// The last known commit index. May be behind, never ahead.
    pub committed: Option<LogPosition>,
    /// The last purged entry.
    pub purged: Option<LogPosition>,
    /// Entries after it, without gaps.
    pub entries: VecDeque<Entry>,
    /// The segments in use, in order.
    pub segments: Vec<SegmentSummary>,
    /// Segments behind them that were made and not used yet.
    pub unused: Vec<u64>,
    /// What was cut off, if anything.
    pub torn: Option<TornTail>,
}

impl Recovered {
    /// Position of the last entry, purged ones included.
    pub fn last(&self) -> Option<LogPosition> {
        self.entries.back().map(|e| e.position).or(self.purged)
    }
}

/// One segment on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentSummary {
    /// Its number.
    pub segment: u64,
    /// The largest index of an entry in it.
    pub index_max: Option<u64>,
    /// Where its records end.
    pub end: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
    /// Whether its last record is a seal.
    pub sealed: bool,
    /// Behind its records stand other bytes than zeros: a torn tail, or leftovers of the file's former life.
    pub leftovers: bool,
}

/// Bytes at the end of the log that were written but never synced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub segment: u64,
    /// From where on they are void.
    pub offset: u64,
    /// What was found there.
    pub reason: String,
    /// The first segment of all was being made: there is no log yet.
    pub whole_segment: bool,
}

/// Reads all segments. Changes nothing on disk: [`super::Wal::open`] does that with the result.
///
/// # Errors
/// See [`WalError`]. A torn tail is none.
pub fn recover(disk: &dyn Disk) -> Result<Recovered, WalError> {
    let mut entries: VecDeque<Entry> = VecDeque::new();
    let walked = walk(disk, |record| match record {
        Record::Entry(entry) => entries.push_back(entry),
        Record::TruncateFrom(index) => {
            while entries.back().is_some_and(|e| e.position.index >= index) {
                entries.pop_back();
            }
        }
        Record::Purge(position) => {
            while entries.front().is_some_and(|e| e.position.index <= position.index) {
                entries.pop_front();
            }
        }
        _ => {}
    })?;
    let Walked { replay, segments, unused, torn } = walked;
    debug_assert_eq!(entries.back().map(|e| e.position), replay.entries.last());
    let Replay { vote, committed, purged, .. } = replay;
    Ok(Recovered { vote, committed, purged, entries, segments, unused, torn })
}

/// What a walk over all segments found.
#[derive(Debug, Default)]
pub(super) struct Walked {
    pub(super) replay: Replay,
    pub(super) segments: Vec<SegmentSummary>,
    pub(super) unused: Vec<u64>,
    pub(super) torn: Option<TornTail>,
}

/// Goes over all records in order, one segment in memory at a time. Every record is checked against those before
/// it when `visit` sees it.
pub(super) fn walk(disk: &dyn Disk, mut visit: impl FnMut(Record)) -> Result<Walked, WalError> {
    let mut walked = Walked::default();
    let numbers = numbers(disk)?;
    for (place, number) in numbers.iter().enumerate() {
        if place > 0 && numbers[place - 1] + 1 != *number {
            let file = disk.path(&segment::file_name(numbers[place - 1] + 1));
            return Err(WalError::MissingSegment { file });
        }
        let bytes = read(disk, *number)?;
        walked.add(disk, *number, &bytes, &mut |_, record| visit(record))?;
    }
    walked.finish(disk)?;
    Ok(walked)
}

/// Numbers of the segment files, ascending.
pub(super) fn numbers(disk: &dyn Disk) -> Result<Vec<u64>, WalError> {
    let names = disk.list().map_err(|source| WalError::Io { file: disk.path(""), source })?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment::parse_file_name(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The bytes of a segment file.
pub(super) fn read(disk: &dyn Disk, number: u64) -> Result<Bytes, WalError> {
    let name = segment::file_name(number);
    let io_error = |source| WalError::Io { file: disk.path(&name), source };
    let bytes = disk.len(&name).map_err(io_error)?;
    if bytes > segment::SEGMENT_FILE_BYTES_MAX {
        let limit = segment::SEGMENT_FILE_BYTES_MAX;
        let reason = format!("the file has {bytes} bytes, a segment has at most {limit}");
        return Err(WalError::Damaged { file: disk.path(&name), offset: limit, reason });
    }
    disk.read(&name).map(Bytes::from).map_err(io_error)
}

impl Walked {
    /// Goes over the next segment.
    pub(super) fn add(
        &mut self,
        disk: &dyn Disk,
        number: u64,
        bytes: &Bytes,
        visit: &mut dyn FnMut(u64, Record),
    ) -> Result<(), WalError> {
        let damaged = |number: u64, offset: u64, reason: String| WalError::Damaged {
            file: disk.path(&segment::file_name(number)),
            offset,
            reason,
        };
        if let Some(open) = self.segments.last().filter(|last| !last.sealed) {
            // A segment comes into use when its predecessor's seal is on disk, and every group starts with a
            // mark. So without a mark this one was only made, and with one the seal was lost later.
            if record::synced_by_later_mark(bytes, number, 0).is_none() {
                self.unused.push(number);
                return Ok(());
            }
            let found = self.torn.take().map_or("the segment ends without a seal".to_owned(), |t| t.reason);
            return Err(damaged(open.segment, open.end, format!("{found}, but a later segment is in use")));
        }
        match segment::check_header(bytes, number) {
            Header::Valid(made) if made > bytes.len() as u64 => {
                let reason = format!("the file ends here, but it was made with {made} bytes");
                return Err(damaged(number, bytes.len() as u64, reason));
            }
            Header::Valid(_) => {}
            Header::OtherVersion(seen) => {
                let file = disk.path(&segment::file_name(number));
                return Err(WalError::Version { file, seen, supported: segment::VERSION });
            }
            Header::Bad(reason) => {
                // A later segment's header is on disk before its predecessor's seal is. The first one of all was
                // being made if no group is in it.
                let first = self.segments.is_empty() && self.torn.is_none();
                if first && record::synced_by_later_mark(bytes, number, 0).is_none() {
                    let reason = reason.to_owned();
                    self.torn = Some(TornTail { segment: number, offset: 0, reason, whole_segment: true });
                    return Ok(());
                }
                return Err(damaged(number, 0, reason.to_owned()));
            }
        }
        if self.torn.take().is_some_and(|torn| torn.whole_segment) {
            return Err(damaged(number - 1, 0, "the oldest segment has no valid header".to_owned()));
        }
        let place = self.segments.len();
        let mut summary = SegmentSummary {
            segment: number,
            index_max: None,
            end: HEADER_BYTES as u64,
            file_bytes: bytes.len() as u64,
            sealed: false,
            leftovers: false,
        };
        let mut offset = HEADER_BYTES;
        let bad = loop {
            match record::decode(bytes, offset, number) {
                Decoded::Record { record: Record::Seal(at), next } => {
                    if at != offset as u64 {
                        let reason = format!("a seal that belongs at offset {at}");
                        return Err(damaged(number, offset as u64, reason));
                    }
                    visit(offset as u64, Record::Seal(at));
                    (offset, summary.sealed) = (next, true);
                    break None;
                }
                Decoded::Record { record, next } => {
                    let at = offset as u64;
                    if let Record::Mark(mark) = record
                        && (mark.segment != number || mark.offset != at)
                    {
                        return Err(damaged(number, at, "a mark that belongs elsewhere".to_owned()));
                    }
                    if let Record::Entry(entry) = &record {
                        summary.index_max = summary.index_max.max(Some(entry.position.index));
                    }
                    self.replay.follow(place, &record).map_err(|reason| damaged(number, at, reason))?;
                    visit(at, record);
                    offset = next;
                }
                Decoded::End => break None,
                Decoded::Bad(reason) => break Some(reason),
            }
        };
        summary.end = offset as u64;
        if !summary.sealed {
            summary.leftovers = record::first_other_than_zero(bytes, offset) < bytes.len();
            if let Some(synced) = record::synced_by_later_mark(bytes, number, offset)
                && synced > offset as u64
            {
                return Err(damaged(number, offset as u64, bad.unwrap_or("zeros".to_owned())));
            }
            self.torn = bad.map(|reason| TornTail {
                segment: number,
                offset: offset as u64,
                reason,
                whole_segment: false,
            });
        }
        self.segments.push(summary);
        Ok(())
    }

    /// Looks at what only shows behind the last segment.
    pub(super) fn finish(&self, disk: &dyn Disk) -> Result<(), WalError> {
        let missing = |number| Err(WalError::MissingSegment { file: disk.path(&segment::file_name(number)) });
        // A segment is sealed only when the next one is there.
        if let Some(last) = self.segments.last().filter(|last| last.sealed) {
            return missing(last.segment + 1);
        }
        match self.segments.first() {
            Some(oldest) if self.replay.has_gap() => missing(oldest.segment.saturating_sub(1)),
            _ => Ok(()),
        }
    }
}
