//! What ends a long-lived stream from the server's side.

use futures::future::BoxFuture;
use tokio::sync::watch;
use tonic::Status;
use weft_core::drain::DrainWatch;
use weft_core::id::NodeId;

use super::{Api, status};

/// Completes with the reason when the stream must end: the server drains, or has been without a leader
/// for [`super::limits::NO_LEADER_GRACE`] and the client asked to be told (`hasleader`). Not to be polled
/// again after that.
pub fn stream_end(api: &Api, requires_leader: bool) -> BoxFuture<'static, Status> {
    let drain = api.options.drain.clone();
    let leader = requires_leader.then(|| api.coordinator.leader_changes());
    let grace = api.options.limits.no_leader_grace;
    Box::pin(async move {
        tokio::select! {
            () = drained(drain) => status::stopped(),
            () = leader_lost(leader, grace) => status::no_leader(),
        }
    })
}

async fn drained(drain: Option<DrainWatch>) {
    match drain {
        Some(drain) => drain.signaled().await,
        None => std::future::pending().await,
    }
}

/// Completes when there has been no leader for `grace` without a break, or never if nobody asked.
async fn leader_lost(leader: Option<watch::Receiver<Option<NodeId>>>, grace: std::time::Duration) {
    let Some(mut leader) = leader else { return std::future::pending().await };
    loop {
        if leader.wait_for(Option::is_none).await.is_err() {
            return; // the group is shut down
        }
        match tokio::time::timeout(grace, leader.wait_for(Option::is_some)).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const GRACE: Duration = Duration::from_secs(3);

    #[tokio::test(start_paused = true)]
    async fn a_change_of_leader_within_the_grace_cuts_nothing() {
        let (sender, receiver) = watch::channel(Some(NodeId(1)));
        let lost = tokio::spawn(leader_lost(Some(receiver), GRACE));
        for _ in 0..5 {
            sender.send_replace(None);
            tokio::time::sleep(GRACE / 2).await;
            sender.send_replace(Some(NodeId(2)));
            tokio::time::sleep(GRACE / 2).await;
        }
        assert!(!lost.is_finished());
        sender.send_replace(None);
        tokio::time::sleep(GRACE * 2).await;
        assert!(lost.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_who_did_not_ask_is_cut() {
        let unasked = tokio::time::timeout(GRACE * 100, leader_lost(None, GRACE)).await;
        assert!(unasked.is_err());
    }
}
