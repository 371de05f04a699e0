//! What ends a long-lived stream from the server's side.

use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::MissedTickBehavior;
use tonic::Status;
use weft_core::drain::DrainWatch;

use super::{Api, status};

/// Looks within the grace: a leader has to be missing at each of them for a stream to be cut.
const LOOKS: u32 = 3;

/// Completes with the reason when the stream must end: the server drains, or has been without a leader
/// for [`super::limits::NO_LEADER_GRACE`] and the client asked to be told (`hasleader`). Not to be polled
/// again after that.
pub fn stream_end(api: &Api, requires_leader: bool) -> BoxFuture<'static, Status> {
    let drain = api.options.drain.clone();
    let coordinator = requires_leader.then(|| api.coordinator.clone());
    let grace = api.options.limits.no_leader_grace;
    Box::pin(async move {
        tokio::select! {
            () = drained(drain) => status::stopped(),
            () = leader_lost(coordinator.map(|c| move || c.has_leader()), grace) => status::no_leader(),
        }
    })
}

async fn drained(drain: Option<DrainWatch>) {
    match drain {
        Some(drain) => drain.signaled().await,
        None => std::future::pending().await,
    }
}

/// Completes when there has been no leader for `grace`, or never if nobody asked. A leader that lost its
/// majority stays the leader by name, so this cannot wait for a change of leader: it has to look.
async fn leader_lost(has_leader: Option<impl Fn() -> bool>, grace: Duration) {
    let Some(has_leader) = has_leader else { return std::future::pending().await };
    let mut looks = tokio::time::interval((grace / LOOKS).max(Duration::from_millis(1)));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks.tick().await; // the first comes at once, and the request was admitted just now
    let mut missed = 0;
    while missed < LOOKS {
        looks.tick().await;
        missed = if has_leader() { 0 } else { missed + 1 };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    use super::*;

    const GRACE: Duration = Duration::from_secs(3);

    #[tokio::test(start_paused = true)]
    async fn a_change_of_leader_within_the_grace_cuts_nothing() {
        let leads = Arc::new(AtomicBool::new(true));
        let seen = leads.clone();
        let lost = tokio::spawn(leader_lost(Some(move || seen.load(Relaxed)), GRACE));
        for _ in 0..5 {
            leads.store(false, Relaxed);
            tokio::time::sleep(GRACE / 2).await;
            leads.store(true, Relaxed);
            tokio::time::sleep(GRACE / 2).await;
        }
        assert!(!lost.is_finished());
        leads.store(false, Relaxed);
        tokio::time::sleep(GRACE * 2).await;
        assert!(lost.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_who_did_not_ask_is_cut() {
        let unasked = tokio::time::timeout(GRACE * 100, leader_lost(None::<fn() -> bool>, GRACE)).await;
        assert!(unasked.is_err());
    }
}
