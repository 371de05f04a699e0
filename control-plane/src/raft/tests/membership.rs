//! Servers that are removed, promoted, or made to lead.

use std::task::Poll;

use super::*;

fn remove(id: NodeId, force: bool) -> GroupChange {
    GroupChange::Remove { id: id.0, force }
}

fn refused(result: Result<(), GroupChangeError>) -> ChangeRefused {
    match result {
        Err(GroupChangeError::Refused(refused)) => refused,
        other => panic!("{other:?}"),
    }
}

async fn learner(id: u64, others: &[Server]) -> Server {
    let folder = tempfile::tempdir().expect("a folder");
    let setup =
        Setup { folder, bootstrap: false, snapshot_every: SNAPSHOT_EVERY, history: HistoryLimits::default() };
    let server = start_as(id, setup, true).await.expect("starts");
    join(&server, others).await;
    server
}

fn voters(server: &Server) -> Vec<u64> {
    server.coordinator.status().peers.iter().filter(|p| p.voter).map(|p| p.id.0).collect()
}

/// R02: the removed server ends and cannot come back with its old votes; the others do not notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_server_ends_disturbs_nobody_and_does_not_start_again() {
    let mut servers = group(3).await;
    let leads = wait_leader(&servers).await;
    let gone = (leads + 1) % 3;
    let asked = (leads + 2) % 3;
    let term = servers[leads].coordinator.status().term;
    let id = servers[gone].id;
    servers[asked].coordinator.change_group(remove(id, false)).await.expect("through a follower");
    assert!(!voters(&servers[asked]).contains(&id.0));
    until("it ends", || servers[gone].coordinator.node().is_stopping()).await;
    let again = servers[asked].coordinator.change_group(remove(id, false)).await;
    assert!(matches!(refused(again), ChangeRefused::Unknown { .. }));

    let Server { folder, .. } = servers.remove(gone);
    let setup =
        Setup { folder, bootstrap: false, snapshot_every: SNAPSHOT_EVERY, history: HistoryLimits::default() };
    let started = try_start(id.0, setup).await.map(|_| ()).expect_err("its data is retired");
    assert!(started.to_string().contains("was removed from its group"), "{started}");
    for server in &servers {
        put_until_done(server, "k", "v").await;
        assert_eq!(server.coordinator.status().term, term, "nobody stood for election");
    }
    for server in servers {
        server.stop().await;
    }
}

/// R02: it was down when it was removed, so its log does not say so: it asks.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_removed_while_it_was_down_learns_it_when_it_starts() {
    let mut servers = group(3).await;
    let leads = wait_leader(&servers).await;
    let gone = servers.remove((leads + 1) % 3);
    let id = gone.id;
    let folder = gone.stop().await;
    servers[0].coordinator.change_group(remove(id, false)).await.expect("two of three decide it");
    let returned = Server::restart(id, folder, SNAPSHOT_EVERY).await;
    until("it ends", || returned.coordinator.node().is_stopping()).await;
    for server in servers {
        put_until_done(&server, "k", "v").await;
        if server.coordinator.is_leader() {
            assert_eq!(voters(&server).len(), 2);
        }
    }
}

/// R02: a request to be taken in that was sent before may arrive, or be looked at, after the removal.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_request_to_join_does_not_bring_a_removed_server_back() {
    let servers = group(3).await;
    let leads = wait_leader(&servers).await;
    let gone = &servers[(leads + 1) % 3];
    let node = servers[leads].coordinator.node();
    let request = weft_xds_proto::peer::JoinRequest {
        id: gone.id.0,
        name: "late".to_owned(),
        peer_address: gone.addr.to_string(),
        cluster_id: servers[leads].coordinator.cluster_id().expect("formed").0,
        learner: false,
        was_member: false,
    };
    node.take_in(request.clone()).await.expect("it is a member, and told so");
    servers[leads].coordinator.change_group(remove(gone.id, false)).await.expect("removed");
    let refused = node.take_in(request).await.expect_err("not again");
    assert!(refused.message().contains("was removed from this group"), "{refused}");
    assert!(node.membership().get_node(&gone.id.0).is_none(), "not even as learner");
}

