//! The segments of a log and what is written where. Pure but for its [`Disk`] and the time that syncs take.

use std::{
    collections::VecDeque,
    io,
    path::PathBuf,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use weft_state::defect::{Defect, planted};

use super::{
    WalError,
    disk::{Disk, DiskFile, out_of_space},
    record::{self, LogPosition, MARK_BYTES, Mark, RECORD_HEADER_BYTES, Record, SEAL_BYTES, Vote},
    recovery::{Recovered, SegmentSummary},
    segment::{self, HEADER_BYTES},
    spares::{Filled, Spares},
    writer::{Done, Operation, WalStats},
};

/// Zeros behind each group, where the next one will start: in a file that was used before, leftovers stand there.
const END: [u8; RECORD_HEADER_BYTES] = [0; RECORD_HEADER_BYTES];

/// What became of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is on disk, if anything in it waits for that.
    Durable,
    /// There is no space for it. Nothing of it is acknowledged; call again, with the same group.
    OutOfSpace,
}

/// The current segment and what is known of the others.
pub struct LogFile {
    disk: Arc<dyn Disk>,
    spares: Arc<Spares>,
    file: Box<dyn DiskFile>,
    segment: u64,
    /// Where the next record goes.
    offset: u64,
    /// Up to where the current segment is known to be on disk.
    synced: u64,
    /// Bytes of the file as it was made: writing up to there needs no space.
    made_bytes: u64,
    file_bytes: u64,
    index_max: Option<u64>,
    /// Nothing is in the current segment yet.
    fresh: bool,
    /// The successor, made and not in use.
    next: Option<Next>,
    /// Older segments, oldest first.
    older: VecDeque<SegmentSummary>,
    vote: Option<Vote>,
    committed: Option<LogPosition>,
    purged: Option<LogPosition>,
    /// The bytes of the group that is being written.
    buffer: Vec<u8>,
    staged: Option<Staged>,
    stats: Arc<WalStats>,
}

struct Next {
    file: Box<dyn DiskFile>,
    bytes: u64,
}

/// A group that is in the buffer and not yet on disk.
#[derive(Default)]
struct Staged {
    waiting: Vec<Done>,
    purges: bool,
}

impl LogFile {
    /// Continues where recovery ended: cuts off what stands behind the end, then writes the carried state.
    pub fn open(disk: Arc<dyn Disk>, spares: Arc<Spares>, recovered: &Recovered) -> Result<Self, WalError> {
        let io_error = |segment: u64, source: io::Error| WalError::Io {
            file: disk.path(&segment::file_name(segment)),
            source,
        };
        if let Some(torn) = &recovered.torn {
            let name = segment::file_name(torn.segment);
            tracing::warn!(
                file = %disk.path(&name).display(), offset = torn.offset, reason = %torn.reason,
                "cut off the end of the log that a crash left half-written; it was never acknowledged"
            );
            if torn.whole_segment {
                disk.remove(&name).map_err(|e| io_error(torn.segment, e))?;
            }
        }
        for unused in &recovered.unused {
            let bytes = disk.len(&segment::file_name(*unused)).map_err(|e| io_error(*unused, e))?;
            spares.recycle(*unused, bytes).map_err(|e| io_error(*unused, e))?;
        }
        let mut older: VecDeque<SegmentSummary> = recovered.segments.clone().into();
        let (file, last) = match older.pop_back() {
            Some(last) => {
                let name = segment::file_name(last.segment);
                let mut file = disk.open(&name).map_err(|e| io_error(last.segment, e))?;
                if last.leftovers {
                    // Records of this very segment may stand there, behind a page that was lost.
                    zero(&mut *file, last.end, last.file_bytes).map_err(|e| io_error(last.segment, e))?;
                }
                (file, last)
            }
            None => {
                let made = spares.make_whole().and_then(|spare| {
                    disk.rename(&spare.name(), &segment::file_name(1))?;
                    Ok((start_segment(&*disk, 1, spare.bytes)?, spare.bytes))
                });
                let (file, file_bytes) = made.map_err(|e| io_error(1, e))?;
                let end = HEADER_BYTES as u64;
                let (index_max, sealed, leftovers) = (None, false, false);
                (file, SegmentSummary { segment: 1, index_max, end, file_bytes, sealed, leftovers })
            }
        };
        let stats = Arc::new(WalStats::new(spares.clone()));
        let mut log = LogFile {
            file,
            segment: last.segment,
            offset: last.end,
            synced: last.end,
            made_bytes: last.file_bytes,
            file_bytes: last.file_bytes,
            index_max: last.index_max,
            // Everything that the older segments say besides entries is repeated, and they may go.
            fresh: true,
            next: None,
            disk: disk.clone(),
            spares,
            older,
            vote: recovered.vote,
            committed: recovered.committed,
            purged: recovered.purged,
            buffer: Vec::new(),
            staged: None,
            stats,
        };
        // Room for the carried state, and an empty group that carries it.
        match log.write_group(&mut Vec::new()).and_then(|written| log.sync().map(|()| written)) {
            Ok(Written::Durable) => Ok(log),
            Ok(Written::OutOfSpace) => Err(io_error(log.segment, io::ErrorKind::StorageFull.into())),
            Err(error) => Err(io_error(log.segment, error)),
        }
    }

