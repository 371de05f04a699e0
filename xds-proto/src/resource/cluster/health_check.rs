//! Active checks: Envoy's `health_checks`, of which a cluster has one or none.
//!
//! Envoy takes a check by gRPC only for a cluster that speaks HTTP/2. Ours asks over HTTP/2 whatever the requests go by, so that
//! one for a cluster of HTTP/1 stands in the metadata, beside a check by connection for Envoy.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::r#type::v3::CodecClientType;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use serde::Serialize;

use super::{HOUR, InvalidResource, Protocol, Validator, duration_to_proto, number_to_proto};

/// Active check of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthCheck {
    /// What is asked.
    pub by: CheckBy,
    /// Between the starts of two checks; 10 ms to 1 h.
    pub interval: Duration,
    /// Longest wait for an answer; 1 ms to 1 h.
    pub timeout: Duration,
    /// Failures in a row that take a healthy endpoint out; 1 to 100.
    pub unhealthy_threshold: u32,
    /// Successes in a row that bring it back; 1 to 100.
    pub healthy_threshold: u32,
}

/// What a check asks an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub enum CheckBy {
    /// A TCP connection is enough.
    #[default]
    Connect,
    /// GET this path and expect a 2xx status.
    Get(String),
    /// `grpc.health.v1.Health/Check` of this service and expect `SERVING`; empty: of the server as a whole.
    Grpc(String),
}

impl CheckBy {
    /// GET it if there is one.
    pub fn path(path: Option<String>) -> Self {
        path.map_or(Self::Connect, Self::Get)
    }
}

impl Default for HealthCheck {
    /// TCP, each 2 s, 1 s for an answer, out after 2 failures, back after 1 success: an endpoint that vanishes
    /// silently is out within 5 s, at half a connection per second and endpoint.
    fn default() -> Self {
        Self {
            by: CheckBy::Connect,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            unhealthy_threshold: 2,
            healthy_threshold: 1,
        }
    }
}

const CHECK_INTERVAL_RANGE: (Duration, Duration) = (Duration::from_millis(10), HOUR);
const CHECK_TIMEOUT_RANGE: (Duration, Duration) = (Duration::from_millis(1), HOUR);
const CHECK_THRESHOLD_RANGE: (u32, u32) = (1, 100);
const HEALTH_PATH_BYTES_MAX: usize = 1024;
const CHECKERS: &str = "http_health_check, tcp_health_check or grpc_health_check";

const METADATA: &str = "weft.health_check";
const GRPC: &str = "grpc";

pub(super) fn decode(v: &Validator<'_>, p: &pb::Cluster) -> Result<Option<HealthCheck>, InvalidResource> {
    use core::health_check::HealthChecker;
    let check = match p.health_checks.as_slice() {
        [] => return Ok(None),
        [check] => check,
        more => return Err(v.error("health_checks", format!("{} of them", more.len()), "at most 1")),
    };
    let by = match &check.health_checker {
        Some(HealthChecker::HttpHealthCheck(http)) => {
            let ok = http.path.starts_with('/')
                && http.path.len() <= HEALTH_PATH_BYTES_MAX
                && http.path.bytes().all(|b| b.is_ascii_graphic());
            if !ok {
                return Err(v.error(
                    "health_checks[0].http_health_check.path",
                    format!("{:?}", http.path.chars().take(64).collect::<String>()),
                    "a path of 1 to 1024 visible ASCII characters that starts with /",
                ));
            }
            CheckBy::Get(http.path.clone())
        }
        Some(HealthChecker::TcpHealthCheck(_)) => beside_envoys(v, p)?.unwrap_or(CheckBy::Connect),
        Some(HealthChecker::GrpcHealthCheck(grpc)) => {
            by_grpc(v, "health_checks[0].grpc_health_check.service_name", &grpc.service_name)?
        }
        Some(HealthChecker::CustomHealthCheck(_)) => {
            return Err(v.error("health_checks[0]", "custom_health_check", CHECKERS));
        }
        None => return Err(v.error("health_checks[0]", "no checker", CHECKERS)),
    };
    let d = HealthCheck::default();
    Ok(Some(HealthCheck {
        by,
        interval: v.duration(
            "health_checks[0].interval",
            check.interval.as_ref(),
            d.interval,
            CHECK_INTERVAL_RANGE,
        )?,
        timeout: v.duration(
            "health_checks[0].timeout",
            check.timeout.as_ref(),
            d.timeout,
            CHECK_TIMEOUT_RANGE,
        )?,
        unhealthy_threshold: v.number(
            "health_checks[0].unhealthy_threshold",
            check.unhealthy_threshold.as_ref(),
            d.unhealthy_threshold,
            CHECK_THRESHOLD_RANGE,
        )?,
        healthy_threshold: v.number(
            "health_checks[0].healthy_threshold",
            check.healthy_threshold.as_ref(),
            d.healthy_threshold,
            CHECK_THRESHOLD_RANGE,
        )?,
    }))
}

