//! Leases over changes of the leader and without a majority.

use super::*;

/// P04: over real logs: who leads next starts from what was noted, and a renewal through a follower takes it back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_lease_outlives_its_leader_until_it_is_renewed() {
    let mut servers = group(3).await;
    let lead = wait_leader(&servers).await;
    let leader = servers.remove(lead);
    let grant = Command::LeaseGrant { id: 5, ttl_secs: 3_600 };
    leader.coordinator.propose(grant).await.expect("granted");
    let terms = leader.coordinator.read(|m| m.lease_terms(5)).expect("it was granted");
    let noted = LeaseCheckpoint { id: 5, grant: terms.grant, remaining_secs: Some(1_000) };
    let term = leader.coordinator.status().term;
    let checkpoint = Command::LeaseCheckpoint { term, leases: vec![noted] };
    let answer = leader.coordinator.propose(checkpoint).await.expect("noted").response;
    assert_eq!(answer, Ok(Response::LeaseCheckpoint { noted: 1 }));
    leader.crash().await;

    let lead = wait_leader(&servers).await;
    let follower = &servers[1 - lead];
    let left = follower.coordinator.lease_remaining(5).await.expect("quorum").expect("it lives");
    assert!((990..=1_010).contains(&left.as_secs()), "{left:?}");
    assert_eq!(follower.coordinator.lease_renew(5).await, Ok(3_600));
    let left = follower.coordinator.lease_remaining(5).await.expect("quorum").expect("it lives");
    assert!(left.as_secs() > 3_500, "{left:?}");
    let noted = servers[lead].coordinator.read(|m| m.lease_terms(5)).expect("it lives").remaining_secs;
    assert_eq!(noted, None, "a third leader gives it all of its time");
}

/// S01, S02, S04: a lease outlives its leader, is renewed through any server, expires once, with its key.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_survives_a_leader_change_and_expires_once() {
    let mut servers = group(3).await;
    let at = wait_leader(&servers).await;
    let old = servers.remove(at);
    let follower = &servers[0];
    follower
        .coordinator
        .propose(Command::LeaseGrant { id: 5, ttl_secs: 2 })
        .await
        .expect("written")
        .response
        .expect("granted");
    let attached = Command::Put(Put {
        key: Bytes::from_static(b"session"),
        value: Bytes::from_static(b"alive"),
        lease: 5,
        ..Put::default()
    });
    follower.coordinator.propose(attached).await.expect("written").response.expect("stored");
    assert_eq!(follower.coordinator.lease_renew(5).await, Ok(2));
    old.crash().await;
    // Renewed for twice its time to live, over the leader change: it lives.
    let until_when = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until_when {
        assert_eq!(follower.coordinator.lease_renew(5).await, Ok(2));
        sleep(Duration::from_millis(300)).await;
    }
    assert!(follower.get("session").is_some());
    assert!(follower.coordinator.lease_remaining(5).await.expect("quorum").is_some());
    let last_renewal = Instant::now();
    until("expiry", || servers.iter().all(|s| s.get("session").is_none())).await;
    let lived = last_renewal.elapsed();
    assert!(lived >= Duration::from_millis(1600) && lived < Duration::from_secs(6), "{lived:?}");
    assert_eq!(
        follower.coordinator.lease_renew(5).await,
        Err(LeaseError::Store(StoreError::LeaseNotFound { id: 5 }))
    );
    for server in &servers {
        assert_eq!(*server.seen.deletes.lock(), [Bytes::from_static(b"session")], "deleted once");
        assert_eq!(server.coordinator.read(|m| m.lease_ttl_secs(5)), None);
    }
    for server in servers {
        server.stop().await;
    }
}

/// S01: while there is no majority nobody can renew, so that time does not count.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_does_not_run_out_while_nobody_could_renew_it() {
    let mut servers = group(3).await;
    let at = wait_leader(&servers).await;
    let leader = servers.remove(at);
    let grant = Command::LeaseGrant { id: 5, ttl_secs: 2 };
    leader.coordinator.propose(grant).await.expect("written").response.expect("granted");
    let mut folders = Vec::new();
    for server in servers {
        folders.push((server.id, server.crash().await));
    }
    sleep(Duration::from_secs(3)).await;
    let mut back = Vec::new();
    for (id, folder) in folders {
        back.push(Server::restart(id, folder, SNAPSHOT_EVERY).await);
    }
    let all: Vec<(NodeId, SocketAddr)> =
        back.iter().chain([&leader]).map(|server| (server.id, server.addr)).collect();
    for server in back.iter().chain([&leader]) {
        all.iter().for_each(|(id, addr)| server.coordinator.set_peer_address(*id, *addr));
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        match leader.coordinator.lease_renew(5).await {
            Ok(ttl) => break assert_eq!(ttl, 2),
            Err(LeaseError::Unavailable(error)) => assert!(Instant::now() < deadline, "{error}"),
            Err(LeaseError::Store(error)) => panic!("{error}"),
        }
    }
    for server in back.into_iter().chain([leader]) {
        server.stop().await;
    }
}
