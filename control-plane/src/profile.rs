//! A CPU profile of this process, on request.
//!
//! The samples are taken by the kernel and read by `perf`, which is run for as long as asked; what it prints is folded into
//! one line a stack ([`folded`]). A sampler of our own would run in signal handlers of this very process, where
//! unwinding can deadlock with the allocator, and it would be unsafe code that ours forbids.
//!
//! ```text
//! perf record --pid … -o - ─pipe─► perf script ─lines─► Folded          nothing touches the disk
//! ```

pub mod folded;

use std::io;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{ChildStdout, Command};
use tokio::sync::Semaphore;

use folded::Folded;

/// Longest profile in seconds. Samples with their stacks pass through a pipe; what is kept is bounded by [`folded`].
pub const SECONDS_MAX: u64 = 30;

/// Samples a second of each busy thread; not a round number, so that it does not beat with timers.
const FREQUENCY_HZ: &str = "99";

/// User code only, by the CPU's clock: what works in virtual machines and without privileges.
const EVENT: &str = "cpu-clock:u";

/// By the tables for unwinding that every build has, from this many bytes of the stack.
const CALL_GRAPH: &str = "dwarf,8192";

/// How long `perf` may take to look names up after the last sample.
const READING_MAX: Duration = Duration::from_secs(60);

/// Most bytes of what `perf` complains about that are told.
const COMPLAINT_BYTES_MAX: u64 = 2_000;

/// Takes profiles, one at a time. Clones share the turn.
#[derive(Debug, Clone)]
pub struct Profiler {
    turn: Arc<Semaphore>,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Somebody else's is being taken.
    #[error("another profile is being taken; one at a time, of at most {SECONDS_MAX} s")]
    Busy,
    /// `perf` cannot be run.
    #[error(
        "cannot run `perf`, which takes the samples: {source}; install it (Debian: linux-perf) on the server's machine"
    )]
    NoPerf {
        /// What the system said.
        source: io::Error,
    },
    /// `perf` did not do it.
    #[error("`perf` gave no samples: {said}")]
    Failed {
        /// Its own words.
        said: String,
    },
}

impl Default for Profiler {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)) }
    }
}

impl Profiler {
    /// Samples this process for so many seconds. Dropping the future ends it.
    ///
    /// # Errors
    /// See [`ProfileError`].
    pub async fn take(&self, seconds: u64) -> Result<Folded, ProfileError> {
        let _turn = self.turn.try_acquire().map_err(|_| ProfileError::Busy)?;
        let no_perf = |source| ProfileError::NoPerf { source };
        let (pid, seconds) = (std::process::id().to_string(), seconds.clamp(1, SECONDS_MAX));
        let mut record = perf()
            .args(["record", "-q", "-e", EVENT, "-F", FREQUENCY_HZ, "--call-graph", CALL_GRAPH])
            .args(["--pid", &pid, "-o", "-", "--", "sleep", &seconds.to_string()])
            .spawn()
            .map_err(no_perf)?;
        let samples: Stdio = piped(record.stdout.take())?;
        let mut script = perf()
            .args(["script", "-i", "-", "--no-inline", "-F", "comm,ip,sym"])
            .stdin(samples)
            .stderr(Stdio::null())
            .spawn()
            .map_err(no_perf)?;
        let lines = script.stdout.take().ok_or_else(|| failed("its output is closed"))?;
        let read = tokio::time::timeout(Duration::from_secs(seconds) + READING_MAX, fold(lines)).await;
        let folded = read
            .map_err(|_| failed(&format!("names were not looked up within {READING_MAX:?}")))?
            .map_err(|error| failed(&error.to_string()))?;
        let ended = record.wait().await.map_err(no_perf)?;
        let mut said = String::new();
        if let Some(complaint) = record.stderr.take() {
            let _ = complaint.take(COMPLAINT_BYTES_MAX).read_to_string(&mut said).await;
        }
        match ended.success() {
            true => Ok(folded),
            false => Err(failed(&format!("{ended}: {}", said.trim()))),
        }
    }
}

fn perf() -> Command {
    let mut perf = Command::new("perf");
    perf.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    perf
}

fn piped(output: Option<ChildStdout>) -> Result<Stdio, ProfileError> {
    let output = output.ok_or_else(|| failed("its output is closed"))?;
    output.try_into().map_err(|error: io::Error| failed(&error.to_string()))
}

fn failed(said: &str) -> ProfileError {
    ProfileError::Failed { said: said.to_owned() }
}

async fn fold(output: ChildStdout) -> io::Result<Folded> {
    let mut folded = Folded::default();
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line).await? > 0 {
        folded.line(&String::from_utf8_lossy(&line));
        line.clear();
    }
    folded.line("");
    Ok(folded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_profile_at_a_time() {
        let profiler = Profiler::default();
        let _turn = profiler.turn.try_acquire().expect("is free");
        assert!(matches!(profiler.clone().take(1).await, Err(ProfileError::Busy)));
    }
}