/// R02: it was down, and the leader that removed it is gone: what the learner knows of itself decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_learner_that_was_removed_while_it_was_down_is_not_taken_in_by_another_leader() {
    let servers = group(3).await;
    let leads = wait_leader(&servers).await;
    let gone = learner(4, &servers).await;
    let folder = gone.stop().await;
    servers[leads].coordinator.change_group(remove(NodeId(4), true)).await.expect("removed");
    let to = servers[(leads + 1) % 3].id;
    servers[leads].coordinator.change_group(GroupChange::Transfer { to: to.0 }).await.expect("handed over");
    until("it leads", || servers[(leads + 1) % 3].coordinator.is_leader()).await;
    let setup =
        Setup { folder, bootstrap: false, snapshot_every: SNAPSHOT_EVERY, history: HistoryLimits::default() };
    let returned = start_as(4, setup, true).await.expect("it does not know it yet");
    let addrs: Vec<SocketAddr> = servers.iter().map(|s| s.addr).collect();
    while !returned.coordinator.node().is_stopping() {
        let refused = returned.coordinator.join_group(addrs.clone()).await.expect_err("removed");
        assert!(!matches!(refused, JoinError::Unreachable { .. }), "{refused}");
        sleep(Duration::from_millis(50)).await;
    }
    for server in &servers {
        assert!(server.coordinator.node().membership().get_node(&4).is_none(), "not even as learner");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_itself_can_be_removed_and_another_one_leads() {
    let servers = group(3).await;
    let leads = wait_leader(&servers).await;
    let id = servers[leads].id;
    servers[(leads + 1) % 3].coordinator.change_group(remove(id, false)).await.expect("removed");
    until("it ends", || servers[leads].coordinator.node().is_stopping()).await;
    for server in servers.iter().filter(|s| s.id != id) {
        put_until_done(server, "k", "v").await;
        assert!(!voters(server).contains(&id.0));
    }
}

/// R05: the last change would be one that nobody can undo.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_leaves_no_majority_that_answers_is_refused_unless_forced() {
    let mut servers = group(3).await;
    let leads = wait_leader(&servers).await;
    let dead = servers.remove((leads + 1) % 3);
    let dead_id = dead.id;
    dead.crash().await;
    let leads = wait_leader(&servers).await;
    let other = servers[1 - leads].id;
    sleep(timing().election_timeout_max).await;
    let refusal = refused(servers[leads].coordinator.change_group(remove(other, false)).await);
    match &refusal {
        ChangeRefused::QuorumAtRisk { voters: 2, heard: 1, missing, .. } => {
            assert!(missing.contains(&dead_id.to_string()), "{missing}");
        }
        other => panic!("{other}"),
    }
    assert_eq!(voters(&servers[leads]).len(), 3, "nothing was changed");
    // The dead one can go: the two that are left answer.
    servers[leads].coordinator.change_group(remove(dead_id, false)).await.expect("removed");
    // By force also what leaves one.
    servers[leads].coordinator.change_group(remove(other, true)).await.expect("forced");
    let last = refused(servers[leads].coordinator.change_group(remove(servers[leads].id, true)).await);
    assert_eq!(last, ChangeRefused::LastVoter(servers[leads].id.0));
    put_until_done(&servers[leads], "k", "v").await;
}

