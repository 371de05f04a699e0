//! Static routes: exact host and path prefix to cluster. The most specific one wins: a named host before any host,
//! then the longest path.

use std::collections::HashMap;

use crate::config::RouteEntry;

/// Read by requests, never changed.
#[derive(Debug, Default)]
pub struct RouteTable {
    by_host: HashMap<String, Vec<Route>, foldhash::fast::RandomState>,
    any_host: Vec<Route>,
}

/// Paths of one host.
#[derive(Debug, Clone)]
struct Route {
    /// Without a trailing slash; empty for any path.
    prefix: String,
    cluster: String,
}

impl RouteTable {
    /// From entries without problems (`StaticConfig::problems`).
    pub fn new(entries: &[RouteEntry]) -> Self {
        let mut table = Self::default();
        for entry in entries {
            let prefix = entry.path_prefix.as_deref().unwrap_or_default().trim_end_matches('/').to_owned();
            let route = Route { prefix, cluster: entry.cluster.clone() };
            match &entry.host {
                Some(host) => {
                    let host = host.trim_end_matches('.').to_ascii_lowercase();
                    table.by_host.entry(host).or_default().push(route);
                }
                None => table.any_host.push(route),
            }
        }
        // Longest first, so that the first match is the best.
        for routes in table.by_host.values_mut().chain([&mut table.any_host]) {
            routes.sort_by_key(|r| std::cmp::Reverse(r.prefix.len()));
        }
        table
    }

    /// No routes at all: requests go by service name alone.
    pub fn is_empty(&self) -> bool {
        self.by_host.is_empty() && self.any_host.is_empty()
    }

    /// The cluster for a normalised host and a path.
    pub fn select(&self, host: &str, path: &str) -> Option<&str> {
        let named = self.by_host.get(host).into_iter().flatten();
        named.chain(&self.any_host).find(|r| r.matches(path)).map(|r| r.cluster.as_str())
    }

    /// Hosts that have routes, sorted.
    pub fn hosts(&self) -> Vec<&str> {
        let mut hosts: Vec<_> = self.by_host.keys().map(String::as_str).collect();
        hosts.sort_unstable();
        hosts
    }
}

impl Route {
    fn matches(&self, path: &str) -> bool {
        path.strip_prefix(self.prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            || self.prefix.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(host: Option<&str>, path: Option<&str>, cluster: &str) -> RouteEntry {
        RouteEntry { host: host.map(Into::into), path_prefix: path.map(Into::into), cluster: cluster.into() }
    }

    #[test]
    fn most_specific_route_wins_in_any_order() {
        let table = RouteTable::new(&[
            entry(None, None, "rest"),
            entry(None, Some("/api"), "api"),
            entry(Some("Shop.Example."), None, "shop"),
            entry(Some("shop.example"), Some("/orders/"), "orders"),
        ]);
        for (host, path, cluster) in [
            ("shop.example", "/orders", "orders"),
            ("shop.example", "/orders/1", "orders"),
            ("shop.example", "/ordersX", "shop"),
            ("shop.example", "/api", "shop"),
            ("other", "/api/x", "api"),
            ("other", "/", "rest"),
            ("other", "*", "rest"),
        ] {
            assert_eq!(table.select(host, path), Some(cluster), "{host}{path}");
        }
    }

    #[test]
    fn without_a_match_there_is_no_cluster() {
        let table = RouteTable::new(&[entry(Some("a"), Some("/x"), "c")]);
        assert_eq!(table.select("a", "/y"), None);
        assert_eq!(table.select("b", "/x"), None);
        assert_eq!(table.hosts(), ["a"]);
        assert!(RouteTable::default().is_empty());
    }
}
