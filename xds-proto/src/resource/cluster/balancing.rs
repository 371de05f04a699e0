//! How an endpoint is chosen: Envoy's `load_balancing_policy` and the older `lb_policy`, and the words of people.
//!
//! What `lb_policy` cannot say stands in `load_balancing_policy`, a list of which every client takes the first that it
//! knows. The last one there is one that all know.

use std::fmt;
use std::str::FromStr;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3::TypedExtensionConfig;
use envoy_types::pb::envoy::config::route::v3::route_action::{HashPolicy, hash_policy};
use envoy_types::pb::envoy::extensions::load_balancing_policies::{
    common::v3::ConsistentHashingLbConfig,
    least_request::v3::{LeastRequest, least_request::SelectionMethod},
    maglev::v3::Maglev,
    random::v3::Random,
    ring_hash::v3::RingHash,
    round_robin::v3::RoundRobin,
};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::util::pack_any;
use prost::{Message, Name};
use serde::{Serialize, Serializer};

use super::{InvalidResource, SlowStart, Validator, number_to_proto};

/// How an endpoint is chosen among the usable ones.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub enum LbPolicy {
    /// Each in turn.
    #[default]
    RoundRobin,
    /// Any, with equal chance.
    Random,
    /// The one with the fewest requests in flight among all.
    LeastConnections,
    /// Of two drawn at random, the one with fewer requests in flight.
    LeastRequest,
    /// Of two drawn at random, the one that would answer sooner, by its latest answers and its requests in flight.
    PeakEwma,
    /// Of two drawn at random, the one that reports less load for its capacity (labels `current_load` and `capacity`).
    LowestLoad,
    /// The same one for the same key, on a ring of points (Ketama). Without a key: any.
    RingHash(Option<HashOn>),
    /// The same one for the same key, by a table with equal shares (Maglev). Without a key: any.
    Maglev(Option<HashOn>),
}

/// Which part of a request is the key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HashOn {
    /// The value of a header field, its name in lower case.
    Header(String),
    /// The value of a cookie. A client without it is given one.
    Cookie(String),
    /// The client's address.
    Source,
}

impl LbPolicy {
    /// Those without a key, in the order in which people are told them.
    pub const PLAIN: [Self; 6] = [
        Self::RoundRobin,
        Self::Random,
        Self::LeastConnections,
        Self::LeastRequest,
        Self::PeakEwma,
        Self::LowestLoad,
    ];

    /// What people may write.
    pub const WORDS: &'static str = "round-robin, random, least-connections, least-request, peak-ewma, lowest-load, \
        ring-hash:KEY or maglev:KEY, where KEY is header=NAME, cookie=NAME or source";

    const fn word(&self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::LeastConnections => "least-connections",
            Self::LeastRequest => "least-request",
            Self::PeakEwma => "peak-ewma",
            Self::LowestLoad => "lowest-load",
            Self::RingHash(_) => "ring-hash",
            Self::Maglev(_) => "maglev",
        }
    }

    /// Whether shares can be given step by step, as in Envoy.
    pub const fn takes_slow_start(&self) -> bool {
        matches!(self, Self::RoundRobin | Self::LeastConnections | Self::LeastRequest)
    }

    /// Whether a key decides.
    pub const fn hashes(&self) -> bool {
        matches!(self, Self::RingHash(_) | Self::Maglev(_))
    }

    /// The part of a request that decides; none where requests are all alike.
    pub fn hash_on(&self) -> Option<&HashOn> {
        match self {
            Self::RingHash(key) | Self::Maglev(key) => key.as_ref(),
            _ => None,
        }
    }
}

impl fmt::Display for LbPolicy {
    /// As it is read: `maglev:header=x-user`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())?;
        self.hash_on().map_or(Ok(()), |on| write!(f, ":{on}"))
    }
}

impl Serialize for LbPolicy {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

/// A word that is no balancing policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown load balancing policy {seen:?}, allowed: {}", LbPolicy::WORDS)]
pub struct UnknownLbPolicy {
    /// The word.
    pub seen: String,
}

impl FromStr for LbPolicy {
    type Err = UnknownLbPolicy;
    fn from_str(s: &str) -> Result<Self, UnknownLbPolicy> {
        if let Some(plain) = Self::PLAIN.into_iter().find(|p| p.word() == s) {
            return Ok(plain);
        }
        let hashed = s.split_once(':').and_then(|(word, key)| {
            let key = key.parse().ok()?;
            match word {
                "ring-hash" => Some(Self::RingHash(Some(key))),
                "maglev" => Some(Self::Maglev(Some(key))),
                _ => None,
            }
        });
        hashed.ok_or_else(|| UnknownLbPolicy { seen: s.chars().take(64).collect() })
    }
}

impl fmt::Display for HashOn {
    /// As it is read: `header=x-user`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header={name}"),
            Self::Cookie(name) => write!(f, "cookie={name}"),
            Self::Source => f.write_str("source"),
        }
    }
}

