//! Replicas that differ (P12).

use super::*;

/// Puts another state of the same log position in place of a server's own.
fn spoil(server: &Server) {
    let node = server.coordinator.node();
    let (index, term) = node.replica.read(|machine| (machine.applied_index(), machine.applied_term()));
    let mut other = Machine::new();
    other.apply(index, term, &put("k", "not what was written"));
    node.replica.replace(other);
}

async fn write_past_a_note(servers: &[Server]) -> u64 {
    let leader = &servers[wait_leader(servers).await];
    let begun = leader.coordinator.status().applied;
    while leader.coordinator.status().applied < begun + 70 {
        put_until_done(leader, "k", "v").await;
    }
    leader.coordinator.node().replica.notes().lock().newest().expect("a multiple of 64 was passed")
}

async fn compare(servers: &[Server], index: u64) {
    let leader = &servers[wait_leader(servers).await];
    leader.coordinator.node().compare_states_at(index).await;
}

/// P12, A09.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_state_differs_ends_and_does_not_start_again() {
    let mut servers = group(3).await;
    let index = write_past_a_note(&servers).await;
    compare(&servers, index).await;
    let leads = wait_leader(&servers).await;
    assert_eq!(servers[leads].coordinator.status().agreed, index, "equal states are found to be equal");

    let spoilt = (leads + 1) % 3;
    spoil(&servers[spoilt]);
    let index = write_past_a_note(&servers).await;
    compare(&servers, index).await;
    until("it ends", || servers[spoilt].coordinator.node().is_stopping()).await;
    let Server { folder, id, .. } = servers.remove(spoilt);
    let setup =
        Setup { folder, bootstrap: false, snapshot_every: SNAPSHOT_EVERY, history: HistoryLimits::default() };
    let refused = try_start(id.0, setup).await.map(|_| ()).expect_err("it is in quarantine");
    assert!(matches!(refused, StartError::Retired { .. }), "{refused}");
    // The others go on.
    put_until_done(&servers[0], "k", "w").await;
    for server in servers {
        assert!(!server.coordinator.node().is_stopping());
        server.stop().await;
    }
}

/// P12: it is not the leader who is right, but the majority.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_state_differs_ends_and_the_others_elect_another() {
    let mut servers = group(3).await;
    let leads = wait_leader(&servers).await;
    spoil(&servers[leads]);
    let index = write_past_a_note(&servers).await;
    compare(&servers, index).await;
    assert!(servers[leads].coordinator.node().is_stopping());
    servers.remove(leads);
    wait_leader(&servers).await;
    for server in &servers {
        put_until_done(server, "k", "w").await;
    }
    for server in servers {
        server.stop().await;
    }
}

/// Whoever reaches the peer port cannot end a server by saying that it is wrong about a state that it never had.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_does_not_believe_that_a_state_it_does_not_remember_was_wrong() {
    let servers = group(1).await;
    let index = write_past_a_note(&servers).await;
    let node = servers[0].coordinator.node();
    let right = node.replica.notes().lock().at(index).expect("noted");
    for (index, right) in [(index, right), (index + 1, right), (index + 64, 0)] {
        node.told_to_differ(index, right).await;
        assert!(!node.is_stopping());
    }
    servers.into_iter().next().expect("one").stop().await;
}
