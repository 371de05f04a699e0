//! Envoy's `outlier_detection`: when endpoints that fail, or are slow, are left out for a while.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::google::protobuf::Struct;
use serde::Serialize;

use super::metadata::{self, Numbers};
use super::{EJECTION_TIME_RANGE, InvalidResource, Validator, duration_to_proto, number_to_proto};

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OutlierDetection {
    /// Failures in a row (5xx answers, failed connections, time-outs) that eject an endpoint; 0: never.
    pub consecutive_failures: u32,
    /// Failures in a row that are the way to the endpoint rather than its app (502, 503, 504, broken exchanges,
    /// time-outs); 0: they count as others.
    pub consecutive_gateway: u32,
    /// First ejection; each further one in close succession takes twice as long as the one before.
    pub base_ejection_time: Duration,
    /// Longest ejection; at least `base_ejection_time`.
    pub max_ejection_time: Duration,
    /// Largest share of the endpoints that may be ejected, counted after the ejection; 0 to 100. One may
    /// always be.
    pub max_ejection_percent: u32,
    /// Over which time endpoints are compared with each other, as below.
    pub interval: Duration,
    /// Leaves out who answers well less often than the others.
    pub success_rate: Option<SuccessRate>,
    /// Leaves out who fails too often.
    pub failure_percentage: Option<FailurePercentage>,
    /// Leaves out who is much slower than the others. Envoy has no such rule.
    pub latency: Option<Latency>,
}

/// A share of good answers below `mean - standard deviation * factor` of all endpoints' is too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SuccessRate {
    /// In thousandths.
    pub stdev_factor: u32,
    /// Who and how many must have been asked.
    pub sample: Sample,
}

/// A share of failures of at least so much is too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct FailurePercentage {
    /// 1 to 100.
    pub percent: u32,
    /// Who and how many must have been asked.
    pub sample: Sample,
}

/// A mean time to answer of so many times the median of all endpoints' is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// 2 to 100.
    pub factor: u32,
    /// Who and how many must have been asked.
    pub sample: Sample,
}

/// Endpoints are compared only if enough is known of enough of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Endpoints.
    pub hosts: u32,
    /// Requests of each in an interval.
    pub requests: u32,
}

impl OutlierDetection {
    /// Never ejects.
    pub fn disabled() -> Self {
        Self { consecutive_failures: 0, ..Self::default() }
    }

    /// Whether endpoints are compared with each other.
    pub fn compares(&self) -> bool {
        self.success_rate.is_some() || self.failure_percentage.is_some() || self.latency.is_some()
    }

    fn is_off(&self) -> bool {
        self.consecutive_failures == 0 && self.consecutive_gateway == 0 && !self.compares()
    }
}

impl Default for OutlierDetection {
    /// Five in a row, 5 s up to 5 min, at most half: a single bad request ejects nobody, and a service that fails
    /// as a whole keeps at least half of its endpoints (P40, P41). Endpoints are not compared: that takes more
    /// requests than most services have.
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            consecutive_gateway: 0,
            base_ejection_time: Duration::from_secs(5),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_percent: 50,
            interval: Duration::from_secs(10),
            success_rate: None,
            failure_percentage: None,
            latency: None,
        }
    }
}

impl Default for SuccessRate {
    /// Envoy's.
    fn default() -> Self {
        Self { stdev_factor: 1900, sample: Sample { hosts: 5, requests: 100 } }
    }
}

impl Default for FailurePercentage {
    /// Envoy's.
    fn default() -> Self {
        Self { percent: 85, sample: Sample { hosts: 5, requests: 50 } }
    }
}

impl Default for Latency {
    /// A median needs three.
    fn default() -> Self {
        Self { factor: 3, sample: Sample { hosts: 3, requests: 20 } }
    }
}

/// Envoy takes ejection away with 0.
const CONSECUTIVE_MAX: u32 = 1_000_000;
const INTERVAL_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// Where in a cluster's metadata the rule stands that Envoy does not have.
const METADATA: &str = "weft.outlier_detection";
const LATENCY: &str = "latency_factor";
const HOSTS: &str = "latency_minimum_hosts";
const REQUESTS: &str = "latency_request_volume";

