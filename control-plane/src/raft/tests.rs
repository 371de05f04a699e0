//! Groups of servers in this process, over loopback, with real files.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::{
    net::TcpListener,
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Endpoint;
use weft_core::id::NodeId;
use weft_state::{
    command::{Command, Event, EventKind, LeaseCheckpoint, Put, Range, Response},
    error::StoreError,
    machine::Machine,
    retention::HistoryLimits,
};
use weft_xds_proto::peer::ask;

use super::*;
use crate::gate::{self, Gate, Tokens};

mod agreement;
mod membership;
mod reads;
mod recovered;

/// Long enough for a busy machine; nothing waits this long when it works.
const PATIENCE: Duration = Duration::from_secs(20);

fn timing() -> RaftTiming {
    RaftTiming {
        heartbeat_interval: Duration::from_millis(50),
        election_timeout_min: Duration::from_millis(400),
        election_timeout_max: Duration::from_millis(800),
        deadline: Duration::from_secs(3),
        ..RaftTiming::default()
    }
}

/// Counts what observers are told.
#[derive(Default)]
struct Seen {
    deletes: Mutex<Vec<Bytes>>,
    restored: Mutex<u32>,
}

impl ApplyObserver for Seen {
    fn applied(&self, _machine: &Machine, events: &[Event]) {
        let deleted = events.iter().filter(|e| e.kind == EventKind::Delete).map(|e| e.kv.key.clone());
        self.deletes.lock().extend(deleted);
    }
    fn restored(&self, _machine: &Machine) {
        *self.restored.lock() += 1;
    }
}

struct Server {
    coordinator: Coordinator,
    folder: TempDir,
    id: NodeId,
    addr: SocketAddr,
    seen: Arc<Seen>,
}

struct Setup {
    folder: TempDir,
    bootstrap: bool,
    snapshot_every: u64,
    history: HistoryLimits,
}

fn gate() -> Arc<Gate> {
    Arc::new(Gate::new(Tokens::given(&"t".repeat(32)).expect("a token"), None))
}

async fn start(id: u64, setup: Setup) -> Server {
    try_start(id, setup).await.expect("starts")
}

async fn try_start(id: u64, setup: Setup) -> Result<Server, StartError> {
    start_as(id, setup, false).await
}

async fn start_as(id: u64, setup: Setup, learner: bool) -> Result<Server, StartError> {
    start_timed(id, setup, learner, timing()).await
}

async fn start_timed(id: u64, setup: Setup, learner: bool, timing: RaftTiming) -> Result<Server, StartError> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("is bound");
    let seen = Arc::new(Seen::default());
    let config = RaftConfig {
        id: NodeId(id),
        name: format!("s{id}"),
        data_dir: setup.folder.path().to_path_buf(),
        peer_listener: listener.into(),
        gate: gate(),
        peer_advertise: addr,
        bootstrap: setup.bootstrap,
        learner,
        timing,
        snapshot_every: setup.snapshot_every,
        history: setup.history,
    };
    // One that ends is stopped, not the process of all.
    let outside = Outside { end: Some(Arc::new(|| {})), ..Outside::default() };
    let coordinator = Coordinator::start_on(config, vec![seen.clone()], outside).await?;
    Ok(Server { coordinator, folder: setup.folder, id: NodeId(id), addr, seen })
}

async fn first(id: u64) -> Server {
    let folder = tempfile::tempdir().expect("a folder");
    start(
        id,
        Setup { folder, bootstrap: true, snapshot_every: SNAPSHOT_EVERY, history: HistoryLimits::default() },
    )
    .await
}

async fn group_with(count: u64, snapshot_every: u64) -> Vec<Server> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut servers = vec![
        start(1, Setup { folder, bootstrap: true, snapshot_every, history: HistoryLimits::default() }).await,
    ];
    for id in 2..=count {
        let folder = tempfile::tempdir().expect("a folder");
        let server =
            start(id, Setup { folder, bootstrap: false, snapshot_every, history: HistoryLimits::default() })
                .await;
        join(&server, &servers).await;
        servers.push(server);
    }
    servers
}

