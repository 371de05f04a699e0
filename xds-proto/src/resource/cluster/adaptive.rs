//! Limits on requests under way that a proxy finds out by itself. In Envoy this is a filter of listeners, so it stands in
//! the cluster's metadata, where others leave it alone.

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::google::protobuf::Struct;
use serde::Serialize;

use super::metadata::{self, Numbers};
use super::{InvalidResource, Validator};

/// See the module. Every proxy finds out for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AdaptiveConcurrency {
    /// So many may always be under way; at least 1.
    pub min: u32,
    /// Never more than so many; at least `min`.
    pub max: u32,
    /// An answer may take so many percent of the time without a queue; 100 to 1000.
    pub tolerance_percent: u32,
}

impl Default for AdaptiveConcurrency {
    /// A few are always let through, so that a service that has become slow is still looked at; half a service time in
    /// the queue is little for callers and enough to keep the service busy.
    fn default() -> Self {
        Self { min: 10, max: 1000, tolerance_percent: 150 }
    }
}

const NAME: &str = "weft.adaptive_concurrency";
const MIN: &str = "min";
const MAX: &str = "max";
const TOLERANCE: &str = "tolerance_percent";

pub(super) fn decode(
    v: &Validator<'_>,
    metadata: Option<&Metadata>,
) -> Result<Option<AdaptiveConcurrency>, InvalidResource> {
    let Some(rule) = Numbers::of(v, NAME, metadata) else { return Ok(None) };
    let min = rule.get(MIN, (1, u32::MAX))?;
    Ok(Some(AdaptiveConcurrency {
        min,
        max: rule.get(MAX, (min, u32::MAX))?,
        tolerance_percent: rule.get(TOLERANCE, (100, 1000))?,
    }))
}

pub(super) fn encode(rule: AdaptiveConcurrency) -> (String, Struct) {
    metadata::encode(NAME, &[(MIN, rule.min), (MAX, rule.max), (TOLERANCE, rule.tolerance_percent)])
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: Validator<'static> = Validator { kind: "Cluster", name: "orders" };

    #[test]
    fn bounds_out_of_range_are_refused_by_name() {
        let rule = AdaptiveConcurrency::default();
        for (rule, field) in [
            (AdaptiveConcurrency { min: 0, ..rule }, MIN),
            (AdaptiveConcurrency { max: 9, ..rule }, MAX),
            (AdaptiveConcurrency { tolerance_percent: 99, ..rule }, TOLERANCE),
        ] {
            let metadata = Metadata { filter_metadata: [encode(rule)].into(), ..Metadata::default() };
            let error = decode(&V, Some(&metadata)).unwrap_err();
            assert!(error.field.ends_with(field), "{error}");
        }
    }
}
