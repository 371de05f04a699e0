//! Backups: files with the whole state of one moment.
//!
//! A file is a machine's image ([`weft_state::machine::ImageLoader`]): it says its version, has a checksum for each
//! chunk, and ends with counts. One that came over etcd's `Maintenance.Snapshot` has the SHA-256 of that behind it,
//! as etcd's own have.
//!
//! - [`file`](mod@file): writing one whole or not at all, and reading it back.
//! - [`schedule`]: backups to a folder, at intervals.

pub mod file;
pub mod schedule;

pub use file::{Backup, BackupError};
pub use schedule::{BackupOptions, BackupStats};