impl FromStr for HashOn {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        match s.split_once('=') {
            None if s == "source" => Ok(Self::Source),
            Some(("header", name)) if is_token(name) => Ok(Self::Header(name.to_ascii_lowercase())),
            Some(("cookie", name)) if is_token(name) => Ok(Self::Cookie(name.to_owned())),
            _ => Err(()),
        }
    }
}

/// A name of a header field or a cookie (RFC 9110 §5.6.2), of a length that fits into an answer.
fn is_token(name: &str) -> bool {
    let is_char = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=64).contains(&name.len()) && name.bytes().all(is_char)
}

/// Ours alone; others take the next one in the list.
const PEAK_EWMA: &str = "type.googleapis.com/weft.v1.PeakEwma";
const LOWEST_LOAD: &str = "type.googleapis.com/weft.v1.LowestLoad";
const FIELD: &str = "load_balancing_policy";

pub(super) fn decode(v: &Validator<'_>, p: &pb::Cluster) -> Result<LbPolicy, InvalidResource> {
    match &p.load_balancing_policy {
        None => old(v, p),
        Some(list) => {
            let known = list.policies.iter().filter_map(|p| p.typed_extension_config.as_ref());
            let known = known.filter_map(|c| extension(v, c.typed_config.as_ref()?).transpose());
            known.into_iter().next().unwrap_or_else(|| {
                let names: Vec<_> = list
                    .policies
                    .iter()
                    .filter_map(|p| Some(p.typed_extension_config.as_ref()?.name.as_str()))
                    .collect();
                let allowed =
                    "a list with RoundRobin, Random, LeastRequest, RingHash or Maglev, none within another";
                Err(v.error(FIELD, format!("{names:?}"), allowed))
            })
        }
    }
}

fn old(v: &Validator<'_>, p: &pb::Cluster) -> Result<LbPolicy, InvalidResource> {
    use pb::cluster::{LbConfig, LbPolicy as P};
    let policy = p.lb_policy;
    match P::try_from(policy) {
        Ok(P::RoundRobin) => Ok(LbPolicy::RoundRobin),
        Ok(P::Random) => Ok(LbPolicy::Random),
        Ok(P::LeastRequest) => {
            if let Some(LbConfig::LeastRequestLbConfig(c)) = &p.lb_config {
                two_choices(v, "least_request_lb_config", c.choice_count.as_ref())?;
            }
            Ok(LbPolicy::LeastRequest)
        }
        // What the key is, routes say there.
        Ok(P::RingHash) => Ok(LbPolicy::RingHash(None)),
        Ok(P::Maglev) => Ok(LbPolicy::Maglev(None)),
        other => {
            let seen = other.map_or_else(|_| policy.to_string(), |p| p.as_str_name().to_owned());
            Err(v.error("lb_policy", seen, "ROUND_ROBIN, RANDOM, LEAST_REQUEST, RING_HASH or MAGLEV"))
        }
    }
}

fn two_choices(
    v: &Validator<'_>,
    field: &str,
    count: Option<&envoy_types::pb::google::protobuf::UInt32Value>,
) -> Result<u32, InvalidResource> {
    v.number(format!("{field}.choice_count"), count, 2, (2, 2))
}

/// None if it is not known here.
fn extension(v: &Validator<'_>, any: &Any) -> Result<Option<LbPolicy>, InvalidResource> {
    let is = |url: String| any.type_url == url;
    let broken = |e: prost::DecodeError| {
        v.error(FIELD, format!("undecodable: {e}"), format!("a message of type {}", any.type_url))
    };
    Ok(Some(if is(RoundRobin::type_url()) {
        LbPolicy::RoundRobin
    } else if is(Random::type_url()) {
        LbPolicy::Random
    } else if is(LeastRequest::type_url()) {
        let config = LeastRequest::decode(any.value.as_slice()).map_err(broken)?;
        #[allow(deprecated)]
        let full_scan = config.selection_method == SelectionMethod::FullScan as i32
            || config.enable_full_scan.is_some_and(|b| b.value);
        if full_scan {
            LbPolicy::LeastConnections
        } else {
            two_choices(v, &format!("{FIELD}: LeastRequest"), config.choice_count.as_ref())?;
            LbPolicy::LeastRequest
        }
    } else if is(RingHash::type_url()) {
        let config = RingHash::decode(any.value.as_slice()).map_err(broken)?;
        LbPolicy::RingHash(hash_on(v, config.consistent_hashing_lb_config.as_ref())?)
    } else if is(Maglev::type_url()) {
        let config = Maglev::decode(any.value.as_slice()).map_err(broken)?;
        LbPolicy::Maglev(hash_on(v, config.consistent_hashing_lb_config.as_ref())?)
    } else if any.type_url == PEAK_EWMA {
        LbPolicy::PeakEwma
    } else if any.type_url == LOWEST_LOAD {
        LbPolicy::LowestLoad
    } else {
        return Ok(None);
    }))
}

