//! Where a route leads to, and how often it tries.

use std::collections::BTreeMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::google::protobuf::value::Kind;

use super::super::encode::SUBSETS;
use super::super::own::METADATA;
use super::super::{
    ATTEMPTS_MAX, BACKENDS_MAX, Backend, Forward, Fraction, GRPC_RETRIABLE, HASH_PARTS_MAX, Hedge, Mirror,
    PathRewrite, Retry, RouteHash, TEXT_BYTES_MAX, WEIGHT_MAX, pattern,
};
use super::filters::check_filters;
use super::{At, Result, TIMES, edits, host_text, path_text, percentage};
use crate::resource::cluster::balancing;
use crate::resource::subset::Subset;

/// And when a request is sent to a second endpoint.
pub(super) fn forward(at: &At<'_>, p: &pb::RouteAction) -> Result<(Forward, Option<Hedge>)> {
    use pb::route_action::{ClusterSpecifier, HostRewriteSpecifier};
    let unset = [
        ("path_rewrite_policy", p.path_rewrite_policy.is_some()),
        ("path_rewrite", !p.path_rewrite.is_empty()),
        ("retry_policy_typed_config", p.retry_policy_typed_config.is_some()),
        #[allow(deprecated)]
        ("cors", p.cors.is_some()),
    ];
    if let Some((field, _)) = unset.into_iter().find(|(_, set)| *set) {
        return Err(at.error(field, "set", "unset"));
    }
    let backends = match &p.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => {
            let backend = Backend::new(cluster(at, "cluster", name)?, 1);
            vec![Backend { subset: subset(at, None, p.metadata_match.as_ref())?, ..backend }]
        }
        Some(ClusterSpecifier::WeightedClusters(w)) => {
            weighted(&at.within("weighted_clusters"), w, p.metadata_match.as_ref())?
        }
        Some(_) | None => {
            return Err(at.error("cluster_specifier", "another or none", "cluster or weighted_clusters"));
        }
    };
    let path = match (&p.regex_rewrite, p.prefix_rewrite.as_str()) {
        (None, "") => None,
        (None, prefix) => Some(PathRewrite::Prefix(path_text(at, "prefix_rewrite", prefix)?)),
        (Some(r), "") => Some(regex_rewrite(&at.within("regex_rewrite"), r)?),
        (Some(_), _) => return Err(at.error("prefix_rewrite", "beside regex_rewrite", "one of the two")),
    };
    let host = match &p.host_rewrite_specifier {
        None => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            Some(host_text(at, "host_rewrite_literal", host)?)
        }
        Some(_) => return Err(at.error("host_rewrite_specifier", "another", "host_rewrite_literal")),
    };
    let time = |field: &str, value: Option<&_>| -> Result<Option<Duration>> {
        value.map(|t| at.v.duration(&at.field(field), Some(t), Duration::ZERO, TIMES)).transpose()
    };
    at.at_most("request_mirror_policies", p.request_mirror_policies.len(), BACKENDS_MAX)?;
    let mut mirrors = Vec::new();
    for (i, m) in p.request_mirror_policies.iter().enumerate() {
        let at = at.within(&format!("request_mirror_policies[{i}]"));
        let fraction = match &m.runtime_fraction {
            None => Fraction::ALL,
            Some(f) => percentage(&at, "runtime_fraction", f.default_value.as_ref())?,
        };
        mirrors.push(Mirror { cluster: cluster(&at, "cluster", &m.cluster)?, fraction });
    }
    let (retry, try_timeout) = match &p.retry_policy {
        None => (None, None),
        Some(r) => retry(&at.within("retry_policy"), r)?,
    };
    let hedges = hedges(&at.within("hedge_policy"), p.hedge_policy.as_ref())?;
    let (hedge, try_timeout) = match (hedges, try_timeout.filter(|time| !time.is_zero())) {
        (false, _) => (None, try_timeout),
        // The first try goes on then, so it has no time of its own.
        (true, Some(after)) => (Some(Hedge { after }), None),
        (true, None) => {
            let allowed = "true with a retry_policy.per_try_timeout, or false";
            return Err(at.error("hedge_policy.hedge_on_per_try_timeout", "true", allowed));
        }
    };
    let forward = Forward {
        backends,
        path,
        host,
        timeout: time("timeout", p.timeout.as_ref())?,
        try_timeout,
        retry,
        mirrors,
        hash: hash(at, &p.hash_policy)?,
    };
    Ok((forward, hedge))
}

