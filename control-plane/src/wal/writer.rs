//! The threads that write the log, and the way to them: group commit.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::{
    WalError,
    disk::{Disk, FolderDisk},
    log_file::{LogFile, Written},
    record::{Entry, LogPosition, Vote},
    recovery::{Recovered, recover},
    segment::SEGMENT_BYTES,
    spares::{Filled, Spares},
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
pub struct WalStats {
    pub(super) bytes: AtomicU64,
    pub(super) segments: AtomicU64,
    pub(super) fsyncs: AtomicU64,
    pub(super) fsync_slowest_nanos: AtomicU64,
    pub(super) fsync_total_nanos: AtomicU64,
    pub(super) appended_entries: AtomicU64,
    pub(super) appended_bytes: AtomicU64,
    pub(super) stalled: AtomicBool,
    spares: Arc<Spares>,
}

impl WalStats {
    pub(super) fn new(spares: Arc<Spares>) -> Self {
        Self {
            bytes: AtomicU64::new(0),
            segments: AtomicU64::new(0),
            fsyncs: AtomicU64::new(0),
            fsync_slowest_nanos: AtomicU64::new(0),
            fsync_total_nanos: AtomicU64::new(0),
            appended_entries: AtomicU64::new(0),
            appended_bytes: AtomicU64::new(0),
            stalled: AtomicBool::new(false),
            spares,
        }
    }

    /// Bytes of all segment files and spares.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed) + self.spares.bytes()
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
    /// Whether there was no space for a spare segment: what needs space should not be written now.
    pub fn is_full(&self) -> bool {
        self.spares.is_full()
    }
    /// Whether the writer waits for space with something in hand: even the reserve is used up.
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Relaxed)
    }
    /// Segment files that were made, and that were used again, so far.
    pub fn files_made_and_reused(&self) -> (u64, u64) {
        (self.spares.made(), self.spares.reused())
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

/// How long the writer waits before it tries again to write what there was no space for.
const STALL_RETRY: Duration = Duration::from_millis(100);

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
    /// The one that writes, and the one that makes spares for it.
    Threads([JoinHandle<()>; 2]),
    Task(tokio::task::JoinHandle<()>),
}

/// The log, open for writing. [`Wal::close`], or dropping the last handle, lets the writer finish what it
/// was given and end.
#[derive(Clone)]
pub struct Wal {
    queue: mpsc::Sender<Operation>,
    stats: Arc<WalStats>,
    /// Somebody waits for the end: what there is no space for is given up.
    closing: Arc<AtomicBool>,
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
        let folder = disk.path("");
        let io_error = |source| WalError::Io { file: folder.clone(), source };
        let (log, spares, recovered) = Self::recover(disk, &options)?;
        let stats = log.stats().clone();
        let closing = Arc::new(AtomicBool::new(false));
        let (queue, operations) = mpsc::channel(QUEUE_MAX);
        let making = spares.clone();
        let maker = std::thread::Builder::new().name("weft-wal-spare".to_owned());
        let maker = maker.spawn(move || making.run()).map_err(io_error)?;
        let gave_up = closing.clone();
        let writer = std::thread::Builder::new().name("weft-wal".to_owned());
        let writer = writer.spawn(move || {
            write_all(log, operations, &spares, &gave_up, options.fatal);
            spares.close();
        });
        let writer = Writer::Threads([writer.map_err(io_error)?, maker]);
        Ok((Wal { queue, stats, closing, writer: Arc::new(Mutex::new(Some(writer))) }, recovered))
    }

    /// The same on a disk that is given; the writer is a task of the current runtime.
    ///
    /// # Errors
    /// See [`WalError`].
    pub fn open_given(given: LogDisk, options: WalOptions) -> Result<(Wal, Recovered), WalError> {
        let options = WalOptions { segment_bytes: given.segment_bytes, ..options };
        let (log, spares, recovered) = Self::recover(given.disk.clone(), &options)?;
        let stats = log.stats().clone();
        let closing = Arc::new(AtomicBool::new(false));
        let (queue, operations) = mpsc::channel(QUEUE_MAX);
        let task = tokio::spawn(write_all_as_task(log, operations, spares, closing.clone(), given));
        let writer = Arc::new(Mutex::new(Some(Writer::Task(task))));
        Ok((Wal { queue, stats, closing, writer }, recovered))
    }

    fn recover(
        disk: Arc<dyn Disk>,
        options: &WalOptions,
    ) -> Result<(LogFile, Arc<Spares>, Recovered), WalError> {
        let recovered = recover(&*disk)?;
        let folder = disk.path("");
        if options.must_exist && recovered.segments.is_empty() {
            return Err(WalError::Gone { folder });
        }
        let spares = Spares::open(disk.clone(), options.segment_bytes);
        let spares = Arc::new(spares.map_err(|source| WalError::Io { file: folder, source })?);
        let log = LogFile::open(disk, spares.clone(), &recovered)?;
        Ok((log, spares, recovered))
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

    /// Waits until all that was submitted before is durable and the files are closed; what there is no space for
    /// is given up, unacknowledged. Later submissions by other handles fail.
    pub async fn close(&self) {
        self.closing.store(true, Relaxed);
        self.submit(Operation::Stop).await;
        let writer = self.writer.lock().take();
        // A panic of the writer was reported by the panic hook already.
        match writer {
            Some(Writer::Threads(threads)) => {
                let join = move || threads.into_iter().for_each(|thread| drop(thread.join()));
                let _ = tokio::task::spawn_blocking(join).await;
            }
            Some(Writer::Task(task)) => {
                let _ = task.await;
            }
            None => {}
        }
    }
}

