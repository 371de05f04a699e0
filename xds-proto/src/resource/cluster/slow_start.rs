//! Envoy's `slow_start_config`: endpoints that are new, or back, get their share step by step.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster as pb;
use envoy_types::pb::envoy::config::core::v3::RuntimeDouble;
use envoy_types::pb::envoy::extensions::load_balancing_policies::{
    common::v3::SlowStartConfig, least_request::v3::LeastRequest, round_robin::v3::RoundRobin,
};
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf;
use prost::{Message, Name};
use serde::Serialize;

use super::{HOUR, InvalidResource, LbPolicy, Validator, duration_to_proto};

/// See the module. The share grows evenly with time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SlowStart {
    /// After it, an endpoint has its whole share; 1 s to 1 h.
    pub window: Duration,
    /// What it has at first; 1 to 100.
    pub min_weight_percent: u32,
}

impl SlowStart {
    /// Share of an endpoint that came so long ago, in thousandths; at least 1.
    pub fn permille(&self, age: Duration) -> u32 {
        let least = self.min_weight_percent.clamp(1, 100) * 10;
        let window = self.window.as_millis().max(1);
        let grown = (age.as_millis().min(window) * 1000 / window) as u32;
        grown.max(least)
    }

    pub(super) fn extension(self) -> SlowStartConfig {
        SlowStartConfig {
            slow_start_window: Some(duration_to_proto(self.window)),
            min_weight_percent: Some(Percent { value: f64::from(self.min_weight_percent) }),
            ..SlowStartConfig::default()
        }
    }
}

const WINDOW_RANGE: (Duration, Duration) = (Duration::from_secs(1), HOUR);

/// None if there is none.
pub(super) fn decode(v: &Validator<'_>, p: &Cluster) -> Result<Option<SlowStart>, InvalidResource> {
    let old = |c: &pb::SlowStartConfig| {
        read(v, c.slow_start_window.as_ref(), c.aggression.as_ref(), c.min_weight_percent.as_ref())
    };
    let new = |c: &SlowStartConfig| {
        read(v, c.slow_start_window.as_ref(), c.aggression.as_ref(), c.min_weight_percent.as_ref())
    };
    let Some(list) = &p.load_balancing_policy else {
        let config = match &p.lb_config {
            Some(pb::LbConfig::RoundRobinLbConfig(c)) => c.slow_start_config.as_ref(),
            Some(pb::LbConfig::LeastRequestLbConfig(c)) => c.slow_start_config.as_ref(),
            _ => None,
        };
        return config.map(old).transpose();
    };
    // Those that cannot be read were refused with the policy.
    let config = list.policies.iter().find_map(|p| {
        let any = p.typed_extension_config.as_ref()?.typed_config.as_ref()?;
        if any.type_url == LeastRequest::type_url() {
            return Some(LeastRequest::decode(any.value.as_slice()).ok()?.slow_start_config);
        }
        if any.type_url == RoundRobin::type_url() {
            return Some(RoundRobin::decode(any.value.as_slice()).ok()?.slow_start_config);
        }
        None
    });
    config.flatten().as_ref().map(new).transpose()
}

fn read(
    v: &Validator<'_>,
    window: Option<&protobuf::Duration>,
    aggression: Option<&RuntimeDouble>,
    least: Option<&Percent>,
) -> Result<SlowStart, InvalidResource> {
    if let Some(a) = aggression.filter(|a| a.default_value != 1.0) {
        return Err(v.error("slow_start_config.aggression", a.default_value.to_string(), "1"));
    }
    let least = least.map_or(10.0, |p| p.value);
    if !(1.0..=100.0).contains(&least) || least.fract() != 0.0 {
        let allowed = "a whole number from 1 to 100";
        return Err(v.error("slow_start_config.min_weight_percent", least.to_string(), allowed));
    }
    if window.is_none() {
        return Err(v.error("slow_start_config.slow_start_window", "nothing", "1s to 3600s"));
    }
    Ok(SlowStart {
        window: v.duration("slow_start_config.slow_start_window", window, HOUR, WINDOW_RANGE)?,
        min_weight_percent: least as u32,
    })
}

/// The older field; [`super::balancing`] writes the newer one.
pub(super) fn encode(policy: &LbPolicy, slow_start: Option<SlowStart>) -> Option<pb::LbConfig> {
    let slow = slow_start.filter(|_| *policy == LbPolicy::RoundRobin)?;
    let slow_start_config = Some(pb::SlowStartConfig {
        slow_start_window: Some(duration_to_proto(slow.window)),
        min_weight_percent: Some(Percent { value: f64::from(slow.min_weight_percent) }),
        ..pb::SlowStartConfig::default()
    });
    Some(pb::LbConfig::RoundRobinLbConfig(pb::RoundRobinLbConfig { slow_start_config }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_grows_from_the_least_to_all() {
        let slow = SlowStart { window: Duration::from_secs(10), min_weight_percent: 10 };
        assert_eq!(
            [0, 500, 1000, 5000, 10_000, 99_000].map(|ms| slow.permille(Duration::from_millis(ms))),
            [100, 100, 100, 500, 1000, 1000]
        );
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_field() {
        let v = Validator { kind: "Cluster", name: "orders" };
        let second = duration_to_proto(Duration::from_secs(1));
        let fast = RuntimeDouble { default_value: 2.0, ..RuntimeDouble::default() };
        let field = |r: Result<SlowStart, InvalidResource>| r.unwrap_err().field;
        assert!(field(read(&v, Some(&second), Some(&fast), None)).ends_with("aggression"));
        assert!(field(read(&v, Some(&second), None, Some(&Percent { value: 0.5 }))).ends_with("percent"));
        assert!(field(read(&v, None, None, None)).ends_with("window"));
        assert_eq!(read(&v, Some(&second), None, None).unwrap().min_weight_percent, 10);
    }
}
