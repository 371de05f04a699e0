//! What only Weft's routes have: it stands in a route's metadata, which others pass over.

use std::collections::HashMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};

use super::{CachePolicy, Compression, Hedge, RoutePolicy, TIME_MAX};
use crate::resource::cluster::RateLimit;

/// Its place there.
pub(super) const METADATA: &str = "weft";

/// Reads it into a policy. It comes from our own servers; what is out of range falls back to defaults.
pub(super) fn decode(s: &Struct, policy: &mut RoutePolicy) {
    let object = |name: &str| match s.fields.get(name)?.kind.as_ref()? {
        Kind::StructValue(s) => Some(s),
        _ => None,
    };
    let number = |s: &Struct, name: &str| match s.fields.get(name)?.kind.as_ref()? {
        Kind::NumberValue(n) if n.is_finite() && *n >= 0.0 => Some(*n),
        _ => None,
    };
    // Saturates.
    let whole = |n: f64| n as u32;
    let time = |s: &Struct, name: &str| {
        number(s, name).map(|secs| Duration::try_from_secs_f64(secs).unwrap_or(TIME_MAX).min(TIME_MAX))
    };
    policy.compression = object("compression").map(|c| Compression {
        bytes_min: number(c, "bytes_min").map_or(Compression::default().bytes_min, whole),
    });
    policy.cache = object("cache").map(|c| CachePolicy {
        body_bytes_max: number(c, "body_bytes_max").map_or(CachePolicy::default().body_bytes_max, whole),
        ttl_default: time(c, "ttl_default_secs"),
    });
    // Those that Envoy's fields could not hold.
    let rate_limit = object("rate_limit").and_then(|l| {
        let requests = number(l, "requests").map(whole).filter(|n| *n > 0)?;
        let per = time(l, "per_secs").filter(|t| !t.is_zero()).unwrap_or(Duration::from_secs(1));
        let burst = number(l, "burst").map(whole).filter(|n| *n > 0).unwrap_or(requests);
        Some(RateLimit { requests, per, burst })
    });
    policy.rate_limit = rate_limit.or(policy.rate_limit);
    let hedge = object("hedge").and_then(|h| Some(Hedge { after: time(h, "after_secs")? }));
    policy.hedge = hedge.or(policy.hedge);
}

/// None if there is nothing of the kind. `hedge` and `rate_limit` are those that Envoy's fields cannot hold.
pub(super) fn encode(
    p: &RoutePolicy,
    hedge: Option<Hedge>,
    rate_limit: Option<RateLimit>,
) -> Option<core::Metadata> {
    let number = |n: f64| Value { kind: Some(Kind::NumberValue(n)) };
    let mut fields = HashMap::new();
    let mut put = |name: &str, values: &[(&str, f64)]| {
        let values = values.iter().map(|(name, n)| ((*name).to_owned(), number(*n))).collect();
        fields.insert(name.to_owned(), Value { kind: Some(Kind::StructValue(Struct { fields: values })) });
    };
    if let Some(c) = &p.compression {
        put("compression", &[("bytes_min", c.bytes_min.into())]);
    }
    if let Some(c) = &p.cache {
        let ttl = c.ttl_default.map(|ttl| ("ttl_default_secs", ttl.as_secs_f64()));
        let values: Vec<_> =
            [("body_bytes_max", f64::from(c.body_bytes_max))].into_iter().chain(ttl).collect();
        put("cache", &values);
    }
    if let Some(l) = rate_limit {
        let (requests, burst) = (l.requests.into(), l.burst.into());
        put("rate_limit", &[("requests", requests), ("per_secs", l.per.as_secs_f64()), ("burst", burst)]);
    }
    if let Some(h) = hedge {
        put("hedge", &[("after_secs", h.after.as_secs_f64())]);
    }
    (!fields.is_empty()).then(|| core::Metadata {
        filter_metadata: HashMap::from([(METADATA.to_owned(), Struct { fields })]),
        ..core::Metadata::default()
    })
}
