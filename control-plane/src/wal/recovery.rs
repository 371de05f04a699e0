//! Reads the log back after a stop of any kind.

use std::{collections::VecDeque, io};

use bytes::Bytes;

use super::{
    WalError,
    disk::Disk,
    record::{self, Decoded, Entry, LogPosition, Record, Vote},
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
    /// The segments, in order.
    pub segments: Vec<SegmentSummary>,
    /// What was cut off, if anything.
    pub torn: Option<TornTail>,
    /// The first entry found, where the oldest segment does not go on from the purge that it carries.
    gap_to: Option<u64>,
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
    /// Not even the segment's header was whole: the segment is to be removed.
    pub whole_segment: bool,
}

/// Reads all segments. Changes nothing on disk: [`super::Wal::open`] does that with the result.
///
/// # Errors
/// See [`WalError`]. A torn tail is none.
pub fn recover(disk: &dyn Disk) -> Result<Recovered, WalError> {
    let io_error = |name: &str, source: io::Error| WalError::Io { file: disk.path(name), source };
    let mut numbers: Vec<u64> = disk
        .list()
        .map_err(|e| io_error("", e))?
        .iter()
        .filter_map(|name| segment::parse_file_name(name))
        .collect();
    numbers.sort_unstable();
    let mut recovered = Recovered::default();
    for (place, number) in numbers.iter().enumerate() {
        let name = segment::file_name(*number);
        if place > 0 && numbers[place - 1] + 1 != *number {
            return Err(WalError::MissingSegment {
                file: disk.path(&segment::file_name(numbers[place - 1] + 1)),
            });
        }
        let bytes = Bytes::from(disk.read(&name).map_err(|e| io_error(&name, e))?);
        let last = place + 1 == numbers.len();
        recovered.read_segment(disk, *number, &bytes, last)?;
    }
    if let Some(first) = recovered.gap_to
        && recovered.purged.is_none_or(|p| p.index + 1 < first)
    {
        return Err(WalError::MissingSegment { file: disk.path(&segment::file_name(numbers[0] - 1)) });
    }
    Ok(recovered)
}

impl Recovered {
    /// Position of the last entry, purged ones included.
    pub fn last(&self) -> Option<LogPosition> {
        self.entries.back().map(|e| e.position).or(self.purged)
    }

    fn read_segment(
        &mut self,
        disk: &dyn Disk,
        number: u64,
        bytes: &Bytes,
        last: bool,
    ) -> Result<(), WalError> {
        let file = disk.path(&segment::file_name(number));
        let damaged = |offset: usize, reason: String| WalError::Damaged {
            file: file.clone(),
            offset: offset as u64,
            reason,
        };
        match segment::check_header(bytes, number) {
            Header::Valid(made) if made > bytes.len() as u64 => {
                let reason = format!("the file ends here, but it was made with {made} bytes");
                return Err(damaged(bytes.len(), reason));
            }
            Header::Valid(_) => {}
            Header::OtherVersion(seen) => {
                return Err(WalError::Version { file, seen, supported: segment::VERSION });
            }
            Header::Bad(reason) => {
                // A segment is made, and synced with its header and the carried state, before any group
                // goes into it. So without a mark in it, nothing in it was ever acknowledged.
                let proven = record::synced_by_later_mark(bytes, number, 0);
                if last && proven.is_none_or(|synced| synced <= HEADER_BYTES as u64) {
                    let reason = reason.to_owned();
                    self.torn = Some(TornTail { segment: number, offset: 0, reason, whole_segment: true });
                    return Ok(());
                }
                return Err(damaged(0, reason.to_owned()));
            }
        }
        let mut summary = SegmentSummary {
            segment: number,
            index_max: None,
            end: HEADER_BYTES as u64,
            file_bytes: bytes.len() as u64,
            sealed: false,
        };
        let mut offset = HEADER_BYTES;
        loop {
            match record::decode(bytes, offset) {
                Decoded::Record { record: Record::Seal(at), next } => {
                    if at != offset as u64 {
                        return Err(damaged(offset, format!("a seal that belongs at offset {at}")));
                    }
                    summary.end = next as u64;
                    summary.sealed = true;
                    break;
                }
                Decoded::Record { record, next } => {
                    if let Record::Mark(mark) = record
                        && (mark.segment != number || mark.offset != offset as u64)
                    {
                        return Err(damaged(offset, "a mark that belongs elsewhere".to_owned()));
                    }
                    if let Record::Entry(entry) = &record {
                        summary.index_max = summary.index_max.max(Some(entry.position.index));
                    }
                    self.replay(record).map_err(|reason| damaged(offset, reason))?;
                    offset = next;
                    summary.end = offset as u64;
                }
                Decoded::End => break,
                Decoded::Bad(reason) => {
                    let proven = record::synced_by_later_mark(bytes, number, offset);
                    if !last || proven.is_some_and(|synced| synced > offset as u64) {
                        return Err(damaged(offset, reason));
                    }
                    self.torn = Some(TornTail {
                        segment: number,
                        offset: offset as u64,
                        reason,
                        whole_segment: false,
                    });
                    break;
                }
            }
        }
        if !last && !summary.sealed {
            // Its successor was made only after this one was sealed and synced, unless the power failed
            // in between; then the successor holds no mark and was handled above as torn.
            return Err(damaged(summary.end as usize, "the segment ends without a seal".to_owned()));
        }
        self.segments.push(summary);
        Ok(())
    }

    /// Carries out one record. Answers why it cannot follow those before it.
    fn replay(&mut self, record: Record) -> Result<(), String> {
        match record {
            Record::Mark(_) | Record::Seal(_) => {}
            Record::Vote(vote) => self.vote = Some(vote),
            Record::Committed(position) => self.committed = self.committed.max(Some(position)),
            Record::TruncateFrom(index) => {
                while self.entries.back().is_some_and(|e| e.position.index >= index) {
                    self.entries.pop_back();
                }
                self.gap_to = self.gap_to.map(|first| first.min(index));
            }
            Record::Purge(position) => {
                self.purged = self.purged.max(Some(position));
                while self.entries.front().is_some_and(|e| e.position.index <= position.index) {
                    self.entries.pop_front();
                }
            }
            Record::Entry(entry) => {
                let seen = entry.position.index;
                let expected = self.last().map_or(0, |p| p.index + 1);
                let expected =
                    if self.entries.is_empty() { expected.max(self.gap_to.unwrap_or(0)) } else { expected };
                if seen != expected {
                    // The oldest segment carries the purge of when it was made; segments deleted since
                    // then leave a gap at its start, which a purge in a later record must account for.
                    let oldest = self.segments.is_empty() && self.entries.is_empty() && self.gap_to.is_none();
                    if !(oldest && seen > expected) {
                        return Err(format!("log entry {seen} where {expected} must follow"));
                    }
                    self.gap_to = Some(seen);
                }
                self.entries.push_back(entry);
            }
        }
        Ok(())
    }
}
