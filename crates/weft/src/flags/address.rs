//! Addresses and services as people write them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use weft_core::config::parse_duration;
use weft_xds_proto::resource::cluster::RateLimit;

/// A listener: `IP:PORT`, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Listen {
    /// None.
    Off,
    /// There; port 0 is any free one.
    At(SocketAddr),
}

impl Listen {
    pub(crate) fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Off => None,
            Self::At(address) => Some(address),
        }
    }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            _ => socket(text).map(Self::At).map_err(|why| format!("{why}, or off")),
        }
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A service beside the sidecar: `NAME=IP:PORT`, then `,check=/PATH` and `,LABEL=VALUE` as wanted.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct ServiceSpec {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    /// Path of the active check; none: a TCP connection is enough.
    pub(crate) check: Option<String>,
    /// What peers are told of the instance.
    pub(crate) labels: BTreeMap<String, String>,
    /// How many requests pass to it.
    pub(crate) rate_limit: Option<RateLimit>,
}

impl FromStr for ServiceSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shape = "expected NAME=IP:PORT[,check=/PATH][,LABEL=VALUE…]";
        let (name, rest) = text.split_once('=').ok_or_else(|| format!("{text:?} has no =; {shape}"))?;
        let mut parts = rest.split(',');
        let address = parts.next().unwrap_or_default();
        let (mut check, mut labels, mut rate_limit) = (None, BTreeMap::new(), None);
        for part in parts {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("{part:?} has no =; {shape}"))?;
            let earlier = match key {
                "check" if value.starts_with('/') => check.replace(value.to_owned()),
                "check" => return Err(format!("check path {value:?} does not begin with /; {shape}")),
                "rate-limit" => rate_limit.replace(rate(value)?).map(|_| String::new()),
                _ => labels.insert(key.to_owned(), value.to_owned()),
            };
            if earlier.is_some() {
                return Err(format!("{key:?} is given twice; {shape}"));
            }
        }
        if name.is_empty() {
            return Err(format!("{text:?} has no name; {shape}"));
        }
        let address = socket(address).map_err(|why| format!("{why}; {shape}"))?;
        Ok(Self { name: name.to_owned(), address, check, labels, rate_limit })
    }
}

impl TryFrom<String> for ServiceSpec {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// `REQUESTS/TIME`, such as `100/1s`; so many may come at once.
fn rate(text: &str) -> Result<RateLimit, String> {
    let parsed = text.split_once('/').and_then(|(requests, per)| {
        let requests = requests.parse().ok().filter(|n| *n > 0)?;
        let per = parse_duration(per).ok().filter(|t| !t.is_zero() && *t <= RATE_PER_MAX)?;
        Some(RateLimit { requests, per, burst: requests })
    });
    parsed.ok_or_else(|| {
        format!(
            "rate-limit {text:?} is not REQUESTS/TIME with at least 1 request and at most 1h, such as 100/1s"
        )
    })
}

/// As in policies.
const RATE_PER_MAX: Duration = Duration::from_secs(3600);

fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("{text:?} is no address; expected IP:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_limit_of_a_service_is_a_number_in_a_time() {
        let limited: ServiceSpec = "orders=127.0.0.1:1,rate-limit=100/2s,version=2".parse().unwrap();
        let limit = RateLimit { requests: 100, per: Duration::from_secs(2), burst: 100 };
        assert_eq!((limited.rate_limit, limited.labels.len()), (Some(limit), 1));
        for bad in ["100", "0/1s", "-1/1s", "100/0s", "100/2h", "many/1s"] {
            let why = format!("orders=127.0.0.1:1,rate-limit={bad}").parse::<ServiceSpec>().unwrap_err();
            assert!(why.contains("such as 100/1s"), "{why}");
        }
    }

    #[test]
    fn a_service_has_a_name_an_address_and_maybe_a_check_and_labels() {
        let plain: ServiceSpec = "orders=127.0.0.1:8080".parse().unwrap();
        assert_eq!((plain.name.as_str(), plain.address.port(), plain.check), ("orders", 8080, None));
        let checked: ServiceSpec = "orders=[::1]:8080,check=/health?deep=1".parse().unwrap();
        assert_eq!(checked.check.as_deref(), Some("/health?deep=1"));
        let labelled: ServiceSpec = "orders=127.0.0.1:1,protocol=grpc,check=/,version=1.2.0".parse().unwrap();
        assert_eq!(labelled.check.as_deref(), Some("/"));
        assert_eq!(labelled.labels["protocol"], "grpc");
        assert_eq!(labelled.labels["version"], "1.2.0");
    }

    #[test]
    fn a_wrong_service_says_what_is_wrong_and_what_is_expected() {
        for (text, part) in [
            ("orders", "no ="),
            ("=127.0.0.1:1", "no name"),
            ("orders=localhost:1", "no address"),
            ("orders=127.0.0.1", "no address"),
            ("orders=127.0.0.1:1,check=health", "begin with /"),
            ("orders=127.0.0.1:1,version", "no ="),
            ("orders=127.0.0.1:1,version=1,version=2", "\"version\" is given twice"),
        ] {
            let error = text.parse::<ServiceSpec>().unwrap_err();
            assert!(error.contains(part) && error.contains("NAME=IP:PORT"), "{text}: {error}");
        }
    }

    #[test]
    fn a_listener_is_an_address_or_off() {
        assert_eq!("off".parse::<Listen>().unwrap().address(), None);
        assert_eq!("127.0.0.1:0".parse::<Listen>().unwrap().address(), "127.0.0.1:0".parse().ok());
        assert!("15001".parse::<Listen>().unwrap_err().contains("or off"));
    }
}
