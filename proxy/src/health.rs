//! Checks the services beside this sidecar and tells the mesh how they are.
//!
//! An instance is critical until its first check passes (P28): peers learn of it, and send it nothing yet.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::MissedTickBehavior;
use weft_core::id::NodeId;
use weft_gossip::{GossipHandle, InstanceHealth, InstanceRecord};
use weft_xds_proto::resource::cluster::CheckBy;
use weft_xds_proto::resource::labels;

use crate::cluster::probe::{Link, Probe, ProbeError};
use crate::config::LocalService;
use crate::limits::{LOCAL_CHECK_INTERVAL, LOCAL_CHECK_TIMEOUT};
use crate::tls::mesh::{MeshMode, MeshTls, SPIFFE_LABEL};

/// Label of an instance that is reached through its sidecar: the sidecar's name.
pub const SIDECAR_LABEL: &str = "sidecar";

/// Label of an instance that has a sidecar: the address of its admin port.
pub const ADMIN_LABEL: &str = "sidecar-admin";

/// Label of an instance whose sidecar takes bytes for it: the app's own port. Whoever is on the way to that port of the
/// instance's address is brought to the sidecar.
pub const APP_PORT_LABEL: &str = "sidecar-app-port";

/// Whether bytes on their way to `to` are for the instance that is advertised so.
pub(crate) fn takes_bytes_at(
    address: SocketAddr,
    metadata: &BTreeMap<String, String>,
    to: SocketAddr,
) -> bool {
    address == to
        || address.ip() == to.ip()
            && metadata.get(APP_PORT_LABEL).is_some_and(|port| port.parse() == Ok(to.port()))
}

/// Longest part of an instance id that comes from the proxy's name.
const NAME_PART_MAX: usize = 40;

/// A local service as the sidecar sees it now.
#[derive(Debug, Clone)]
pub struct LocalStatus {
    /// Which.
    pub service: LocalService,
    /// What peers are told.
    pub health: InstanceHealth,
    /// Why the last check failed.
    pub error: Option<String>,
}

/// All of them; the admin port reads it.
#[derive(Debug)]
pub struct LocalServices {
    instance_id: String,
    /// Where peers send calls; the app's own address without an inbound listener.
    inbound: Option<SocketAddr>,
    /// The same of services with a port of their own.
    own: Vec<(String, SocketAddr)>,
    /// Label of this proxy.
    name: String,
    /// Where people ask this sidecar.
    admin: Option<SocketAddr>,
    /// SPIFFE ID of this sidecar, and whether services with a port of their own take TLS as well.
    identity: Option<(String, bool)>,
    /// Held to copy in or out, nothing else.
    statuses: Mutex<Vec<LocalStatus>>,
}

impl LocalServices {
    /// All critical, until checked. `own`: services that have an inbound port of their own.
    pub fn new(
        name: &str,
        id: NodeId,
        inbound: Option<SocketAddr>,
        own: Vec<(String, SocketAddr)>,
        services: &[LocalService],
    ) -> Self {
        let status = |service: &LocalService| LocalStatus {
            service: service.clone(),
            health: InstanceHealth::Critical,
            error: Some("not checked yet".to_owned()),
        };
        Self {
            instance_id: instance_id(name, id),
            inbound,
            own,
            name: name.to_owned(),
            admin: None,
            identity: None,
            statuses: Mutex::new(services.iter().map(status).collect()),
        }
    }

    /// With the admin port that is told of. One on loopback is for those on the same machine.
    pub fn asked_at(self, admin: Option<SocketAddr>) -> Self {
        Self { admin, ..self }
    }

    /// With the identity that peers find there.
    pub fn with_identity(self, mesh: Option<&MeshTls>) -> Arc<Self> {
        let identity = mesh.map(|mesh| (mesh.id.to_string(), mesh.mode == MeshMode::Strict));
        Arc::new(Self { identity, ..self })
    }

