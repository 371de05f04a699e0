//! Hot upgrade (P47): a new process takes the place of a running one without a request being lost.
//!
//! ```text
//! new                          old
//! Hello {protocol} ──────────▶           another protocol is refused
//!   ◀────────── Offer, sockets           the very sockets, so what waits in their queues waits on; the folder's lock
//! (checks, prepares all that may fail)
//! Prepared ──────────────────▶           falls silent in the gossip pool, writes its last good state
//!   ◀─────────────────── State           its place in the pool, the services it holds
//! (takes both up, waits until it holds the same services, accepts)
//! Serving ───────────────────▶           from here on only the new one counts
//!   ◀──────────────────── Over           stops accepting, finishes what it has, ends
//! ```
//! Whoever is not heard within [`STEP_TIMEOUT`] is given up. Before `Serving` that leaves the old process as it was;
//! nothing was taken from it, its sockets and lock were only shared.
//!
//! - [`wire`]: messages and descriptors over the Unix socket `DATA/handover.sock`.
//! - [`offer`]: the old process's half. [`take`]: the new one's.

use std::time::Duration;

pub(crate) mod offer;
pub(crate) mod take;
pub(crate) mod wire;

pub use take::order;
pub use wire::Order;

/// Version of the exchange. Processes of different versions refuse each other, before anything was handed over.
pub(crate) const PROTOCOL: u32 = 1;

/// The socket in the data folder.
pub(crate) const SOCKET: &str = "handover.sock";

/// For one message of the other side, and for the new process to hold the services of the old one.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a process was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The socket, or what came from it.
    #[error("the running process is not taken over: {0}; it goes on")]
    Io(#[from] std::io::Error),
    /// It said no.
    #[error("the running process refuses to be taken over: {0}")]
    Refused(String),
    /// We would know less than it does.
    #[error(
        "after {STEP_TIMEOUT:?} this process does not know the services {0:?}, which the running one knows; that one goes on"
    )]
    Incomplete(Vec<String>),
    /// There is no folder to find it by.
    #[error("to take over a running process its data folder has to be given: --data-dir FOLDER")]
    NoDataDir,
}
