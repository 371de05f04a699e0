//! One server: the control plane's own code from the log to the gRPC handlers, on a simulated machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_control_plane::api::etcd::{self, EtcdOptions};
use weft_control_plane::api::read::Reader;
use weft_control_plane::api::weft::{WeftApi, WeftParts};
use weft_control_plane::catalog::{Catalog, RegistryChanges};
use weft_control_plane::gate::{Gate, Tokens};
use weft_control_plane::listener::{self, ListenerMetrics, Speaks, Stop};
use weft_control_plane::meshconfig::{MeshConfigChanges, Routes};
use weft_control_plane::raft::{ApplyObserver, Coordinator, Outside, RaftConfig, RaftTiming};
use weft_control_plane::watch_driver::Watches;
use weft_control_plane::xds::{MeshSource, XdsServer};
use weft_core::id::NodeId;
use weft_state::retention::HistoryLimits;

use super::disk::SimDisk;
use super::net::Net;

/// Snapshots are taken often, so that they are sent and installed too.
pub(crate) const SNAPSHOT_EVERY: u64 = 30;

/// What the servers prove to each other.
const TOKEN: &str = "join-token-of-the-simulated-servers";

/// Pause before a server asks again to be taken into the group.
const JOIN_PAUSE: Duration = Duration::from_millis(200);

/// Number of a server, from 1.
pub(crate) type Number = u8;

/// Where a server is.
pub(crate) fn ip(server: Number) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, server))
}

/// Where its clients reach it.
pub(crate) fn grpc_addr(server: Number) -> SocketAddr {
    SocketAddr::new(ip(server), 2379)
}

fn peer_addr(server: Number) -> SocketAddr {
    SocketAddr::new(ip(server), 2380)
}

/// What a server is started with. The same at each start, until another server takes its place.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) number: Number,
    /// How many servers there were in its place before it.
    pub(crate) predecessors: u8,
    /// Joins without a vote.
    pub(crate) learner: bool,
    /// Others that were there at the beginning.
    pub(crate) group: Vec<Number>,
    /// Holds what is replaced whole: the cluster's id and snapshots.
    pub(crate) data_dir: PathBuf,
    pub(crate) disk: SimDisk,
    pub(crate) net: Net,
    pub(crate) observer: Arc<dyn ApplyObserver>,
    /// It has ended for good.
    pub(crate) ended: Arc<AtomicBool>,
}

impl Spec {
    /// Whoever comes back without its data is another server.
    pub(crate) fn id(&self) -> NodeId {
        NodeId(u64::from(self.predecessors) * 100 + u64::from(self.number))
    }

    /// Forms the group that the others join.
    fn is_first(&self) -> bool {
        self.number == 1 && self.predecessors == 0
    }
}

/// A server's inside, for the invariants; none while it is off or recovers.
pub(crate) type Slot = Arc<Mutex<Option<Coordinator>>>;

/// Runs a server for as long as it is polled.
pub(crate) async fn run(spec: Spec, slot: Slot, failed: Arc<Mutex<Option<String>>>) {
    let (number, is_first) = (spec.number, spec.is_first());
    let watches = Watches::new();
    let changes = Arc::new(RegistryChanges::default());
    let config_changes = Arc::new(MeshConfigChanges::default());
    let tokens = Tokens::given(TOKEN).expect("it is well formed");
    let gate = Gate::new(tokens, None).with_random(crate::intercept::random_bytes);
    let config = RaftConfig {
        id: spec.id(),
        name: format!("s{number}"),
        data_dir: spec.data_dir,
        peer_listener: spec.net.listen(peer_addr(number)),
        gate: Arc::new(gate),
        peer_advertise: peer_addr(number),
        learner: spec.learner,
        bootstrap: is_first,
        timing: RaftTiming::default(),
        snapshot_every: SNAPSHOT_EVERY,
        history: HistoryLimits::default(),
    };
    let end = move || spec.ended.store(true, Relaxed);
    let outside = Outside {
        log: Some(spec.disk.for_log()),
        dialer: Some(spec.net.dialer(ip(number))),
        end: Some(Arc::new(end)),
    };
    let observers: Vec<Arc<dyn ApplyObserver>> =
        vec![spec.observer, watches.clone(), changes.clone(), config_changes.clone()];
    let coordinator = match Coordinator::start_on(config, observers, outside).await {
        Ok(coordinator) => coordinator,
        // The power was gone again before it had recovered.
        Err(_) if spec.disk.is_off() => return,
        Err(error) => {
            *failed.lock() = Some(format!("server {number} does not start: {error}"));
            return;
        }
    };
    *slot.lock() = Some(coordinator.clone());
    serve(&coordinator, watches, (changes, config_changes), &spec.net, number);
    let others: Vec<SocketAddr> =
        spec.group.iter().filter(|n| **n != number).map(|n| peer_addr(*n)).collect();
    while !is_first && !is_taken_in(&coordinator, spec.learner) {
        let _ = coordinator.join_group(others.clone()).await;
        tokio::time::sleep(JOIN_PAUSE).await;
    }
    std::future::pending::<()>().await;
}

fn is_taken_in(coordinator: &Coordinator, learner: bool) -> bool {
    let status = coordinator.status();
    status.peers.iter().any(|peer| peer.id == status.id && (peer.voter || learner))
}

/// The gRPC port, as the server's `app` puts it together.
fn serve(
    coordinator: &Coordinator,
    watches: Arc<Watches>,
    (changes, config_changes): (Arc<RegistryChanges>, Arc<MeshConfigChanges>),
    net: &Net,
    number: Number,
) {
    let catalog = Catalog::new(coordinator.clone(), None, changes);
    let routes = Arc::new(Routes::new(coordinator.clone(), config_changes));
    let xds = XdsServer::new(MeshSource::new(catalog.clone(), routes.clone()));
    let stop = Stop { drain: CancellationToken::new(), kill: CancellationToken::new() };
    let tasks = TaskTracker::new();
    let weft = WeftApi::new(WeftParts {
        coordinator: coordinator.clone(),
        reader: Reader::new(coordinator.clone()),
        watches: watches.clone(),
        catalog,
        routes,
        gossip: None,
        xds,
        tasks: tasks.clone(),
        stop: stop.drain.clone(),
    });
    let mut routes = tonic::service::Routes::builder();
    etcd::add_services(&mut routes, coordinator.clone(), watches, EtcdOptions::default());
    weft.add_services(&mut routes);
    let router = routes.routes().prepare().into_axum_router();
    let port = net.listen(grpc_addr(number));
    listener::serve(port, router, Speaks::Grpc, ListenerMetrics::default(), stop, &tasks);
}