/// What stands in the metadata.
fn beside_envoys(v: &Validator<'_>, p: &pb::Cluster) -> Result<Option<CheckBy>, InvalidResource> {
    let Some(ours) = p.metadata.as_ref().and_then(|m| m.filter_metadata.get(METADATA)) else {
        return Ok(None);
    };
    let at = format!("metadata[{METADATA}].{GRPC}");
    match ours.fields.get(GRPC).and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(name)) => by_grpc(v, &at, name).map(Some),
        _ => Err(v.error(at, "no text", "a text")),
    }
}

fn by_grpc(v: &Validator<'_>, at: &str, name: &str) -> Result<CheckBy, InvalidResource> {
    if name.len() > HEALTH_PATH_BYTES_MAX || !name.bytes().all(|b| b.is_ascii_graphic()) {
        let seen = format!("{:?}", name.chars().take(64).collect::<String>());
        return Err(v.error(at, seen, "up to 1024 visible ASCII characters"));
    }
    Ok(CheckBy::Grpc(name.to_owned()))
}

/// What goes into the metadata.
pub(super) fn encode_metadata(h: &HealthCheck, protocol: Protocol) -> Option<(String, Struct)> {
    let (CheckBy::Grpc(name), Protocol::Http1) = (&h.by, protocol) else { return None };
    let name = Value { kind: Some(Kind::StringValue(name.clone())) };
    Some((METADATA.to_owned(), Struct { fields: [(GRPC.to_owned(), name)].into() }))
}

pub(super) fn encode(h: &HealthCheck, protocol: Protocol) -> core::HealthCheck {
    use core::health_check::{GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck};
    core::HealthCheck {
        timeout: Some(duration_to_proto(h.timeout)),
        interval: Some(duration_to_proto(h.interval)),
        unhealthy_threshold: Some(number_to_proto(h.unhealthy_threshold)),
        healthy_threshold: Some(number_to_proto(h.healthy_threshold)),
        health_checker: Some(match (&h.by, protocol) {
            (CheckBy::Grpc(service), Protocol::Http2) => HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
                service_name: service.clone(),
                ..GrpcHealthCheck::default()
            }),
            (CheckBy::Get(path), protocol) => HealthChecker::HttpHealthCheck(HttpHealthCheck {
                path: path.clone(),
                // Envoy asks over HTTP/1 where nothing is said, whatever the cluster speaks.
                codec_client_type: match protocol {
                    Protocol::Http1 => CodecClientType::Http1,
                    Protocol::Http2 => CodecClientType::Http2,
                } as i32,
                ..HttpHealthCheck::default()
            }),
            (CheckBy::Grpc(_), Protocol::Http1) | (CheckBy::Connect, _) => {
                HealthChecker::TcpHealthCheck(TcpHealthCheck::default())
            }
        }),
        ..core::HealthCheck::default()
    }
}
