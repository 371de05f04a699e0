//! Registry and gossip merged with provenance: which instances exist, where, how they are, and who says so.
//!
//! *Config push starts here:* a registry change (seen as events of applied commands by
//! [`RegistryChanges`]) or a gossip change wakes one task, which re-merges the services concerned, swaps
//! one immutable view and bumps [`Catalog::changes`]; [`crate::xds`] and [`crate::dns`] read the view.
//!
//! The view is a cache of this server: it may trail the registry by the moment that a merge takes. Who
//! needs the registry as it is asks the [`Coordinator`] and merges with [`Catalog::merged_with`].

pub mod changes;
pub mod merge;
pub mod names;
mod view;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use weft_gossip::driver::GossipHandle;
pub use weft_gossip::instance::InstanceHealth;
use weft_state::machine::{Machine, Registered};
use weft_xds_proto::resource::cluster::LbPolicy;

pub use changes::RegistryChanges;
use merge::Claim;
pub use merge::Source;
pub use view::ServiceView;
use view::View;

use crate::raft::Coordinator;

/// One instance as the catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogEndpoint {
    /// Service.
    pub service: String,
    /// Unique within the service and source.
    pub instance_id: String,
    /// IP literal or host name.
    pub host: String,
    /// Where traffic goes; none if the host is a name, see [`Self::why_no_address`].
    pub address: Option<SocketAddr>,
    /// 1 to 65535.
    pub port: u16,
    /// As the owner of the record sees it.
    pub health: InstanceHealth,
    /// Whose record it is.
    pub source: Source,
    /// Since this server first saw the record in its present version.
    pub age: Duration,
    /// Free-form labels.
    pub metadata: BTreeMap<String, String>,
    /// Path for active checks; none: TCP connect.
    pub health_path: Option<String>,
}

impl CatalogEndpoint {
    pub(crate) fn of(service: &str, claim: &Claim, now: Instant) -> Self {
        Self {
            service: service.to_owned(),
            instance_id: claim.instance_id.clone(),
            host: claim.host.clone(),
            address: claim.address(),
            port: claim.port,
            health: claim.health,
            source: claim.source.clone(),
            age: now.saturating_duration_since(claim.since),
            metadata: claim.metadata.clone(),
            health_path: claim.health_path.clone(),
        }
    }

    /// Why proxies cannot be given this instance.
    pub fn why_no_address(&self) -> Option<String> {
        self.address.is_none().then(|| {
            format!(
                "instance {} is registered with host name {:?}; proxies are given IP addresses only",
                self.instance_id, self.host
            )
        })
    }
}

/// A service in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSummary {
    /// Its name.
    pub name: String,
    /// Instances that are passing.
    pub healthy: usize,
    /// Instances, one per address.
    pub total: usize,
    /// How proxies balance over it.
    pub load_balancing: LbPolicy,
    /// Where its instances come from: `registry`, `gossip`, sorted.
    pub sources: Vec<&'static str>,
}

/// The cached view, and the task that keeps it current. Clones share both.
#[derive(Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Option<Coordinator>,
    gossip: Option<GossipHandle>,
    view: ArcSwap<View>,
    version: watch::Sender<u64>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").field("services", &self.inner.view.load().services.len()).finish()
    }
}

impl Catalog {
    /// Starts the task. `changes` must be among the observers that the coordinator was started with.
    pub fn new(
        coordinator: Coordinator,
        gossip: Option<GossipHandle>,
        changes: Arc<RegistryChanges>,
    ) -> Self {
        let inner = Arc::new(Inner {
            registry: Some(coordinator),
            gossip,
            view: ArcSwap::default(),
            version: watch::Sender::new(0),
            task: Mutex::new(None),
        });
        changes.mark_all();
        // The task holds no strong reference while it waits, so that dropping every catalogue ends it too.
        let task = tokio::spawn(keep_current(Arc::downgrade(&inner), changes));
        *inner.task.lock() = Some(task);
        Self { inner }
    }

    /// A catalogue that knows only what [`Self::set_endpoints`] tells it: for tests of what reads one.
    pub fn detached() -> Self {
        Self {
            inner: Arc::new(Inner {
                registry: None,
                gossip: None,
                view: ArcSwap::default(),
                version: watch::Sender::new(0),
                task: Mutex::new(None),
            }),
        }
    }

