//! xDS: what proxies, Envoy and proxyless gRPC subscribe to.
//!
//! *Config push*: the catalogue or the routes change → [`builder`] (pure) makes one immutable [`config_snapshot::ConfigSnapshot`] with
//! content-hashed versions → each stream's [`subscription`] state (pure) tells what its client lacks → CDS, EDS, LDS,
//! RDS, then removals → the proxy applies it and ACKs, or rejects single resources by name.
//!
//! One task builds; one task a stream drives. All end with [`XdsServer::shutdown`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};
use weft_meshconfig::lower::Lowered;
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3 as discovery;
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use weft_xds_proto::type_url::ResourceType;

pub mod builder;
pub mod config_snapshot;
mod source;
mod stream;
pub mod subscription;

use builder::ServiceView;
use config_snapshot::ConfigSnapshot;
pub use source::MeshSource;
use stream::{Delta, Dialect, RESPONSES_WAITING_MAX, Responses, Sotw, StreamState};
use subscription::{ResourceStatus, Subscriptions};

/// Least time between two builds. The first change after a quiet time is pushed at once; a burst of them costs one
/// build each such interval.
const BUILD_INTERVAL_MIN: Duration = Duration::from_millis(20);

/// Streams that one server drives. Further ones are refused with `RESOURCE_EXHAUSTED`.
const STREAMS_MAX: usize = 20_000;

/// How long a client that comes early is held before it is sent to another server.
const CATCH_UP_WAIT: Duration = Duration::from_secs(1);

/// Where services come from.
pub trait ServiceSource: Send + Sync + 'static {
    /// Routes, at this moment.
    fn routes(&self) -> Arc<Lowered> {
        Arc::default()
    }
    /// Bumped after [`Self::routes`] changed.
    fn route_changes(&self) -> watch::Receiver<u64> {
        // Never: its sender is gone.
        watch::channel(0).1
    }
    /// All services with their instances, at this moment.
    fn services(&self) -> Vec<ServiceView>;
    /// Bumped after [`Self::services`] changed.
    fn changes(&self) -> watch::Receiver<u64>;
    /// Completes when [`Self::services`] holds all that was committed before this server started. Until then nobody
    /// is served: a restarted server that still reads its log would tell proxies that services are gone.
    fn caught_up(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

/// A connected client and where each of its resources stands.
#[derive(Debug, Clone)]
pub struct ProxyStatus {
    /// Id that it gave itself; empty before its first request.
    pub node_id: String,
    /// Where it connects from.
    pub address: Option<SocketAddr>,
    /// Sorted by type in push order, then by name.
    pub resources: Vec<ResourceStatus>,
}

/// The xDS half of a server. Owns its tasks.
pub struct XdsServer {
    /// None until the source has caught up.
    snapshots: watch::Receiver<Option<Arc<ConfigSnapshot>>>,
    /// By stream number. Held for an insert, a removal, or to copy the list.
    streams: Mutex<BTreeMap<u64, Arc<StreamState>>>,
    next_stream: AtomicU64,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl XdsServer {
    /// Starts to follow the source. Must be called within a tokio runtime.
    pub fn new(source: impl ServiceSource) -> Arc<Self> {
        let (publish, snapshots) = watch::channel(None);
        let server = Arc::new(Self {
            snapshots,
            streams: Mutex::default(),
            next_stream: AtomicU64::new(1),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        server.tasks.spawn(server.stop.clone().run_until_cancelled_owned(follow(source, publish)));
        server
    }

    /// The gRPC service to add to a router.
    pub fn service(self: &Arc<Self>) -> AggregatedDiscoveryServiceServer<AdsService> {
        AggregatedDiscoveryServiceServer::new(AdsService { server: self.clone() })
    }

    /// Connected clients with what each has been sent, has accepted and has rejected.
    pub fn proxies(&self) -> Vec<ProxyStatus> {
        let streams: Vec<_> = self.streams.lock().values().cloned().collect();
        streams
            .iter()
            .map(|s| {
                let subscriptions = s.subscriptions.lock();
                ProxyStatus {
                    node_id: subscriptions.node_id().to_owned(),
                    address: s.peer,
                    resources: subscriptions.status(),
                }
            })
            .collect()
    }

    /// How many clients are connected.
    pub fn connected(&self) -> usize {
        self.streams.lock().len()
    }

    /// Tells clients to go elsewhere, and ends all tasks.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn start<D: Dialect>(
        self: &Arc<Self>,
        peer: Option<SocketAddr>,
        requests: Streaming<D::Request>,
    ) -> Result<Response<Responses<D::Response>>, Status> {
        let mut snapshots = self.snapshots.clone();
        let caught_up = tokio::time::timeout(CATCH_UP_WAIT, snapshots.wait_for(Option::is_some))
            .await
            .is_ok_and(|waited| waited.is_ok());
        if self.stop.is_cancelled() {
            return Err(Status::unavailable("server is stopping; use another one"));
        }
        if !caught_up {
            return Err(Status::unavailable("server is still catching up; use another one"));
        }
        let state = Arc::new(StreamState { peer, subscriptions: Mutex::new(Subscriptions::default()) });
        let id = self.next_stream.fetch_add(1, Ordering::Relaxed);
        {
            let mut streams = self.streams.lock();
            if streams.len() >= STREAMS_MAX {
                return Err(Status::resource_exhausted(format!(
                    "{STREAMS_MAX} xDS streams are open here; use another server"
                )));
            }
            streams.insert(id, state.clone());
        }
        let (responses, receiver) = mpsc::channel(RESPONSES_WAITING_MAX);
        let registered = Registered { server: self.clone(), id };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _registered = registered;
            stream::run::<D>(state, requests, responses, snapshots, stop).await;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// A stream's entry in the list, removed however its task ends.
struct Registered {
    server: Arc<XdsServer>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.server.streams.lock().remove(&self.id);
    }
}

/// Builds a snapshot when the source has caught up, and after each change or burst of changes.
async fn follow(source: impl ServiceSource, publish: watch::Sender<Option<Arc<ConfigSnapshot>>>) {
    source.caught_up().await;
    // Before the first read, so that no change falls between the two.
    let (mut changes, mut route_changes) = (source.changes(), source.route_changes());
    let mut routes_change = true;
    let first = builder::build(&source.services(), &source.routes(), &ConfigSnapshot::default());
    let mut current = Arc::new(first);
    publish.send_replace(Some(current.clone()));
    loop {
        tokio::select! {
            changed = changes.changed() => {
                // When the source is gone, its last word stays.
                if changed.is_err() {
                    break;
                }
            }
            changed = route_changes.changed(), if routes_change => {
                routes_change = changed.is_ok();
                if !routes_change {
                    continue;
                }
            }
        }
        let next = builder::build(&source.services(), &source.routes(), &current);
        let changed = |t: &ResourceType| next.of(*t).version() != current.of(*t).version();
        if ResourceType::PUSH_ORDER.iter().any(changed) {
            current = Arc::new(next);
            publish.send_replace(Some(current.clone()));
        }
        tokio::time::sleep(BUILD_INTERVAL_MIN).await;
    }
    publish.closed().await;
}

/// The gRPC face of [`XdsServer`].
pub struct AdsService {
    server: Arc<XdsServer>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for AdsService {
    type StreamAggregatedResourcesStream = Responses<discovery::DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<discovery::DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<discovery::DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let peer = request.remote_addr();
        self.server.start::<Sotw>(peer, request.into_inner()).await
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<discovery::DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let peer = request.remote_addr();
        self.server.start::<Delta>(peer, request.into_inner()).await
    }
}
