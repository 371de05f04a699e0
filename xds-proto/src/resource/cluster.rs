//! CDS: how to reach a service, apart from where its instances are.

use std::collections::HashMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::{HttpProtocolOptions, http_protocol_options};
use envoy_types::util::pack_any;
use prost::Message;
use serde::Serialize;

use super::guard::{self, Guard};
use super::{InvalidResource, Validator, duration_to_proto, number_to_proto};

mod adaptive;
pub(in crate::resource) mod balancing;
mod breaker;
mod health_check;
mod metadata;
mod outlier;
mod panic;
mod rate_limit;
mod send_proxy;
mod slow_start;
mod subsets;
mod timeouts;
pub mod tls;
mod zone_aware;

pub use adaptive::AdaptiveConcurrency;
pub use balancing::{HashOn, LbPolicy, UnknownLbPolicy};
pub use breaker::{CircuitBreaker, RetryLimit};
pub use health_check::{CheckBy, HealthCheck};
pub use outlier::{FailurePercentage, Latency, OutlierDetection, Sample, SuccessRate};
pub use panic::PanicPolicy;
pub use rate_limit::RateLimit;
pub use send_proxy::ProxyVersion;
pub use slow_start::SlowStart;
pub use subsets::{SubsetFallback, Subsets};
pub use timeouts::Timeouts;
pub use tls::{ClusterTls, UpstreamTls};
pub use zone_aware::ZoneAware;

/// A service as proxies see it. Its endpoints come by EDS under the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cluster {
    /// Service name.
    pub name: String,
    /// How an endpoint is chosen.
    pub lb_policy: LbPolicy,
    /// Endpoints that are new or back get their share step by step.
    pub slow_start: Option<SlowStart>,
    /// Longest wait for a connection; 1 ms to 1 h.
    pub connect_timeout: Duration,
    /// Active check of each endpoint; none: only what traffic shows.
    pub health_check: Option<HealthCheck>,
    /// When failing endpoints are left out for a while.
    pub outlier_detection: OutlierDetection,
    /// What endpoints speak.
    pub protocol: Protocol,
    /// How connections to them are protected; none: as each endpoint says.
    pub tls: Option<ClusterTls>,
    /// Each connection to them begins with whose it is; none: nothing is said.
    pub send_proxy: Option<ProxyVersion>,
    /// What may be under way at once.
    pub breaker: CircuitBreaker,
    /// What to do when few endpoints are usable.
    pub panic: PanicPolicy,
    /// How many requests a proxy sends in a time; none: as many as there are.
    pub rate_limit: Option<RateLimit>,
    /// Finds out how many may be under way at once; none: what `breaker` says alone.
    pub adaptive: Option<AdaptiveConcurrency>,
    /// Who may call it: for its own sidecars.
    pub guard: Option<Guard>,
    /// Endpoints near the proxy come first; none: all alike.
    pub zone_aware: Option<ZoneAware>,
    /// Times of requests whose route says none.
    pub timeouts: Timeouts,
    /// By which labels routes tell its instances apart.
    pub subsets: Subsets,
}

impl Cluster {
    /// A service with default values: what a proxy uses for one that it knows from gossip alone.
    pub fn with_defaults(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            lb_policy: LbPolicy::default(),
            slow_start: None,
            connect_timeout: CONNECT_TIMEOUT_DEFAULT,
            health_check: Some(HealthCheck::default()),
            outlier_detection: OutlierDetection::default(),
            protocol: Protocol::default(),
            tls: None,
            send_proxy: None,
            breaker: CircuitBreaker::default(),
            panic: PanicPolicy::default(),
            rate_limit: None,
            adaptive: None,
            guard: None,
            zone_aware: None,
            timeouts: Timeouts::default(),
            subsets: Subsets::default(),
        }
    }
}

/// What endpoints speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, Serialize)]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, by prior knowledge; over TLS agreed on by ALPN.
    Http2,
}

/// Envoy's default too; loopback and data-centre connections take milliseconds.
const CONNECT_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
const HOUR: Duration = Duration::from_secs(3600);
const CONNECT_TIMEOUT_RANGE: (Duration, Duration) = (Duration::from_millis(1), HOUR);
const EJECTION_TIME_RANGE: (Duration, Duration) = (Duration::from_millis(1), HOUR);
const HTTP_OPTIONS_KEY: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