    /// Takes over what was found and advertised before us, until the next check.
    pub fn inherit(&self, advertised: &[InstanceRecord]) {
        for status in self.statuses.lock().iter_mut() {
            let same = |record: &&InstanceRecord| {
                record.service == status.service.name && record.instance_id == self.instance_id
            };
            if let Some(record) = advertised.iter().find(same)
                && record.health == InstanceHealth::Passing
            {
                (status.health, status.error) = (record.health, None);
            }
        }
    }

    /// How they are.
    pub fn statuses(&self) -> Vec<LocalStatus> {
        self.statuses.lock().clone()
    }

    /// What peers are told.
    pub fn records(&self) -> Vec<InstanceRecord> {
        let record = |status: &LocalStatus| {
            let mut metadata = status.service.labels.clone();
            let own = self.own.iter().find(|(name, _)| *name == status.service.name).map(|(_, addr)| *addr);
            let inbound = own.or(self.inbound);
            if own.is_some() {
                metadata.insert(APP_PORT_LABEL.to_owned(), status.service.addr.port().to_string());
            }
            if inbound.is_some() {
                metadata.insert(SIDECAR_LABEL.to_owned(), self.name.clone());
            }
            if let Some(admin) = self.admin {
                metadata.insert(ADMIN_LABEL.to_owned(), admin.to_string());
            }
            if let Some((id, _)) = self.identity.as_ref().filter(|(_, strict)| match own {
                Some(_) => *strict,
                None => inbound.is_some(),
            }) {
                metadata.insert(SPIFFE_LABEL.to_owned(), id.clone());
            }
            InstanceRecord {
                service: status.service.name.clone(),
                instance_id: self.instance_id.clone(),
                address: inbound.unwrap_or(status.service.addr),
                health: status.health,
                metadata,
            }
        };
        self.statuses.lock().iter().map(record).collect()
    }

    /// Takes over the results of one round. Answers whether peers must be told.
    fn record(&self, results: Vec<Result<(), ProbeError>>) -> bool {
        let mut changed = false;
        for (status, result) in self.statuses.lock().iter_mut().zip(results) {
            if let Err(ProbeError::Shortage(why)) = &result {
                tracing::warn!(service = status.service.name, why, "a local service is not checked");
                continue;
            }
            let health = if result.is_ok() { InstanceHealth::Passing } else { InstanceHealth::Critical };
            if status.health != health {
                changed = true;
                let service = &status.service.name;
                match &result {
                    Ok(()) => tracing::info!(service, "local service passes its checks"),
                    Err(why) => tracing::warn!(service, %why, "local service fails its checks"),
                }
            }
            status.health = health;
            status.error = result.err().map(|why| why.to_string());
        }
        changed
    }
}

/// Checks and tells until it is aborted.
pub(crate) async fn run(local: Arc<LocalServices>, gossip: Option<GossipHandle>) {
    let tell = |records| {
        if let Some(gossip) = &gossip {
            gossip.advertise(records);
        }
    };
    tell(local.records());
    let probes: Vec<Probe> = local.statuses().iter().map(|s| probe(&s.service)).collect();
    let mut tick = tokio::time::interval(LOCAL_CHECK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let results = futures::future::join_all(probes.iter().map(Probe::run)).await;
        let results = results.into_iter().map(|result| result.map(|_| ())).collect();
        if local.record(results) {
            tell(local.records());
        }
    }
}

fn probe(service: &LocalService) -> Probe {
    Probe {
        addr: service.addr,
        by: CheckBy::path(service.health_path.clone()),
        host: service.name.clone(),
        protocol: labels::protocol([&service.labels]),
        link: Link::default(),
        send_proxy: None,
        timeout: LOCAL_CHECK_TIMEOUT,
    }
}

