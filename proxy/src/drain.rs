//! The order of a graceful stop (D12, P46): peers hear of it first, and connections are refused last.
//!
//! 1. Not ready; services are withdrawn from the mesh. Everything is still served, until every member that is up has said that
//!    it uses them no more ([`DRAIN_ACKNOWLEDGED_MAX`](crate::limits::DRAIN_ACKNOWLEDGED_MAX) at most), and for
//!    [`DRAIN_PROPAGATION`](crate::limits::DRAIN_PROPAGATION) more.
//! 2. Answers say `Connection: close`, for [`DRAIN_LINGER`]: clients with idle connections learn it with their next
//!    answer instead of by a reset.
//! 3. No more connections are accepted, once those that wait in the kernel are; HTTP/2 gets GOAWAY; idle ones close.
//! 4. Requests in flight finish, until the drain timeout; then what is left is cut.
//! 5. Gossip is left, discovery keeps its last good state, every task and thread is joined.
//!
//! Where another process has taken over ([`crate::handover`]), peers have nothing to hear of: the first step is left out, and
//! idle connections have [`HANDOVER_LINGER`] in place of the second, since nobody waits for the end.

use std::time::Duration;

use tokio::sync::watch;

use crate::limits::{DRAIN_LINGER, HANDOVER_LINGER};
use crate::worker::{Phase, Worker};

/// Steps 2 to 4.
pub(crate) async fn drain(
    phase: &watch::Sender<Phase>,
    workers: Vec<Worker>,
    timeout: Duration,
    taken_over: bool,
) {
    let mut joined = std::pin::pin!(futures::future::join_all(workers.into_iter().map(Worker::join)));
    if taken_over {
        phase.send_replace(Phase::HandedOver);
        if tokio::time::timeout(HANDOVER_LINGER.min(timeout), &mut joined).await.is_ok() {
            return;
        }
    } else {
        phase.send_replace(Phase::Closing);
        tokio::time::sleep(DRAIN_LINGER.min(timeout)).await;
    }
    phase.send_replace(Phase::Stopping);
    let cut = match tokio::time::timeout(timeout, &mut joined).await {
        Ok(cut) => cut,
        Err(_) => {
            phase.send_replace(Phase::Stopped);
            joined.await
        }
    };
    let cut: usize = cut.iter().sum();
    if cut > 0 {
        tracing::warn!(connections = cut, ?timeout, "drain timeout: connections were cut");
    }
}
