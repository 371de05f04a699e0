//! The log on disk: what Raft must not forget, in segment files under `DATA/wal`.
//!
//! ```text
//! 0000000000000001.wal   header | group | group | … | seal      full: synced, sealed, never written again
//! 0000000000000002.wal   header | carried state | group | …     current: preallocated with zeros
//!
//! group  = mark, then the records of everything that waited for the disk at that moment: one write, one sync
//! record = [length u32][crc32 of type+payload u32][type u8][payload]            numbers are little-endian
//! ```
//! - [`record`]: the records and their bytes.
//! - [`segment`]: a segment's name and header.
//! - [`disk`]: the little that is asked of a file system, so that a simulated one can stand in.
//! - [`writer`]: appends, rotates, deletes; the one thread that does so.
//! - [`recovery`]: reads it all back after a crash.
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
//! An error of the disk while writing is fatal ([`writer::FatalHook`]): after a failed sync nobody knows what
//! the disk holds, so the process ends and reads it back at the next start.

pub mod disk;
pub mod record;
pub mod recovery;
pub mod segment;
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
