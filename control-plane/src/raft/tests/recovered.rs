//! A group that lost its quorum for good goes on as one of its servers.

use weft_core::id::ClusterId;

use super::*;
use crate::raft::{cluster::Cluster, recover::Stopped};

/// The folder of a server of three, whose others are lost, and an answered write in it.
async fn survivor() -> (NodeId, TempDir) {
    let mut servers = group(3).await;
    wait_leader(&servers).await;
    put_until_done(&servers[0], "answered", "v").await;
    let survivor = servers.remove(0);
    for server in servers {
        server.crash().await;
    }
    let (id, folder) = (survivor.id, survivor.crash().await);
    // What a process keeps in its folder, and these servers are told.
    std::fs::write(folder.path().join("node-id"), id.to_string()).expect("written");
    (id, folder)
}

/// P15: the new cluster id is on disk before the log says that the group has one server. In between the server is a stranger
/// to its former group, and decides nothing alone; asked again, it is recovered as if nothing had happened.
#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_that_was_cut_off_between_its_steps_is_asked_for_again_and_loses_nothing() {
    let (id, folder) = survivor().await;
    let before = Stopped::open(folder.path()).expect("reads").standing();
    let half = ClusterId(7);
    Cluster::load(folder.path(), id).expect("reads").replace(half).expect("written");

    let cut_off = Server::restart(id, folder, SNAPSHOT_EVERY).await;
    assert_eq!(cut_off.coordinator.cluster_id(), Some(half));
    assert!(cut_off.put("alone", "v").await.is_err(), "one of three decides nothing");
    let folder = cut_off.crash().await;

    let stopped = Stopped::open(folder.path()).expect("reads again");
    assert_eq!(stopped.standing().index, before.index);
    let cluster = stopped.form_group(1000).expect("recovers");
    assert_ne!(cluster, half);
    let alone = Server::restart(id, folder, SNAPSHOT_EVERY).await;
    put_until_done(&alone, "after", "v").await;
    assert!(alone.get("answered").is_some() && alone.get("alone").is_none());
    assert_eq!(alone.coordinator.cluster_id(), Some(cluster));
    assert!(alone.coordinator.read(Machine::revision) > 1000);
    alone.stop().await;
}
