//! The log on disk: what Raft must not forget, in segment files under `DATA/wal`.
//!
//! ```text
//! 0000000000000001.wal   header | group | group | … | seal      full: synced, sealed, never written again
//! 0000000000000002.wal   header | carried state, group | …      current: its space is allocated
//! 0000000000000000.spare zeros, or a segment that was purged    the next one, and a reserve for a full disk
//!
//! group  = mark, then the records of everything that waited for the disk at that moment: one write, one sync
//! record = [length u32][crc32 of segment number+type+payload u32][type u8][payload]    numbers are little-endian
//! ```
//! - [`record`]: the records and their bytes.
//! - [`segment`]: a segment's name and header.
//! - [`disk`]: the little that is asked of a file system, so that a simulated one can stand in.
//! - [`log_file`]: what is written where; pure but for its disk.
//! - [`spares`]: files for the next segments, and what a full disk is.
//! - [`writer`]: the threads.
//! - [`replay`]: what the records add up to.
//! - [`recovery`]: reads it all back after a crash. [`inspect`]: the same, for people.
//!
//! What is promised: after an operation's callback ran with success, a crash of the process, of the
//! machine or of the power does not lose it. Recovery yields exactly a prefix of what was written, which
//! includes everything acknowledged (A07). A *torn tail* (bytes that were never synced, and so never
//! acknowledged) is cut off with a line in the log; anything else that does not read back refuses to start.
//!
//! How a torn tail is told from damage: each group starts with a [`record::Mark`] that says up to which
//! offset the segment was synced when the group was written. A bad record below the `synced` of a later,
//! valid mark had reached the disk once: that is damage. A bad record with no such mark behind it is a torn
//! tail, even if the disk kept later blocks of the same unsynced group.
//!
//! How a lost segment is told from a crash while one was made: a segment is sealed only when its successor is on
//! disk, and used only when its predecessor's seal is. So a sealed segment has a successor, and a successor of
//! one without a seal holds no group.
//!
//! An error of the disk while writing is fatal ([`writer::FatalHook`]): after a failed sync nobody knows what
//! the disk holds, so the process ends and reads it back at the next start. A *full* disk is no error: see
//! [`spares`]. [`WalStats::is_full`] says when to refuse what needs space; when even the reserve is used up, the
//! writer waits with what it has, acknowledges nothing, and goes on by itself when there is space.

pub mod disk;
pub mod inspect;
pub mod log_file;
pub mod record;
pub mod recovery;
pub mod replay;
pub mod segment;
pub mod spares;
pub mod writer;

use std::path::PathBuf;

pub use disk::{Disk, DiskFile, FolderDisk};
pub use record::{Entry, LogPosition, Vote};
pub use recovery::{Recovered, recover};
pub use writer::{LogDisk, Operation, Wal, WalOptions, WalStats};

/// Why the log on disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// Bytes that were once written whole do not read back.
    #[error(
        "{file} is damaged at offset {offset}: {reason}; this is not the torn end that a crash leaves. \
         Nothing was changed. If the other servers of the group are well, move this data folder away and \
         start with an empty one and --join; else restore it from a copy"
    )]
    Damaged {
        /// The segment.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What was found.
        reason: String,
    },
    /// A segment is of a newer format.
    #[error("{file} has format version {seen}, this program reads version {supported}: use a newer weft")]
    Version {
        /// The segment.
        file: PathBuf,
        /// Its version.
        seen: u32,
        /// Ours.
        supported: u32,
    },
    /// A segment is missing between two others.
    #[error(
        "{file} is missing from the log: restore it, or move this data folder away and start with an empty one and --join"
    )]
    MissingSegment {
        /// The segment that should be there.
        file: PathBuf,
    },
    /// There is no log where one must be.
    #[error(
        "{folder} holds no log, but this server belongs to a cluster already: its log is gone. Nothing was \
         changed. If the other servers of the group are well, move this data folder away and start with an \
         empty one and --join; else restore it from a copy"
    )]
    Gone {
        /// The folder.
        folder: PathBuf,
    },
    /// The system refused.
    #[error("{file}: {source}")]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
}
