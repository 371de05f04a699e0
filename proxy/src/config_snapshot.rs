//! What the mesh says, as one immutable value. A request reads one snapshot for its whole life; an update is a
//! new snapshot, swapped in whole. So no request sees two revisions mixed (D01).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use weft_xds_proto::resource::cluster::Cluster;
use weft_xds_proto::resource::endpoint::Endpoint;
use weft_xds_proto::resource::route::RouteConfiguration;

use crate::tls::live::Secrets;

/// Everything that discovery knows, at one moment.
#[derive(Debug, Clone, Default)]
pub struct ConfigSnapshot {
    /// Services that can be called, by name.
    pub clusters: HashMap<String, Arc<ClusterConfig>>,
    /// Wanted services that the control plane says do not exist, with the text for the 404.
    pub absent: HashMap<String, String>,
    /// Routes of services that have some, by service.
    pub routes: HashMap<String, Arc<RouteConfiguration>>,
    /// Routes of hosts that are no services; none if the mesh has none, or nobody has said yet.
    pub hosts: Option<Arc<RouteConfiguration>>,
    /// Whether somebody has said what `hosts` is.
    pub hosts_known: bool,
    /// What clusters take by name.
    pub secrets: Arc<Secrets>,
    /// Whom this comes from.
    pub control_plane: ControlPlaneState,
    /// Grows with each snapshot of this process.
    pub version: u64,
}

/// A service with its endpoints. The `Arc` around it is kept over updates that leave it unchanged, so that
/// pointer equality tells what changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// How to reach it.
    pub cluster: Cluster,
    /// Sorted by address, each address once.
    pub endpoints: Vec<Endpoint>,
    /// Where it comes from, for people: resource versions and whether gossip contributes.
    pub version: String,
}

/// The connection to the control plane.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ControlPlaneState {
    /// The server in use; none while there is no connection.
    pub server: Option<SocketAddr>,
    /// Since when.
    pub connected_since: Option<Instant>,
    /// Why the last attempt or connection ended; none once a server has answered.
    pub last_error: Option<String>,
    /// Whether it is known where servers are at all (`--server`, or by gossip).
    pub servers_known: bool,
}

impl ControlPlaneState {
    /// Whether a server is connected and has answered.
    pub fn is_connected(&self) -> bool {
        self.server.is_some()
    }
}
