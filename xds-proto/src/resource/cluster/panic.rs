//! What happens when few endpoints are usable: Envoy's `common_lb_config`.

use std::fmt;

use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    CommonLbConfig,
    common_lb_config::{LocalityConfigSpecifier, ZoneAwareLbConfig},
};
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::UInt64Value;
use serde::Serialize;

use super::{InvalidResource, Validator, ZoneAware};

/// What to do when less than a share of a service's endpoints is usable (P40).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum PanicPolicy {
    /// Goes on with those that are.
    #[default]
    Degraded,
    /// Sends to all, also those that are ejected, fail checks or are held to be down: better a chance than none, and
    /// checks may be wrong.
    Spread {
        /// In percent, 1 to 100.
        below: u32,
    },
    /// Answers 503 at once, so that those that are left are not overrun.
    Fail {
        /// In percent, 1 to 100.
        below: u32,
    },
}

impl PanicPolicy {
    /// Whether it is time for it.
    pub fn applies(self, usable: usize, total: usize) -> bool {
        match self {
            Self::Degraded => false,
            Self::Spread { below } | Self::Fail { below } => {
                total > 0 && (usable as u64) * 100 < (total as u64) * u64::from(below)
            }
        }
    }
}

impl fmt::Display for PanicPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Degraded => f.write_str("degraded"),
            Self::Spread { below } => write!(f, "spread below {below} %"),
            Self::Fail { below } => write!(f, "fail below {below} %"),
        }
    }
}

/// Without a threshold: no panic. Envoy would spread below 50 %; an endpoint that is known to be bad gets nothing here
/// unless somebody wants it.
pub(super) fn decode(
    v: &Validator<'_>,
    config: Option<&CommonLbConfig>,
) -> Result<PanicPolicy, InvalidResource> {
    let Some(config) = config else { return Ok(PanicPolicy::Degraded) };
    let fails = match &config.locality_config_specifier {
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(zone)) => zone.fail_traffic_on_panic,
        _ => false,
    };
    let Some(threshold) = &config.healthy_panic_threshold else { return Ok(PanicPolicy::Degraded) };
    if !(0.0..=100.0).contains(&threshold.value) || threshold.value.fract() != 0.0 {
        return Err(v.error(
            "common_lb_config.healthy_panic_threshold",
            threshold.value.to_string(),
            "a whole number from 0 to 100",
        ));
    }
    Ok(match threshold.value as u32 {
        0 => PanicPolicy::Degraded,
        below if fails => PanicPolicy::Fail { below },
        below => PanicPolicy::Spread { below },
    })
}

pub(super) fn encode(policy: PanicPolicy, zone_aware: Option<ZoneAware>) -> CommonLbConfig {
    let (below, fails) = match policy {
        PanicPolicy::Degraded => (0, false),
        PanicPolicy::Spread { below } => (below, false),
        PanicPolicy::Fail { below } => (below, true),
    };
    CommonLbConfig {
        healthy_panic_threshold: Some(Percent { value: f64::from(below) }),
        locality_config_specifier: (fails || zone_aware.is_some()).then(|| {
            LocalityConfigSpecifier::ZoneAwareLbConfig(ZoneAwareLbConfig {
                fail_traffic_on_panic: fails,
                routing_enabled: zone_aware.is_none().then_some(Percent { value: 0.0 }),
                min_cluster_size: zone_aware.map(|z| UInt64Value { value: z.min_endpoints.into() }),
            })
        }),
        ..CommonLbConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_starts_below_the_share_and_not_at_it() {
        let spread = PanicPolicy::Spread { below: 50 };
        assert_eq!(
            [(1, 2), (1, 3), (0, 1), (0, 0)].map(|(u, t)| spread.applies(u, t)),
            [false, true, true, false]
        );
        assert!(!PanicPolicy::Degraded.applies(0, 9));
    }

    #[test]
    fn a_threshold_that_is_none_is_refused() {
        let v = Validator { kind: "Cluster", name: "orders" };
        for bad in [-1.0, 100.5, f64::NAN] {
            let mut config = encode(PanicPolicy::Spread { below: 50 }, None);
            config.healthy_panic_threshold = Some(Percent { value: bad });
            assert!(decode(&v, Some(&config)).unwrap_err().field.ends_with("healthy_panic_threshold"));
        }
        assert_eq!(decode(&v, Some(&CommonLbConfig::default())).unwrap(), PanicPolicy::Degraded);
    }
}
