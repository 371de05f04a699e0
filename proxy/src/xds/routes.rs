//! When routes come into use: not before the clusters that they lead to are known, so that a change of routes costs no
//! request (make before break); and a service that is new here is not used before it is known which routes it has, so
//! that no request slips past them (D01), nor before the secrets that it is connected to with are there.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use weft_xds_proto::resource::cluster::Cluster;
use weft_xds_proto::resource::route::OUTBOUND;

use super::apply::WARMING_MAX;
use super::subscription::Client;
use crate::config_snapshot::ConfigSnapshot;

/// How long a new service waits for a server's word on its routes. Some servers have none to give.
pub const ROUTES_WAIT: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Debug, Default)]
pub struct RoutesInUse {
    /// Names whose routes changed and are not in use yet, with the time of the change.
    warming: HashMap<String, Instant>,
    /// Services that wait for a word on their routes or secrets, with the time since when.
    held_back: HashMap<String, Instant>,
}

impl RoutesInUse {
    /// Routes of a name came, changed or went.
    pub fn changed(&mut self, name: &str, now: Instant) {
        self.warming.entry(name.to_owned()).or_insert(now);
    }

    /// As after a restart from the cache: what was in use is in use.
    pub fn restore(&mut self, names: &[String]) {
        let long_ago = Instant::now().checked_sub(WARMING_MAX).unwrap_or_else(Instant::now);
        for name in names.iter().map(String::as_str).chain([OUTBOUND]) {
            self.warming.insert(name.to_owned(), long_ago);
        }
    }

    /// Gives names up.
    pub fn forget(&mut self, names: &[String]) {
        for name in names {
            self.warming.remove(name);
            self.held_back.remove(name);
        }
    }

    /// Whether anything waits, so that the time for it is to be looked at.
    pub fn waiting(&self) -> bool {
        !self.warming.is_empty() || !self.held_back.is_empty()
    }

    /// Services that wait for a word on their routes or secrets.
    pub fn held_back(&self) -> impl Iterator<Item = &String> {
        self.held_back.keys()
    }

    /// Whether a service must wait that is new, or whose TLS changed. `expected`: a server is there to say something.
    pub fn holds_back(
        &mut self,
        cluster: &Cluster,
        is_new: bool,
        client: &Client,
        expected: bool,
        now: Instant,
    ) -> bool {
        let name = &cluster.name;
        let warming = self.warming.contains_key(name);
        let routes_known = !is_new || client.knows_routes(name) && !warming;
        let said = routes_known && client.knows_secrets_of(cluster);
        let since = *self.held_back.entry(name.clone()).or_insert(now);
        let limit = if warming { WARMING_MAX + ROUTES_WAIT } else { ROUTES_WAIT };
        if said || !expected || now.saturating_duration_since(since) >= limit {
            self.held_back.remove(name);
            return false;
        }
        true
    }

    /// Puts routes into use whose clusters are known, or have been waited for long enough. Answers services that need
    /// not wait any longer.
    pub fn update(
        &mut self,
        client: &Client,
        next: &mut ConfigSnapshot,
        expected: bool,
        now: Instant,
    ) -> BTreeSet<String> {
        let mut freed = BTreeSet::new();
        self.warming.retain(|name, since| {
            let late = !expected || now.saturating_duration_since(*since) >= WARMING_MAX;
            let routes = client.routes(name).filter(|held| !held.value.is_plain()).map(|held| &held.value);
            let known = |cluster: &str| {
                next.clusters.contains_key(cluster) || next.absent.contains_key(cluster)
                    // The service of that name itself waits for these very routes.
                    || cluster == name && self.held_back.contains_key(cluster)
            };
            if !late && routes.is_some_and(|routes| !routes.clusters().into_iter().all(known)) {
                return true;
            }
            if name == OUTBOUND {
                let hosts = routes.filter(|r| !r.virtual_hosts.is_empty());
                if hosts != next.hosts.as_ref() {
                    next.hosts = hosts.cloned();
                }
            } else if let Some(routes) = routes {
                if next.routes.get(name) != Some(routes) {
                    next.routes.insert(name.clone(), routes.clone());
                }
            } else {
                next.routes.remove(name);
            }
            freed.insert(name.clone());
            false
        });
        next.hosts_known |= client.knows_routes(OUTBOUND) && !self.warming.contains_key(OUTBOUND);
        freed.remove(OUTBOUND);
        freed
    }
}
