//! What keeps a server's memory and disk bounded while it runs: the log, the history, what compaction freed.

use std::{sync::Arc, time::Duration};

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::sleep;
use weft_state::{command::Command, lease::Tick, retention::Retention};

use super::{driver::Node, types::encode_command};

/// Least bytes of log entries in memory at which a snapshot is taken and the log purged, whatever their
/// number. The log on disk is about as large.
const LOG_BYTES_MIN: u64 = 24 * 1024 * 1024;

/// Most of them. Between the two it is a quarter of what the state holds: a smaller log would have the state
/// written more than four times for each byte of new log.
const LOG_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Between two looks at the log and at the history: what is written meanwhile is beyond their bounds, 20 MB a second at
/// 50,000 small puts.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Looks between two snapshots that are taken because the disk is full.
const LOOKS_WHEN_FULL: u32 = 40;

/// Compacted changes given back under one write lock: about 100 microseconds, less than applying a batch.
const SCRUB_STEP: usize = 256;

/// Between two such steps. Together they take a twentieth of the time and give back about 100,000 changes a
/// second; what commands write meanwhile is given back by their own applies.
const SCRUB_PAUSE: Duration = Duration::from_millis(2);

/// Between two looks for something to give back.
const SCRUB_IDLE: Duration = Duration::from_millis(250);

impl Node {
    /// Bounds the memory and disk that the log takes when its entries are large.
    pub(super) async fn keep_log_short(self: Arc<Self>) {
        let mut looks = 0;
        loop {
            sleep(LOOK_EVERY).await;
            looks = (looks + 1) % LOOKS_WHEN_FULL;
            // A log that is purged makes space on a full disk; writing a snapshot for that now and then is worth it.
            let full = looks == 0 && self.wal.stats().is_full();
            let state_bytes = self.replica.read(|machine| machine.data_bytes());
            let log_bytes_max = (state_bytes / 4).clamp(LOG_BYTES_MIN, LOG_BYTES_MAX);
            if self.log.bytes_in_memory() < log_bytes_max && !full {
                continue;
            }
            let (applied, snapshot) = {
                let metrics = self.raft.metrics();
                let metrics = metrics.borrow_watched();
                (metrics.last_applied, metrics.snapshot)
            };
            let result = match snapshot {
                // What the snapshot has can go at once, without keeping some.
                Some(id) if self.log.purged() < Some(id) => self.raft.trigger().purge_log(id.index()).await,
                _ if snapshot < applied => self.raft.trigger().snapshot().await,
                _ => Ok(()),
            };
            if result.is_err() {
                return;
            }
        }
    }

    /// Proposes compactions while this server leads. The policy is fed on every server, so that a new leader
    /// knows how old its history is.
    pub(super) async fn keep_history_short(self: Arc<Self>) {
        let mut retention = Retention::new(self.history);
        loop {
            sleep(LOOK_EVERY).await;
            let now = Tick(self.started.elapsed().as_millis() as u64);
            let due = self.replica.read(|machine| retention.due(now, machine));
            let Some(revision) = due.filter(|_| self.leads()) else { continue };
            // Refused or lost, it is due again at the next look.
            let command = encode_command(&Command::Compact { revision });
            match self.batcher.propose(command, self.timing.deadline).await {
                Ok(committed) if committed.response.is_ok() => {
                    tracing::debug!(revision, "compacted");
                }
                Ok(_) => {}
                Err(refusal) => tracing::debug!(revision, ?refusal, "the compaction was not carried out"),
            }
        }
    }

    /// Gives back the memory of compacted history step by step, so that it never holds up a command. Each
    /// command gives back some itself; this is for a server whose commands are few.
    pub(super) async fn give_back_memory(self: Arc<Self>) {
        loop {
            let more = self.replica.scrub(SCRUB_STEP);
            sleep(if more { SCRUB_PAUSE } else { SCRUB_IDLE }).await;
        }
    }
}