impl TryFrom<pb::Cluster> for Cluster {
    type Error = InvalidResource;

    fn try_from(p: pb::Cluster) -> Result<Self, InvalidResource> {
        let v = Validator { kind: "Cluster", name: &p.name };
        let name = v.name("name")?;
        check_endpoints_come_by_eds(&v, &p)?;
        let lb_policy = balancing::decode(&v, &p)?;
        let proxied = send_proxy::decode(&v, p.transport_socket.as_ref())?;
        Ok(Self {
            lb_policy: lb_policy.clone(),
            slow_start: slow_start::decode(&v, &p)?.filter(|_| lb_policy.takes_slow_start()),
            connect_timeout: v.duration(
                "connect_timeout",
                p.connect_timeout.as_ref(),
                CONNECT_TIMEOUT_DEFAULT,
                CONNECT_TIMEOUT_RANGE,
            )?,
            health_check: health_check::decode(&v, &p)?,
            outlier_detection: outlier::decode(&v, &p)?,
            protocol: protocol(&v, &p)?,
            tls: tls::decode(&v, &p, proxied.as_ref().map(|(_, within)| within))?,
            send_proxy: proxied.map(|(version, _)| version),
            breaker: breaker::decode(&v, p.circuit_breakers.as_ref())?,
            panic: panic::decode(&v, p.common_lb_config.as_ref())?,
            rate_limit: rate_limit::decode(&v, p.metadata.as_ref())?,
            adaptive: adaptive::decode(&v, p.metadata.as_ref())?,
            guard: guard(&v, p.metadata.as_ref())?,
            subsets: subsets::decode(&v, &p)?,
            timeouts: timeouts::decode(&v, p.metadata.as_ref())?,
            zone_aware: zone_aware::decode(&v, p.metadata.as_ref(), p.common_lb_config.as_ref())?,
            name,
        })
    }
}

fn guard(v: &Validator<'_>, metadata: Option<&core::Metadata>) -> Result<Option<Guard>, InvalidResource> {
    let ours = metadata.and_then(|m| m.filter_metadata.get(guard::NAMESPACE));
    ours.map(|ours| guard::decode(v, ours)).transpose()
}

fn check_endpoints_come_by_eds(v: &Validator<'_>, p: &pb::Cluster) -> Result<(), InvalidResource> {
    use core::config_source::ConfigSourceSpecifier as Source;
    use pb::cluster::{ClusterDiscoveryType, DiscoveryType};
    match &p.cluster_discovery_type {
        Some(ClusterDiscoveryType::Type(t)) if *t == DiscoveryType::Eds as i32 => {}
        Some(ClusterDiscoveryType::Type(t)) => {
            let seen =
                DiscoveryType::try_from(*t).map_or_else(|_| t.to_string(), |t| t.as_str_name().to_owned());
            return Err(v.error("type", seen, "EDS"));
        }
        Some(ClusterDiscoveryType::ClusterType(c)) => return Err(v.error("cluster_type", &c.name, "unset")),
        None => return Err(v.error("type", "STATIC", "EDS")),
    }
    let Some(eds) = &p.eds_cluster_config else {
        return Err(v.error("eds_cluster_config", "nothing", "eds_config with ads"));
    };
    match eds.eds_config.as_ref().and_then(|c| c.config_source_specifier.as_ref()) {
        Some(Source::Ads(_) | Source::Self_(_)) => {}
        _ => return Err(v.error("eds_cluster_config.eds_config", "another source", "ads or self")),
    }
    if !eds.service_name.is_empty() && eds.service_name != p.name {
        return Err(v.error(
            "eds_cluster_config.service_name",
            format!("{:?}", eds.service_name),
            "empty or the cluster's name",
        ));
    }
    Ok(())
}