fn hedges(at: &At<'_>, p: Option<&pb::HedgePolicy>) -> Result<bool> {
    let Some(p) = p else { return Ok(false) };
    at.v.number(at.field("initial_requests"), p.initial_requests.as_ref(), 1, (1, 1))?;
    match &p.additional_request_chance {
        Some(chance) if chance.numerator > 0 => {
            Err(at.error("additional_request_chance", chance.numerator.to_string(), "0"))
        }
        _ => Ok(p.hedge_on_per_try_timeout),
    }
}

fn hash(at: &At<'_>, policies: &[pb::route_action::HashPolicy]) -> Result<Vec<RouteHash>> {
    at.at_most("hash_policy", policies.len(), HASH_PARTS_MAX)?;
    let part = |(i, policy): (usize, &pb::route_action::HashPolicy)| {
        let on = balancing::key(policy);
        let on = on.map_err(|seen| at.error(&format!("hash_policy[{i}]"), seen, balancing::HASH_POLICY))?;
        Ok(RouteHash { on, terminal: policy.terminal })
    };
    policies.iter().enumerate().map(part).collect()
}

/// Labels that endpoints must have: those of the route, and those of one of its clusters, which say more.
fn subset(at: &At<'_>, of_route: Option<&core::Metadata>, own: Option<&core::Metadata>) -> Result<Subset> {
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    for metadata in of_route.into_iter().chain(own) {
        let known = [SUBSETS, METADATA];
        for (key, value) in
            known.iter().filter_map(|ns| metadata.filter_metadata.get(*ns)).flat_map(|s| &s.fields)
        {
            let text = match &value.kind {
                Some(Kind::StringValue(text)) => text.clone(),
                Some(Kind::NumberValue(n)) => n.to_string(),
                Some(Kind::BoolValue(b)) => b.to_string(),
                _ => {
                    let field = format!("metadata_match.{}", key.chars().take(64).collect::<String>());
                    return Err(at.error(&field, "a list, a struct or nothing", "text, a number or a flag"));
                }
            };
            texts.insert(key.clone(), text);
        }
    }
    Subset::new(texts.iter().map(|(k, v)| (k.as_str(), v.as_str())))
        .map_err(|e| at.error(&format!("metadata_match.{}", e.key), format!("{:?}", e.seen), e.allowed))
}

fn cluster(at: &At<'_>, field: &str, name: &str) -> Result<String> {
    let usable = !name.is_empty()
        && name.len() <= crate::resource::RESOURCE_NAME_BYTES_MAX
        && !name.chars().any(|c| c.is_control() || c.is_whitespace());
    if !usable {
        let seen = format!("{:?}", name.chars().take(64).collect::<String>());
        return Err(at.error(field, seen, "1 to 253 bytes without spaces and control characters"));
    }
    Ok(name.to_owned())
}