/// Readable, and unique through the node id: names may repeat (P26).
fn instance_id(name: &str, id: NodeId) -> String {
    let clean = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = name.chars().take(NAME_PART_MAX).map(clean).collect();
    let id = id.to_string();
    format!("{name}-{}", &id[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services() -> Vec<LocalService> {
        let service = |name: &str| LocalService {
            rate_limit: None,
            name: name.to_owned(),
            addr: "127.0.0.1:8080".parse().unwrap(),
            health_path: None,
            labels: [("version".to_owned(), "2".to_owned())].into(),
        };
        vec![service("orders"), service("billing")]
    }

    /// P28.
    #[test]
    fn instances_are_critical_until_their_first_check_passes() {
        let local = LocalServices::new("p", NodeId(1), None, Vec::new(), &services());
        assert!(local.records().iter().all(|r| r.health == InstanceHealth::Critical));
        assert!(local.record(vec![Ok(()), Err("refused".into())]));
        let health: Vec<_> = local.records().iter().map(|r| r.health).collect();
        assert_eq!(health, [InstanceHealth::Passing, InstanceHealth::Critical]);
        assert!(!local.record(vec![Ok(()), Err("still refused".into())]), "nothing to tell");
        let shortage = || Err(ProbeError::Shortage("no file descriptors".into()));
        assert!(!local.record(vec![shortage(), shortage()]), "nothing was learnt");
        assert!(local.record(vec![Err("gone".into()), Ok(())]));
    }

    /// P47: an instance must not be taken for sick because its sidecar was replaced.
    #[test]
    fn what_was_found_before_is_told_on() {
        let before = LocalServices::new("p", NodeId(1), None, Vec::new(), &services());
        before.record(vec![Ok(()), Err("refused".into())]);
        let after = LocalServices::new("p", NodeId(1), None, Vec::new(), &services());
        after.inherit(&before.records());
        assert_eq!(after.records(), before.records());
        let other = LocalServices::new("p", NodeId(2 << 40), None, Vec::new(), &services());
        other.inherit(&before.records());
        assert!(
            other.records().iter().all(|r| r.health == InstanceHealth::Critical),
            "not of another instance"
        );
    }

    #[test]
    fn peers_are_told_the_inbound_address_if_there_is_one() {
        let app = "127.0.0.1:8080".parse().unwrap();
        let inbound = "10.0.0.1:15006".parse().unwrap();
        assert_eq!(LocalServices::new("p", NodeId(1), None, vec![], &services()).records()[0].address, app);
        let own = vec![("billing".to_owned(), "10.0.0.1:7".parse().unwrap())];
        let records = LocalServices::new("p", NodeId(1), Some(inbound), own.clone(), &services()).records();
        assert_eq!(records[1].address, own[0].1, "its own port");
        assert_eq!(records[0].address, inbound);
        assert_eq!(records[1].metadata[APP_PORT_LABEL], "8080");
        assert_eq!(records[0].metadata.get(APP_PORT_LABEL), None, "what takes HTTP takes no bytes");
        assert_eq!(
            (records[0].metadata["sidecar"].as_str(), records[0].metadata["version"].as_str()),
            ("p", "2")
        );
    }

    #[test]
    fn bytes_for_an_app_are_taken_at_its_port_and_at_its_sidecars() {
        let own = vec![("billing".to_owned(), "10.0.0.1:7".parse().unwrap())];
        let local = LocalServices::new("p", NodeId(1), None, own, &services());
        let billing = &local.records()[1];
        let takes = |to: &str| takes_bytes_at(billing.address, &billing.metadata, to.parse().unwrap());
        assert!(takes("10.0.0.1:7") && takes("10.0.0.1:8080"));
        assert!(!takes("10.0.0.1:8081") && !takes("10.0.0.2:8080") && !takes("10.0.0.2:7"));
    }

    #[test]
    fn whoever_looks_on_is_told_where_the_sidecar_is_asked() {
        let local = LocalServices::new("p", NodeId(1), None, vec![], &services());
        assert_eq!(local.records()[0].metadata.get(ADMIN_LABEL), None);
        let local = local.asked_at(Some("10.0.0.1:15000".parse().unwrap()));
        assert_eq!(local.records()[1].metadata[ADMIN_LABEL], "10.0.0.1:15000");
    }

    #[test]
    fn instance_ids_of_equal_names_differ_by_node() {
        assert_eq!(instance_id("My Proxy", NodeId(0x1234_5678_0000_0000)), "my-proxy-12345678");
        assert_ne!(instance_id("p", NodeId(1 << 40)), instance_id("p", NodeId(2 << 40)));
    }
}
