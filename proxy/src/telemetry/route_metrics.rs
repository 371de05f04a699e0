//! What is counted of a route, from its first request on.

use std::collections::HashSet;

use parking_lot::Mutex;
use weft_core::metrics::{Counters, Histograms, Registry, SECONDS_BUCKETS};

use super::answers::Answers;

/// Routes with series of their own (P36).
const ROUTE_NAMES_MAX: usize = 300;

/// The series of all routes.
#[derive(Debug)]
pub(crate) struct RouteFamilies {
    requests: Counters,
    seconds: Histograms,
    names: Mutex<HashSet<String>>,
}

impl RouteFamilies {
    /// Registers them.
    pub fn new(r: &Registry) -> Self {
        Self {
            requests: r.counters(
                "weft_proxy_route_requests_total",
                "Requests of routes answered, by class of the answer's status; route is other beyond 300 names",
                &["route", "class"],
            ),
            seconds: r.histograms(
                "weft_proxy_route_request_duration_seconds",
                "From a request's head to the head of its answer, by route",
                &SECONDS_BUCKETS,
                &["route"],
            ),
            names: Mutex::default(),
        }
    }

    /// Handles for one route. Names that were once counted keep their series, up to [`ROUTE_NAMES_MAX`] of them; further
    /// ones share one.
    pub fn route(&self, name: &str) -> Answers {
        let mut names = self.names.lock();
        let known = names.contains(name) || names.len() < ROUTE_NAMES_MAX && names.insert(name.to_owned());
        drop(names);
        let name = if known { name } else { "other" };
        Answers::new(|class| self.requests.with(&[name, class]), self.seconds.with(&[name]))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::StatusCode;

    use super::*;

    /// P36.
    #[test]
    fn series_of_routes_are_bounded() {
        let registry = Registry::new();
        let routes = RouteFamilies::new(&registry);
        for n in 0..ROUTE_NAMES_MAX + 3 {
            routes.route(&format!("r{n}")).answered(StatusCode::OK, Duration::from_millis(1));
        }
        routes.route("r0").answered(StatusCode::NOT_FOUND, Duration::from_millis(1));
        let text = registry.encode();
        let series = |route: &str, class: &str| {
            format!("weft_proxy_route_requests_total{{route=\"{route}\",class=\"{class}\"}}")
        };
        assert!(text.contains(&format!("{} 3", series("other", "2xx"))));
        assert!(text.contains(&format!("{} 1", series("r0", "4xx"))));
        assert!(!text.contains(&series("r301", "2xx")));
    }
}
