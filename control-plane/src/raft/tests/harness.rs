//! Servers in this process, over loopback, with real files.

use super::*;

/// Long enough for a busy machine; nothing waits this long when it works.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn timing() -> RaftTiming {
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
pub(super) struct Seen {
    pub(super) deletes: Mutex<Vec<Bytes>>,
    pub(super) restored: Mutex<u32>,
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

pub(super) struct Server {
    pub(super) coordinator: Coordinator,
    pub(super) folder: TempDir,
    pub(super) id: NodeId,
    pub(super) addr: SocketAddr,
    pub(super) seen: Arc<Seen>,
}

pub(super) struct Setup {
    pub(super) folder: TempDir,
    pub(super) bootstrap: bool,
    pub(super) snapshot_every: u64,
    pub(super) history: HistoryLimits,
}

pub(super) fn gate() -> Arc<Gate> {
    Arc::new(Gate::new(Tokens::given(&"t".repeat(32)).expect("a token"), None))
}

pub(super) async fn start(id: u64, setup: Setup) -> Server {
    try_start(id, setup).await.expect("starts")
}

pub(super) async fn try_start(id: u64, setup: Setup) -> Result<Server, StartError> {
    start_as(id, setup, false).await
}

pub(super) async fn start_as(id: u64, setup: Setup, learner: bool) -> Result<Server, StartError> {
    start_timed(id, setup, learner, timing()).await
}

pub(super) async fn start_timed(
    id: u64,
    setup: Setup,
    learner: bool,
    timing: RaftTiming,
) -> Result<Server, StartError> {
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

pub(super) async fn first(id: u64) -> Server {
    let folder = tempfile::tempdir().expect("a folder");
    start(
        id,
        Setup { folder, bootstrap: true, snapshot_every: SNAPSHOT_EVERY, history: HistoryLimits::default() },
    )
    .await
}

pub(super) async fn group_with(count: u64, snapshot_every: u64) -> Vec<Server> {
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

pub(super) async fn group(count: u64) -> Vec<Server> {
    group_with(count, SNAPSHOT_EVERY).await
}

pub(super) async fn join(server: &Server, others: &[Server]) {
    let addrs: Vec<SocketAddr> = others.iter().map(|s| s.addr).collect();
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = server.coordinator.join_group(addrs.clone()).await {
        assert!(Instant::now() < deadline, "{error}");
        sleep(Duration::from_millis(50)).await;
    }
}

impl Server {
    pub(super) async fn crash(self) -> TempDir {
        self.coordinator.node().crash().await;
        self.folder
    }
    pub(super) async fn stop(self) -> TempDir {
        self.coordinator.shutdown().await;
        self.folder
    }
    /// At a new port, which it tells the group itself.
    pub(super) async fn restart(id: NodeId, folder: TempDir, snapshot_every: u64) -> Server {
        start(id.0, Setup { folder, bootstrap: false, snapshot_every, history: HistoryLimits::default() })
            .await
    }
    pub(super) async fn put(&self, key: &str, value: &str) -> Result<Proposed, ProposeError> {
        self.coordinator.propose(put(key, value)).await
    }
    /// What this server has now.
    pub(super) fn get(&self, key: &str) -> Option<Bytes> {
        let range = Range { key: Bytes::copy_from_slice(key.as_bytes()), ..Range::default() };
        let found = self.coordinator.read(|m| m.range(&range)).expect("reads");
        found.kvs.first().map(|kv| kv.value.clone())
    }
    pub(super) fn hash(&self) -> (u64, u64) {
        (self.coordinator.status().applied, self.coordinator.read(Machine::hash))
    }
}

pub(super) fn put(key: &str, value: &str) -> Command {
    Command::Put(Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Put::default()
    })
}

pub(super) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

pub(super) fn leader(servers: &[Server]) -> Option<usize> {
    servers.iter().position(|s| s.coordinator.is_leader() && s.coordinator.has_leader())
}

pub(super) async fn wait_leader(servers: &[Server]) -> usize {
    until("a leader", || leader(servers).is_some()).await;
    leader(servers).expect("was there just now")
}

/// Puts until it is answered.
pub(super) async fn put_until_done(server: &Server, key: &str, value: &str) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = server.put(key, value).await {
        assert!(Instant::now() < deadline, "{error}");
    }
}

pub(super) type PeerClient = weft_xds_proto::peer::peer_client::PeerClient<tonic::transport::Channel>;

pub(super) async fn peer_client(server: &Server) -> PeerClient {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.addr)).expect("a URI");
    PeerClient::new(gate::channel(gate(), server.addr, endpoint, None))
}

pub(super) async fn exchange_with(server: &Server) -> Arc<exchange::Exchange> {
    exchange::Exchange::open(peer_client(server).await, &TaskTracker::new(), CancellationToken::new())
}