fn write_all(
    mut log: LogFile,
    mut operations: mpsc::Receiver<Operation>,
    spares: &Spares,
    closing: &AtomicBool,
    fatal: FatalHook,
) {
    let mut group = Vec::new();
    let mut stop = false;
    while !stop && let Some(first) = operations.blocking_recv() {
        stop = fill(&mut group, first, &mut operations);
        loop {
            match log.write_group(&mut group) {
                Ok(Written::Durable) => break,
                Ok(Written::OutOfSpace) => {
                    // With the last handle gone nobody hears of the outcome any more.
                    if closing.load(Relaxed) || operations.is_closed() {
                        return;
                    }
                    spares.wait(STALL_RETRY);
                }
                Err(error) => return fatal(&log.current_path(), &error),
            }
        }
    }
    if let Err(error) = log.sync() {
        fatal(&log.current_path(), &error);
    }
}

async fn write_all_as_task(
    mut log: LogFile,
    mut operations: mpsc::Receiver<Operation>,
    spares: Arc<Spares>,
    closing: Arc<AtomicBool>,
    given: LogDisk,
) {
    // Nobody is told anything any more, as if the process had ended.
    let failed = |path: PathBuf, error: io::Error| {
        (given.failed)(&path, &error);
        std::future::pending::<()>()
    };
    let mut group = Vec::new();
    let mut stop = false;
    while !stop {
        loop {
            match spares.fill_once() {
                Ok(Filled::Made) => {}
                Ok(Filled::Enough | Filled::Full) => break,
                Err(error) => return failed(log.current_path(), error).await,
            }
        }
        let first = tokio::select! {
            first = operations.recv() => first,
            () = tokio::time::sleep(STALL_RETRY), if spares.is_full() => continue,
        };
        let Some(first) = first else { break };
        stop = fill(&mut group, first, &mut operations);
        tokio::time::sleep((given.pause)()).await;
        loop {
            match log.write_group(&mut group) {
                Ok(Written::Durable) => break,
                Ok(Written::OutOfSpace) => {
                    if closing.load(Relaxed) || operations.is_closed() {
                        return;
                    }
                    tokio::time::sleep(STALL_RETRY).await;
                }
                Err(error) => return failed(log.current_path(), error).await,
            }
        }
    }
    if let Err(error) = log.sync() {
        (given.failed)(&log.current_path(), &error);
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
    pub(super) fn bytes(&self) -> usize {
        match self {
            Operation::Append { entries, .. } => entries.iter().map(|e| e.payload.len() + 32).sum(),
            _ => 32,
        }
    }
}
