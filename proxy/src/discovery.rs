//! Discovery: turns what servers say (xDS), what members say (gossip) and what files say into one stream of
//! [`ConfigSnapshot`]s.
//!
//! *Config push*, the proxy's half: the server pushes what changed → `xds::subscription` decodes and validates, a bad
//! resource is rejected by name and its last good version stays → `merge` adds gossip and static endpoints →
//! one new snapshot is swapped in → ACK.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use weft_core::id::NodeId;
use weft_gossip::GossipHandle;

use crate::config_snapshot::{ClusterConfig, ConfigSnapshot};

/// What discovery is told at start.
#[derive(Clone)]
pub struct DiscoveryConfig {
    /// This process.
    pub node_id: NodeId,
    /// Its label.
    pub name: String,
    /// Servers' gRPC addresses. Empty: those that gossip knows.
    pub servers: Vec<SocketAddr>,
    /// The gossip pool, if this proxy is in one.
    pub gossip: Option<GossipHandle>,
    /// Folder for the last good state; none: it is not kept.
    pub cache_dir: Option<PathBuf>,
    /// Clusters from a file. They win over anything discovered under their names.
    pub preset: Vec<ClusterConfig>,
}

/// Handle on the control loop that produces snapshots. Clones share it.
#[derive(Clone)]
pub struct Discovery {
    snapshots: watch::Receiver<Arc<ConfigSnapshot>>,
}

impl Discovery {
    /// Starts the control loop on the current runtime.
    pub fn start(_config: DiscoveryConfig) -> Self {
        let (_tx, snapshots) = watch::channel(Arc::new(ConfigSnapshot::default()));
        Self { snapshots }
    }

    /// The present snapshot and its successors.
    pub fn snapshots(&self) -> watch::Receiver<Arc<ConfigSnapshot>> {
        self.snapshots.clone()
    }

    /// Asks for a service, or says that it is still in use. Cheap and idempotent; call it for each request. A
    /// service that is not asked for any more is given up after a while.
    pub fn want(&self, _service: &str) {}

    /// Ends the control loop and writes the last good state.
    pub async fn shutdown(&self) {}
}
