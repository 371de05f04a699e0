//! Labels of an instance that mean something to the mesh, read alike by the server that builds resources and by the
//! proxy that learns instances from gossip.

use std::collections::BTreeMap;

use super::cluster::Protocol;

/// Label that says what an instance speaks.
pub const PROTOCOL: &str = "protocol";
/// Label that says which share of the traffic an instance takes.
pub const WEIGHT: &str = "weight";

/// Label with the region that an instance stands in.
pub const REGION: &str = "region";
/// Label with the zone of the region.
pub const ZONE: &str = "zone";
/// Label that says as the how manieth choice an instance is used: 0 first, others if those before do not suffice.
pub const PRIORITY: &str = "priority";
/// Label with what an instance can bear, in whatever unit `current_load` has.
pub const CAPACITY: &str = "capacity";
/// Label with what an instance bears now.
pub const CURRENT_LOAD: &str = "current_load";

/// Label for what another control plane says of an endpoint under `envoy.transport_socket_match`.
pub fn socket_match(key: &str) -> String {
    format!("{SOCKET_MATCH}.{key}")
}

/// Namespace in an endpoint's metadata by which Envoy chooses how to connect to it.
pub(crate) const SOCKET_MATCH: &str = "envoy.transport_socket_match";

/// Largest priority, as Envoy has it.
pub const PRIORITY_MAX: u32 = 128;

/// Largest weight. Clients add the weights of a service's endpoints in 32 bits; this leaves room for 400,000.
pub const WEIGHT_MAX: u32 = 10_000;

/// The weight that the labels ask for; 1 if they say nothing or no number from 1 to [`WEIGHT_MAX`].
pub fn weight(labels: &BTreeMap<String, String>) -> u32 {
    labels.get(WEIGHT).and_then(|w| w.parse().ok()).filter(|w| (1..=WEIGHT_MAX).contains(w)).unwrap_or(1)
}

/// The priority that the labels ask for; 0 if they say nothing or no number up to [`PRIORITY_MAX`].
pub fn priority(labels: &BTreeMap<String, String>) -> u32 {
    labels.get(PRIORITY).and_then(|p| p.parse().ok()).filter(|p| *p <= PRIORITY_MAX).unwrap_or(0)
}

/// What an instance says it bears of what it can bear: 0.45 for 45 of 100, above 1 if it is overloaded. None unless
/// both labels are numbers.
pub fn reported_load(labels: &BTreeMap<String, String>) -> Option<ReportedLoad> {
    let number = |key: &str| labels.get(key)?.parse::<f64>().ok().filter(|n| n.is_finite() && *n >= 0.0);
    let capacity = number(CAPACITY).filter(|capacity| *capacity > 0.0)?;
    Some(ReportedLoad { load: number(CURRENT_LOAD)?, capacity })
}

/// See [`reported_load`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReportedLoad {
    /// At least 0.
    pub load: f64,
    /// Above 0.
    pub capacity: f64,
}

/// Where something stands. Empty texts: nobody has said.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Such as `eu-west`.
    pub region: String,
    /// Within the region.
    pub zone: String,
}

impl Place {
    /// What labels say.
    pub fn of(labels: &BTreeMap<String, String>) -> Self {
        let text = |key: &str| labels.get(key).cloned().unwrap_or_default();
        Self { region: text(REGION), zone: text(ZONE) }
    }

    /// How near it is to `other`. Zones of different regions may have one name; a region that nobody said is any.
    pub fn nearness(&self, other: &Self) -> Nearness {
        let unsaid = self.region.is_empty() || other.region.is_empty();
        let same_region = !self.region.is_empty() && self.region == other.region;
        if !self.zone.is_empty() && self.zone == other.zone && (same_region || unsaid) {
            Nearness::Zone
        } else if same_region {
            Nearness::Region
        } else {
            Nearness::Elsewhere
        }
    }
}

/// How near two places are, the nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Nearness {
    /// The same zone.
    Zone,
    /// The same region.
    Region,
    /// Neither, or nobody has said.
    Elsewhere,
}

/// What to speak to instances with these labels: HTTP/2 if there are instances and all of them speak it. One that
/// does not is enough for HTTP/1.1, which an HTTP/2 server more often understands than the other way round.
pub fn protocol<'a>(instances: impl IntoIterator<Item = &'a BTreeMap<String, String>>) -> Protocol {
    let mut all = instances.into_iter().map(|labels| {
        labels
            .get(PROTOCOL)
            .is_some_and(|p| ["http2", "h2", "h2c", "grpc"].iter().any(|w| p.eq_ignore_ascii_case(w)))
    });
    match all.next() {
        Some(true) if all.all(|speaks_http2| speaks_http2) => Protocol::Http2,
        _ => Protocol::Http1,
    }
}

