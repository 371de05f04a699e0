//! Labels of an instance that mean something to the mesh, read alike by the server that builds resources and by the
//! proxy that learns instances from gossip.

use std::collections::BTreeMap;

use super::cluster::Protocol;

/// Label that says what an instance speaks.
pub const PROTOCOL: &str = "protocol";
/// Label that says which share of the traffic an instance takes.
pub const WEIGHT: &str = "weight";

/// Largest weight. Clients add the weights of a service's endpoints in 32 bits; this leaves room for 400,000.
pub const WEIGHT_MAX: u32 = 10_000;

/// The weight that the labels ask for; 1 if they say nothing or no number from 1 to [`WEIGHT_MAX`].
pub fn weight(labels: &BTreeMap<String, String>) -> u32 {
    labels.get(WEIGHT).and_then(|w| w.parse().ok()).filter(|w| (1..=WEIGHT_MAX).contains(w)).unwrap_or(1)
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

/// Checks a label that a person wrote: the two above, where nonsense would silently mean the default.
///
/// # Errors
/// What is allowed.
pub fn check(key: &str, value: &str) -> Result<(), &'static str> {
    let is_fine = match key {
        PROTOCOL => {
            ["http1", "http2", "h2", "h2c", "grpc", "tcp"].iter().any(|word| word.eq_ignore_ascii_case(value))
        }
        WEIGHT => value.parse().is_ok_and(|weight: u32| (1..=WEIGHT_MAX).contains(&weight)),
        _ => true,
    };
    match key {
        _ if is_fine => Ok(()),
        PROTOCOL => Err("http1, http2, h2, h2c, grpc or tcp"),
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
        for (key, value, allowed) in
            [(PROTOCOL, "http3", "grpc"), (WEIGHT, "0", "10000"), (WEIGHT, "x", "10000")]
        {
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
    fn a_service_is_http2_if_all_its_instances_are() {
        let (h2, h1) = (labels(PROTOCOL, "gRPC"), labels("version", "1"));
        assert_eq!(protocol([&h2, &h2]), Protocol::Http2);
        assert_eq!(protocol([&h2, &h1]), Protocol::Http1);
        assert_eq!(protocol([]), Protocol::Http1);
    }
}
