//! Snapshot files: `DATA/snapshots/INDEX-TERM.snap`, written whole or not at all, never held in memory.
//!
//! ```text
//! [magic 8][version u32][head length u32][head crc u32] head image
//! ```
//! The head says what the snapshot covers and who is in the group; the image is the machine's, with checksums
//! of its own ([`weft_state::machine::ImageLoader`]).
//!
//! - [`file`](mod@file): one file: opening, checking, loading, writing.
//! - [`folder`]: which ones there are, and which is the newest.
//! - [`incoming`]: one on its way from the leader, which survives a broken connection.

mod file;
mod folder;
mod incoming;

pub use file::{SnapshotFile, SnapshotWriter};
pub use folder::SnapshotFolder;
pub use incoming::Incoming;
