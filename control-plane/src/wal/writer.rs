//! Appends, rotates, deletes: one thread, group commit.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{
    WalError,
    disk::{Disk, DiskFile, FolderDisk},
    record::{self, Entry, LogPosition, Mark, Record, SEAL_BYTES, Vote},
    recovery::{Recovered, SegmentSummary, recover},
    segment::{self, HEADER_BYTES, SEGMENT_BYTES},
};

/// Operations that may wait for the writer. Raft waits above it, which slows proposals down rather than
/// piling them up.
const QUEUE_MAX: usize = 1024;

/// A group is closed when its bytes exceed this, so that the first to wait is not kept long by the last.
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Called when an operation is durable.
pub type Done = Box<dyn FnOnce() + Send>;

/// Called once when the disk fails, with the file and the error. Must not return if anything depends on
/// the log: the default logs and aborts the process.
pub type FatalHook = Box<dyn Fn(&Path, &io::Error) + Send>;

/// Something to be written.
pub enum Operation {
    /// Entries that follow the last one.
    Append {
        /// The entries.
        entries: Vec<Entry>,
        /// When they are durable.
        done: Done,
    },
    /// Replace the vote.
    Vote {
        /// The vote.
        vote: Vote,
        /// When it is durable.
        done: Done,
    },
    /// Remember how far the log is committed. Written with the next group and synced with it, because a
    /// lower commit index after a power loss costs a little replay and no safety.
    Committed(LogPosition),
    /// Make entries from this index on void.
    TruncateFrom {
        /// First void index.
        index: u64,
        /// When it is durable.
        done: Done,
    },
    /// Entries up to this one are in a durable snapshot. Segments that hold nothing else are deleted.
    Purge {
        /// Last purged entry.
        position: LogPosition,
        /// When it is durable.
        done: Done,
    },
    /// Write what came before, sync and end.
    Stop,
}

/// Numbers of the log since start.
#[derive(Debug, Default)]
pub struct WalStats {
    bytes: AtomicU64,
    segments: AtomicU64,
    fsyncs: AtomicU64,
    fsync_slowest_nanos: AtomicU64,
    fsync_total_nanos: AtomicU64,
    appended_entries: AtomicU64,
    appended_bytes: AtomicU64,
}

impl WalStats {
    /// Bytes of all segment files.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
    /// Segment files.
    pub fn segments(&self) -> u64 {
        self.segments.load(Relaxed)
    }
    /// Syncs so far.
    pub fn fsyncs(&self) -> u64 {
        self.fsyncs.load(Relaxed)
    }
    /// The slowest sync so far.
    pub fn fsync_slowest(&self) -> Duration {
        Duration::from_nanos(self.fsync_slowest_nanos.load(Relaxed))
    }
    /// Time spent in syncs so far.
    pub fn fsync_total(&self) -> Duration {
        Duration::from_nanos(self.fsync_total_nanos.load(Relaxed))
    }
    /// Entries appended so far.
    pub fn appended_entries(&self) -> u64 {
        self.appended_entries.load(Relaxed)
    }
    /// Bytes of records written so far.
    pub fn appended_bytes(&self) -> u64 {
        self.appended_bytes.load(Relaxed)
    }
}

/// How the log is written.
pub struct WalOptions {
    /// Size of a segment.
    pub segment_bytes: u64,
    /// There was a log before: one that is gone or holds nothing is refused rather than begun anew.
    pub must_exist: bool,
    /// What to do when the disk fails.
    pub fatal: FatalHook,
}

impl Default for WalOptions {
    fn default() -> Self {
        Self { segment_bytes: SEGMENT_BYTES, must_exist: false, fatal: Box::new(abort) }
    }
}

fn abort(file: &Path, error: &io::Error) {
    tracing::error!(
        file = %file.display(), %error,
        "the log cannot be written; what the disk holds is unknown now, so this process ends at once"
    );
    std::process::abort()
}

/// Called once when a given disk fails, with the file and the error.
pub type FailedHook = Arc<dyn Fn(&Path, &io::Error) + Send + Sync>;

/// A disk that is not this machine's, with the writer as a task of the runtime in place of a thread, so that
/// what happens on it follows the runtime's clock.
#[derive(Clone)]
pub struct LogDisk {
    /// The files.
    pub disk: Arc<dyn Disk>,
    /// How long the next group takes to be written and synced.
    pub pause: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// In place of [`WalOptions::fatal`]. Returns; the log then takes what it is given and answers nothing.
    pub failed: FailedHook,
    /// Size of a segment.
    pub segment_bytes: u64,
}

/// What writes.
enum Writer {
    Thread(std::thread::JoinHandle<()>),
    Task(tokio::task::JoinHandle<()>),
}

