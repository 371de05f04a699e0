//! The catalogue as xDS sees it.

use tokio::sync::watch;
use weft_xds_proto::resource::endpoint::EndpointSource;

use super::ServiceSource;
use super::builder::{InstanceView, ServiceView};
use crate::catalog::{Catalog, CatalogEndpoint, Source};

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
