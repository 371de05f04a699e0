//! One server under test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Channel;
use weft_control_plane::api::etcd::limits::Limits;
use weft_control_plane::api::etcd::{self, EtcdOptions};
use weft_control_plane::gate::{Gate, Tokens};
use weft_control_plane::raft::{Coordinator, RaftConfig, RaftTiming};
use weft_control_plane::watch_driver::Watches;
use weft_core::drain::{self, DrainSignal};
use weft_core::id::NodeId;
use weft_state::retention::HistoryLimits;
use weft_xds_proto::etcdserverpb as pb;

/// Longer than anything here takes; a test that reaches it has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub const ID: NodeId = NodeId(0x1234_5678_9abc_def0);

/// How to start a server.
pub struct Launch {
    pub id: NodeId,
    pub limits: Limits,
    pub timing: RaftTiming,
    /// Form a group of one; else wait to be taken into one.
    pub bootstrap: bool,
}

impl Default for Launch {
    fn default() -> Self {
        Launch { id: ID, limits: Limits::default(), timing: RaftTiming::default(), bootstrap: true }
    }
}

pub struct Server {
    pub addr: SocketAddr,
    pub peer_addr: SocketAddr,
    pub coordinator: Coordinator,
    pub watches: Arc<Watches>,
    pub channel: Channel,
    drain: Option<DrainSignal>,
    serving: JoinHandle<()>,
    _data_dir: tempfile::TempDir,
}

impl Server {
    pub async fn start() -> Server {
        Server::start_with(Limits::default()).await
    }

    pub async fn start_with(limits: Limits) -> Server {
        Server::launch(Launch { limits, ..Launch::default() }).await
    }

    /// Ready to serve; with a leader if it forms its own group.
    pub async fn launch(launch: Launch) -> Server {
        let Launch { id, limits, timing, bootstrap } = launch;
        let data_dir = tempfile::tempdir().unwrap();
        let peer_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer_addr = peer_listener.local_addr().unwrap();
        let config = RaftConfig {
            id,
            name: "one".to_owned(),
            data_dir: data_dir.path().to_owned(),
            peer_advertise: peer_addr,
            learner: false,
            peer_listener: peer_listener.into(),
            gate: Arc::new(Gate::new(Tokens::given(&"t".repeat(32)).unwrap(), None)),
            bootstrap,
            timing,
            snapshot_every: 1000,
            history: HistoryLimits::default(),
        };
        let watches = Watches::new();
        let coordinator = Coordinator::start(config, vec![watches.clone()]).await.unwrap();
        if bootstrap {
            let mut leader = coordinator.leader_changes();
            let elected = tokio::time::timeout(DEADLINE, leader.wait_for(Option::is_some)).await;
            elected.expect("a group of one elects itself").unwrap();
        }

        let (drain, drain_watch) = drain::channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let options = EtcdOptions {
            peer_scheme: "http",
            client_urls: Arc::new(
                move |member| {
                    if member == id { vec![format!("http://{addr}")] } else { Vec::new() }
                },
            ),
            drain: Some(drain_watch.clone()),
            limits,
        };
        let routes = etcd::services(coordinator.clone(), watches.clone(), options);
        let serving = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_routes(routes)
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move {
                    drain_watch.signaled().await;
                })
                .await
                .unwrap();
        });
        let channel = Channel::from_shared(format!("http://{addr}")).unwrap().connect().await.unwrap();
        Server {
            addr,
            peer_addr,
            coordinator,
            watches,
            channel,
            drain: Some(drain),
            serving,
            _data_dir: data_dir,
        }
    }

    /// Ends open streams, waits until the last connection is closed, then stops the group.
    pub async fn stop(mut self) {
        let Some(drain) = self.drain.take() else { return };
        drain.begin();
        drop(std::mem::replace(&mut self.channel, dead_channel()));
        tokio::time::timeout(DEADLINE, &mut self.serving)
            .await
            .expect("streams end when the server drains")
            .unwrap();
        self.coordinator.shutdown().await;
    }

    pub fn begin_drain(&self) {
        self.drain.as_ref().expect("not stopped yet").begin();
    }

    pub fn kv(&self) -> pb::kv_client::KvClient<Channel> {
        pb::kv_client::KvClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    pub fn watch(&self) -> pb::watch_client::WatchClient<Channel> {
        pb::watch_client::WatchClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    pub fn lease(&self) -> pb::lease_client::LeaseClient<Channel> {
        pb::lease_client::LeaseClient::new(self.channel.clone())
    }

    pub fn cluster(&self) -> pb::cluster_client::ClusterClient<Channel> {
        pb::cluster_client::ClusterClient::new(self.channel.clone())
    }

    pub fn maintenance(&self) -> pb::maintenance_client::MaintenanceClient<Channel> {
        pb::maintenance_client::MaintenanceClient::new(self.channel.clone())
    }

    pub fn auth(&self) -> pb::auth_client::AuthClient<Channel> {
        pb::auth_client::AuthClient::new(self.channel.clone())
    }

    /// Puts and answers the new revision.
    pub async fn put(&self, key: &str, value: &str) -> i64 {
        let response = self.kv().put(put(key, value)).await.unwrap().into_inner();
        response.header.unwrap().revision
    }

    pub async fn delete(&self, key: &str) -> i64 {
        let request = pb::DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() };
        self.kv().delete_range(request).await.unwrap().into_inner().header.unwrap().revision
    }

    pub async fn compact(&self, revision: i64) {
        self.kv().compact(pb::CompactionRequest { revision, physical: true }).await.unwrap();
    }
}

fn dead_channel() -> Channel {
    Channel::from_static("http://127.0.0.1:9").connect_lazy()
}

pub fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

pub fn one(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

/// `[key, end)`; `"\0"` to `"\0"` is everything.
pub fn range(key: &str, end: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), range_end: end.to_owned().into(), ..Default::default() }
}

/// Code and text, which is what client libraries go by.
pub fn refusal<T: std::fmt::Debug>(
    result: Result<tonic::Response<T>, tonic::Status>,
) -> (tonic::Code, String) {
    let status = result.expect_err("refused");
    (status.code(), status.message().to_owned())
}