fn weighted(at: &At<'_>, w: &pb::WeightedCluster, of_route: Option<&core::Metadata>) -> Result<Vec<Backend>> {
    at.at_most("clusters", w.clusters.len(), BACKENDS_MAX)?;
    let mut backends = Vec::new();
    for (i, c) in w.clusters.iter().enumerate() {
        let at = at.within(&format!("clusters[{i}]"));
        if c.host_rewrite_specifier.is_some() {
            return Err(at.error("host_rewrite_specifier", "set", "unset"));
        }
        check_filters(&at, &c.typed_per_filter_config, &[])?;
        let path = |field| at.within(field).path;
        backends.push(Backend {
            cluster: cluster(&at, "name", &c.name)?,
            weight: at.v.number(at.field("weight"), c.weight.as_ref(), 0, (0, WEIGHT_MAX))?,
            subset: subset(&at, of_route, c.metadata_match.as_ref())?,
            request_headers: edits(
                at.v,
                &path("request_headers"),
                &c.request_headers_to_add,
                &c.request_headers_to_remove,
            )?,
            response_headers: edits(
                at.v,
                &path("response_headers"),
                &c.response_headers_to_add,
                &c.response_headers_to_remove,
            )?,
        });
    }
    if backends.iter().all(|b| b.weight == 0) {
        return Err(at.error("clusters", "no weight above 0", "at least one weight above 0"));
    }
    Ok(backends)
}

pub(super) fn regex_rewrite(at: &At<'_>, r: &matcher::RegexMatchAndSubstitute) -> Result<PathRewrite> {
    let text = r.pattern.as_ref().map(|p| p.regex.as_str()).unwrap_or_default();
    let regex = pattern::part(text).map_err(|why| at.error("pattern", why, "a regular expression"))?;
    at.at_most("substitution", r.substitution.len(), TEXT_BYTES_MAX)?;
    pattern::substitution(&r.substitution, &regex)
        .map_err(|why| at.error("substitution", why, "text with \\0 to \\9 for groups"))?;
    Ok(PathRewrite::Regex { pattern: text.to_owned(), substitution: r.substitution.clone() })
}

/// Conditions of requests of which an endpoint took nothing.
const UNSENT: [&str; 2] = ["connect-failure", "refused-stream"];

fn retry(at: &At<'_>, r: &pb::RetryPolicy) -> Result<(Option<Retry>, Option<Duration>)> {
    let time = |field: &str, value: Option<&_>| -> Result<Option<Duration>> {
        value.map(|t| at.v.duration(&at.field(field), Some(t), Duration::ZERO, TIMES)).transpose()
    };
    let try_timeout = time("per_try_timeout", r.per_try_timeout.as_ref())?;
    let attempts = at.v.number(at.field("num_retries"), r.num_retries.as_ref(), 1, (0, ATTEMPTS_MAX))?;
    if r.retry_on.is_empty() || attempts == 0 {
        return Ok((None, try_timeout));
    }
    let words = || r.retry_on.split(',').map(str::trim);
    // A request that was not sent is always tried elsewhere.
    if words().all(|word| UNSENT.contains(&word)) {
        return Ok((None, try_timeout));
    }
    let (mut codes, mut grpc_codes): (Vec<u16>, Vec<u8>) = Default::default();
    for word in words() {
        match word {
            "5xx" => codes.extend(500..600),
            "gateway-error" => codes.extend(502..505),
            "retriable-status-codes" => {
                for code in &r.retriable_status_codes {
                    let code = u16::try_from(*code).ok().filter(|c| (400..600).contains(c));
                    codes.push(code.ok_or_else(|| {
                        at.error(
                            "retriable_status_codes",
                            format!("{:?}", r.retriable_status_codes),
                            "400 to 599",
                        )
                    })?);
                }
            }
            // The rest are conditions of other filters.
            _ => grpc_codes
                .extend(GRPC_RETRIABLE.iter().filter(|(.., of_envoy)| *of_envoy == word).map(|c| c.0)),
        }
    }
    codes.sort_unstable();
    codes.dedup();
    grpc_codes.sort_unstable();
    grpc_codes.dedup();
    let backoff = r.retry_back_off.as_ref().and_then(|b| b.base_interval.as_ref());
    Ok((Some(Retry { attempts, codes, grpc_codes, backoff: time("retry_back_off", backoff)? }), try_timeout))
}