    /// Replaces what a [`Self::detached`] catalogue knows of one service; nothing removes it.
    pub fn set_endpoints(&self, service: &str, endpoints: Vec<CatalogEndpoint>, balancing: Option<LbPolicy>) {
        let now = Instant::now();
        let claims = endpoints.into_iter().map(|e| Claim {
            instance_id: e.instance_id,
            host: e.host,
            port: e.port,
            health: e.health,
            source: e.source,
            metadata: e.metadata,
            health_path: e.health_path,
            version: (0, 0),
            since: now.checked_sub(e.age).unwrap_or(now),
            duplicate: false,
        });
        let (registry, gossip) = claims.partition(|c| matches!(c.source, Source::Registry { .. }));
        let view = Arc::new(ServiceView::new(registry, gossip, balancing));
        self.inner.publish(|services| {
            services.remove(service);
            if !view.is_empty() {
                services.insert(service.to_owned(), view.clone());
            }
            true
        });
    }

    /// All services with at least one instance, by name.
    pub fn services(&self) -> Vec<ServiceSummary> {
        self.inner.view.load().services.iter().map(|(name, s)| s.summary(name)).collect()
    }

    /// Names of all services with at least one instance, sorted.
    pub fn service_names(&self) -> Vec<String> {
        self.inner.view.load().services.keys().cloned().collect()
    }

    /// A service's instances, one per address, sorted by instance id; empty if there is no such service.
    pub fn endpoints(&self, service: &str) -> Vec<CatalogEndpoint> {
        let now = Instant::now();
        self.service(service)
            .map(|s| s.routable().map(|c| CatalogEndpoint::of(service, c, now)).collect())
            .unwrap_or_default()
    }

    /// A service without copying it; none if it has no instance.
    pub fn service(&self, service: &str) -> Option<Arc<ServiceView>> {
        self.inner.view.load().services.get(service).cloned()
    }

    /// How proxies balance over a service, also over one that does not exist yet.
    pub fn load_balancing(&self, service: &str) -> LbPolicy {
        if let Some(view) = self.service(service) {
            return view.load_balancing.clone();
        }
        let set = self.inner.registry.as_ref().and_then(|c| c.read(|m| m.load_balancing(service)));
        view::policy(set.as_deref())
    }

    /// Where registrations come from; none for a [`Self::detached`] catalogue.
    pub(crate) fn registry(&self) -> Option<&Coordinator> {
        self.inner.registry.as_ref()
    }

    /// Bumped after the view changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.version.subscribe()
    }

    /// Merges registrations just read with what gossip says now: a service as of the caller's own read.
    /// All registrations are kept, also several of one address.
    pub fn merged_with(&self, service: &str, registered: &[Registered]) -> Vec<CatalogEndpoint> {
        let now = Instant::now();
        let held = self.service(service);
        let held = held.as_deref().map_or(&[][..], |s| s.registry.as_slice());
        let registry = view::registry_claims(registered, held, now);
        let gossip = self.inner.gossip.as_ref().map(|g| view::gossip_claims(&g.catalog(), service));
        let merged = merge::merge(registry, gossip.unwrap_or_default());
        merged.iter().map(|c| CatalogEndpoint::of(service, c, now)).collect()
    }

    /// Ends the task.
    pub async fn shutdown(&self) {
        let task = self.inner.task.lock().take();
        if let Some(task) = task {
            task.abort();
            let _ = task.await;
        }
    }
}

/// Those that may get traffic: the passing ones, or, if none passes, those whose owner is only suspected.
pub fn healthy(endpoints: &[CatalogEndpoint]) -> Vec<&CatalogEndpoint> {
    let of = |health| endpoints.iter().filter(|e| e.health == health).collect::<Vec<_>>();
    let passing = of(InstanceHealth::Passing);
    if passing.is_empty() { of(InstanceHealth::Suspect) } else { passing }
}

async fn keep_current(inner: std::sync::Weak<Inner>, changes: Arc<RegistryChanges>) {
    let Some(mut gossip) = inner.upgrade().map(|i| i.gossip.as_ref().map(GossipHandle::changes)) else {
        return;
    };
    let mut gossip_changed = true;
    loop {
        {
            let Some(inner) = inner.upgrade() else {
                return;
            };
            let dirty = changes.take();
            inner.update(&dirty, gossip_changed);
        }
        // Other tasks get their turn between merges, and what changes meanwhile is merged together.
        tokio::task::yield_now().await;
        gossip_changed = match &mut gossip {
            None => {
                changes.changed().await;
                false
            }
            Some(receiver) => tokio::select! {
                // Marked as seen only if it is looked at: a change that comes a moment later wakes again.
                () = changes.changed() => {
                    let changed = receiver.has_changed().unwrap_or(false);
                    if changed {
                        receiver.mark_unchanged();
                    }
                    changed
                }
                changed = receiver.changed() => {
                    if changed.is_err() {
                        gossip = None;
                    }
                    true
                }
            },
        };
    }
}