fn hash_on(
    v: &Validator<'_>,
    config: Option<&ConsistentHashingLbConfig>,
) -> Result<Option<HashOn>, InvalidResource> {
    let Some(config) = config else { return Ok(None) };
    let field = format!("{FIELD}: consistent_hashing_lb_config");
    if config.hash_balance_factor.is_some() {
        return Err(v.error(format!("{field}.hash_balance_factor"), "set", "unset"));
    }
    let policy = match config.hash_policy.as_slice() {
        [] => return Ok(None),
        [policy] => policy,
        more => {
            return Err(v.error(
                format!("{field}.hash_policy"),
                format!("{} of them", more.len()),
                "at most 1",
            ));
        }
    };
    key(policy).map(Some).map_err(|seen| v.error(format!("{field}.hash_policy"), seen, HASH_POLICY))
}

/// What a hash policy may be.
pub(in crate::resource) const HASH_POLICY: &str =
    "a header without regex_rewrite, a cookie, or connection_properties with source_ip";

/// The key of a hash policy, of a cluster or a route; else what it is instead.
pub(in crate::resource) fn key(policy: &HashPolicy) -> Result<HashOn, &'static str> {
    use hash_policy::PolicySpecifier as P;
    match &policy.policy_specifier {
        Some(P::Header(h)) if h.regex_rewrite.is_none() && is_token(&h.header_name) => {
            Ok(HashOn::Header(h.header_name.to_ascii_lowercase()))
        }
        Some(P::Cookie(c)) if is_token(&c.name) => Ok(HashOn::Cookie(c.name.clone())),
        Some(P::ConnectionProperties(c)) if c.source_ip => Ok(HashOn::Source),
        Some(P::Header(_)) => Err("another header"),
        Some(P::Cookie(_)) => Err("a cookie whose name is none"),
        Some(_) => Err("another key"),
        None => Err("no key"),
    }
}

/// The same as Envoy's message.
pub(in crate::resource) fn key_to_proto(key: &HashOn, terminal: bool) -> HashPolicy {
    use hash_policy::PolicySpecifier as P;
    let key = match key {
        HashOn::Header(name) => {
            P::Header(hash_policy::Header { header_name: name.clone(), regex_rewrite: None })
        }
        // A time of 0 makes a cookie for a session.
        HashOn::Cookie(name) => P::Cookie(hash_policy::Cookie {
            name: name.clone(),
            ttl: Some(Default::default()),
            path: "/".to_owned(),
            ..hash_policy::Cookie::default()
        }),
        HashOn::Source => P::ConnectionProperties(hash_policy::ConnectionProperties { source_ip: true }),
    };
    HashPolicy { terminal, policy_specifier: Some(key) }
}

/// The older field, and the newer one where that says more.
pub(super) fn encode(
    policy: &LbPolicy,
    slow_start: Option<SlowStart>,
) -> (pb::cluster::LbPolicy, Option<pb::LoadBalancingPolicy>) {
    use pb::cluster::LbPolicy as P;
    let two = || LeastRequest {
        choice_count: Some(number_to_proto(2)),
        slow_start_config: slow_start.map(SlowStart::extension),
        ..LeastRequest::default()
    };
    let round_robin = || ("envoy.load_balancing_policies.round_robin", pack_any(RoundRobin::default()));
    let least = |config| ("envoy.load_balancing_policies.least_request", pack_any(config));
    match policy {
        LbPolicy::RoundRobin => (P::RoundRobin, None),
        LbPolicy::Random => (P::Random, None),
        LbPolicy::LeastConnections => {
            let scan = LeastRequest { selection_method: SelectionMethod::FullScan as i32, ..two() };
            (P::LeastRequest, Some(list(vec![least(scan), round_robin()])))
        }
        LbPolicy::LeastRequest => (P::LeastRequest, Some(list(vec![least(two()), round_robin()]))),
        LbPolicy::PeakEwma | LbPolicy::LowestLoad => {
            let (name, url) = match policy {
                LbPolicy::PeakEwma => ("weft.peak_ewma", PEAK_EWMA),
                _ => ("weft.lowest_load", LOWEST_LOAD),
            };
            let ours = (name, Any { type_url: url.to_owned(), value: Vec::new() });
            (P::LeastRequest, Some(list(vec![ours, least(two()), round_robin()])))
        }
        LbPolicy::RingHash(key) => {
            let config =
                RingHash { consistent_hashing_lb_config: Some(hashing(key.as_ref())), ..Default::default() };
            let ring = ("envoy.load_balancing_policies.ring_hash", pack_any(config));
            (P::RingHash, Some(list(vec![ring, round_robin()])))
        }
        LbPolicy::Maglev(key) => {
            let config =
                Maglev { consistent_hashing_lb_config: Some(hashing(key.as_ref())), ..Default::default() };
            let maglev = ("envoy.load_balancing_policies.maglev", pack_any(config));
            (P::Maglev, Some(list(vec![maglev, round_robin()])))
        }
    }
}

