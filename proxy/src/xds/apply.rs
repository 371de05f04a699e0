//! Pairs each cluster with its endpoints. Only pairs are used: a cluster whose endpoints have not come does not exist
//! yet, and a changed cluster waits for the endpoints that the server sends after it (D01).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weft_xds_proto::resource::cluster::Cluster;
use weft_xds_proto::resource::endpoint::ClusterLoadAssignment;
use weft_xds_proto::type_url::ResourceType;

use super::subscription::{Change, Client};

/// How long a changed cluster waits for its endpoints before it is used with those held. A server that does not
/// send them again must not hold an update back for ever (P34).
pub const WARMING_MAX: Duration = Duration::from_secs(1);

/// A service as servers say it is.
#[derive(Debug, Clone)]
pub struct Pair {
    /// How to reach it.
    pub cluster: Arc<Cluster>,
    /// Where it is.
    pub assignment: Arc<ClusterLoadAssignment>,
    /// Versions of both.
    pub version: String,
}

/// The pairs in use.
#[derive(Debug, Default)]
pub struct Pairs {
    in_use: HashMap<String, Pair>,
    /// Names whose cluster changed and whose endpoints are still to come, with the time of the change.
    warming: HashMap<String, Instant>,
}

impl Pairs {
    /// The pair in use under a name.
    pub fn get(&self, name: &str) -> Option<&Pair> {
        self.in_use.get(name)
    }

    /// Takes over what a response changed. Answers the names of which the pair in use changed.
    pub fn update(
        &mut self,
        changes: &[(ResourceType, String, Change)],
        client: &Client,
        now: Instant,
    ) -> HashSet<String> {
        for (t, name, change) in changes {
            match (t, change) {
                (ResourceType::Cluster, Change::Replaced) if self.in_use.contains_key(name) => {
                    self.warming.insert(name.clone(), now);
                }
                // Endpoints came, be they the same, or bad and the last good ones are to be used.
                (ResourceType::Endpoint, _) => {
                    self.warming.remove(name);
                }
                _ => {}
            }
        }
        changes.iter().map(|(_, name, _)| name).filter(|name| self.pair(name, client)).cloned().collect()
    }

    /// Uses clusters that have waited for too long. Answers the names of which the pair in use changed.
    pub fn expire(&mut self, client: &Client, now: Instant) -> HashSet<String> {
        let late: Vec<String> = self
            .warming
            .iter()
            .filter(|(_, since)| now.saturating_duration_since(**since) >= WARMING_MAX)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &late {
            self.warming.remove(name);
        }
        late.into_iter().filter(|name| self.pair(name, client)).collect()
    }

    /// Pairs all of these names, as after a restart from the cache.
    pub fn restore<'a>(&mut self, names: impl IntoIterator<Item = &'a str>, client: &Client) {
        for name in names {
            self.pair(name, client);
        }
    }

    /// Gives names up.
    pub fn forget(&mut self, names: &[String]) {
        for name in names {
            self.in_use.remove(name);
            self.warming.remove(name);
        }
    }

    fn pair(&mut self, name: &str, client: &Client) -> bool {
        let (Some(cluster), Some(assignment)) = client.held(name) else {
            self.warming.remove(name);
            return self.in_use.remove(name).is_some();
        };
        if self.warming.contains_key(name) {
            return false;
        }
        let version = format!("cluster {} endpoints {}", cluster.version, assignment.version);
        if self.in_use.get(name).is_some_and(|p| p.version == version) {
            return false;
        }
        let pair = Pair { cluster: cluster.value.clone(), assignment: assignment.value.clone(), version };
        self.in_use.insert(name.to_owned(), pair);
        true
    }
}

#[cfg(test)]
mod tests;
