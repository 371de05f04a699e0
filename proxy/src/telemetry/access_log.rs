//! The access log: one line a request, when its answer is over. Off by default.
//!
//! Workers make the line and hand it to one thread that writes it; they never wait for it. A line for which there is no
//! room is dropped and counted. A log file that was moved away (as `logrotate` does) is made anew within a second.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use http::{Method, StatusCode, Version};
use weft_core::metrics::Counter;

use super::flag::Flags;
use super::metrics::Direction;

pub mod format;

pub use format::Format;

/// Lines that wait to be written. At most 4 KiB each by [`format::TEXT_BYTES_MAX`], so 16 MiB behind a disk that hangs.
const LINES_WAITING_MAX: usize = 4096;

/// How often it is looked whether the file is still at its place.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// A file, appended to.
    File(PathBuf),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// An access log as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogConfig {
    /// Where lines go.
    pub target: Target,
    /// How they look.
    pub format: Format,
}

/// What is told of one request.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Entry {
    pub direction: Direction,
    pub client: SocketAddr,
    pub method: Method,
    /// As the client wrote it; empty if it did not.
    pub host: String,
    /// With its query.
    pub path: String,
    /// None: a connection whose bytes were passed on as they are.
    pub protocol: Option<Version>,
    /// None: the client was gone before.
    pub status: Option<StatusCode>,
    pub flags: Flags,
    /// Of the answer's body, as far as it was sent.
    pub bytes: u64,
    /// Until the end of the answer.
    pub took: Duration,
    /// Until the head of the answer.
    pub head: Option<Duration>,
    /// Empty if none was found.
    pub service: String,
    /// Empty if there is none.
    pub route: String,
    /// The last one that was tried.
    pub endpoint: Option<SocketAddr>,
    pub tries: u32,
    /// In hex; empty if it is of no trace.
    pub trace_id: String,
}

/// Takes entries. Shared by all workers.
#[derive(Debug)]
pub struct AccessLog {
    lines: SyncSender<String>,
    format: Format,
    dropped: Counter,
}

/// The thread that writes. It ends when the last [`AccessLog`] is gone and all that waits is written.
#[derive(Debug)]
pub struct Writer(JoinHandle<()>);

impl AccessLog {
    /// Opens the file and starts the thread. `dropped` counts lines for which there was no room.
    ///
    /// # Errors
    /// If the file cannot be opened or there is no thread.
    pub fn start(config: &AccessLogConfig, dropped: Counter) -> io::Result<(Arc<Self>, Writer)> {
        let out = Out::open(&config.target)?;
        let (lines, waiting) = sync_channel(LINES_WAITING_MAX);
        let thread = std::thread::Builder::new().name("weft-access-log".to_owned());
        let thread = thread.spawn(move || write_all(&waiting, out))?;
        let log = Self { lines, format: config.format.clone(), dropped };
        Ok((Arc::new(log), Writer(thread)))
    }

    /// Writes a line some time soon. `now` is since the epoch.
    pub fn log(&self, entry: &Entry, now: Duration) {
        if self.lines.try_send(self.format.line(entry, now)).is_err() {
            self.dropped.inc();
        }
    }
}

impl Writer {
    /// Waits until all is written. Every [`AccessLog`] must be dropped.
    pub fn join(self) {
        // A panic there has been reported by the thread itself.
        let _ = self.0.join();
    }
}

fn write_all(waiting: &Receiver<String>, mut out: Out) {
    let mut looked = Instant::now();
    loop {
        match waiting.recv_timeout(LOOK_INTERVAL) {
            Ok(line) => {
                out.write(&line);
                // What came meanwhile goes with it.
                while let Ok(line) = waiting.try_recv() {
                    out.write(&line);
                    if looked.elapsed() >= LOOK_INTERVAL {
                        break;
                    }
                }
                out.flush();
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if looked.elapsed() >= LOOK_INTERVAL {
            looked = Instant::now();
            out.look();
        }
    }
}

enum Out {
    Stdout(BufWriter<io::Stdout>),
    File { path: PathBuf, file: BufWriter<File>, id: (u64, u64), failed: bool },
}

impl Out {
    fn open(target: &Target) -> io::Result<Self> {
        match target {
            Target::Stdout => Ok(Self::Stdout(BufWriter::new(io::stdout()))),
            Target::File(path) => {
                let (file, id) = append(path)?;
                Ok(Self::File { path: path.clone(), file, id, failed: false })
            }
        }
    }

    fn write(&mut self, line: &str) {
        let written = match self {
            Self::Stdout(out) => out.write_all(line.as_bytes()),
            Self::File { file, .. } => file.write_all(line.as_bytes()),
        };
        self.report(written);
    }

    fn flush(&mut self) {
        let flushed = match self {
            Self::Stdout(out) => out.flush(),
            Self::File { file, .. } => file.flush(),
        };
        self.report(flushed);
    }

    /// A full disk is told once, and again after it had been better.
    fn report(&mut self, result: io::Result<()>) {
        let Self::File { path, failed, .. } = self else { return };
        if let Err(error) = &result
            && !*failed
        {
            tracing::warn!(path = %path.display(), %error, "the access log cannot be written");
        }
        *failed = result.is_err();
    }

    /// Opens the file anew if another one, or none, is at its path.
    fn look(&mut self) {
        let Self::File { path, file, id, .. } = self else { return };
        if std::fs::metadata(&*path).is_ok_and(|m| (m.dev(), m.ino()) == *id) {
            return;
        }
        match append(path) {
            Ok((new, new_id)) => (*file, *id) = (new, new_id),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the access log cannot be opened anew")
            }
        }
    }
}

fn append(path: &Path) -> io::Result<(BufWriter<File>, (u64, u64))> {
    let file = File::options().append(true).create(true).open(path)?;
    let metadata = file.metadata()?;
    Ok((BufWriter::new(file), (metadata.dev(), metadata.ino())))
}

#[cfg(test)]
mod tests;