impl Inner {
    fn update(&self, dirty: &changes::Dirty, gossip_changed: bool) {
        let now = Instant::now();
        let held = self.view.load();
        let mut fresh: BTreeMap<String, Option<Arc<ServiceView>>> = BTreeMap::new();
        if let Some(coordinator) = &self.registry {
            let read = coordinator.read(|machine| read_registry(machine, dirty));
            for (service, registered, balancing) in read {
                let old = held.services.get(&service);
                let registry =
                    view::registry_claims(&registered, old.map_or(&[], |s| s.registry.as_slice()), now);
                let gossip = old.map(|s| s.gossip.clone()).unwrap_or_default();
                let view = ServiceView::new(registry, gossip, Some(view::policy(balancing.as_deref())));
                fresh.insert(service, Some(Arc::new(view)));
            }
            if dirty.all {
                for name in held.services.keys() {
                    let emptied = |s: &Arc<ServiceView>| {
                        Arc::new(ServiceView::new(
                            Vec::new(),
                            s.gossip.clone(),
                            Some(s.load_balancing.clone()),
                        ))
                    };
                    fresh.entry(name.clone()).or_insert_with(|| held.services.get(name).map(emptied));
                }
            }
        }
        if let Some(gossip) = self.gossip.as_ref().filter(|_| gossip_changed) {
            let catalog = gossip.catalog();
            let names: std::collections::BTreeSet<&str> =
                catalog.services().chain(held.services.keys().map(String::as_str)).collect();
            for name in names {
                let claims = view::gossip_claims(&catalog, name);
                let base = fresh.get(name).cloned().flatten().or_else(|| held.services.get(name).cloned());
                let (registry, old, balancing) = match &base {
                    Some(s) => (s.registry.clone(), s.gossip.as_slice(), s.load_balancing.clone()),
                    None => (Vec::new(), &[][..], self.stored_policy(name)),
                };
                if claims != old {
                    let view = ServiceView::new(registry, claims, Some(balancing));
                    fresh.insert(name.to_owned(), Some(Arc::new(view)));
                }
            }
        }
        drop(held);
        self.publish(|services| {
            let mut changed = false;
            for (name, view) in fresh {
                let view = view.filter(|v| !v.is_empty());
                if services.get(&name).map(Arc::as_ref) == view.as_deref() {
                    continue;
                }
                changed = true;
                match view {
                    Some(view) => services.insert(name, view),
                    None => services.remove(&name),
                };
            }
            changed
        });
    }

    fn stored_policy(&self, service: &str) -> LbPolicy {
        let set = self.registry.as_ref().and_then(|c| c.read(|m| m.load_balancing(service)));
        view::policy(set.as_deref())
    }

    /// Builds the next view aside, swaps it in and tells everyone, if `edit` says that it changed.
    fn publish(&self, edit: impl FnOnce(&mut BTreeMap<String, Arc<ServiceView>>) -> bool) {
        let mut services = self.view.load().services.clone();
        if edit(&mut services) {
            self.view.store(Arc::new(View { services }));
            self.version.send_modify(|v| *v += 1);
        }
    }
}

type ServiceRead = (String, Vec<Registered>, Option<String>);

fn read_registry(machine: &Machine, dirty: &changes::Dirty) -> Vec<ServiceRead> {
    let mut read: Vec<ServiceRead> = Vec::new();
    if dirty.all {
        for registered in machine.registered(None) {
            match read.last_mut() {
                // Sorted by service, so its instances are neighbours.
                Some((name, all, _)) if *name == registered.instance.service => all.push(registered),
                _ => {
                    let name = registered.instance.service.clone();
                    let balancing = machine.load_balancing(&name);
                    read.push((name, vec![registered], balancing));
                }
            }
        }
    } else {
        for name in &dirty.services {
            read.push((name.clone(), machine.registered(Some(name)), machine.load_balancing(name)));
        }
    }
    read
}

#[cfg(test)]
mod tests;
