//! How many requests a proxy sends to a service in a time. Envoy has no such thing for a cluster (its local rate limit is
//! a filter of listeners and routes), so it stands in the cluster's metadata, where others leave it alone.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::google::protobuf::Struct;
use serde::Serialize;

use super::metadata::{self, Numbers};
use super::{HOUR, InvalidResource, Validator};

/// See the module. Every proxy counts for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RateLimit {
    /// So many; at least 1.
    pub requests: u32,
    /// In this time; 1 ms to 1 h.
    pub per: Duration,
    /// So many at once, after a time without any; at least 1.
    pub burst: u32,
}

const METADATA: &str = "weft.rate_limit";
const REQUESTS: &str = "requests";
const PER: &str = "per_ms";
const BURST: &str = "burst";

pub(super) fn decode(
    v: &Validator<'_>,
    metadata: Option<&Metadata>,
) -> Result<Option<RateLimit>, InvalidResource> {
    let Some(rule) = Numbers::of(v, METADATA, metadata) else { return Ok(None) };
    let hour = u32::try_from(HOUR.as_millis()).unwrap_or(u32::MAX);
    Ok(Some(RateLimit {
        requests: rule.get(REQUESTS, (1, u32::MAX))?,
        per: Duration::from_millis(u64::from(rule.get(PER, (1, hour))?)),
        burst: rule.get(BURST, (1, u32::MAX))?,
    }))
}

pub(super) fn encode(limit: RateLimit) -> (String, Struct) {
    let per = u32::try_from(limit.per.as_millis()).unwrap_or(u32::MAX);
    metadata::encode(METADATA, &[(REQUESTS, limit.requests), (PER, per), (BURST, limit.burst)])
}

#[cfg(test)]
mod tests {
    use super::*;

    const V: Validator<'static> = Validator { kind: "Cluster", name: "orders" };
    const LIMIT: RateLimit = RateLimit { requests: 100, per: Duration::from_millis(1500), burst: 7 };

    fn metadata(rule: (String, Struct)) -> Metadata {
        Metadata { filter_metadata: [rule].into(), ..Metadata::default() }
    }

    #[test]
    fn a_limit_survives_the_wire() {
        assert_eq!(decode(&V, Some(&metadata(encode(LIMIT)))), Ok(Some(LIMIT)));
        assert_eq!(decode(&V, None), Ok(None));
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_name() {
        for (limit, field) in [
            (RateLimit { requests: 0, ..LIMIT }, REQUESTS),
            (RateLimit { per: Duration::ZERO, ..LIMIT }, PER),
            (RateLimit { per: Duration::from_secs(3601), ..LIMIT }, PER),
            (RateLimit { burst: 0, ..LIMIT }, BURST),
        ] {
            let error = decode(&V, Some(&metadata(encode(limit)))).unwrap_err();
            assert!(error.field.ends_with(field), "{error}");
        }
        let (name, mut rule) = encode(LIMIT);
        rule.fields.remove(BURST);
        assert!(decode(&V, Some(&metadata((name, rule)))).is_err());
    }
}
