//! Key `slow-start` of a cluster.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use weft_xds_proto::resource::cluster::{LbPolicy, SlowStart};

/// See [`SlowStart`].
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct StaticSlowStart {
    /// After it, an endpoint has its whole share.
    #[serde(with = "weft_core::config::duration::option", default)]
    pub window: Option<Duration>,
    /// What it has at first; 10 if missing.
    #[serde(default)]
    pub min_weight_percent: Option<u32>,
}

const WINDOW_DEFAULT: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3600);

impl StaticSlowStart {
    pub(super) fn with_defaults(&self) -> SlowStart {
        SlowStart {
            window: self.window.unwrap_or(WINDOW_DEFAULT),
            min_weight_percent: self.min_weight_percent.unwrap_or(10),
        }
    }

    pub(super) fn problems(&self, policy: Option<&LbPolicy>) -> Vec<String> {
        let mut problems = Vec::new();
        if self.window.is_some_and(|w| w < Duration::from_secs(1) || w > HOUR) {
            problems.push("slow-start: window must be 1s to 1h".to_owned());
        }
        if let Some(bad) = self.min_weight_percent.filter(|p| !(1..=100).contains(p)) {
            problems.push(format!("slow-start: min-weight-percent {bad} is not between 1 and 100"));
        }
        if let Some(policy) = policy.filter(|p| !p.takes_slow_start()) {
            problems.push(format!(
                "slow-start: there is no slow-start under {policy}; it works with round-robin, least-connections and least-request"
            ));
        }
        problems
    }
}