/// The log, open for writing. [`Wal::close`], or dropping the last handle, lets the writer finish what it
/// was given and end.
#[derive(Clone)]
pub struct Wal {
    queue: mpsc::Sender<Operation>,
    stats: Arc<WalStats>,
    writer: Arc<Mutex<Option<Writer>>>,
}

impl Wal {
    /// Recovers the log in a folder and starts its writer. Logs a line if a torn tail was cut off.
    ///
    /// # Errors
    /// See [`WalError`].
    pub fn open(folder: &Path, options: WalOptions) -> Result<(Wal, Recovered), WalError> {
        let disk =
            FolderDisk::open(folder).map_err(|source| WalError::Io { file: folder.to_path_buf(), source })?;
        Self::open_on(Arc::new(disk), options)
    }

    /// The same on any disk.
    pub fn open_on(disk: Arc<dyn Disk>, options: WalOptions) -> Result<(Wal, Recovered), WalError> {
        let (log, recovered, fatal) = Self::recover(disk, options)?;
        let stats = log.stats.clone();
        let (queue, operations) = mpsc::channel(QUEUE_MAX);
        let thread = std::thread::Builder::new()
            .name("weft-wal".to_owned())
            .spawn(move || write_all(log, operations, fatal))
            .map_err(|source| WalError::Io { file: Default::default(), source })?;
        let writer = Arc::new(Mutex::new(Some(Writer::Thread(thread))));
        Ok((Wal { queue, stats, writer }, recovered))
    }

    /// The same on a disk that is given; the writer is a task of the current runtime.
    ///
    /// # Errors
    /// See [`WalError`].
    pub fn open_given(given: LogDisk, options: WalOptions) -> Result<(Wal, Recovered), WalError> {
        let options = WalOptions { segment_bytes: given.segment_bytes, ..options };
        let (log, recovered, _) = Self::recover(given.disk, options)?;
        let stats = log.stats.clone();
        let (queue, operations) = mpsc::channel(QUEUE_MAX);
        let task = tokio::spawn(write_all_as_task(log, operations, given.pause, given.failed));
        let writer = Arc::new(Mutex::new(Some(Writer::Task(task))));
        Ok((Wal { queue, stats, writer }, recovered))
    }

    fn recover(
        disk: Arc<dyn Disk>,
        options: WalOptions,
    ) -> Result<(LogFile, Recovered, FatalHook), WalError> {
        let recovered = recover(&*disk)?;
        if options.must_exist && recovered.segments.is_empty() {
            return Err(WalError::Gone { folder: disk.path("") });
        }
        let log = LogFile::open(disk, &recovered, options.segment_bytes)?;
        Ok((log, recovered, options.fatal))
    }

    /// Hands an operation to the writer; waits while it has too many. Operations take effect in the order
    /// of these calls. False: the writer has ended.
    pub async fn submit(&self, operation: Operation) -> bool {
        self.queue.send(operation).await.is_ok()
    }

    /// Numbers.
    pub fn stats(&self) -> &Arc<WalStats> {
        &self.stats
    }

    /// Waits until all that was submitted before is durable and the files are closed. Later submissions by
    /// other handles fail.
    pub async fn close(&self) {
        self.submit(Operation::Stop).await;
        let writer = self.writer.lock().take();
        // A panic of the writer was reported by the panic hook already.
        match writer {
            Some(Writer::Thread(thread)) => {
                let _ = tokio::task::spawn_blocking(move || thread.join()).await;
            }
            Some(Writer::Task(task)) => {
                let _ = task.await;
            }
            None => {}
        }
    }
}

fn write_all(mut log: LogFile, mut operations: mpsc::Receiver<Operation>, fatal: FatalHook) {
    let mut group = Vec::new();
    let mut stop = false;
    while !stop && let Some(first) = operations.blocking_recv() {
        stop = fill(&mut group, first, &mut operations);
        if let Err(error) = log.write_group(&mut group) {
            return fatal(&log.current_path(), &error);
        }
    }
    if let Err(error) = log.sync() {
        fatal(&log.current_path(), &error);
    }
}

async fn write_all_as_task(
    mut log: LogFile,
    mut operations: mpsc::Receiver<Operation>,
    pause: Arc<dyn Fn() -> Duration + Send + Sync>,
    failed: FailedHook,
) {
    let mut group = Vec::new();
    let mut stop = false;
    while !stop && let Some(first) = operations.recv().await {
        stop = fill(&mut group, first, &mut operations);
        tokio::time::sleep(pause()).await;
        if let Err(error) = log.write_group(&mut group) {
            failed(&log.current_path(), &error);
            // Nobody is told anything any more, as if the process had ended.
            return std::future::pending().await;
        }
    }
    if let Err(error) = log.sync() {
        failed(&log.current_path(), &error);
    }
}

