//! What one request reads: routes, clusters, endpoints and health of one moment; and the one writer of it.
//!
//! A request loads the view once and keeps it. The writer builds the next one aside and swaps it in whole, so no
//! request sees two revisions mixed (D01). Changes come from discovery, active checks, ejections and their ends.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use weft_core::tls::spiffe::SpiffeId;
use weft_xds_proto::resource::endpoint::EndpointHealth;
use weft_xds_proto::resource::labels::{Place, ReportedLoad};
use weft_xds_proto::resource::route::RouteConfiguration;

use crate::cluster::learnt::Learnt;
use crate::cluster::outlier::Cause;
use crate::cluster::security::ProxyTls;
use crate::cluster::state::{Cluster, ClusterShared};
use crate::cluster::zones::{Callers, Surroundings};
use crate::config_snapshot::{ClusterConfig, ConfigSnapshot, ControlPlaneState};
use crate::courtesy;
use crate::policy::gate::Gate;
use crate::route::table::RouteTable;
use crate::static_routes::StaticRoutes;
use crate::telemetry::metrics::{Direction, Metrics};

/// Clusters by name.
pub type Clusters = HashMap<String, Arc<Cluster>, foldhash::fast::RandomState>;

/// Routes by service name.
pub type ServiceRouteMap = HashMap<String, Arc<ServiceRoutes>, foldhash::fast::RandomState>;

/// A route table with what it was made from.
#[derive(Debug, Default)]
pub struct HostTable {
    /// None: empty.
    pub config: Option<Arc<RouteConfiguration>>,
    /// The same for requests.
    pub table: RouteTable,
}

/// Routes of one service.
#[derive(Debug)]
pub struct ServiceRoutes {
    /// As the mesh or the file says.
    pub config: Arc<RouteConfiguration>,
    /// The same for requests.
    pub table: RouteTable,
    touched: AtomicU64,
}

impl ServiceRoutes {
    /// From a checked configuration.
    ///
    /// # Errors
    /// If a route is not usable after all.
    pub fn new(config: Arc<RouteConfiguration>) -> Result<Self, String> {
        Self::after(config, None)
    }

    fn after(config: Arc<RouteConfiguration>, last: Option<&Self>) -> Result<Self, String> {
        let table = match last {
            Some(last) => RouteTable::after(&config, &last.table)?,
            None => RouteTable::new(&config)?,
        };
        Ok(Self { table, config, touched: AtomicU64::new(0) })
    }

