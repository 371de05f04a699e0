//! Watches: who is told about which event.
//!
//! A watcher is either *synced*, and `publish` queues events for it as they happen, or *behind*, and reads
//! history. It falls behind by starting in the past or by a full queue, and becomes synced when history has
//! nothing more for it. Either way it gets each event once, in order of revisions, whole revisions only;
//! what it cannot get without a gap, because it is compacted, it is told.
//!
//! ```text
//!   create(start <= current) ─► Behind ──history read to the end──► Synced ◄── create(start = 0 or future)
//!                                 ▲  │                                 │
//!                                 │  └──next revision compacted──► gone└──queue over its bound, restored──┐
//!                                 └───────────────────────────────────────────────────────────────────────┘
//! ```

mod catch_up;
mod hub;
mod interest;
mod shared;
mod watcher;

pub use hub::WatchHub;
pub use shared::SharedEvent;
pub use watcher::{WATCHER_PENDING_BYTES_MAX, WatchOptions, WatchPoll, WatchRange, WatcherId};
