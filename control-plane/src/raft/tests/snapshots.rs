//! What a snapshot brings, and what history is given back.

use super::*;

/// R04: a follower that is behind the purged log gets a snapshot, also while writes go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_far_behind_catches_up_from_a_snapshot() {
    let mut servers = group_with(3, 20).await;
    let at = (wait_leader(&servers).await + 1) % 3;
    let behind = servers.remove(at);
    let (id, folder) = (behind.id, behind.crash().await);
    for i in 0..120 {
        servers[0].put(&format!("k{i}"), "v").await.expect("two of three");
    }
    until("a snapshot", || servers.iter().all(|s| s.coordinator.status().snapshot > 60)).await;
    let back = Server::restart(id, folder, 20).await;
    let before = *back.seen.restored.lock();
    let writer = servers[0].coordinator.clone();
    let writes = tokio::spawn(async move {
        for i in 120..160 {
            writer.propose(put(&format!("k{i}"), "v")).await.expect("two of three");
        }
    });
    join(&back, &servers).await;
    writes.await.expect("runs");
    back.coordinator.read_barrier().await.expect("quorum");
    assert!((0..160).all(|i| back.get(&format!("k{i}")).is_some()));
    assert!(*back.seen.restored.lock() > before, "it came from a snapshot");
    servers.push(back);
    until("equal states", || servers.windows(2).all(|w| w[0].hash() == w[1].hash())).await;
    // And a restart from its own snapshot and log tail gives the same.
    let last = servers.pop().expect("three");
    let hash = last.hash();
    let folder = last.crash().await;
    let again = Server::restart(id, folder, 20).await;
    join(&again, &servers).await;
    until("replayed", || again.hash().0 >= hash.0).await;
    assert!((0..160).all(|i| again.get(&format!("k{i}")).is_some()));
    again.stop().await;
    for server in servers {
        server.stop().await;
    }
}

/// Half of a snapshot is there when its connection breaks; only the other half is sent again.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_goes_on_where_its_connection_broke() {
    use weft_xds_proto::peer::SnapshotChunk;

    let servers = group_with(2, 50).await;
    let lead = wait_leader(&servers).await;
    let (from, to) = (&servers[lead], &servers[1 - lead]);
    for round in 0..120 {
        put_until_done(from, &format!("k{round}"), &"v".repeat(1_000)).await;
    }
    until("a snapshot", || from.coordinator.status().snapshot > 60).await;
    let node = from.coordinator.node();
    let snapshot = node.replica.snapshots().newest().expect("reads").0.expect("is there");
    let bytes = snapshot.read_at(0, 1 << 20).expect("reads");
    let offer = codec::SnapshotOffer {
        vote: (&types::Vote::new_committed(from.coordinator.status().term, from.id.0)).into(),
        head: snapshot.meta().into(),
        bytes: snapshot.bytes(),
        checksum: snapshot.verify().expect("reads").expect("is whole"),
    };
    let header = node.peers.frame(to.id.0, offer.clone());
    let half = bytes.len() / 2;
    let chunk = |offset: usize, end: usize| {
        let data = bytes.slice(offset..end);
        futures::stream::iter([SnapshotChunk {
            cluster_id: header.cluster_id,
            header: header.body.clone(),
            offset: offset as u64,
            checksum: crc32fast::hash(&data),
            done: end == bytes.len(),
            data,
        }])
    };
    let mut client = peer_client(to).await;
    let progress = async |client: &mut PeerClient| {
        let answer = client.snapshot_progress(header.clone()).await.expect("answers").into_inner();
        codec::decode::<u64>("progress", &answer.body).expect("decodes")
    };
    assert_eq!(progress(&mut client).await, 0);
    client.install_snapshot(chunk(0, half)).await.expect_err("it is not whole");
    assert_eq!(progress(&mut client).await, half as u64);
    client.install_snapshot(chunk(half + 1, bytes.len())).await.expect_err("a byte is missing");
    assert_eq!(progress(&mut client).await, half as u64, "what is there stays");
    client.install_snapshot(chunk(half, bytes.len())).await.expect("is whole");
    assert_eq!(progress(&mut client).await, 0, "it ended");
    assert_eq!(to.hash(), from.hash(), "an older snapshot changes nothing");
    for server in servers {
        server.stop().await;
    }
}

/// A08, A10: history goes by itself, on every server at the same revision; what is left can be read and what
/// is gone is refused, also after a restart; the revision never goes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_compacts_what_is_beyond_the_limit() {
    let history = HistoryLimits { changes_max: 100, ..HistoryLimits::default() };
    let folder = tempfile::tempdir().expect("a folder");
    let setup = Setup { folder, bootstrap: true, snapshot_every: SNAPSHOT_EVERY, history };
    let leader = start(1, setup).await;
    let folder = tempfile::tempdir().expect("a folder");
    let setup = Setup { folder, bootstrap: false, snapshot_every: SNAPSHOT_EVERY, history };
    let follower = start(2, setup).await;
    let servers = vec![leader, follower];
    join(&servers[1], &servers[..1]).await;
    for round in 0..300 {
        servers[0].put(&format!("k{}", round % 10), &round.to_string()).await.expect("written");
    }
    let revision = servers[0].coordinator.read(Machine::revision);
    until("both servers have compacted and given back", || {
        servers.iter().all(|server| {
            let held = server.coordinator.read(Machine::history_held);
            held.changes <= 100 && held.backlog == 0 && held.bytes < 400
        })
    })
    .await;
    let mut servers = servers.into_iter();
    let (leader, follower) = (servers.next().expect("two"), servers.next().expect("two"));
    let compacted = leader.coordinator.read(Machine::compacted);
    assert_eq!(follower.coordinator.read(Machine::compacted), compacted);
    leader.stop().await;
    let folder = follower.crash().await;
    let follower = Server::restart(NodeId(2), folder, SNAPSHOT_EVERY).await;
    let at = |revision| {
        let all =
            Range { key: Bytes::from("\0"), range_end: Bytes::from("\0"), revision, ..Range::default() };
        follower.coordinator.read(|m| m.range(&all)).map(|found| found.kvs.len())
    };
    until("the log is applied again", || follower.coordinator.read(Machine::revision) == revision).await;
    assert_eq!(follower.coordinator.read(Machine::compacted), compacted);
    assert_eq!(at(compacted), Ok(10));
    let refusal = StoreError::Compacted { requested: compacted - 1, oldest: compacted };
    assert_eq!(at(compacted - 1), Err(refusal));
    follower.stop().await;
}
