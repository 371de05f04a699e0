//! The catalogue as xDS sees it.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;
use weft_xds_proto::resource::endpoint::EndpointSource;

use super::ServiceSource;
use super::builder::{InstanceView, ServiceView};
use crate::catalog::{Catalog, CatalogEndpoint, Source};

/// Between two tries to reach a majority, each of which waits itself.
const BARRIER_RETRY: Duration = Duration::from_millis(50);

/// Longest wait for the catalogue's view of what the registry holds.
const VIEW_WAIT: Duration = Duration::from_secs(1);

impl ServiceSource for Catalog {
    fn services(&self) -> Vec<ServiceView> {
        Catalog::services(self)
            .into_iter()
            .map(|summary| ServiceView {
                instances: self.endpoints(&summary.name).into_iter().filter_map(instance).collect(),
                lb_policy: summary.load_balancing,
                name: summary.name,
            })
            .collect()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        Catalog::changes(self)
    }

    async fn caught_up(&self) {
        let Some(coordinator) = self.registry() else { return };
        while let Err(error) = coordinator.read_barrier().await {
            tracing::debug!(%error, "xDS waits for the group");
            tokio::time::sleep(BARRIER_RETRY).await;
        }
        // The view follows the registry within moments; services that are gone again by then do not hold us up.
        let registered: BTreeSet<String> = coordinator
            .read(|m| m.registered(None).into_iter().map(|r| r.instance.service.clone()).collect());
        let mut changes = Catalog::changes(self);
        let seen = async {
            while !registered.iter().all(|name| self.service(name).is_some()) {
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