/// Adds what waits to a group, up to the limit; true if it is the last one.
fn fill(group: &mut Vec<Operation>, first: Operation, operations: &mut mpsc::Receiver<Operation>) -> bool {
    let mut bytes = first.bytes();
    group.push(first);
    while bytes < GROUP_BYTES_MAX
        && let Ok(next) = operations.try_recv()
    {
        bytes += next.bytes();
        group.push(next);
    }
    let Some(at) = group.iter().position(|o| matches!(o, Operation::Stop)) else { return false };
    group.truncate(at);
    true
}

impl Operation {
    /// Bytes that it will take, about.
    fn bytes(&self) -> usize {
        match self {
            Operation::Append { entries, .. } => entries.iter().map(|e| e.payload.len() + 32).sum(),
            _ => 32,
        }
    }
}

/// The current segment and what is known of the others. Pure but for its [`Disk`].
pub(super) struct LogFile {
    disk: Arc<dyn Disk>,
    file: Box<dyn DiskFile>,
    segment: u64,
    /// Where the next record goes.
    offset: u64,
    /// Up to where the current segment is known to be on disk.
    synced: u64,
    file_bytes: u64,
    segment_bytes: u64,
    index_max: Option<u64>,
    /// Older segments, oldest first.
    older: VecDeque<SegmentSummary>,
    vote: Option<Vote>,
    committed: Option<LogPosition>,
    purged: Option<LogPosition>,
    buffer: Vec<u8>,
    stats: Arc<WalStats>,
}

impl LogFile {
    /// Continues where recovery ended: cuts off a torn tail, then writes the carried state.
    pub(super) fn open(
        disk: Arc<dyn Disk>,
        recovered: &Recovered,
        segment_bytes: u64,
    ) -> Result<Self, WalError> {
        let io_error = |segment: u64, source: io::Error| WalError::Io {
            file: disk.path(&segment::file_name(segment)),
            source,
        };
        let mut segments: VecDeque<SegmentSummary> = recovered.segments.clone().into();
        if let Some(torn) = &recovered.torn {
            let name = segment::file_name(torn.segment);
            tracing::warn!(
                file = %disk.path(&name).display(), offset = torn.offset, reason = %torn.reason,
                "cut off the end of the log that a crash left half-written; it was never acknowledged"
            );
            if torn.whole_segment {
                disk.remove(&name).map_err(|e| io_error(torn.segment, e))?;
            } else {
                let file_bytes = segments.back().map_or(0, |s| s.file_bytes);
                zero_from(&*disk, &name, torn.offset, file_bytes).map_err(|e| io_error(torn.segment, e))?;
            }
        }
        let newest = segments.back().cloned();
        let stats = Arc::new(WalStats::default());
        let mut log = match newest {
            Some(last) if !last.sealed => {
                segments.pop_back();
                let file =
                    disk.open(&segment::file_name(last.segment)).map_err(|e| io_error(last.segment, e))?;
                LogFile {
                    file,
                    segment: last.segment,
                    offset: last.end,
                    synced: last.end,
                    file_bytes: last.file_bytes,
                    index_max: last.index_max,
                    disk: disk.clone(),
                    segment_bytes,
                    older: segments,
                    vote: recovered.vote,
                    committed: recovered.committed,
                    purged: recovered.purged,
                    buffer: Vec::new(),
                    stats,
                }
            }
            other => {
                let segment = other.map_or(1, |last| last.segment + 1);
                let file = make_segment(&*disk, segment, segment_bytes).map_err(|e| io_error(segment, e))?;
                LogFile {
                    file,
                    segment,
                    offset: HEADER_BYTES as u64,
                    synced: HEADER_BYTES as u64,
                    file_bytes: segment_bytes,
                    index_max: None,
                    disk: disk.clone(),
                    segment_bytes,
                    older: segments,
                    vote: recovered.vote,
                    committed: recovered.committed,
                    purged: recovered.purged,
                    buffer: Vec::new(),
                    stats,
                }
            }
        };
        // Everything that the older segments say besides entries is repeated here, and they may be deleted.
        log.begin();
        log.encode_carried();
        log.flush().and_then(|()| log.sync()).map_err(|e| io_error(log.segment, e))?;
        log.publish();
        Ok(log)
    }

    pub(super) fn current_path(&self) -> std::path::PathBuf {
        self.disk.path(&segment::file_name(self.segment))
    }

