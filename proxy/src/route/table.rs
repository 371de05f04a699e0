//! Routes by host. Read by requests, never changed.
//!
//! A host finds its virtual host (an exact domain, then the longest `*.x`, then the longest `x.*`, then `*`), and in it
//! the first route whose conditions hold. The order within a virtual host is that of precedence; see
//! `weft_meshconfig::lower`.

use std::collections::HashMap;
use std::sync::Arc;

use weft_xds_proto::resource::cluster::RateLimit;
use weft_xds_proto::resource::route as ir;

use super::compiled::Route;
use super::matcher::Seen;
use crate::policy::rate_limit::Bucket;

type Map<T> = HashMap<Box<str>, T, foldhash::fast::RandomState>;

/// What is left of rate limits, by route.
type Buckets<'a> = HashMap<&'a str, &'a (RateLimit, Arc<Bucket>)>;

/// See the module.
#[derive(Debug, Default)]
pub struct RouteTable {
    exact: Map<Arc<HostRoutes>>,
    suffixes: Affixes,
    prefixes: Affixes,
    any: Option<Arc<HostRoutes>>,
}

/// Wildcards of one side, by their length, the longest first.
#[derive(Debug, Default)]
struct Affixes {
    lengths: Vec<usize>,
    by_text: Map<Arc<HostRoutes>>,
}

/// Routes of one virtual host.
#[derive(Debug)]
pub struct HostRoutes {
    /// Its domains, for people.
    pub name: String,
    routes: Box<[Arc<Route>]>,
    /// Routes for one path only, by that path; positions in `routes`, in order.
    exact: Map<Vec<u32>>,
    /// The others; positions in `routes`, in order.
    scanned: Box<[u32]>,
}

impl RouteTable {
    /// From a checked configuration.
    ///
    /// # Errors
    /// If a route is not usable after all; the text names it.
    pub fn new(config: &ir::RouteConfiguration) -> Result<Self, String> {
        Self::after(config, &Self::default())
    }

    /// The same in the place of another, from which rate limits that stay take over what is left of them.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn after(config: &ir::RouteConfiguration, last: &Self) -> Result<Self, String> {
        let buckets = last.buckets();
        let mut table = Self::default();
        for host in &config.virtual_hosts {
            let routes = Arc::new(HostRoutes::new(host, &buckets)?);
            for domain in &host.domains {
                if domain == "*" {
                    table.any = Some(routes.clone());
                } else if let Some(suffix) = domain.strip_prefix('*') {
                    table.suffixes.insert(suffix, &routes);
                } else if let Some(prefix) = domain.strip_suffix('*') {
                    table.prefixes.insert(prefix, &routes);
                } else {
                    table.exact.insert(domain.as_str().into(), routes.clone());
                }
            }
        }
        Ok(table)
    }

    /// No routes at all: requests go by service name alone.
    pub fn is_empty(&self) -> bool {
        self.any.is_none()
            && self.exact.is_empty()
            && self.suffixes.by_text.is_empty()
            && self.prefixes.by_text.is_empty()
    }

    /// The routes for a normalised host.
    pub fn host(&self, host: &str) -> Option<&HostRoutes> {
        let by_suffix = || self.suffixes.longest(host, |host, n| &host[host.len() - n..]);
        let by_prefix = || self.prefixes.longest(host, |host, n| &host[..n]);
        let found = self.exact.get(host).or_else(by_suffix).or_else(by_prefix).or(self.any.as_ref())?;
        Some(found)
    }

    fn buckets(&self) -> Buckets<'_> {
        let wildcards = self.suffixes.by_text.values().chain(self.prefixes.by_text.values());
        let hosts = self.exact.values().chain(wildcards).chain(&self.any);
        let routes = hosts.flat_map(|host| &host.routes);
        routes.filter_map(|r| r.rate_limit.as_ref().map(|limited| (r.name.as_str(), limited))).collect()
    }

    /// Hosts that have routes of their own, sorted.
    pub fn hosts(&self) -> Vec<&str> {
        let mut hosts: Vec<_> = self.exact.keys().map(|h| &**h).collect();
        hosts.sort_unstable();
        hosts
    }
}

impl Affixes {
    fn insert(&mut self, text: &str, routes: &Arc<HostRoutes>) {
        self.by_text.insert(text.into(), routes.clone());
        if !self.lengths.contains(&text.len()) {
            self.lengths.push(text.len());
            self.lengths.sort_unstable_by_key(|n| std::cmp::Reverse(*n));
        }
    }

    /// A wildcard stands for at least one character. Hosts are ASCII.
    fn longest(&self, host: &str, part: fn(&str, usize) -> &str) -> Option<&Arc<HostRoutes>> {
        let fitting = self.lengths.iter().filter(|n| **n < host.len());
        fitting.map(|n| part(host, *n)).find_map(|text| self.by_text.get(text))
    }
}

impl HostRoutes {
    fn new(host: &ir::VirtualHost, buckets: &Buckets<'_>) -> Result<Self, String> {
        let (mut routes, mut exact, mut scanned) = (Vec::new(), Map::<Vec<u32>>::default(), Vec::new());
        for (i, route) in host.routes.iter().enumerate() {
            let mut compiled = Route::new(route).map_err(|why| format!("route {:?}: {why}", route.name))?;
            if let Some((limit, bucket)) = &mut compiled.rate_limit
                && let Some((before, left)) = buckets.get(route.name.as_str())
                && before == limit
            {
                bucket.clone_from(left);
            }
            let position = u32::try_from(i).map_err(|_| "too many routes".to_owned())?;
            match compiled.matcher.exact_path() {
                Some(path) => exact.entry(path.into()).or_default().push(position),
                None => scanned.push(position),
            }
            routes.push(Arc::new(compiled));
        }
        Ok(Self { name: host.name.clone(), routes: routes.into(), exact, scanned: scanned.into() })
    }

    /// The route for a request. Those for its very path are found at once; the others are tried in order, up to the
    /// best of those.
    pub fn select(&self, seen: &Seen<'_>) -> Option<&Arc<Route>> {
        let holds = |i: &u32| self.routes[*i as usize].matcher.matches(seen);
        let exact = self.exact.get(seen.path).and_then(|all| all.iter().find(|i| holds(i)));
        let before = exact.copied().unwrap_or(u32::MAX);
        let scanned = self.scanned.iter().take_while(|i| **i < before).find(|i| holds(i));
        scanned.or(exact).map(|i| &self.routes[*i as usize])
    }
}

#[cfg(test)]
mod tests;