fn protocol(v: &Validator<'_>, p: &pb::Cluster) -> Result<Protocol, InvalidResource> {
    use http_protocol_options::UpstreamProtocolOptions as Options;
    use http_protocol_options::explicit_http_config::ProtocolConfig as Config;
    let Some(any) = p.typed_extension_protocol_options.get(HTTP_OPTIONS_KEY) else {
        // The older way to say it, which some control planes still use.
        #[allow(deprecated)]
        return Ok(if p.http2_protocol_options.is_some() { Protocol::Http2 } else { Protocol::Http1 });
    };
    let field = format!("typed_extension_protocol_options[{HTTP_OPTIONS_KEY}]");
    let options = HttpProtocolOptions::decode(any.value.as_slice())
        .map_err(|e| v.error(&field, format!("undecodable: {e}"), "an HttpProtocolOptions message"))?;
    let seen = match options.upstream_protocol_options {
        Some(Options::ExplicitHttpConfig(explicit)) => match explicit.protocol_config {
            Some(Config::HttpProtocolOptions(_)) => return Ok(Protocol::Http1),
            Some(Config::Http2ProtocolOptions(_)) => return Ok(Protocol::Http2),
            Some(Config::Http3ProtocolOptions(_)) => "http3_protocol_options",
            None => "an empty explicit_http_config",
        },
        Some(Options::UseDownstreamProtocolConfig(_)) => "use_downstream_protocol_config",
        Some(Options::AutoConfig(_)) => "auto_config",
        None => return Ok(Protocol::Http1),
    };
    Err(v.error(field, seen, "explicit_http_config with HTTP/1 or HTTP/2"))
}

impl From<&Cluster> for pb::Cluster {
    fn from(c: &Cluster) -> Self {
        use pb::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};
        let (lb_policy, load_balancing_policy) = balancing::encode(&c.lb_policy, c.slow_start);
        Self {
            name: c.name.clone(),
            cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
            eds_cluster_config: Some(EdsClusterConfig {
                eds_config: Some(super::over_ads()),
                service_name: String::new(),
            }),
            connect_timeout: Some(duration_to_proto(c.connect_timeout)),
            lb_policy: lb_policy as i32,
            lb_subset_config: subsets::encode(&c.subsets),
            load_balancing_policy,
            lb_config: slow_start::encode(&c.lb_policy, c.slow_start),
            health_checks: c
                .health_check
                .iter()
                .map(|check| health_check::encode(check, c.protocol))
                .collect(),
            outlier_detection: outlier::encode(&c.outlier_detection),
            metadata: to_metadata(c),
            transport_socket: transport_socket(c),
            transport_socket_matches: tls::encode_matches(c.tls.as_ref(), c.protocol),
            common_lb_config: Some(panic::encode(c.panic, c.zone_aware)),
            circuit_breakers: Some(breaker::encode(&c.breaker)),
            typed_extension_protocol_options: match c.protocol {
                Protocol::Http1 => Default::default(),
                Protocol::Http2 => [(HTTP_OPTIONS_KEY.to_owned(), pack_any(http2_options()))].into(),
            },
            ..Self::default()
        }
    }
}

fn transport_socket(c: &Cluster) -> Option<core::TransportSocket> {
    let tls = c.tls.as_ref().and_then(|tls| tls::encode(tls, c.protocol));
    match c.send_proxy {
        Some(version) => Some(send_proxy::encode(version, tls)),
        None => tls,
    }
}

/// What Envoy has no field for.
fn to_metadata(c: &Cluster) -> Option<core::Metadata> {
    let outlier = outlier::encode_metadata(&c.outlier_detection);
    let all = outlier.into_iter().chain(c.rate_limit.map(rate_limit::encode));
    let all = all.chain(c.adaptive.map(adaptive::encode)).chain(c.zone_aware.map(zone_aware::encode));
    let all = all.chain(c.tls.as_ref().and_then(tls::encode_metadata));
    let all = all.chain(c.guard.as_ref().map(guard::encode));
    let all = all.chain(timeouts::encode(c.timeouts));
    let all = all.chain(c.health_check.as_ref().and_then(|h| health_check::encode_metadata(h, c.protocol)));
    let filter_metadata: HashMap<_, _> = all.collect();
    (!filter_metadata.is_empty()).then(|| core::Metadata { filter_metadata, ..core::Metadata::default() })
}

fn http2_options() -> HttpProtocolOptions {
    use http_protocol_options::{
        ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
    };
    HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(
                ProtocolConfig::Http2ProtocolOptions(core::Http2ProtocolOptions::default()),
            ),
        })),
        ..HttpProtocolOptions::default()
    }
}

#[cfg(test)]
mod tests;