pub(super) fn decode(v: &Validator<'_>, p: &pb::Cluster) -> Result<OutlierDetection, InvalidResource> {
    // As Envoy has it: no message, no ejection.
    let Some(o) = &p.outlier_detection else { return Ok(OutlierDetection::disabled()) };
    let d = OutlierDetection::default();
    let number = |field: &str, value: Option<&_>, default, range| {
        v.number(format!("outlier_detection.{field}"), value, default, range)
    };
    let any = (0, u32::MAX);
    let percent = (0, 100);
    // A share of ejections that are carried out: none, or else all.
    let enforced = |field: &str, value: Option<&_>, default| {
        Ok::<bool, InvalidResource>(number(field, value, default, percent)? > 0)
    };
    let in_a_row = (0, CONSECUTIVE_MAX);
    let consecutive =
        number("consecutive_5xx", o.consecutive_5xx.as_ref(), d.consecutive_failures, in_a_row)?;
    let gateway = number("consecutive_gateway_failure", o.consecutive_gateway_failure.as_ref(), 5, in_a_row)?;
    let consecutive_is = enforced("enforcing_consecutive_5xx", o.enforcing_consecutive_5xx.as_ref(), 100)?;
    let gateway_is = enforced(
        "enforcing_consecutive_gateway_failure",
        o.enforcing_consecutive_gateway_failure.as_ref(),
        0,
    )?;
    let rate = SuccessRate {
        stdev_factor: number("success_rate_stdev_factor", o.success_rate_stdev_factor.as_ref(), 1900, any)?,
        sample: Sample {
            hosts: number("success_rate_minimum_hosts", o.success_rate_minimum_hosts.as_ref(), 5, any)?,
            requests: number(
                "success_rate_request_volume",
                o.success_rate_request_volume.as_ref(),
                100,
                any,
            )?,
        },
    };
    let failures = FailurePercentage {
        percent: number(
            "failure_percentage_threshold",
            o.failure_percentage_threshold.as_ref(),
            85,
            (1, 100),
        )?,
        sample: Sample {
            hosts: number(
                "failure_percentage_minimum_hosts",
                o.failure_percentage_minimum_hosts.as_ref(),
                5,
                any,
            )?,
            requests: number(
                "failure_percentage_request_volume",
                o.failure_percentage_request_volume.as_ref(),
                50,
                any,
            )?,
        },
    };
    let rate_is = enforced("enforcing_success_rate", o.enforcing_success_rate.as_ref(), 100)?;
    let failures_is = enforced("enforcing_failure_percentage", o.enforcing_failure_percentage.as_ref(), 0)?;
    let base_ejection_time = v.duration(
        "outlier_detection.base_ejection_time",
        o.base_ejection_time.as_ref(),
        d.base_ejection_time,
        EJECTION_TIME_RANGE,
    )?;
    Ok(OutlierDetection {
        consecutive_failures: if consecutive_is { consecutive } else { 0 },
        consecutive_gateway: if gateway_is { gateway } else { 0 },
        base_ejection_time,
        max_ejection_time: v.duration(
            "outlier_detection.max_ejection_time",
            o.max_ejection_time.as_ref(),
            d.max_ejection_time.max(base_ejection_time),
            (base_ejection_time, EJECTION_TIME_RANGE.1),
        )?,
        max_ejection_percent: number(
            "max_ejection_percent",
            o.max_ejection_percent.as_ref(),
            d.max_ejection_percent,
            percent,
        )?,
        interval: v.duration(
            "outlier_detection.interval",
            o.interval.as_ref(),
            d.interval,
            INTERVAL_RANGE,
        )?,
        success_rate: rate_is.then_some(rate),
        failure_percentage: failures_is.then_some(failures),
        latency: latency(v, p.metadata.as_ref())?,
    })
}

fn latency(v: &Validator<'_>, metadata: Option<&Metadata>) -> Result<Option<Latency>, InvalidResource> {
    let Some(rule) = Numbers::of(v, METADATA, metadata) else { return Ok(None) };
    let (d, any) = (Latency::default(), (0, u32::MAX));
    Ok(Some(Latency {
        factor: rule.get_or(LATENCY, d.factor, (2, 100))?,
        sample: Sample {
            hosts: rule.get_or(HOSTS, d.sample.hosts, any)?,
            requests: rule.get_or(REQUESTS, d.sample.requests, any)?,
        },
    }))
}

pub(super) fn encode(o: &OutlierDetection) -> Option<pb::OutlierDetection> {
    if o.is_off() {
        return None;
    }
    let on = |is: bool| Some(number_to_proto(if is { 100 } else { 0 }));
    // Those that are off are said to be: Envoy has some of them on by default.
    let (rate, failures) = (o.success_rate.unwrap_or_default(), o.failure_percentage.unwrap_or_default());
    Some(pb::OutlierDetection {
        consecutive_5xx: Some(number_to_proto(o.consecutive_failures.max(1))),
        enforcing_consecutive_5xx: on(o.consecutive_failures > 0),
        consecutive_gateway_failure: Some(number_to_proto(o.consecutive_gateway.max(1))),
        enforcing_consecutive_gateway_failure: on(o.consecutive_gateway > 0),
        interval: Some(duration_to_proto(o.interval)),
        base_ejection_time: Some(duration_to_proto(o.base_ejection_time)),
        max_ejection_time: Some(duration_to_proto(o.max_ejection_time)),
        max_ejection_percent: Some(number_to_proto(o.max_ejection_percent)),
        enforcing_success_rate: on(o.success_rate.is_some()),
        success_rate_minimum_hosts: Some(number_to_proto(rate.sample.hosts)),
        success_rate_request_volume: Some(number_to_proto(rate.sample.requests)),
        success_rate_stdev_factor: Some(number_to_proto(rate.stdev_factor)),
        enforcing_failure_percentage: on(o.failure_percentage.is_some()),
        failure_percentage_threshold: Some(number_to_proto(failures.percent)),
        failure_percentage_minimum_hosts: Some(number_to_proto(failures.sample.hosts)),
        failure_percentage_request_volume: Some(number_to_proto(failures.sample.requests)),
        ..pb::OutlierDetection::default()
    })
}

pub(super) fn encode_metadata(o: &OutlierDetection) -> Option<(String, Struct)> {
    let rule = o.latency?;
    let fields = [(LATENCY, rule.factor), (HOSTS, rule.sample.hosts), (REQUESTS, rule.sample.requests)];
    Some(metadata::encode(METADATA, &fields))
}
