//! The services beside this sidecar as clusters of one endpoint each, with who may call them.
//!
//! Of that the mesh tells in the cluster of the service's name, as servers send it to whoever calls it, and this proxy's file
//! in documents of its own; both hold together. What servers said last stays until they say something else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use weft_xds_proto::resource::cluster::{Cluster, OutlierDetection};
use weft_xds_proto::resource::guard::Guard;
use weft_xds_proto::resource::labels;

use crate::config::static_config::static_endpoint;
use crate::config::{LocalService, ProxyConfig};
use crate::config_snapshot::{ClusterConfig, ConfigSnapshot};
use crate::discovery::Discovery;
use crate::mesh_view::MeshState;

/// Between two reminders that the clusters of local services are in use: well within the time after which they are given up.
const REMIND_EVERY: Duration = Duration::from_secs(5);

/// See the module.
pub(crate) struct Guards {
    services: Vec<LocalService>,
    /// From the file.
    own: HashMap<String, Guard>,
    /// From the mesh.
    told: HashMap<String, Guard>,
    discovers: bool,
}

impl Guards {
    pub fn new(config: &ProxyConfig) -> Self {
        let lowered = config.static_config.as_ref().map(|file| file.mesh_config().lowered());
        let own =
            |service: &LocalService| Some((service.name.clone(), lowered.as_ref()?.guard(&service.name)?));
        Self {
            own: config.services.iter().filter_map(own).collect(),
            told: HashMap::new(),
            services: config.services.clone(),
            discovers: config.discovers(),
        }
    }

    /// As they are now. None of them is ever ejected: there is no other.
    pub fn clusters(&self) -> ConfigSnapshot {
        let cluster = |service: &LocalService| {
            let (own, told) = (self.own.get(&service.name), self.told.get(&service.name));
            let guard = match (own.cloned(), told) {
                (Some(own), Some(told)) => Some(own.and(told)),
                (own, told) => own.or_else(|| told.cloned()),
            };
            let cluster = Cluster {
                health_check: None,
                outlier_detection: OutlierDetection::disabled(),
                protocol: labels::protocol([&service.labels]),
                guard,
                rate_limit: service.rate_limit,
                ..Cluster::with_defaults(&service.name)
            };
            let endpoints = vec![static_endpoint(service.addr, 1)];
            (
                service.name.clone(),
                Arc::new(ClusterConfig { cluster, endpoints, version: "local".to_owned() }),
            )
        };
        ConfigSnapshot { clusters: self.services.iter().map(cluster).collect(), ..ConfigSnapshot::default() }
    }

    /// Takes over what a snapshot says. Answers whether anything has changed.
    fn take(&mut self, snapshot: &ConfigSnapshot) -> bool {
        let mut changed = false;
        for service in &self.services {
            let Some(config) = snapshot.clusters.get(&service.name) else { continue };
            let guard = config.cluster.guard.as_ref();
            if self.told.get(&service.name) != guard {
                changed = true;
                match guard {
                    Some(guard) => drop(self.told.insert(service.name.clone(), guard.clone())),
                    None => drop(self.told.remove(&service.name)),
                }
            }
        }
        changed
    }

    /// Asks for the clusters of the local services and takes over what is said of them, until it is aborted.
    pub async fn follow(mut self, discovery: Discovery, inbound: Arc<MeshState>) {
        if self.services.is_empty() || !self.discovers {
            return;
        }
        let mut snapshots = discovery.snapshots();
        let mut remind = tokio::time::interval(REMIND_EVERY);
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            if self.take(&snapshot) {
                inbound.apply(&self.clusters());
            }
            tokio::select! {
                _ = remind.tick() => self.services.iter().for_each(|service| discovery.want(&service.name)),
                changed = snapshots.changed() => if changed.is_err() { return },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use weft_xds_proto::resource::guard::{AuthzAction, AuthzPolicy};

    use super::*;

    fn guard(name: &str) -> Guard {
        let policy =
            AuthzPolicy { name: name.to_owned(), action: AuthzAction::Deny, audit: false, rules: vec![] };
        Guard { policies: vec![policy], ..Guard::default() }
    }

    fn told(guard: Option<Guard>) -> ConfigSnapshot {
        let cluster = Cluster { guard, ..Cluster::with_defaults("orders") };
        let config = ClusterConfig { cluster, endpoints: vec![], version: String::new() };
        ConfigSnapshot {
            clusters: [("orders".to_owned(), Arc::new(config))].into(),
            ..ConfigSnapshot::default()
        }
    }

    fn names(guards: &Guards) -> Vec<String> {
        let cluster = guards.clusters().clusters["orders"].cluster.clone();
        cluster.guard.iter().flat_map(|guard| &guard.policies).map(|policy| policy.name.clone()).collect()
    }

    /// A server that has lost its data, or is away, must not open a service.
    #[test]
    fn what_was_said_last_stays_until_something_else_is_said() {
        let mut config = ProxyConfig::new("p");
        config.services = vec![LocalService {
            rate_limit: None,
            name: "orders".to_owned(),
            addr: "127.0.0.1:1".parse().unwrap(),
            health_path: None,
            labels: Default::default(),
        }];
        let mut guards = Guards::new(&config);
        guards.own.insert("orders".to_owned(), guard("file"));
        assert_eq!(names(&guards), ["file"]);
        assert!(guards.take(&told(Some(guard("mesh")))));
        assert_eq!(names(&guards), ["file", "mesh"]);
        assert!(!guards.take(&told(Some(guard("mesh")))));
        assert!(!guards.take(&ConfigSnapshot::default()), "it is not said that there is none");
        assert_eq!(names(&guards), ["file", "mesh"]);
        assert!(guards.take(&told(None)));
        assert_eq!(names(&guards), ["file"]);
    }
}