    /// Writes a group, syncs it if anything in it waits for that, and calls those that waited.
    pub(super) fn write_group(&mut self, group: &mut Vec<Operation>) -> io::Result<()> {
        let bytes: usize = group.iter().map(Operation::bytes).sum();
        let needed = (bytes + 64 * group.len() + record::MARK_BYTES + SEAL_BYTES) as u64;
        if self.offset + needed > self.segment_bytes && self.offset > self.rotated_size() {
            self.rotate()?;
        }
        let committed_before = self.committed;
        let mut waiting: Vec<Done> = Vec::with_capacity(group.len());
        let mut purge = false;
        self.begin();
        for operation in group.drain(..) {
            match operation {
                Operation::Append { entries, done } => {
                    self.stats.appended_entries.fetch_add(entries.len() as u64, Relaxed);
                    for entry in entries {
                        self.index_max = self.index_max.max(Some(entry.position.index));
                        record::encode(&Record::Entry(entry), &mut self.buffer);
                    }
                    waiting.push(done);
                }
                Operation::Vote { vote, done } => {
                    self.vote = Some(vote);
                    record::encode(&Record::Vote(vote), &mut self.buffer);
                    waiting.push(done);
                }
                Operation::Committed(position) => self.committed = self.committed.max(Some(position)),
                Operation::TruncateFrom { index, done } => {
                    record::encode(&Record::TruncateFrom(index), &mut self.buffer);
                    waiting.push(done);
                }
                Operation::Purge { position, done } => {
                    self.purged = self.purged.max(Some(position));
                    record::encode(&Record::Purge(position), &mut self.buffer);
                    purge = true;
                    waiting.push(done);
                }
                Operation::Stop => {}
            }
        }
        // Only the last of several commit indexes matters.
        if self.committed != committed_before
            && let Some(position) = self.committed
        {
            record::encode(&Record::Committed(position), &mut self.buffer);
        }
        self.flush()?;
        if !waiting.is_empty() {
            self.sync()?;
        }
        if purge {
            self.delete_purged()?;
        }
        for done in waiting {
            done();
        }
        self.publish();
        Ok(())
    }

    /// Starts a group in the buffer.
    fn begin(&mut self) {
        self.buffer.clear();
        let mark = Mark { segment: self.segment, offset: self.offset, synced: self.synced };
        record::encode(&Record::Mark(mark), &mut self.buffer);
    }

    fn encode_carried(&mut self) {
        let carried = [
            self.vote.map(Record::Vote),
            self.committed.map(Record::Committed),
            self.purged.map(Record::Purge),
        ];
        for record in carried.iter().flatten() {
            record::encode(record, &mut self.buffer);
        }
    }

    /// Bytes of a segment that holds nothing but its header and the carried state.
    fn rotated_size(&self) -> u64 {
        (HEADER_BYTES + record::MARK_BYTES + 3 * (record::RECORD_HEADER_BYTES + 17)) as u64
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_at(self.offset, &self.buffer)?;
        self.offset += self.buffer.len() as u64;
        self.file_bytes = self.file_bytes.max(self.offset);
        self.stats.appended_bytes.fetch_add(self.buffer.len() as u64, Relaxed);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.synced == self.offset {
            return Ok(());
        }
        let start = Instant::now();
        self.file.sync()?;
        self.synced = self.offset;
        let nanos = start.elapsed().as_nanos() as u64;
        self.stats.fsyncs.fetch_add(1, Relaxed);
        self.stats.fsync_total_nanos.fetch_add(nanos, Relaxed);
        self.stats.fsync_slowest_nanos.fetch_max(nanos, Relaxed);
        Ok(())
    }

    /// Seals the current segment and goes on in a new one.
    fn rotate(&mut self) -> io::Result<()> {
        self.buffer.clear();
        record::encode(&Record::Seal(self.offset), &mut self.buffer);
        self.flush()?;
        self.sync()?;
        self.older.push_back(SegmentSummary {
            segment: self.segment,
            index_max: self.index_max,
            end: self.offset,
            file_bytes: self.file_bytes,
            sealed: true,
        });
        self.segment += 1;
        self.file = make_segment(&*self.disk, self.segment, self.segment_bytes)?;
        self.offset = HEADER_BYTES as u64;
        self.synced = self.offset;
        self.file_bytes = self.segment_bytes;
        self.index_max = None;
        self.begin();
        self.encode_carried();
        self.flush()?;
        self.sync()
    }

    /// Deletes segments from the oldest on that hold no entry above the purged one.
    fn delete_purged(&mut self) -> io::Result<()> {
        let Some(purged) = self.purged else { return Ok(()) };
        while let Some(oldest) = self.older.front()
            && oldest.index_max.is_none_or(|index| index <= purged.index)
        {
            self.disk.remove(&segment::file_name(oldest.segment))?;
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

fn make_segment(disk: &dyn Disk, segment: u64, bytes: u64) -> io::Result<Box<dyn DiskFile>> {
    let mut file = disk.create(&segment::file_name(segment), bytes)?;
    file.write_at(0, &segment::encode_header(segment, bytes))?;
    file.sync()?;
    Ok(file)
}

fn zero_from(disk: &dyn Disk, name: &str, offset: u64, end: u64) -> io::Result<()> {
    let mut file = disk.open(name)?;
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
