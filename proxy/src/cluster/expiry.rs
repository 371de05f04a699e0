//! Ends ejections when their time is over, compares endpoints and lets shares of new ones grow, on the control runtime.

use std::sync::Arc;
use std::time::Instant;

use tokio::time::MissedTickBehavior;

use crate::limits::MESH_TICK;
use crate::mesh_view::MeshState;

/// Runs until it is aborted.
pub(crate) async fn run(mesh: Arc<MeshState>) {
    let mut tick = tokio::time::interval(MESH_TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let next = mesh.next_expiry();
        let over = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => mesh.expire_ejections(Instant::now()),
            () = mesh.ejected.notified() => {}
            _ = tick.tick() => mesh.tick(Instant::now()),
        }
    }
}
