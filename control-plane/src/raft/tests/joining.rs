//! Who is taken into a group, and who is let in at its peer port.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_another_cluster_is_refused() {
    let ours = first(1).await;
    let theirs = first(2).await;
    theirs.put("k", "theirs").await.expect("written");
    match theirs.coordinator.join_group(vec![ours.addr]).await {
        Err(JoinError::ForeignCluster { ours: own, theirs: other, addr }) => {
            assert_eq!(Some(own), theirs.coordinator.cluster_id());
            assert_eq!(Some(other), ours.coordinator.cluster_id());
            assert_eq!(addr, ours.addr);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(ours.coordinator.status().peers.len(), 1);
    assert_eq!(theirs.get("k").as_deref(), Some(&b"theirs"[..]));
    ours.stop().await;
    theirs.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_another_cluster_or_for_another_server_are_refused() {
    let server = first(1).await;
    until("a leader", || server.coordinator.is_leader()).await;
    let ours = server.coordinator.cluster_id().expect("formed").0;
    let exchange = exchange_with(&server).await;
    let question = |to: u64| {
        let asked = forward::Asked { patience_ms: 1000, question: forward::Question::ReadIndex };
        ask::Body::Question(codec::encode(&codec::Addressed { to, from: 9, message: asked }))
    };
    let foreign = exchange.ask(ours ^ 1, question(1)).await.expect_err("another cluster");
    assert_eq!(foreign.code(), tonic::Code::FailedPrecondition);
    assert!(foreign.message().contains("cluster"), "{}", foreign.message());
    let misled = exchange.ask(ours, question(3)).await.expect_err("another server");
    assert_eq!(misled.code(), tonic::Code::FailedPrecondition);
    for kind in [ask::Body::Append, ask::Body::Question] {
        let garbage = exchange.ask(ours, kind(Bytes::from_static(b"\xff\xff\xff"))).await;
        assert_eq!(garbage.expect_err("garbage").code(), tonic::Code::InvalidArgument);
    }
    exchange.ask(ours, question(1)).await.expect("ours is answered, on the same stream");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joined_server_may_ask_again_also_after_a_restart() {
    let servers = group(2).await;
    join(&servers[1], &servers[..1]).await;
    let mut servers = servers.into_iter();
    let (one, two) = (servers.next().expect("two"), servers.next().expect("two"));
    let folder = two.crash().await;
    let back = Server::restart(NodeId(2), folder, SNAPSHOT_EVERY).await;
    // Neither leads alone: the one that waits learns the other's new address as gossip would tell it.
    one.coordinator.set_peer_address(back.id, back.addr);
    back.coordinator.set_peer_address(one.id, one.addr);
    let both = [one, back];
    join(&both[1], &both[..1]).await;
    put_until_done(&both[1], "k", "v").await;
    let peers = both[0].coordinator.status().peers;
    assert_eq!(peers.iter().filter(|p| p.voter).count(), 2, "{peers:?}");
    assert!(peers.iter().any(|p| p.id == both[1].id && p.addr == both[1].addr), "{peers:?}");
    for server in both {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_data_folder_of_another_server_is_refused() {
    let server = first(1).await;
    let folder = server.stop().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let config = RaftConfig {
        id: NodeId(2),
        name: "copy".to_owned(),
        data_dir: folder.path().to_path_buf(),
        peer_advertise: listener.local_addr().expect("is bound"),
        learner: false,
        peer_listener: listener.into(),
        gate: gate(),
        bootstrap: false,
        timing: timing(),
        snapshot_every: 10,
        history: HistoryLimits::default(),
    };
    let error = Coordinator::start(config, Vec::new()).await.err().expect("refused");
    assert!(matches!(error, StartError::ForeignData { .. }), "{error}");
}

/// A command that nobody can decode would stop every replica that applies it, for good.
#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_command_that_does_not_decode_never_enters_the_log() {
    let server = first(1).await;
    until("a leader", || server.coordinator.is_leader()).await;
    let exchange = exchange_with(&server).await;
    let valid = types::encode_command(&put("k", "v"));
    let followed_by_more = Bytes::from([&valid[..], b"\0\0"].concat());
    let too_large = types::encode_command(&put("k", &"x".repeat(types::COMMAND_BYTES_MAX)));
    for bad in [Bytes::from_static(b"\xff\xff\xff"), Bytes::new(), followed_by_more, too_large] {
        let question = forward::Question::Propose(vec![valid.clone(), bad]);
        let message = forward::Asked { patience_ms: 1000, question };
        let body = codec::encode(&codec::Addressed { to: 1, from: 9, message });
        let cluster_id = server.coordinator.cluster_id().expect("formed").0;
        let refused = exchange.ask(cluster_id, ask::Body::Question(body)).await;
        // The one who forwarded it knows from this code that nothing was done.
        assert_eq!(refused.expect_err("refused").code(), tonic::Code::FailedPrecondition);
    }
    assert_eq!(server.get("k"), None);
    server.put("k", "w").await.expect("it goes on");
    let folder = server.stop().await;
    let server = Server::restart(NodeId(1), folder, SNAPSHOT_EVERY).await;
    server.coordinator.read_barrier().await.expect("leads itself");
    assert_eq!(server.get("k").as_deref(), Some(&b"w"[..]));
    server.stop().await;
}

/// The address of a new server may have belonged to one of another group, whose leader still calls there.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_another_server_is_no_invitation() {
    let ours = first(1).await;
    let folder = tempfile::tempdir().expect("a folder");
    let fresh = start(
        2,
        Setup { folder, bootstrap: false, snapshot_every: SNAPSHOT_EVERY, history: HistoryLimits::default() },
    )
    .await;
    fresh.coordinator.node().cluster.expect_invitation();
    let append = openraft::raft::AppendEntriesRequest::<types::TypeConfig> {
        vote: types::Vote::new_committed(7, 5),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    };
    let frame = |to: u64| {
        let message = codec::Append::from(&append);
        let body = codec::encode(&codec::Addressed { to, from: 5, message });
        weft_xds_proto::peer::Frame { cluster_id: 0xbad, body }
    };
    let mut client = peer_client(&fresh).await;
    let heartbeat = ask::Body::Append(frame(77).body);
    exchange_with(&fresh).await.ask(0xbad, heartbeat).await.expect_err("for server 77");
    let answers = client.stream_append(futures::stream::iter([frame(77)])).await;
    if let Ok(answers) = answers {
        answers.into_inner().message().await.expect_err("for server 77");
    }
    assert_eq!(fresh.coordinator.cluster_id(), None);
    join(&fresh, std::slice::from_ref(&ours)).await;
    assert_eq!(fresh.coordinator.cluster_id(), ours.coordinator.cluster_id());
    fresh.stop().await;
    ours.stop().await;
}

/// A07: it would form the group anew, empty, under its old name, and vote twice in one term.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_log_is_gone_does_not_start() {
    let server = first(1).await;
    server.put("k", "v").await.expect("written");
    let folder = server.stop().await;
    std::fs::remove_dir_all(folder.path().join("wal")).expect("removed");
    let setup =
        Setup { folder, bootstrap: true, snapshot_every: SNAPSHOT_EVERY, history: HistoryLimits::default() };
    let error = try_start(1, setup).await.err().expect("refused").to_string();
    assert!(error.contains("wal") && error.contains("--join"), "{error}");
}

/// R05: one that is down, or gave a wrong address, does not keep others waiting; and it is no voter (R03).
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_catch_up_delays_nobody_else() {
    let leader = first(1).await;
    until("a leader", || leader.coordinator.is_leader()).await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("is bound");
    let mut client = peer_client(&leader).await;
    let request = weft_xds_proto::peer::JoinRequest {
        id: 50,
        name: "lost".to_owned(),
        peer_address: nobody.to_string(),
        cluster_id: 0,
        learner: false,
        was_member: false,
    };
    let asked = request.clone();
    let stuck = tokio::spawn(async move { client.join(asked).await });
    until("it is a learner", || leader.coordinator.status().peers.len() == 2).await;
    let start_joining = Instant::now();
    let folder = tempfile::tempdir().expect("a folder");
    let other = start(
        2,
        Setup { folder, bootstrap: false, snapshot_every: SNAPSHOT_EVERY, history: HistoryLimits::default() },
    )
    .await;
    join(&other, std::slice::from_ref(&leader)).await;
    assert!(start_joining.elapsed() < Duration::from_secs(5), "{:?}", start_joining.elapsed());
    assert!(leader.coordinator.status().peers.iter().any(|p| p.id == NodeId(50) && !p.voter));
    stuck.abort();
    let mut client = peer_client(&leader).await;
    for (name, peer_address) in [("n".repeat(100_000), nobody.to_string()), ("x".into(), "0.0.0.0:1".into())]
    {
        let bad = weft_xds_proto::peer::JoinRequest { name, peer_address, id: 51, ..request.clone() };
        let refused = client.join(bad).await.expect_err("refused");
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        assert!(refused.message().len() < 500, "{}", refused.message());
    }
    other.stop().await;
    leader.stop().await;
}