async fn group(count: u64) -> Vec<Server> {
    group_with(count, SNAPSHOT_EVERY).await
}

async fn join(server: &Server, others: &[Server]) {
    let addrs: Vec<SocketAddr> = others.iter().map(|s| s.addr).collect();
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = server.coordinator.join_group(addrs.clone()).await {
        assert!(Instant::now() < deadline, "{error}");
        sleep(Duration::from_millis(50)).await;
    }
}

impl Server {
    async fn crash(self) -> TempDir {
        self.coordinator.node().crash().await;
        self.folder
    }
    async fn stop(self) -> TempDir {
        self.coordinator.shutdown().await;
        self.folder
    }
    /// At a new port, which it tells the group itself.
    async fn restart(id: NodeId, folder: TempDir, snapshot_every: u64) -> Server {
        start(id.0, Setup { folder, bootstrap: false, snapshot_every, history: HistoryLimits::default() })
            .await
    }
    async fn put(&self, key: &str, value: &str) -> Result<Proposed, ProposeError> {
        self.coordinator.propose(put(key, value)).await
    }
    /// What this server has now.
    fn get(&self, key: &str) -> Option<Bytes> {
        let range = Range { key: Bytes::copy_from_slice(key.as_bytes()), ..Range::default() };
        let found = self.coordinator.read(|m| m.range(&range)).expect("reads");
        found.kvs.first().map(|kv| kv.value.clone())
    }
    fn hash(&self) -> (u64, u64) {
        (self.coordinator.status().applied, self.coordinator.read(Machine::hash))
    }
}

fn put(key: &str, value: &str) -> Command {
    Command::Put(Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Put::default()
    })
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn leader(servers: &[Server]) -> Option<usize> {
    servers.iter().position(|s| s.coordinator.is_leader() && s.coordinator.has_leader())
}

async fn wait_leader(servers: &[Server]) -> usize {
    until("a leader", || leader(servers).is_some()).await;
    leader(servers).expect("was there just now")
}

/// Puts until it is answered.
async fn put_until_done(server: &Server, key: &str, value: &str) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = server.put(key, value).await {
        assert!(Instant::now() < deadline, "{error}");
    }
}

/// A07, A08
#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_one_keeps_what_it_answered_over_restarts() {
    let mut server = first(1).await;
    let cluster = server.coordinator.cluster_id();
    let mut revision = 0;
    for round in 0..4 {
        let proposed = server.put(&format!("k{round}"), "v").await.expect("written");
        assert!(proposed.revision > revision);
        revision = proposed.revision;
        let folder = if round % 2 == 0 { server.crash().await } else { server.stop().await };
        server = Server::restart(NodeId(1), folder, SNAPSHOT_EVERY).await;
        assert_eq!(server.coordinator.cluster_id(), cluster);
        server.coordinator.read_barrier().await.expect("leads itself");
        for earlier in 0..=round {
            assert_eq!(server.get(&format!("k{earlier}")).as_deref(), Some(&b"v"[..]));
        }
        assert_eq!(server.coordinator.read(Machine::revision), revision);
    }
    server.stop().await;
}

/// A09: equal logs, equal states.
#[tokio::test(flavor = "multi_thread")]
async fn three_servers_hold_the_same_state_and_each_takes_writes() {
    let servers = group(3).await;
    wait_leader(&servers).await;
    for (i, server) in servers.iter().enumerate() {
        let key = format!("from-{i}");
        server.put(&key, "x").await.expect("written");
        // Applied here before it was answered.
        assert!(server.get(&key).is_some());
    }
    for server in &servers {
        server.coordinator.read_barrier().await.expect("quorum is there");
        for i in 0..3 {
            assert!(server.get(&format!("from-{i}")).is_some(), "A11: {} misses from-{i}", server.id);
        }
    }
    until("equal states", || servers.windows(2).all(|w| w[0].hash() == w[1].hash())).await;
    let status = servers[wait_leader(&servers).await].coordinator.status();
    assert_eq!(status.peers.len(), 3);
    assert!(status.peers.iter().all(|p| p.voter && p.matched.is_some()), "{status:?}");
    assert!(status.fsyncs > 0 && status.wal_bytes > 0);
    for server in servers {
        server.stop().await;
    }
}

