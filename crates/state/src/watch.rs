//! Watches: who is told about which event.

mod catch_up;
mod hub;
mod watcher;

pub use hub::WatchHub;
pub use watcher::{WATCHER_PENDING_BYTES_MAX, WatchOptions, WatchPoll, WatchRange, WatcherId};