/// R03: a learner has the log and no vote until somebody promotes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_learner_votes_once_it_is_promoted() {
    let mut servers = group(1).await;
    wait_leader(&servers).await;
    put_until_done(&servers[0], "k", "v").await;
    let server = learner(2, &servers).await;
    until("it has the log", || server.get("k").is_some()).await;
    assert_eq!(voters(&servers[0]), [1]);
    let to_learner = GroupChange::Transfer { to: 2 };
    assert_eq!(refused(servers[0].coordinator.change_group(to_learner).await), ChangeRefused::NotVoter(2));
    for _ in 0..2 {
        server.coordinator.change_group(GroupChange::Promote { id: 2 }).await.expect("promoted, also twice");
    }
    assert_eq!(voters(&servers[0]), [1, 2]);
    let unknown = refused(servers[0].coordinator.change_group(GroupChange::Promote { id: 9 }).await);
    assert!(unknown.to_string().contains("s1"), "{unknown}");
    servers.push(server);
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_that_does_not_answer_is_not_promoted() {
    let servers = group(1).await;
    wait_leader(&servers).await;
    let server = learner(2, &servers).await;
    server.crash().await;
    sleep(timing().election_timeout_max).await;
    let behind = refused(servers[0].coordinator.change_group(GroupChange::Promote { id: 2 }).await);
    assert!(matches!(behind, ChangeRefused::Behind { id: 2, heard: false, .. }), "{behind}");
    put_until_done(&servers[0], "k", "v").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_goes_where_it_is_asked_to_go() {
    let servers = group(3).await;
    let leads = wait_leader(&servers).await;
    for step in 1..=3 {
        let to = servers[(leads + step) % 3].id;
        servers[leads]
            .coordinator
            .change_group(GroupChange::Transfer { to: to.0 })
            .await
            .expect("handed over");
        until("it leads", || servers[(leads + step) % 3].coordinator.is_leader()).await;
        put_until_done(&servers[leads], "k", "v").await;
    }
    for server in servers {
        server.stop().await;
    }
}

fn is_half_changed(server: &Server) -> bool {
    server.coordinator.node().membership().membership().get_joint_config().len() == 2
}

/// The first entry of the removal is there, and nobody asks for the second one any more.
async fn remove_half(leader: &Server, gone: NodeId) {
    let removed = openraft::ChangeMembers::RemoveVoters([gone.0].into());
    let mut change = Box::pin(leader.coordinator.node().raft.change_membership(removed, false));
    // Its first step alone: the second one is asked for when it is polled with the answer to that.
    let asked = std::future::poll_fn(|cx| Poll::Ready(change.as_mut().poll(cx).is_pending())).await;
    assert!(asked, "a change takes longer than that");
    // The leader may notice, and finish it.
    until("it is half removed", || is_half_changed(leader) || !voters(leader).contains(&gone.0)).await;
}

/// Somebody joins before it is noticed: that must not keep the one that was to go, as learner.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_left_half_done_is_finished_before_the_next_one() {
    let servers = group(3).await;
    let leads = wait_leader(&servers).await;
    let gone = servers[(leads + 1) % 3].id;
    remove_half(&servers[leads], gone).await;
    let server = learner(4, &servers).await;
    let node = servers[leads].coordinator.node();
    assert!(node.membership().get_node(&gone.0).is_none(), "{:?}", node.membership());
    assert_eq!((node.membership().voter_ids().count(), node.membership().nodes().count()), (2, 3));
    for server in servers.into_iter().chain([server]) {
        server.stop().await;
    }
}

/// Both majorities are needed until the second entry of a change is there, and nobody asks for it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_was_left_between_its_two_entries_is_finished() {
    let servers = group(3).await;
    let leads = wait_leader(&servers).await;
    let gone = servers[(leads + 1) % 3].id;
    let node = servers[leads].coordinator.node();
    let joint = || is_half_changed(&servers[leads]);
    remove_half(&servers[leads], gone).await;
    until("it is finished", || !joint() && !voters(&servers[leads]).contains(&gone.0)).await;
    assert!(node.membership().get_node(&gone.0).is_none(), "it is no learner either");
    put_until_done(&servers[leads], "k", "v").await;
    for server in servers {
        server.stop().await;
    }
}