/// Checks a label that a person wrote: those above whose values are words or numbers, where nonsense would silently mean the default.
///
/// # Errors
/// What is allowed.
pub fn check(key: &str, value: &str) -> Result<(), &'static str> {
    let is_fine = match key {
        PROTOCOL => {
            ["http1", "http2", "h2", "h2c", "grpc", "tcp"].iter().any(|word| word.eq_ignore_ascii_case(value))
        }
        WEIGHT => value.parse().is_ok_and(|weight: u32| (1..=WEIGHT_MAX).contains(&weight)),
        PRIORITY => value.parse().is_ok_and(|priority: u32| priority <= PRIORITY_MAX),
        CAPACITY => value.parse().is_ok_and(|n: f64| n.is_finite() && n > 0.0),
        CURRENT_LOAD => value.parse().is_ok_and(|n: f64| n.is_finite() && n >= 0.0),
        _ => true,
    };
    match key {
        _ if is_fine => Ok(()),
        PROTOCOL => Err("http1, http2, h2, h2c, grpc or tcp"),
        PRIORITY => Err("a number from 0 to 128"),
        CAPACITY => Err("a number above 0"),
        CURRENT_LOAD => Err("a number from 0"),
        _ => Err("a number from 1 to 10000"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(key: &str, value: &str) -> BTreeMap<String, String> {
        BTreeMap::from([(key.to_owned(), value.to_owned())])
    }

    #[test]
    fn labels_that_would_silently_mean_the_default_are_refused() {
        for (key, value) in [(PROTOCOL, "http1"), (PROTOCOL, "GRPC"), (WEIGHT, "10000"), ("version", "")] {
            assert_eq!(check(key, value), Ok(()), "{key}={value}");
        }
        for (key, value, allowed) in [
            (PROTOCOL, "http3", "grpc"),
            (WEIGHT, "0", "10000"),
            (WEIGHT, "x", "10000"),
            (PRIORITY, "129", "128"),
            (CAPACITY, "0", "above 0"),
            (CURRENT_LOAD, "-1", "from 0"),
        ] {
            assert!(check(key, value).unwrap_err().contains(allowed), "{key}={value}");
        }
    }

    #[test]
    fn the_weight_label_is_the_weight_and_nonsense_is_one() {
        for (label, expected) in [("7", 7), ("0", 1), ("-3", 1), ("many", 1), ("10000", 10_000), ("10001", 1)]
        {
            assert_eq!(weight(&labels(WEIGHT, label)), expected, "{label}");
        }
    }

    #[test]
    fn a_load_is_reported_by_two_numbers_or_not_at_all() {
        let mut both = labels(CAPACITY, "100");
        assert_eq!(reported_load(&both), None);
        both.insert(CURRENT_LOAD.to_owned(), "45".to_owned());
        assert_eq!(reported_load(&both), Some(ReportedLoad { load: 45.0, capacity: 100.0 }));
        both.insert(CAPACITY.to_owned(), "0".to_owned());
        assert_eq!(reported_load(&both), None);
    }

    #[test]
    fn zones_are_the_same_only_within_a_region() {
        let place = |region: &str, zone: &str| Place { region: region.to_owned(), zone: zone.to_owned() };
        for (one, other, nearness) in [
            (place("eu", "a"), place("eu", "a"), Nearness::Zone),
            (place("eu", "a"), place("eu", "b"), Nearness::Region),
            (place("eu", "a"), place("us", "a"), Nearness::Elsewhere),
            (place("", "a"), place("eu", "a"), Nearness::Zone),
            (place("", ""), place("", ""), Nearness::Elsewhere),
        ] {
            assert_eq!(one.nearness(&other), nearness, "{one:?} {other:?}");
        }
    }

    #[test]
    fn a_service_is_http2_if_all_its_instances_are() {
        let (h2, h1) = (labels(PROTOCOL, "gRPC"), labels("version", "1"));
        assert_eq!(protocol([&h2, &h2]), Protocol::Http2);
        assert_eq!(protocol([&h2, &h1]), Protocol::Http1);
        assert_eq!(protocol([]), Protocol::Http1);
    }
}
