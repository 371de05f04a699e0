//! One immutable view of all services, and how it is built from its two sources.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use weft_gossip::catalog::CatalogView;
use weft_gossip::instance::InstanceHealth;
use weft_state::machine::Registered;
use weft_xds_proto::resource::cluster::LbPolicy;

use super::ServiceSummary;
use super::merge::{Claim, Source, merge};

/// Everything at one moment.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) services: BTreeMap<String, Arc<ServiceView>>,
}

/// One service at one moment: what each source claims, and the two merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    pub(super) registry: Vec<Claim>,
    pub(super) gossip: Vec<Claim>,
    merged: Vec<Claim>,
    /// How proxies balance over it.
    pub load_balancing: LbPolicy,
}

impl ServiceView {
    pub(super) fn new(registry: Vec<Claim>, gossip: Vec<Claim>, balancing: Option<LbPolicy>) -> Self {
        let merged = merge(registry.clone(), gossip.clone());
        Self { registry, gossip, merged, load_balancing: balancing.unwrap_or(LbPolicy::RoundRobin) }
    }

    /// Whether nobody claims an instance of it.
    pub fn is_empty(&self) -> bool {
        self.merged.is_empty()
    }

    /// Its instances, one per address, sorted by instance id.
    pub fn routable(&self) -> impl Iterator<Item = &Claim> {
        self.merged.iter().filter(|c| !c.duplicate)
    }

    /// Those that may get traffic: the passing ones, or, if none passes, those whose owner is only suspected.
    pub fn healthy(&self) -> impl Iterator<Item = &Claim> {
        let passes = self.routable().any(|c| c.health == InstanceHealth::Passing);
        let wanted = if passes { InstanceHealth::Passing } else { InstanceHealth::Suspect };
        self.routable().filter(move |c| c.health == wanted)
    }

    pub(super) fn summary(&self, name: &str) -> ServiceSummary {
        let mut sources: Vec<&'static str> = self.routable().map(|c| c.source.as_str()).collect();
        sources.sort_unstable();
        sources.dedup();
        ServiceSummary {
            name: name.to_owned(),
            healthy: self.routable().filter(|c| c.health == InstanceHealth::Passing).count(),
            total: self.routable().count(),
            load_balancing: self.load_balancing.clone(),
            sources,
        }
    }
}

/// The registry's claims. A record that `held` has in the same version keeps the time it was first seen.
pub(super) fn registry_claims(registered: &[Registered], held: &[Claim], now: Instant) -> Vec<Claim> {
    registered
        .iter()
        .map(|r| {
            let version = (u64::try_from(r.mod_revision).unwrap_or(0), 0);
            let known = held.iter().find(|c| c.version == version && c.instance_id == r.instance.instance_id);
            Claim {
                instance_id: r.instance.instance_id.clone(),
                host: r.instance.host.clone(),
                port: r.instance.port,
                // A registered instance whose lease lives is passing; sidecars check it themselves.
                health: InstanceHealth::Passing,
                source: Source::Registry { lease: r.lease },
                metadata: r.instance.metadata.clone(),
                health_path: r.instance.health_path.clone(),
                version,
                since: known.map_or(now, |c| c.since),
                duplicate: false,
            }
        })
        .collect()
}

/// Gossip's claims to one service.
pub(super) fn gossip_claims(catalog: &CatalogView, service: &str) -> Vec<Claim> {
    catalog
        .instances(service)
        .iter()
        .map(|i| Claim {
            instance_id: i.record.instance_id.clone(),
            host: i.record.address.ip().to_string(),
            port: i.record.address.port(),
            health: i.record.health,
            source: Source::Gossip { member: i.owner, member_name: i.owner_name.clone() },
            metadata: i.record.metadata.clone(),
            health_path: None,
            version: (i.version.incarnation, i.version.seq),
            since: i.since,
            duplicate: false,
        })
        .collect()
}

/// The policy a stored name stands for. Names are validated before they are stored; one that a newer
/// server stored and this one does not know falls back to the default.
pub(super) fn policy(stored: Option<&str>) -> LbPolicy {
    stored.and_then(|p| p.parse().ok()).unwrap_or(LbPolicy::RoundRobin)
}
