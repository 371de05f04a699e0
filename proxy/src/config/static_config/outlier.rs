//! Keys `outlier-detection` and `panic` of a cluster.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_xds_proto::resource::cluster::{
    FailurePercentage, Latency, OutlierDetection, PanicPolicy, Sample, SuccessRate,
};

/// Ejection of endpoints.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StaticOutlierDetection {
    /// 5xx answers and broken exchanges in a row until an endpoint is ejected; 0 turns it off.
    #[serde(default)]
    pub consecutive_failures: Option<u32>,
    /// The same for 502, 503, 504, broken exchanges and time-outs alone; off if missing.
    #[serde(default)]
    pub consecutive_gateway_failures: Option<u32>,
    /// First ejection; it doubles with each further one.
    #[serde(default, with = "weft_core::config::duration::option")]
    pub base_ejection_time: Option<Duration>,
    /// Longest ejection.
    #[serde(default, with = "weft_core::config::duration::option")]
    pub max_ejection_time: Option<Duration>,
    /// Share of the endpoints that may be ejected, counted after the ejection.
    #[serde(default)]
    pub max_ejection_percent: Option<u32>,
    /// Over which time endpoints are compared, as below.
    #[serde(default, with = "weft_core::config::duration::option")]
    pub interval: Option<Duration>,
    /// Who answers well less often than the others.
    #[serde(default)]
    pub success_rate: Option<StaticRule>,
    /// Who fails at least so often.
    #[serde(default)]
    pub failure_percentage: Option<StaticRule>,
    /// Who takes so many times as long as the others.
    #[serde(default)]
    pub latency: Option<StaticRule>,
}

/// A comparison of endpoints.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StaticRule {
    /// Standard deviations in thousandths, percent, or times the median.
    #[serde(default)]
    pub threshold: Option<u32>,
    /// Endpoints that must have had enough requests.
    #[serde(default)]
    pub min_hosts: Option<u32>,
    /// Requests of each in an interval.
    #[serde(default)]
    pub min_requests: Option<u32>,
}

/// What to do when few endpoints are usable.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StaticPanic {
    /// `spread`, `fail` or `degraded` (the default).
    pub policy: String,
    /// In percent of all endpoints; 50 if missing.
    #[serde(default)]
    pub below: Option<u32>,
}

impl StaticRule {
    fn sample(&self, default: Sample) -> Sample {
        Sample {
            hosts: self.min_hosts.unwrap_or(default.hosts),
            requests: self.min_requests.unwrap_or(default.requests),
        }
    }
}

impl StaticOutlierDetection {
    pub(super) fn with_defaults(&self) -> OutlierDetection {
        let d = OutlierDetection::default();
        let base_ejection_time = self.base_ejection_time.unwrap_or(d.base_ejection_time);
        let (rate, failures, latency) =
            (SuccessRate::default(), FailurePercentage::default(), Latency::default());
        OutlierDetection {
            consecutive_failures: self.consecutive_failures.unwrap_or(d.consecutive_failures),
            consecutive_gateway: self.consecutive_gateway_failures.unwrap_or(d.consecutive_gateway),
            base_ejection_time,
            max_ejection_time: self.max_ejection_time.unwrap_or(d.max_ejection_time).max(base_ejection_time),
            max_ejection_percent: self.max_ejection_percent.unwrap_or(d.max_ejection_percent),
            interval: self.interval.unwrap_or(d.interval),
            success_rate: self.success_rate.as_ref().map(|r| SuccessRate {
                stdev_factor: r.threshold.unwrap_or(rate.stdev_factor),
                sample: r.sample(rate.sample),
            }),
            failure_percentage: self.failure_percentage.as_ref().map(|r| FailurePercentage {
                percent: r.threshold.unwrap_or(failures.percent),
                sample: r.sample(failures.sample),
            }),
            latency: self.latency.as_ref().map(|r| Latency {
                factor: r.threshold.unwrap_or(latency.factor),
                sample: r.sample(latency.sample),
            }),
        }
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(percent) = self.max_ejection_percent.filter(|p| *p > 100) {
            problems
                .push(format!("outlier-detection: max-ejection-percent {percent} is not between 0 and 100"));
        }
        if self.base_ejection_time.is_some_and(|t| t.is_zero()) {
            problems.push("outlier-detection: base-ejection-time must be longer than 0".to_owned());
        }
        if self.interval.is_some_and(|t| t < Duration::from_secs(1)) {
            problems.push("outlier-detection: interval must be at least 1s".to_owned());
        }
        for (key, rule, (min, max)) in
            [("failure-percentage", &self.failure_percentage, (1, 100)), ("latency", &self.latency, (2, 100))]
        {
            if let Some(bad) = rule.as_ref().and_then(|r| r.threshold).filter(|t| !(min..=max).contains(t)) {
                problems.push(format!(
                    "outlier-detection: {key}: threshold {bad} is not between {min} and {max}"
                ));
            }
        }
        problems
    }
}

impl StaticPanic {
    pub(super) fn parse(&self) -> Result<PanicPolicy, String> {
        let below = self.below.unwrap_or(50);
        if !(1..=100).contains(&below) {
            return Err(format!("panic: below {below} is not between 1 and 100"));
        }
        match self.policy.as_str() {
            "spread" => Ok(PanicPolicy::Spread { below }),
            "fail" => Ok(PanicPolicy::Fail { below }),
            "degraded" => Ok(PanicPolicy::Degraded),
            other => Err(format!("panic: policy {other:?} is unknown; allowed are spread, fail, degraded")),
        }
    }
}
