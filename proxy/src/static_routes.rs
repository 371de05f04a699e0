//! Routes from a file: the short form, and the Gateway API's documents, made into one table.

use std::sync::Arc;

use weft_meshconfig::document::{BackendRef, HttpMatch, HttpRouteSpec, HttpRule, PathMatch};
use weft_meshconfig::lower::{Lowered, RouteSpec, Source};

use crate::config::{RouteEntry, StaticConfig};
use crate::mesh_view::{ServiceRouteMap, ServiceRoutes};
use crate::route::table::RouteTable;

/// See the module.
#[derive(Debug, Default)]
pub struct StaticRoutes {
    /// Routes of hosts.
    pub hosts: RouteTable,
    /// Routes of services.
    pub services: ServiceRouteMap,
}

impl StaticRoutes {
    /// From a configuration without problems (`StaticConfig::problems`).
    ///
    /// # Errors
    /// If a route is not usable after all.
    pub fn new(config: &StaticConfig) -> Result<Self, String> {
        let lowered = lowered(config);
        let mut services = ServiceRouteMap::default();
        for (name, routes) in lowered.services {
            services.insert(name, Arc::new(ServiceRoutes::new(Arc::new(routes))?));
        }
        let hosts = lowered.hosts.as_ref().map(RouteTable::new).transpose()?.unwrap_or_default();
        Ok(Self { hosts, services })
    }
}

fn lowered(config: &StaticConfig) -> Lowered {
    let short: Vec<_> = config.routes.iter().map(in_full).collect();
    // The short form is older than all documents: it wins among equals.
    let short = short.iter().map(|spec| Source { name: "routes", created: -1, spec: RouteSpec::Http(spec) });
    config.mesh_config().lowered_beside(short.collect())
}

/// A short entry as the document that means the same.
fn in_full(entry: &RouteEntry) -> HttpRouteSpec {
    let host = entry.host.as_deref().unwrap_or("*");
    let path = PathMatch { r#type: None, value: entry.path_prefix.clone() };
    let rule = HttpRule {
        matches: vec![Some(HttpMatch { path: Some(path), ..HttpMatch::default() })],
        backend_refs: vec![Some(BackendRef { name: entry.cluster.clone(), ..BackendRef::default() })],
        ..HttpRule::default()
    };
    HttpRouteSpec {
        hostnames: vec![Some(host.trim_end_matches('.').to_ascii_lowercase())],
        rules: vec![Some(rule)],
        ..HttpRouteSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::route::compiled::Action;
    use crate::route::matcher::Seen;

    fn entry(host: Option<&str>, path: Option<&str>, cluster: &str) -> RouteEntry {
        RouteEntry { host: host.map(Into::into), path_prefix: path.map(Into::into), cluster: cluster.into() }
    }

    fn select(routes: &StaticRoutes, host: &str, path: &str) -> Option<String> {
        let headers = HeaderMap::new();
        let seen = Seen { method: &Method::GET, path, query: "", headers: &headers };
        let route = routes.hosts.host(host)?.select(&seen)?.clone();
        match &route.action {
            Action::Forward(to) => Some(to.draw(&mut fastrand::Rng::with_seed(1)).cluster.clone()),
            _ => None,
        }
    }

    #[test]
    fn the_most_specific_short_route_wins_in_any_order() {
        let config = StaticConfig {
            routes: vec![
                entry(None, None, "rest"),
                entry(None, Some("/api"), "api"),
                entry(Some("Shop.Example."), None, "shop"),
                entry(Some("shop.example"), Some("/orders/"), "orders"),
            ],
            ..StaticConfig::default()
        };
        let routes = StaticRoutes::new(&config).unwrap();
        for (host, path, cluster) in [
            ("shop.example", "/orders", "orders"),
            ("shop.example", "/orders/1", "orders"),
            ("shop.example", "/ordersX", "shop"),
            ("shop.example", "/api", "shop"),
            ("other", "/api/x", "api"),
            ("other", "/", "rest"),
        ] {
            assert_eq!(select(&routes, host, path).as_deref(), Some(cluster), "{host}{path}");
        }
    }

    #[test]
    fn without_a_match_there_is_no_cluster() {
        let config =
            StaticConfig { routes: vec![entry(Some("a"), Some("/x"), "c")], ..StaticConfig::default() };
        let routes = StaticRoutes::new(&config).unwrap();
        assert_eq!(select(&routes, "a", "/y"), None);
        assert_eq!(select(&routes, "b", "/x"), None);
        assert_eq!(routes.hosts.hosts(), ["a"]);
    }
}