    /// As [`ClusterShared::touch`].
    pub fn touch(&self, now_millis: u64) -> bool {
        let last = self.touched.load(Ordering::Relaxed);
        (last == 0 || now_millis >= last + 1000)
            && self
                .touched
                .compare_exchange(last, now_millis.max(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// See the module.
#[derive(Debug)]
pub struct MeshView {
    /// By service name.
    pub clusters: Clusters,
    /// Services that the control plane says do not exist, with the text for the 404.
    pub absent: HashMap<String, String>,
    /// Routes of hosts from the file; they come before all others.
    pub routes: Arc<RouteTable>,
    /// Routes of hosts from the mesh; they come before service names.
    pub hosts: Arc<HostTable>,
    /// Whether the mesh has said which hosts have routes.
    pub hosts_known: bool,
    /// Routes of services that have some. The others are found in `clusters` at once.
    pub services: ServiceRouteMap,
    /// State of the connection to the control plane.
    pub control_plane: ControlPlaneState,
    /// Version of the config snapshot.
    pub version: u64,
}

/// The writer. One for outbound and one for inbound traffic.
#[derive(Debug)]
pub struct MeshState {
    view: ArcSwap<MeshView>,
    /// Held while a new view is built and swapped in; never by a request that only reads.
    writer: Mutex<()>,
    changed: watch::Sender<u64>,
    /// Wakes whoever waits for [`MeshState::next_expiry`].
    pub(crate) ejected: Notify,
    direction: Direction,
    /// Routes of services from the file.
    own: ServiceRouteMap,
    /// Where this proxy stands.
    around: Arc<Surroundings>,
    /// The services beside it: who has instances of them calls as it does.
    beside: Vec<String>,
    metrics: Metrics,
    tls: ProxyTls,
    /// Whether it is decided here who may call a service.
    decides: bool,
}

impl MeshState {
    /// Without clusters.
    pub fn new(direction: Direction, routes: StaticRoutes, metrics: Metrics, tls: ProxyTls) -> Self {
        let view = MeshView {
            clusters: Clusters::default(),
            absent: HashMap::new(),
            routes: Arc::new(routes.hosts),
            hosts: Arc::default(),
            hosts_known: false,
            services: routes.services.clone(),
            control_plane: ControlPlaneState::default(),
            version: 0,
        };
        Self {
            view: ArcSwap::from_pointee(view),
            writer: Mutex::new(()),
            changed: watch::channel(0).0,
            ejected: Notify::new(),
            direction,
            own: routes.services,
            around: Arc::default(),
            beside: Vec::new(),
            metrics,
            tls,
            decides: true,
        }
    }

    /// The same for a proxy that stands there, beside these services.
    pub fn at(self, place: Place, beside: Vec<String>) -> Self {
        Self { around: Arc::new(Surroundings::at(place)), beside, ..self }
    }

    /// The same where it is decided elsewhere who may call a service, if so.
    pub fn deciding(self, decides: bool) -> Self {
        Self { decides, ..self }
    }

    fn gate(&self, config: &ClusterConfig) -> Option<Arc<Gate>> {
        if self.decides { self.tls.gate(config) } else { None }
    }

    /// Who this sidecar is.
    pub(crate) fn identity(&self) -> Option<&SpiffeId> {
        self.tls.mesh.as_ref().map(|mesh| &mesh.id)
    }

    /// The present view.
    pub fn view(&self) -> Arc<MeshView> {
        self.view.load_full()
    }

    /// For readers that keep the last one beside them.
    pub(crate) fn published(&self) -> &ArcSwap<MeshView> {
        &self.view
    }

    /// Grows with each new view.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes over what the mesh says now. Clusters that did not change stay as they are.
    pub fn apply(&self, snapshot: &ConfigSnapshot) {
        // Not while it holds what a worker may wait for.
        courtesy::make_way();
        let _writer = self.writer.lock();
        // Services beside this sidecar are spoken to in plaintext; their snapshots have no secrets.
        if self.direction == Direction::Outbound {
            self.tls.certificates.set_secrets(&snapshot.secrets);
        }
        let old = self.view.load_full();
        let callers_changed = self.around.set_callers(self.callers(snapshot));
        let mut clusters = Clusters::with_capacity_and_hasher(snapshot.clusters.len(), Default::default());
        for (name, config) in &snapshot.clusters {
            let cluster = match old.clusters.get(name) {
                Some(known) if Arc::ptr_eq(&known.config, config) => {
                    if !callers_changed || config.cluster.zone_aware.is_none() {
                        clusters.insert(name.clone(), known.clone());
                        continue;
                    }
                    Arc::new(known.refreshed())
                }
                Some(known) => {
                    let security = self.tls.security(config, Some(known.security()));
                    let gate = match known.config.cluster.guard == config.cluster.guard {
                        true => known.gate.clone(),
                        false => self.gate(config),
                    };
                    Arc::new(known.updated(config.clone(), security).gated(gate))
                }
                None => {
                    let metrics = self.metrics.cluster(self.direction, name);
                    let shared =
                        Arc::new(ClusterShared::new(fastrand::u64(..), self.around.clone(), metrics));
                    let security = self.tls.security(config, None);
                    Arc::new(Cluster::new(config.clone(), shared, security).gated(self.gate(config)))
                }
            };
            count_endpoints(&cluster);
            clusters.insert(name.clone(), cluster);
        }
        for gone in old.clusters.keys().filter(|name| !clusters.contains_key(*name)) {
            self.metrics.forget(self.direction, gone);
        }
        self.publish(MeshView {
            clusters,
            absent: snapshot.absent.clone(),
            routes: old.routes.clone(),
            hosts: hosts(&old.hosts, snapshot.hosts.as_ref()),
            hosts_known: snapshot.hosts_known,
            services: self.services(&old.services, &snapshot.routes),
            control_plane: snapshot.control_plane.clone(),
            version: snapshot.version,
        });
    }

    /// Instances of the services beside this proxy, by where they stand. Nobody, if it is not known where this one does.
    fn callers(&self, snapshot: &ConfigSnapshot) -> Callers {
        let mut callers = Callers::new();
        if self.around.here.zone.is_empty() {
            return callers;
        }
        let beside = self.beside.iter().filter_map(|name| snapshot.clusters.get(name));
        for endpoint in beside.flat_map(|cluster| &cluster.endpoints) {
            if endpoint.health != EndpointHealth::Unhealthy {
                *callers.entry(Place::of(&endpoint.metadata)).or_default() += 1;
            }
        }
        callers
    }

    /// Ejects an endpoint if its cluster's policy allows it. Called by workers; rare.
    pub fn eject(&self, cluster: &str, addr: SocketAddr, cause: Cause, now: Instant) -> bool {
        let done = self.change(cluster, |cluster| cluster.eject(addr, cause, now));
        if done {
            tracing::info!(cluster, endpoint = %addr, ?cause, "endpoint ejected");
            if let Some(cluster) = self.view.load().clusters.get(cluster) {
                cluster.shared.metrics.ejections.inc();
            }
            self.ejected.notify_one();
        }
        done
    }

    /// Takes over what an endpoint says of its load.
    pub fn reported(&self, cluster: &str, addr: SocketAddr, load: ReportedLoad) {
        if let Some(state) = self.view.load().clusters.get(cluster).and_then(|c| c.state_of(addr)) {
            state.report(load);
        }
    }

    /// Takes over the result of an active check.
    pub fn checked(&self, cluster: &str, addr: SocketAddr, result: Result<(), String>, now: Instant) {
        let why = result.clone().err();
        if self.change(cluster, |cluster| cluster.checked(addr, result, now)) {
            match why {
                None => tracing::info!(cluster, endpoint = %addr, "endpoint passes its checks"),
                Some(why) => tracing::info!(cluster, endpoint = %addr, why, "endpoint fails its checks"),
            }
        }
    }

    /// Brings up to date what metrics tell of what is under way.
    pub(crate) fn show_load(&self) {
        // So that no cluster is forgotten meanwhile: its series would stay.
        let _writer = self.writer.lock();
        for cluster in self.view.load().clusters.values() {
            cluster.shared.metrics.show_load(|| cluster.shares());
        }
    }

    /// What it has learnt of endpoints. The workers' clock began at `epoch`.
    pub(crate) fn learnt(&self, now: Instant, epoch: Instant) -> Vec<Learnt> {
        let view = self.view.load_full();
        let now_nanos = u64::try_from(now.saturating_duration_since(epoch).as_nanos()).unwrap_or(u64::MAX);
        let endpoints = |(name, cluster): (&String, &Arc<Cluster>)| {
            let all = cluster.endpoints.endpoints().iter();
            all.filter_map(|v| Learnt::of(name, &v.state, now, now_nanos)).collect::<Vec<_>>()
        };
        view.clusters.iter().flat_map(endpoints).collect()
    }

    /// Takes up what another process has learnt, of the endpoints that are there. `learnt` is in the order of services.
    pub(crate) fn take_up(&self, learnt: &[Learnt], now: Instant) {
        for of_service in learnt.chunk_by(|one, two| one.service == two.service) {
            self.change(&of_service[0].service, |cluster| {
                for learnt in of_service {
                    if let Some(state) = cluster.state_of(learnt.address) {
                        learnt.take_up(state, &cluster.config.cluster, now);
                    }
                }
                true
            });
        }
    }

    /// Lets endpoints back in whose ejection is over.
    pub fn expire_ejections(&self, now: Instant) {
        let view = self.view.load_full();
        for name in
            view.clusters.iter().filter(|(_, c)| c.next_expiry().is_some_and(|t| t <= now)).map(|(n, _)| n)
        {
            self.change(name, |cluster| cluster.expire_ejections(now));
        }
    }

    /// Compares endpoints of clusters of which an interval is over, ejects who is worse than the others, and lets
    /// the shares of new ones grow.
    pub fn tick(&self, now: Instant) {
        for (name, cluster) in &self.view.load_full().clusters {
            for (addr, cause) in cluster.outliers(now) {
                self.eject(name, addr, cause, now);
            }
            if cluster.endpoints.is_warming() {
                self.change(name, |_| true);
            }
        }
    }

    /// When the next ejection is over.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.view.load().clusters.values().filter_map(|c| c.next_expiry()).min()
    }

    /// Publishes a new version of one cluster if `change` says that one is due.
    fn change(&self, name: &str, change: impl FnOnce(&Cluster) -> bool) -> bool {
        let _writer = self.writer.lock();
        let old = self.view.load_full();
        let Some(cluster) = old.clusters.get(name) else { return false };
        if !change(cluster) {
            return false;
        }
        let next = Arc::new(cluster.refreshed());
        count_endpoints(&next);
        let mut clusters = old.clusters.clone();
        clusters.insert(name.to_owned(), next);
        self.publish(MeshView {
            clusters,
            absent: old.absent.clone(),
            routes: old.routes.clone(),
            hosts: old.hosts.clone(),
            hosts_known: old.hosts_known,
            services: old.services.clone(),
            control_plane: old.control_plane.clone(),
            version: old.version,
        });
        true
    }

    /// Routes of services: those of the file win. What did not change is not made anew.
    fn services(
        &self,
        old: &ServiceRouteMap,
        routes: &HashMap<String, Arc<RouteConfiguration>>,
    ) -> ServiceRouteMap {
        let mut all = ServiceRouteMap::default();
        for (name, config) in routes {
            let made = match old.get(name) {
                Some(same) if Arc::ptr_eq(&same.config, config) => Ok(same.clone()),
                last => ServiceRoutes::after(config.clone(), last.map(Arc::as_ref)).map(Arc::new),
            };
            match (made, old.get(name)) {
                (Ok(routes), _) => {
                    all.insert(name.clone(), routes);
                }
                // Cannot be: what comes over xDS was tried before it was accepted.
                (Err(why), last) => {
                    tracing::error!(service = %name, why, "routes cannot be used; the last good ones stay");
                    all.extend(last.map(|last| (name.clone(), last.clone())));
                }
            }
        }
        all.extend(self.own.iter().map(|(name, routes)| (name.clone(), routes.clone())));
        all
    }

    fn publish(&self, view: MeshView) {
        self.view.store(Arc::new(view));
        self.changed.send_modify(|n| *n += 1);
    }
}

fn hosts(old: &Arc<HostTable>, config: Option<&Arc<RouteConfiguration>>) -> Arc<HostTable> {
    match (&old.config, config) {
        (None, None) => old.clone(),
        (Some(same), Some(config)) if Arc::ptr_eq(same, config) => old.clone(),
        (_, None) => Arc::default(),
        (_, Some(config)) => match RouteTable::after(config, &old.table) {
            Ok(table) => Arc::new(HostTable { config: Some(config.clone()), table }),
            Err(why) => {
                // Cannot be: what comes over xDS was tried before it was accepted.
                tracing::error!(why, "routes of hosts cannot be used; the last good ones stay");
                old.clone()
            }
        },
    }
}

fn count_endpoints(cluster: &Cluster) {
    let counts = cluster.endpoints.counts();
    cluster.shared.metrics.set_endpoints(counts.total, counts.usable);
}

#[cfg(test)]
mod tests {
    use weft_core::metrics::Registry;
    use weft_xds_proto::resource::cluster::ZoneAware;

    use super::*;
    use crate::config::static_config::static_endpoint;
    use crate::config_snapshot::ClusterConfig;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn snapshot(version: u64, clusters: &[(&str, &[u16])]) -> ConfigSnapshot {
        let clusters = clusters
            .iter()
            .map(|(name, ports)| {
                let cluster = weft_xds_proto::resource::cluster::Cluster::with_defaults(*name);
                let endpoints = ports.iter().map(|p| static_endpoint(addr(*p), 1)).collect();
                let config = ClusterConfig { cluster, endpoints, version: version.to_string() };
                ((*name).to_owned(), Arc::new(config))
            })
            .collect();
        ConfigSnapshot { clusters, version, ..ConfigSnapshot::default() }
    }

    fn state() -> MeshState {
        let metrics = Metrics::new(Registry::new());
        MeshState::new(Direction::Outbound, StaticRoutes::default(), metrics, ProxyTls::default())
    }

    #[test]
    fn unchanged_clusters_are_kept_and_gone_ones_leave() {
        let state = state();
        let first = snapshot(1, &[("a", &[1]), ("b", &[2])]);
        state.apply(&first);
        let before = state.view();
        let mut second = snapshot(2, &[("c", &[3])]);
        second.clusters.insert("a".into(), first.clusters["a"].clone());
        state.apply(&second);
        let after = state.view();
        assert!(Arc::ptr_eq(&before.clusters["a"], &after.clusters["a"]));
        assert!(!after.clusters.contains_key("b") && after.clusters.contains_key("c"));
        assert_eq!((before.version, after.version), (1, 2));
        assert!(before.clusters.contains_key("b"), "a request that holds the old view is not disturbed");
    }

    /// `web` is the service beside this proxy, in zone a; `orders` has an endpoint in each zone.
    #[test]
    fn a_zone_with_most_callers_sends_some_elsewhere_and_all_stay_again_once_they_are_even() {
        let state = state().at(Place { region: String::new(), zone: "a".to_owned() }, vec!["web".to_owned()]);
        let orders = zoned("orders", &["a", "b"]);
        let apply = |web: &[&str]| {
            let mut clusters = HashMap::from([("orders".to_owned(), orders.clone())]);
            clusters.insert("web".to_owned(), zoned("web", web));
            state.apply(&ConfigSnapshot { clusters, ..ConfigSnapshot::default() });
            let shares = state.view().clusters["orders"].endpoints.picker().shares();
            shares.iter().map(|(_, share)| *share).collect::<Vec<_>>()
        };
        assert_eq!(apply(&["a", "a", "a", "b"]), [667, 333]);
        let kept = state.view().clusters["orders"].clone();
        assert_eq!(apply(&["a", "a", "a", "b"]), [667, 333]);
        assert!(Arc::ptr_eq(&kept, &state.view().clusters["orders"]), "nothing has changed for it");
        assert_eq!(apply(&["a", "b"]), [1000, 0]);
        assert_eq!(apply(&[]), [1000, 0], "nobody is known to call: nearest first");
    }

    fn zoned(name: &str, zones: &[&str]) -> Arc<ClusterConfig> {
        let cluster = weft_xds_proto::resource::cluster::Cluster {
            zone_aware: Some(ZoneAware::default()),
            ..weft_xds_proto::resource::cluster::Cluster::with_defaults(name)
        };
        let endpoint = |(zone, port): (&&str, u16)| {
            let mut endpoint = static_endpoint(addr(port), 1);
            endpoint.metadata.insert("zone".to_owned(), (*zone).to_owned());
            endpoint
        };
        let endpoints = zones.iter().zip(1..).map(endpoint).collect();
        Arc::new(ClusterConfig { cluster, endpoints, version: String::new() })
    }

    #[test]
    fn ejection_is_visible_at_once_and_ends_in_time() {
        let state = state();
        state.apply(&snapshot(1, &[("a", &[1, 2])]));
        let mut changes = state.changes();
        changes.mark_unchanged();
        let now = Instant::now();
        assert!(state.eject("a", addr(1), Cause::Connect, now));
        assert!(changes.has_changed().unwrap());
        assert_eq!(state.view().clusters["a"].endpoints.counts().ejected, 1);
        assert!(!state.eject("a", addr(1), Cause::Connect, now), "it is already");
        let until = state.next_expiry().unwrap();
        state.expire_ejections(until);
        assert_eq!(state.view().clusters["a"].endpoints.counts().usable, 2);
        assert_eq!(state.next_expiry(), None);
        assert!(!state.eject("unknown", addr(1), Cause::Connect, now));
    }
}
