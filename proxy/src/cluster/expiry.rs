//! Ends ejections when their time is over, on the control runtime.

use std::sync::Arc;
use std::time::Instant;

use crate::mesh_view::MeshState;

/// Runs until it is aborted. Sleeps while nothing is ejected.
pub(crate) async fn run(mesh: Arc<MeshState>) {
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
        }
    }
}
