//! The catalogue and the routes as xDS sees them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weft_xds_proto::resource::endpoint::EndpointSource;

use weft_meshconfig::lower::Lowered;

use super::ServiceSource;
use super::builder::{InstanceView, ServiceView};
use crate::catalog::{Catalog, CatalogEndpoint, Source};
use crate::meshconfig::Routes;

/// Between two tries to reach a majority, each of which waits itself.
const BARRIER_RETRY: Duration = Duration::from_millis(50);

/// Longest wait for the catalogue's view of what the registry holds.
const VIEW_WAIT: Duration = Duration::from_secs(1);

/// What a server knows of its mesh.
pub struct MeshSource {
    catalog: Catalog,
    routes: Arc<Routes>,
}

impl MeshSource {
    /// Of these two.
    pub fn new(catalog: Catalog, routes: Arc<Routes>) -> Self {
        Self { catalog, routes }
    }
}

impl ServiceSource for MeshSource {
    fn routes(&self) -> Arc<Lowered> {
        self.routes.lowered()
    }

    fn route_changes(&self) -> watch::Receiver<u64> {
        self.routes.changes()
    }

    fn services(&self) -> Vec<ServiceView> {
        self.catalog
            .services()
            .into_iter()
            .map(|summary| ServiceView {
                instances: self.catalog.endpoints(&summary.name).into_iter().filter_map(instance).collect(),
                lb_policy: summary.load_balancing,
                name: summary.name,
            })
            .collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.catalog.changes()
    }

    async fn caught_up(&self) {
        let Some(coordinator) = self.catalog.registry() else { return };
        while let Err(error) = coordinator.read_barrier().await {
            tracing::debug!(%error, "xDS waits for the group");
            tokio::time::sleep(BARRIER_RETRY).await;
        }
        // The view follows the registry within moments; services that are gone again by then do not hold us up.
        let registered: BTreeSet<String> = coordinator
            .read(|m| m.registered(None).into_iter().map(|r| r.instance.service.clone()).collect());
        let mut changes = self.catalog.changes();
        let seen = async {
            while !registered.iter().all(|name| self.catalog.service(name).is_some()) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(VIEW_WAIT, seen).await;
    }
}

/// None for an instance that was registered by host name: proxies are given addresses, and the registry's answers
/// say why it gets no traffic.
fn instance(e: CatalogEndpoint) -> Option<InstanceView> {
    let (source, owner) = match e.source {
        Source::Registry { lease } => (EndpointSource::Registry, format!("{lease:x}")),
        Source::Gossip { member_name, .. } => (EndpointSource::Gossip, member_name),
    };
    Some(InstanceView {
        address: e.address?,
        instance_id: e.instance_id,
        health: e.health,
        source,
        owner,
        metadata: e.metadata,
        health_path: e.health_path,
    })
}
