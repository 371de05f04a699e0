//! The log on disk.
/// Why the log on disk cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WalError {}