    /// Numbers.
    pub fn stats(&self) -> &Arc<WalStats> {
        &self.stats
    }

    /// The file that is being written.
    pub fn current_path(&self) -> PathBuf {
        self.disk.path(&segment::file_name(self.segment))
    }

    /// Writes a group, syncs it if anything in it waits for that, and calls those that waited.
    ///
    /// # Errors
    /// Those of the disk, but for a lack of space. After one this log must not be used again.
    pub fn write_group(&mut self, group: &mut Vec<Operation>) -> io::Result<Written> {
        let written = self.try_write_group(group)?;
        self.stats.stalled.store(written == Written::OutOfSpace, Relaxed);
        Ok(written)
    }

    fn try_write_group(&mut self, group: &mut Vec<Operation>) -> io::Result<Written> {
        if self.staged.is_none() {
            let bytes: usize = group.iter().map(Operation::bytes).sum();
            let needed = (bytes + 64 * group.len() + CARRIED_BYTES_MAX + SEAL_BYTES) as u64;
            if self.offset + needed > self.made_bytes
                && self.offset > (HEADER_BYTES + CARRIED_BYTES_MAX) as u64
                && self.rotate()? == Written::OutOfSpace
            {
                return Ok(Written::OutOfSpace);
            }
            self.stage(group);
        }
        if self.flush(true)? == Written::OutOfSpace {
            return Ok(Written::OutOfSpace);
        }
        let staged = self.staged.take().unwrap_or_default();
        if !staged.waiting.is_empty() {
            self.sync()?;
        }
        for done in staged.waiting {
            done();
        }
        if staged.purges {
            self.drop_purged()?;
        }
        self.spares.want(if self.offset > self.made_bytes / 2 { 2 } else { 1 });
        self.publish();
        Ok(Written::Durable)
    }

    /// Encodes a group into the buffer.
    fn stage(&mut self, group: &mut Vec<Operation>) {
        let mut staged = Staged { waiting: Vec::with_capacity(group.len()), purges: false };
        let committed_before = self.committed;
        self.buffer.clear();
        self.encode(&Record::Mark(Mark { segment: self.segment, offset: self.offset, synced: self.synced }));
        if std::mem::take(&mut self.fresh) {
            let carried = [
                self.vote.map(Record::Vote),
                self.committed.map(Record::Committed),
                self.purged.map(Record::Purge),
            ];
            carried.iter().flatten().for_each(|record| self.encode(record));
        }
        for operation in group.drain(..) {
            match operation {
                Operation::Append { entries, done } => {
                    self.stats.appended_entries.fetch_add(entries.len() as u64, Relaxed);
                    for entry in entries {
                        self.index_max = self.index_max.max(Some(entry.position.index));
                        self.encode(&Record::Entry(entry));
                    }
                    staged.waiting.push(done);
                }
                Operation::Vote { vote, done } => {
                    self.vote = Some(vote);
                    self.encode(&Record::Vote(vote));
                    staged.waiting.push(done);
                }
                Operation::Committed(position) => self.committed = self.committed.max(Some(position)),
                Operation::TruncateFrom { index, done } => {
                    self.encode(&Record::TruncateFrom(index));
                    staged.waiting.push(done);
                }
                Operation::Purge { position, done } => {
                    self.purged = self.purged.max(Some(position));
                    self.encode(&Record::Purge(position));
                    staged.purges = true;
                    staged.waiting.push(done);
                }
                Operation::Stop => {}
            }
        }
        // Only the last of several commit indexes matters.
        if self.committed != committed_before
            && let Some(position) = self.committed
        {
            self.encode(&Record::Committed(position));
        }
        self.staged = Some(staged);
    }

    fn encode(&mut self, record: &Record) {
        record::encode(record, self.segment, &mut self.buffer);
    }