/// A02, A06, A07: what was answered is there once, whoever leads.
#[tokio::test(flavor = "multi_thread")]
async fn answered_writes_survive_the_loss_of_the_leader() {
    let mut servers = group(3).await;
    let at = wait_leader(&servers).await;
    let lost = servers.remove(at);
    let mut writers = Vec::new();
    for (number, server) in servers.iter().enumerate() {
        let coordinator = server.coordinator.clone();
        writers.push(tokio::spawn(async move {
            let mut answered = Vec::new();
            for i in 0..300 {
                let key = format!("w{number}-{i}");
                if let Ok(proposed) = coordinator.propose(put(&key, "v")).await {
                    answered.push((key, proposed.revision));
                }
            }
            answered
        }));
    }
    sleep(Duration::from_millis(150)).await;
    let (lost_id, folder) = (lost.id, lost.crash().await);
    let mut answered = Vec::new();
    for writer in writers {
        answered.extend(writer.await.expect("runs"));
    }
    assert!(answered.len() > 100, "only {} answered", answered.len());
    for server in &servers {
        server.coordinator.read_barrier().await.expect("two of three");
        for (key, revision) in &answered {
            let range = Range { key: Bytes::copy_from_slice(key.as_bytes()), ..Range::default() };
            let found = server.coordinator.read(|m| m.range(&range)).expect("reads");
            let kv = found.kvs.first().unwrap_or_else(|| panic!("{key} was answered and is lost"));
            assert_eq!((kv.mod_revision, kv.version), (*revision, 1), "{key}");
        }
    }
    // The lost one comes back, at another address, and has it all.
    let back = Server::restart(lost_id, folder, SNAPSHOT_EVERY).await;
    join(&back, &servers).await;
    servers.push(back);
    servers[2].coordinator.read_barrier().await.expect("quorum");
    until("equal states", || servers.windows(2).all(|w| w[0].hash() == w[1].hash())).await;
    assert!(answered.iter().all(|(key, _)| servers[2].get(key).is_some()));
    for server in servers {
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_stops_hands_over_and_writes_go_on() {
    let mut servers = group(3).await;
    let at = wait_leader(&servers).await;
    let old = servers.remove(at);
    let term = old.coordinator.status().term;
    old.stop().await;
    let start = Instant::now();
    put_until_done(&servers[0], "after", "v").await;
    // Without the handover an election starts after 400 ms at the earliest, with it at once.
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(servers[0].coordinator.status().term > term);
    for server in servers {
        server.stop().await;
    }
}

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

/// A01, S07: without a majority nothing is read, written or renewed, and it is said so in time.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_majority_every_answer_is_no_quorum() {
    let mut servers = group(3).await;
    let at = wait_leader(&servers).await;
    let left = servers.remove(at);
    let grant = Command::LeaseGrant { id: 77, ttl_secs: 60 };
    left.coordinator.propose(grant).await.expect("written").response.expect("granted");
    assert_eq!(left.coordinator.lease_renew(77).await, Ok(60));
    for server in servers {
        server.crash().await;
    }
    sleep(timing().election_timeout_max).await;
    let start = Instant::now();
    let (read, write, renewal, remaining) = tokio::join!(
        left.coordinator.read_barrier(),
        left.put("k", "v"),
        left.coordinator.lease_renew(77),
        left.coordinator.lease_remaining(77),
    );
    let waited = start.elapsed();
    assert!(waited < timing().deadline + Duration::from_secs(1), "{waited:?}");
    let refused = |e: &ProposeError| {
        let safe = matches!(e, ProposeError::NoQuorum { .. } | ProposeError::NoLeader { .. });
        safe && e.is_safe_to_retry() && e.to_string().contains("no quorum")
    };
    assert!(refused(read.as_ref().expect_err("no majority")), "{read:?}");
    assert!(refused(write.as_ref().expect_err("no majority")), "{write:?}");
    assert!(refused(remaining.as_ref().expect_err("no majority")), "{remaining:?}");
    match renewal {
        Err(LeaseError::Unavailable(error)) => assert!(refused(&error), "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(!left.coordinator.has_leader());
    left.stop().await;
}

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

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_share_log_entries() {
    let server = first(1).await;
    server.coordinator.read_barrier().await.expect("leads");
    let before = server.coordinator.status().last_log;
    let writes = (0..500).map(|i| {
        let coordinator = server.coordinator.clone();
        tokio::spawn(async move { coordinator.propose(put(&format!("k{i}"), "v")).await })
    });
    for write in writes.collect::<Vec<_>>() {
        let proposed = write.await.expect("runs").expect("written");
        assert_eq!(proposed.response, Ok(Response::Put { prev_kv: None }));
    }
    let entries = server.coordinator.status().last_log - before;
    assert!(entries < 250, "{entries} entries for 500 writes");
    assert!((0..500).all(|i| server.get(&format!("k{i}")).is_some()));
    server.stop().await;
}

#[tokio::test]
async fn a_command_too_large_is_refused_with_both_numbers() {
    let server = first(1).await;
    let value = "x".repeat(3 * 1024 * 1024);
    match server.put("k", &value).await {
        Err(ProposeError::TooLarge { seen, limit }) => assert!(seen > limit),
        other => panic!("{other:?}"),
    }
    server.stop().await;
    assert_eq!(first_error_after_stop().await, ProposeError::Stopped);
}

async fn first_error_after_stop() -> ProposeError {
    let server = first(1).await;
    let coordinator = server.coordinator.clone();
    server.stop().await;
    coordinator.propose(Command::Noop).await.expect_err("stopped")
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

type PeerClient = weft_xds_proto::peer::peer_client::PeerClient<tonic::transport::Channel>;

async fn peer_client(server: &Server) -> PeerClient {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.addr)).expect("a URI");
    PeerClient::new(gate::channel(gate(), server.addr, endpoint, None))
}

async fn exchange_with(server: &Server) -> Arc<exchange::Exchange> {
    exchange::Exchange::open(peer_client(server).await, &TaskTracker::new(), CancellationToken::new())
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

/// The rest of the process has 700 ms for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_successors_just_died_stops_in_time() {
    let mut servers = group(3).await;
    let at = wait_leader(&servers).await;
    let leader = servers.remove(at);
    futures::future::join_all(servers.into_iter().map(Server::crash)).await;
    let start = Instant::now();
    leader.stop().await;
    assert!(start.elapsed() < Duration::from_millis(700), "{:?}", start.elapsed());
}

/// An answer is as large as what was asked for, whichever server was asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_answer_reaches_the_client_of_a_follower() {
    let servers = group(3).await;
    let at = wait_leader(&servers).await;
    let follower = &servers[(at + 1) % 3];
    let value = "x".repeat(1024 * 1024);
    for i in 0..18 {
        follower.put(&format!("k{i:02}"), &value).await.expect("written");
    }
    let delete = Command::DeleteRange(weft_state::command::DeleteRange {
        key: Bytes::from_static(b"k"),
        range_end: Bytes::from_static(b"l"),
        prev_kv: true,
    });
    match follower.coordinator.propose(delete).await.expect("written").response {
        Ok(Response::DeleteRange { deleted: 18, prev_kvs }) => assert_eq!(prev_kvs.len(), 18),
        other => panic!("{other:?}"),
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
