//! The control loop: one task that owns the link to the control plane, the wanted services and the cache, and that
//! alone makes snapshots.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use weft_core::backoff::Backoff;
use weft_gossip::CatalogView;
use weft_xds_proto::envoy_types::pb::envoy::config::core::v3::{Locality, Node};
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use weft_xds_proto::resource::labels::Place;
use weft_xds_proto::resource::route::OUTBOUND;
use weft_xds_proto::type_url::ResourceType;

use super::merge::{GossipInput, Owners, merge};
use super::servers::{candidates, choose};
use super::wanted::{Standing, Wanted};
use super::{DiscoveryConfig, Shared};
use crate::config_snapshot::{ClusterConfig, ConfigSnapshot};
use crate::courtesy;
use crate::xds::apply::Pairs;
use crate::xds::cache;
use crate::xds::routes::RoutesInUse;
use crate::xds::stream::{Link, LinkEvent};
use crate::xds::subscription::{Change, Client};

/// Waits between connection attempts: short at first, since another server may be there, and never long, since a
/// group that comes back should be found soon.
const RECONNECT_WAIT_BASE: Duration = Duration::from_millis(100);
const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(3);

/// A connection that lasted this long was a good one: the next attempt starts with short waits again.
const GOOD_CONNECTION_MIN: Duration = Duration::from_secs(5);

/// While nobody knows a server, the pool is asked again this often, besides at each change.
const NO_SERVER_WAIT: Duration = Duration::from_secs(5);

/// Housekeeping: expiry of unused names, overdue updates, and the cache, which is written at most this often.
const TICK: Duration = Duration::from_secs(1);

/// Names taken from the queue of asked ones at once.
const ASKED_AT_ONCE_MAX: usize = 256;

/// Which services a change concerns.
enum Touched {
    All,
    Only(HashSet<String>),
}

pub(super) struct Driver {
    config: DiscoveryConfig,
    shared: Arc<Shared>,
    publish: watch::Sender<Arc<ConfigSnapshot>>,
    preset: HashMap<String, Arc<ClusterConfig>>,
    /// What gossip last said.
    pool: Option<(Arc<CatalogView>, Owners)>,
    /// Subscribed to before the pool is first read, so that no change falls between the two.
    pool_changes: Option<watch::Receiver<u64>>,
    client: Client,
    pairs: Pairs,
    routes: RoutesInUse,
    wanted: Wanted,
    link: Link,
    backoff: Backoff,
    /// Tried last; another one is tried next.
    last_server: Option<std::net::SocketAddr>,
    /// The last attempt found no server to try.
    nobody_known: bool,
    connected_since: Option<std::time::Instant>,
    last_error: Option<String>,
    refused: u64,
    cache: CacheWriter,
}

struct CacheWriter {
    folder: Option<PathBuf>,
    dirty: bool,
    writing: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

impl Driver {
    pub(super) fn new(
        mut config: DiscoveryConfig,
        shared: Arc<Shared>,
        publish: watch::Sender<Arc<ConfigSnapshot>>,
    ) -> Self {
        let preset = std::mem::take(&mut config.preset);
        let preset = preset.into_iter().map(|c| (c.cluster.name.clone(), Arc::new(c))).collect();
        let node = Node {
            id: config.node_id.to_string(),
            cluster: config.name.clone(),
            user_agent_name: "weft".to_owned(),
            locality: (config.place != Place::default()).then(|| Locality {
                region: config.place.region.clone(),
                zone: config.place.zone.clone(),
                ..Locality::default()
            }),
            ..Node::default()
        };
        let (folder, given) = (config.cache_dir.clone(), shared.clone());
        let cache = CacheWriter { folder, dirty: false, writing: None, shared: given };
        let pool_changes = config.gossip.as_ref().map(|g| g.changes());
        let link = Link::new(config.server_tls.clone());
        let mut driver = Self {
            config,
            shared,
            publish,
            preset,
            pool: None,
            pool_changes,
            client: Client::new(node),
            pairs: Pairs::default(),
            routes: RoutesInUse::default(),
            wanted: Wanted::default(),
            link,
            backoff: Backoff::new(RECONNECT_WAIT_BASE, RECONNECT_WAIT_MAX),
            last_server: None,
            nobody_known: false,
            connected_since: None,
            last_error: None,
            refused: 0,
            cache,
        };
        driver.load_cache();
        driver.read_pool();
        driver.share_calls();
        driver.publish(&Touched::All);
        driver
    }