fn list(policies: Vec<(&str, Any)>) -> pb::LoadBalancingPolicy {
    let policy = |(name, config): (&str, Any)| pb::load_balancing_policy::Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: name.to_owned(),
            typed_config: Some(config),
        }),
    };
    pb::LoadBalancingPolicy { policies: policies.into_iter().map(policy).collect() }
}

fn hashing(key: Option<&HashOn>) -> ConsistentHashingLbConfig {
    ConsistentHashingLbConfig {
        hash_policy: key.map(|key| key_to_proto(key, false)).into_iter().collect(),
        ..ConsistentHashingLbConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: Validator<'static> = Validator { kind: "Cluster", name: "orders" };

    fn cluster(policies: Vec<(&str, Any)>) -> pb::Cluster {
        pb::Cluster { load_balancing_policy: Some(list(policies)), ..pb::Cluster::default() }
    }

    #[test]
    fn policies_are_read_as_they_are_written() {
        let hashed = ["ring-hash:source", "maglev:header=x-user", "maglev:cookie=SID"];
        for text in LbPolicy::PLAIN.iter().map(ToString::to_string).chain(hashed.map(str::to_owned)) {
            assert_eq!(text.parse::<LbPolicy>().unwrap().to_string(), text);
        }
        assert_eq!("maglev:header=X-User".parse::<LbPolicy>().unwrap().to_string(), "maglev:header=x-user");
        for bad in [
            "round_robin",
            "maglev",
            "maglev:",
            "maglev:header=",
            "maglev:cookie=a b",
            "random:source",
            "ring-hash:ip",
        ] {
            let e = bad.parse::<LbPolicy>().unwrap_err();
            assert!(e.to_string().contains("allowed: round-robin, random, least-connections"), "{e}");
        }
    }

    #[test]
    fn the_first_policy_that_is_known_is_taken() {
        let unknown = ("other", Any { type_url: "type.googleapis.com/x.Y".to_owned(), value: Vec::new() });
        let random = ("r", pack_any(Random::default()));
        let both = cluster(vec![unknown.clone(), random, ("rr", pack_any(RoundRobin::default()))]);
        assert_eq!(decode(&V, &both).unwrap(), LbPolicy::Random);
        let e = decode(&V, &cluster(vec![unknown])).unwrap_err();
        assert_eq!((e.field.as_str(), e.seen.as_str()), (FIELD, r#"["other"]"#));
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_field() {
        let three = LeastRequest { choice_count: Some(number_to_proto(3)), ..LeastRequest::default() };
        assert!(
            decode(&V, &cluster(vec![("l", pack_any(three))])).unwrap_err().field.contains("choice_count")
        );
        let with = |change: fn(&mut ConsistentHashingLbConfig)| {
            let mut hashing = hashing(Some(&HashOn::Source));
            change(&mut hashing);
            let maglev = Maglev { consistent_hashing_lb_config: Some(hashing), ..Maglev::default() };
            decode(&V, &cluster(vec![("m", pack_any(maglev))])).unwrap_err().field
        };
        assert!(with(|c| c.hash_balance_factor = Some(number_to_proto(150))).contains("hash_balance_factor"));
        assert!(with(|c| c.hash_policy.push(c.hash_policy[0].clone())).contains("hash_policy"));
        assert!(with(|c| c.hash_policy[0].policy_specifier = None).contains("hash_policy"));
    }

    /// gRPC knows neither Maglev nor ours, and takes the last one.
    #[test]
    fn every_list_ends_with_a_policy_that_all_know() {
        let maglev = LbPolicy::Maglev(Some(HashOn::Source));
        for policy in [LbPolicy::LeastConnections, LbPolicy::LeastRequest, LbPolicy::PeakEwma, maglev] {
            let (_, list) = encode(&policy, None);
            let last = list.unwrap().policies.pop().unwrap().typed_extension_config.unwrap();
            assert_eq!(last.typed_config.unwrap().type_url, RoundRobin::type_url());
        }
    }
}
