//! Discovery: turns what servers say (xDS), what members say (gossip) and what files say into one stream of
//! [`ConfigSnapshot`]s.
//!
//! *Config push*, the proxy's half: the server pushes what changed → `xds::subscription` decodes and validates, a bad
//! resource is rejected by name and its last good version stays → `xds::apply` pairs clusters with endpoints →
//! [`merge`] adds gossip → one new snapshot is swapped in → ACK.
//!
//! - [`wanted`]: which services are asked for. Pure.
//! - [`merge`]: one service out of two sources. Pure.
//! - [`servers`]: which server to use. Pure.
//! - `driver`: the one task. [`Discovery::shutdown`] ends it.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_core::id::NodeId;
use weft_core::tls::Dialling;
use weft_gossip::GossipHandle;
use weft_meshconfig::policy::Policy;
use weft_xds_proto::resource::RESOURCE_NAME_BYTES_MAX;
use weft_xds_proto::resource::labels::Place;

use crate::config_snapshot::{ClusterConfig, ConfigSnapshot};
use crate::health::takes_bytes_at;

mod driver;
pub mod merge;
pub mod servers;
pub mod wanted;

use driver::Driver;
use wanted::LastCall;

/// What discovery is told at start.
#[derive(Clone)]
pub struct DiscoveryConfig {
    /// This process.
    pub node_id: NodeId,
    /// Its label.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// Servers' gRPC addresses. Empty: those that gossip knows.
    pub servers: Vec<SocketAddr>,
    /// TLS with them, if they speak it.
    pub server_tls: Option<Arc<Dialling>>,
    /// The gossip pool, if this proxy is in one.
    pub gossip: Option<GossipHandle>,
    /// Folder for the last good state; none: it is not kept.
    pub cache_dir: Option<PathBuf>,
    /// Clusters from a file. They win over anything discovered under their names.
    pub preset: Vec<ClusterConfig>,
    /// Policies from a file, by service. They win over what servers say of it, key by key.
    pub policies: BTreeMap<String, Policy>,
}

/// Handle on the control loop that produces snapshots. Clones share it.
#[derive(Clone)]
pub struct Discovery {
    snapshots: watch::Receiver<Arc<ConfigSnapshot>>,
    asked: mpsc::Sender<String>,
    flushes: mpsc::Sender<oneshot::Sender<Vec<String>>>,
    shared: Arc<Shared>,
    gossip: Option<GossipHandle>,
    stop: CancellationToken,
    task: Arc<Mutex<Option<JoinHandle<()>>>>,
}

/// Names asked for that the control loop has not taken yet. At the limit a name is dropped; its request asks again or
/// ends at its deadline.
const ASKED_WAITING_MAX: usize = 1024;

/// What the request path and the control loop share.
struct Shared {
    /// Services that are asked for, each with the time of its last call. Replaced when a name comes or goes.
    calls: ArcSwap<HashMap<String, LastCall>>,
    /// The folder of the last good state is another process's.
    cache_is_given_away: AtomicBool,
    start: Instant,
}

impl Shared {
    fn now_ms(&self) -> u64 {
        driver::since(self.start)
    }
}

impl Discovery {
    /// Takes up the last good state from disk and starts the control loop on the current runtime. The snapshot of the
    /// last good state is there on return.
    pub fn start(config: DiscoveryConfig) -> Self {
        let shared = Arc::new(Shared {
            calls: ArcSwap::default(),
            cache_is_given_away: AtomicBool::new(false),
            start: Instant::now(),
        });
        let (publish, snapshots) = watch::channel(Arc::new(ConfigSnapshot::default()));
        let (asked, queue) = mpsc::channel(ASKED_WAITING_MAX);
        let (flushes, flush) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let gossip = config.gossip.clone();
        let driver = Driver::new(config, shared.clone(), publish);
        let task = tokio::spawn(driver.run(queue, flush, stop.clone()));
        Self { snapshots, asked, flushes, shared, gossip, stop, task: Arc::new(Mutex::new(Some(task))) }
    }

    /// The present snapshot and its successors.
    pub fn snapshots(&self) -> watch::Receiver<Arc<ConfigSnapshot>> {
        self.snapshots.clone()
    }

    /// Asks for a service, or says that it is still in use. Cheap and idempotent; call it for each request. A
    /// service that is not asked for any more is given up after a while.
    ///
    /// A name that cannot be a resource name is ignored; see [`is_service_name`].
    pub fn want(&self, service: &str) {
        if let Some(last_call) = self.shared.calls.load().get(service) {
            last_call.store(self.shared.now_ms(), Ordering::Relaxed);
        } else if is_service_name(service) {
            // Full or stopped: the request's own deadline answers it.
            let _ = self.asked.try_send(service.to_owned());
        }
    }

    /// The service, used or not, of an instance in the gossip pool that takes bytes on their way to an address. Looks at
    /// all instances: it is for once a connection.
    pub fn service_at(&self, to: SocketAddr) -> Option<String> {
        let catalog = self.gossip.as_ref()?.catalog();
        let mut records = catalog.all().map(|instance| &instance.record);
        let record = records.find(|record| takes_bytes_at(record.address, &record.metadata, to));
        record.map(|record| record.service.clone())
    }

    /// Writes the last good state and then writes nothing more: the folder is another process's. Answers the services that
    /// are asked for, and those that the present snapshot holds by way of discovery.
    pub async fn hand_over(&self) -> (Vec<String>, Vec<String>) {
        let (answer, flushed) = oneshot::channel();
        // An error means that the loop has ended, with everything written.
        let _ = self.flushes.send(answer).await;
        let wanted = flushed.await.unwrap_or_default();
        let snapshot = self.snapshots.borrow();
        let held = wanted.iter().filter(|name| snapshot.clusters.contains_key(*name)).cloned().collect();
        drop(snapshot);
        (wanted, held)
    }

    /// The folder is ours again.
    pub fn take_back(&self) {
        self.shared.cache_is_given_away.store(false, Ordering::Release);
    }

    /// Ends the control loop and writes the last good state.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let task = self.task.lock().take();
        if let Some(task) = task {
            let _ = task.await;
        }
    }
}

/// Whether a service can have this name at all: 1 to 253 bytes without spaces and control characters. Others can be
/// refused without asking anybody.
pub fn is_service_name(name: &str) -> bool {
    (1..=RESOURCE_NAME_BYTES_MAX).contains(&name.len())
        && !name.chars().any(|c| c.is_control() || c.is_whitespace())
}