    pub(super) async fn run(
        mut self,
        mut asked: mpsc::Receiver<String>,
        mut flush: mpsc::Receiver<oneshot::Sender<Vec<String>>>,
        stop: CancellationToken,
    ) {
        let mut gossip = self.pool_changes.take();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut names = Vec::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                event = self.link.next() => self.on_link(event),
                n = asked.recv_many(&mut names, ASKED_AT_ONCE_MAX) => {
                    if n == 0 {
                        break;
                    }
                    self.on_asked(&mut names);
                }
                gone = gossip_changed(&mut gossip) => {
                    if gone {
                        gossip = None;
                    }
                    self.on_gossip();
                }
                Some(answer) = flush.recv() => {
                    self.cache.flush(&self.client).await;
                    self.shared.cache_is_given_away.store(true, Ordering::Release);
                    // Nobody may wait for it any more.
                    let _ = answer.send(self.wanted.names().map(str::to_owned).collect());
                }
                _ = tick.tick() => self.on_tick(),
            }
        }
        drop(self.link);
        self.cache.flush(&self.client).await;
    }

    fn on_link(&mut self, event: LinkEvent) {
        match event {
            LinkEvent::Due => self.connect(),
            LinkEvent::Connected(_) => {
                let requests = self.client.connected();
                self.send(requests);
            }
            LinkEvent::Accepted(server) => {
                tracing::info!(%server, "connected to the control plane");
                self.connected_since = Some(std::time::Instant::now());
                self.last_error = None;
                // What a server repeats of gossip is fresh now.
                self.publish(&Touched::All);
            }
            LinkEvent::Response(response) => self.on_response(*response),
            LinkEvent::Failed(reason) => self.on_failure(reason),
        }
    }

    fn connect(&mut self) {
        let servers = self.servers();
        let server = choose(&servers, self.last_server, fastrand::usize(..));
        self.nobody_known = server.is_none();
        if let Some(server) = server {
            self.last_server = Some(server);
            self.link.connect(server);
        } else {
            self.link.wait(NO_SERVER_WAIT);
            self.publish(&Touched::Only(HashSet::new()));
        }
    }

    fn servers(&self) -> Vec<std::net::SocketAddr> {
        let members = self.config.gossip.as_ref().map(|g| g.members());
        candidates(&self.config.servers, members.as_deref().map_or(&[], Vec::as_slice))
    }

    fn on_failure(&mut self, reason: String) {
        let was_connected = self.connected_since.take().is_some();
        if self.link.open_for().is_some_and(|d| d >= GOOD_CONNECTION_MIN) {
            self.backoff.reset();
        }
        self.client.disconnected();
        let wait = self.backoff.next(fastrand::f64());
        self.link.wait(wait);
        // Once per loss; attempts that fail while there is no server would fill the log.
        if was_connected {
            tracing::warn!(%reason, "lost the control plane; the last good state stays in use");
        } else {
            tracing::debug!(%reason, ?wait, "no control plane");
        }
        self.last_error = Some(reason);
        self.publish(&Touched::All);
    }

    fn on_response(&mut self, response: DeltaDiscoveryResponse) {
        self.backoff.reset();
        let handled = self.client.handle(response);
        for (name, reason) in &handled.rejected {
            tracing::warn!(resource = %name, %reason, "rejected; the last good version stays in use");
        }
        if !handled.changes.is_empty() {
            self.cache.dirty = true;
        }
        let now = std::time::Instant::now();
        let mut touched = self.pairs.update(&handled.changes, &self.client, now);
        let mut requests = self.want_secrets();
        for (t, name, change) in handled.changes {
            if t == ResourceType::Secret {
                if change == Change::Removed && self.client.secrets().contains_key(&name) {
                    tracing::warn!(secret = %name, "removed by the control plane; what it sent last stays in use");
                }
                continue;
            }
            if t == ResourceType::Route {
                let backends = self.want_backends(&name);
                if !backends.is_empty() {
                    requests.extend(self.client.want(&backends));
                    self.share_calls();
                    touched.extend(backends);
                }
                self.routes.changed(&name, now);
            }
            touched.insert(name);
        }
        self.publish(&Touched::Only(touched));
        // The ACK says that it is in use, so it comes after.
        requests.push(handled.answer);
        self.send(requests);
    }

    /// Subscribes to secrets that clusters name now, and gives up those that none names any more.
    fn want_secrets(&mut self) -> Vec<DeltaDiscoveryRequest> {
        let in_use = self.publish.borrow().clone();
        self.client.want_secrets(in_use.clusters.values().map(|config| &config.cluster))
    }

    /// The clusters that routes lead to and nobody asked for yet, so that they are there when the routes are used.
    fn want_backends(&mut self, name: &str) -> Vec<String> {
        let held = self.client.routes(name).filter(|held| !held.value.is_plain());
        let Some(routes) = held.map(|held| held.value.clone()) else { return Vec::new() };
        let now = self.shared.now_ms();
        let mut new = Vec::new();
        for cluster in routes.clusters() {
            // A table that is full of services in use leaves it to the first request.
            if !self.wanted.contains(cluster)
                && !self.preset.contains_key(cluster)
                && matches!(self.wanted.insert(cluster, now), Ok(None))
            {
                new.push(cluster.to_owned());
            }
        }
        new
    }

    fn on_asked(&mut self, names: &mut Vec<String>) {
        let now = self.shared.now_ms();
        let mut new = HashSet::new();
        let mut given_up = Vec::new();
        for name in names.drain(..) {
            if self.wanted.contains(&name) || self.preset.contains_key(&name) {
                continue;
            }
            match self.wanted.insert(&name, now) {
                Ok(victim) => {
                    given_up.extend(victim);
                    new.insert(name);
                }
                Err(full) => {
                    self.refused += 1;
                    if self.refused.is_power_of_two() {
                        tracing::warn!(service = %name, times = self.refused, "{full}");
                    }
                }
            }
        }
        if new.is_empty() {
            return;
        }
        // Asked for and given up again within one batch: then not at all.
        new.retain(|name| self.wanted.contains(name));
        self.give_up(&given_up);
        let list: Vec<String> = new.iter().cloned().collect();
        let requests = self.client.want(&list);
        self.share_calls();
        new.extend(given_up);
        self.publish(&Touched::Only(new));
        self.send(requests);
    }

    fn on_gossip(&mut self) {
        self.read_pool();
        if self.nobody_known && !self.servers().is_empty() {
            self.link.wait(Duration::ZERO);
        }
        self.publish(&Touched::All);
    }

    fn read_pool(&mut self) {
        self.pool = self.config.gossip.as_ref().map(|g| (g.catalog(), Owners::new(&g.members())));
    }

    fn on_tick(&mut self) {
        let late = self.pairs.expire(&self.client, std::time::Instant::now());
        let waiting = self.routes.waiting();
        if !late.is_empty() || waiting {
            self.publish(&Touched::Only(late));
        }
        let connected = self.connected_since.is_some();
        let expired = self.wanted.expire(self.shared.now_ms(), !connected);
        if !expired.is_empty() {
            self.give_up(&expired);
            self.share_calls();
            self.publish(&Touched::Only(expired.into_iter().collect()));
        }
        let requests = self.want_secrets();
        self.send(requests);
        self.cache.write(&self.client);
    }

    fn give_up(&mut self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        let requests = self.client.unwant(names);
        self.pairs.forget(names);
        self.routes.forget(names);
        self.cache.dirty = true;
        self.send(requests);
    }

    fn send(&mut self, requests: Vec<DeltaDiscoveryRequest>) {
        if requests.is_empty() || self.link.server().is_none() {
            return;
        }
        let expects_answer = self.client.is_waiting();
        if let Err(reason) = self.link.send(requests, expects_answer) {
            self.on_failure(reason);
        }
    }

    /// Lets the request path note calls without asking us.
    fn share_calls(&self) {
        let wanted = self.wanted.calls().map(|(n, c)| (n.clone(), c.clone()));
        let preset = self.preset.keys().map(|n| (n.clone(), Arc::default()));
        self.shared.calls.store(Arc::new(wanted.chain(preset).collect()));
    }

    /// Makes the next snapshot and swaps it in, if anything changed.
    fn publish(&mut self, touched: &Touched) {
        courtesy::make_way();
        let current = self.publish.borrow().clone();
        let mut next = (*current).clone();
        let connected = self.connected_since.is_some();
        next.control_plane.server = if connected { self.link.server() } else { None };
        next.control_plane.connected_since = self.connected_since;
        next.control_plane.last_error.clone_from(&self.last_error);
        next.control_plane.servers_known = !self.servers().is_empty();
        next.secrets = self.client.secrets().clone();

        let pool = self.pool.take();
        let mut names: Vec<String> = match touched {
            Touched::All => {
                let known: HashSet<&str> = self
                    .wanted
                    .names()
                    .chain(next.clusters.keys().map(String::as_str))
                    .chain(next.absent.keys().map(String::as_str))
                    .collect();
                known.into_iter().map(str::to_owned).collect()
            }
            Touched::Only(names) => names.iter().cloned().collect(),
        };
        names.extend(self.routes.held_back().cloned());
        names.sort_unstable();
        names.dedup();
        // A server will say which routes there are.
        let expected = connected || next.control_plane.servers_known && self.last_error.is_none();
        names.retain(|name| !self.preset.contains_key(name));
        for name in &names {
            self.refresh(name, pool.as_ref(), (connected, expected), &mut next);
        }
        self.pool = pool;
        for (name, preset) in &self.preset {
            next.clusters.entry(name.clone()).or_insert_with(|| preset.clone());
        }
        let freed = self.routes.update(&self.client, &mut next, expected, std::time::Instant::now());
        let pool = self.pool.take();
        for name in freed {
            self.refresh(&name, pool.as_ref(), (connected, expected), &mut next);
        }
        self.pool = pool;

        let same = next.control_plane == current.control_plane
            && Arc::ptr_eq(&next.secrets, &current.secrets)
            && next.absent == current.absent
            && next.hosts_known == current.hosts_known
            && next.hosts.as_ref().map(Arc::as_ptr) == current.hosts.as_ref().map(Arc::as_ptr)
            && next.routes.len() == current.routes.len()
            && next
                .routes
                .iter()
                .all(|(name, r)| current.routes.get(name).is_some_and(|o| Arc::ptr_eq(r, o)))
            && next.clusters.len() == current.clusters.len()
            && next
                .clusters
                .iter()
                .all(|(name, c)| current.clusters.get(name).is_some_and(|o| Arc::ptr_eq(c, o)));
        if !same {
            next.version = current.version + 1;
            self.publish.send_replace(Arc::new(next));
        }
    }

    fn refresh(
        &mut self,
        name: &str,
        pool: Option<&(Arc<CatalogView>, Owners)>,
        (connected, expected): (bool, bool),
        next: &mut ConfigSnapshot,
    ) {
        if name == OUTBOUND {
            return;
        }
        courtesy::make_way();
        if !self.wanted.contains(name) {
            next.clusters.remove(name);
            next.absent.remove(name);
            next.routes.remove(name);
            return;
        }
        let gossip = pool.map(|(catalog, owners)| GossipInput { instances: catalog.instances(name), owners });
        let mut merged = merge(name, self.pairs.get(name), gossip, connected);
        if let (Some(merged), Some(policy)) = (&mut merged, self.config.policies.get(name)) {
            policy.spec.apply(&mut merged.cluster);
        }
        // Not used before its routes are: a request must not slip past them. Nor before there is what it is connected to with.
        let in_use = next.clusters.get(name);
        let now = std::time::Instant::now();
        let waits = merged.as_ref().is_some_and(|merged| {
            in_use.is_none_or(|old| old.cluster.tls != merged.cluster.tls)
                && self.routes.holds_back(&merged.cluster, in_use.is_none(), &self.client, expected, now)
        });
        let standing = if waits {
            if in_use.is_some() { Standing::Present } else { Standing::Pending }
        } else if let Some(merged) = merged {
            next.absent.remove(name);
            if next.clusters.get(name).is_none_or(|old| **old != merged) {
                next.clusters.insert(name.to_owned(), Arc::new(merged));
            }
            Standing::Present
        } else {
            next.clusters.remove(name);
            if next.routes.contains_key(name) {
                next.absent.remove(name);
                Standing::Present
            } else if let Some(message) = self.client.absent(name) {
                next.absent.insert(name.to_owned(), message.to_owned());
                Standing::Absent
            } else {
                next.absent.remove(name);
                Standing::Pending
            }
        };
        self.wanted.set_standing(name, standing);
    }

    fn load_cache(&mut self) {
        let Some(folder) = &self.cache.folder else { return };
        let path = folder.join(cache::FILE_NAME);
        let saved = match cache::load(folder) {
            Ok(Some(saved)) => saved,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the last good state is not used; starting empty");
                return;
            }
        };
        let now = self.shared.now_ms();
        let mut dropped = Vec::new();
        for (name, reason) in self.client.import(saved) {
            tracing::warn!(resource = %name, %reason, "not taken over from the cache");
            dropped.push(name);
        }
        for name in self.client.held_names() {
            if self.wanted.insert(&name, now).is_err() {
                dropped.push(name);
            }
        }
        self.client.unwant(&dropped);
        let names = self.client.held_names();
        self.pairs.restore(names.iter().map(String::as_str), &self.client);
        self.routes.restore(&names);
        self.want_secrets();
        tracing::info!(services = names.len(), "the last good state is in use until a server answers");
    }
}

/// True if the pool is gone.
async fn gossip_changed(changes: &mut Option<watch::Receiver<u64>>) -> bool {
    match changes {
        Some(changes) => changes.changed().await.is_err(),
        None => std::future::pending().await,
    }
}

impl CacheWriter {
    /// Starts a write if something changed and none is under way.
    fn write(&mut self, client: &Client) {
        let Some(folder) = self.folder.clone() else { return };
        let given_away = self.shared.cache_is_given_away.load(Ordering::Acquire);
        if given_away || !self.dirty || self.writing.as_ref().is_some_and(|w| !w.is_finished()) {
            return;
        }
        self.dirty = false;
        let saved = client.export();
        self.writing = Some(tokio::task::spawn_blocking(move || {
            if let Err(error) = cache::store(&folder, saved) {
                let path = folder.join(cache::FILE_NAME);
                tracing::warn!(path = %path.display(), %error, "the last good state cannot be written");
            }
        }));
    }

    /// Ends with everything written.
    async fn flush(&mut self, client: &Client) {
        for _ in 0..2 {
            if let Some(writing) = self.writing.take() {
                let _ = writing.await;
            }
            self.write(client);
        }
    }
}

/// Milliseconds since `start`.
pub(super) fn since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}
