//! Backups to a folder, at intervals.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::file::{self, BackupWriter, UNFINISHED};
use crate::{blocking, raft::Coordinator};

/// Between two backups, unless told otherwise.
pub const BACKUP_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Backups that are kept, unless told otherwise: a day of hourly ones.
pub const BACKUP_KEEP: usize = 24;

/// First pause after a failure; doubles with each further one, up to the interval.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// Between two looks whether this server has a state yet.
const BEGIN_PAUSE: Duration = Duration::from_millis(500);

/// Between two pieces, so that commands and the log's disk come first.
const PIECE_PAUSE: Duration = Duration::from_millis(5);

/// Where and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupOptions {
    /// The folder; made if it is absent. Other files in it are left alone.
    pub folder: PathBuf,
    /// From the end of one to the begin of the next.
    pub interval: Duration,
    /// So many of the newest are kept; at least 1.
    pub keep: usize,
}

/// Numbers of the backups since start. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct BackupStats {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    done: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    revision: AtomicU64,
    last: Mutex<Option<Instant>>,
}

impl BackupStats {
    /// Backups made.
    pub fn done(&self) -> u64 {
        self.inner.done.load(Relaxed)
    }
    /// Attempts that failed.
    pub fn failed(&self) -> u64 {
        self.inner.failed.load(Relaxed)
    }
    /// Bytes of the last one.
    pub fn bytes(&self) -> u64 {
        self.inner.bytes.load(Relaxed)
    }
    /// Revision of the last one.
    pub fn revision(&self) -> u64 {
        self.inner.revision.load(Relaxed)
    }
    /// How long ago the last one was made.
    pub fn age(&self) -> Option<Duration> {
        self.inner.last.lock().map(|at| at.elapsed())
    }
}

/// Makes backups until it is dropped.
pub async fn run(coordinator: Coordinator, options: BackupOptions, stats: BackupStats) {
    while coordinator.cluster_id().is_none() || coordinator.status().applied == 0 {
        sleep(BEGIN_PAUSE).await;
    }
    let mut pause = RETRY_PAUSE;
    loop {
        match back_up(&coordinator, &options).await {
            Ok(made) => {
                tracing::info!(file = %made.path.display(), bytes = made.bytes, "made a backup");
                stats.inner.done.fetch_add(1, Relaxed);
                stats.inner.bytes.store(made.bytes, Relaxed);
                stats.inner.revision.store(made.revision, Relaxed);
                *stats.inner.last.lock() = Some(Instant::now());
                pause = RETRY_PAUSE;
                sleep(options.interval).await;
            }
            Err(error) => {
                stats.inner.failed.fetch_add(1, Relaxed);
                let pause_now = pause.min(options.interval);
                tracing::warn!(folder = %options.folder.display(), %error, retry_in = ?pause_now, "no backup was made");
                sleep(pause_now).await;
                pause *= 2;
            }
        }
    }
}

struct Made {
    path: PathBuf,
    bytes: u64,
    revision: u64,
}

/// One backup: written beside its place, read back, put in its place; then older ones are removed.
async fn back_up(coordinator: &Coordinator, options: &BackupOptions) -> io::Result<Made> {
    let mut image = coordinator.begin_image();
    let (revision, index) = (image.revision().unsigned_abs(), image.applied_index());
    let path = options.folder.join(file_name(revision, index));
    let (folder, writing) = (options.folder.clone(), path.clone());
    let mut writer = blocking::run(move || {
        std::fs::create_dir_all(&folder)?;
        remove_unfinished(&folder)?;
        BackupWriter::create(&writing)
    })
    .await?;
    let mut more = true;
    while more {
        (image, writer, more) = blocking::run(move || {
            let piece = image.next_piece().map_err(io::Error::other)?;
            let more = piece.is_some();
            if let Some(piece) = piece {
                writer.write(&piece)?;
            }
            Ok::<_, io::Error>((image, writer, more))
        })
        .await?;
        sleep(PIECE_PAUSE).await;
    }
    // What it keeps the state from giving back is not needed any more.
    drop(image);
    let (folder, keep) = (options.folder.clone(), options.keep);
    let bytes = blocking::run(move || {
        writer.sync()?;
        file::check(writer.unfinished()).map_err(io::Error::other)?;
        let bytes = writer.bytes();
        writer.finish()?;
        remove_old(&folder, keep)?;
        Ok::<_, io::Error>(bytes)
    })
    .await?;
    Ok(Made { path, bytes, revision })
}

/// Names sort as revisions do, and those only grow, also over a restore.
fn file_name(revision: u64, index: u64) -> String {
    format!("weft-{revision:020}-{index:020}{EXTENSION}")
}

const EXTENSION: &str = ".backup";

fn is_backup(name: &str) -> bool {
    let digits = |text: &str| text.len() == 20 && text.bytes().all(|b| b.is_ascii_digit());
    name.strip_prefix("weft-")
        .and_then(|rest| rest.strip_suffix(EXTENSION))
        .and_then(|rest| rest.split_once('-'))
        .is_some_and(|(revision, index)| digits(revision) && digits(index))
}

fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Those of a process that ended while it wrote one.
fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for name in names(folder)? {
        if name.strip_suffix(UNFINISHED).is_some_and(is_backup) {
            std::fs::remove_file(folder.join(name))?;
        }
    }
    Ok(())
}

fn remove_old(folder: &Path, keep: usize) -> io::Result<()> {
    let backups: Vec<String> = names(folder)?.into_iter().filter(|name| is_backup(name)).collect();
    for name in &backups[..backups.len().saturating_sub(keep.max(1))] {
        std::fs::remove_file(folder.join(name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_newest_backups_are_kept_and_other_files_are_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let put = |name: &str| std::fs::write(folder.path().join(name), b"x").expect("writes");
        for revision in [9, 100, 11, 2] {
            put(&file_name(revision, 1));
        }
        put("weft-notes.backup");
        put("other.txt");
        let half = format!("{}{UNFINISHED}", file_name(101, 1));
        put(&half);
        remove_unfinished(folder.path()).expect("removes");
        remove_old(folder.path(), 2).expect("removes");
        let mut left = [&*file_name(11, 1), &*file_name(100, 1), "weft-notes.backup", "other.txt"];
        left.sort_unstable();
        assert_eq!(names(folder.path()).expect("lists"), left);
    }
}