    /// Writes the buffer. `ends`: more records may follow in this segment later.
    fn flush(&mut self, ends: bool) -> io::Result<Written> {
        let length = self.buffer.len() as u64;
        if ends {
            // Not beyond the file's end, which is one by itself.
            let room = self.file_bytes.saturating_sub(self.offset + length).min(END.len() as u64);
            self.buffer.extend_from_slice(&END[..room as usize]);
        }
        let written = self.file.write_at(self.offset, &self.buffer);
        self.buffer.truncate(length as usize);
        match written {
            Err(error) if out_of_space(&error) => return Ok(Written::OutOfSpace),
            other => other?,
        }
        self.offset += length;
        self.file_bytes = self.file_bytes.max(self.offset);
        self.stats.appended_bytes.fetch_add(length, Relaxed);
        Ok(Written::Durable)
    }

    /// Makes all that was written durable.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.synced == self.offset {
            return Ok(());
        }
        let start = Instant::now();
        if !planted(Defect::SkippedSync) {
            self.file.sync()?;
        }
        self.synced = self.offset;
        let nanos = start.elapsed().as_nanos() as u64;
        self.stats.fsyncs.fetch_add(1, Relaxed);
        self.stats.fsync_total_nanos.fetch_add(nanos, Relaxed);
        self.stats.fsync_slowest_nanos.fetch_max(nanos, Relaxed);
        Ok(())
    }

    /// Makes the successor if it is not there, then seals the current segment and goes on in it. In this order a
    /// sealed segment always has a successor, and one that is lost is noticed.
    fn rotate(&mut self) -> io::Result<Written> {
        let next = match self.next.take() {
            Some(next) => next,
            None => match self.make_next()? {
                Some(next) => next,
                None => return Ok(Written::OutOfSpace),
            },
        };
        self.buffer.clear();
        self.encode(&Record::Seal(self.offset));
        if self.flush(false)? == Written::OutOfSpace {
            self.next = Some(next);
            return Ok(Written::OutOfSpace);
        }
        self.sync()?;
        self.older.push_back(SegmentSummary {
            segment: self.segment,
            index_max: self.index_max,
            end: self.offset,
            file_bytes: self.file_bytes,
            sealed: true,
            leftovers: false,
        });
        self.segment += 1;
        self.file = next.file;
        self.offset = HEADER_BYTES as u64;
        self.synced = self.offset;
        self.made_bytes = next.bytes;
        self.file_bytes = next.bytes;
        self.index_max = None;
        self.fresh = true;
        Ok(Written::Durable)
    }

    /// Turns a spare into the next segment; none if there is no space for one.
    fn make_next(&mut self) -> io::Result<Option<Next>> {
        let spare = match self.spares.take() {
            Some(spare) => spare,
            None if self.spares.fill_once()? == Filled::Full => return Ok(None),
            None => match self.spares.take() {
                Some(spare) => spare,
                None => return Ok(None),
            },
        };
        let number = self.segment + 1;
        match self.disk.rename(&spare.name(), &segment::file_name(number)) {
            Err(error) if out_of_space(&error) => {
                self.spares.put_back(spare);
                return Ok(None);
            }
            other => other?,
        }
        Ok(Some(Next { file: start_segment(&*self.disk, number, spare.bytes)?, bytes: spare.bytes }))
    }

    /// Lets go of segments from the oldest on that hold no entry above the purged one.
    fn drop_purged(&mut self) -> io::Result<()> {
        let Some(purged) = self.purged else { return Ok(()) };
        while let Some(oldest) = self.older.front()
            && oldest.index_max.is_none_or(|index| index <= purged.index)
        {
            self.spares.recycle(oldest.segment, oldest.file_bytes)?;
            self.older.pop_front();
        }
        Ok(())
    }

    fn publish(&self) {
        let older: u64 = self.older.iter().map(|s| s.file_bytes).sum();
        self.stats.bytes.store(older + self.file_bytes, Relaxed);
        self.stats.segments.store(self.older.len() as u64 + 1, Relaxed);
    }
}

/// Bytes of a mark and of the carried state, at most.
const CARRIED_BYTES_MAX: usize = MARK_BYTES + 3 * (RECORD_HEADER_BYTES + 17);

/// Writes the header of a new segment, durable on return.
fn start_segment(disk: &dyn Disk, number: u64, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
    let mut file = disk.open(&segment::file_name(number))?;
    let mut start = segment::encode_header(number, bytes).to_vec();
    start.extend_from_slice(&END);
    file.write_at(0, &start)?;
    file.sync()?;
    Ok(file)
}

fn zero(file: &mut dyn DiskFile, offset: u64, end: u64) -> io::Result<()> {
    let zeros = vec![0; 64 * 1024];
    let mut at = offset;
    while at < end {
        let part = (end - at).min(zeros.len() as u64);
        file.write_at(at, &zeros[..part as usize])?;
        at += part;
    }
    file.sync()
}

#[cfg(test)]
mod tests;
