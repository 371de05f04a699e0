//! Filters of a route that are known; others are refused unless they are optional.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{HttpFault, fault_abort::ErrorType};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use super::super::encode::{CORS, FAULT, FILL_INTERVAL_MIN, LOCAL_RATE_LIMIT};
use super::super::{Abort, CONDITIONS_MAX, Cors, Fault, Fraction, TIME_MAX};
use super::matching::string_match;
use super::{At, Result, TIMES, percentage, status};
use crate::resource::cluster::RateLimit;
use crate::resource::number_to_proto;

/// What the filters of a route say.
#[derive(Default)]
pub(super) struct Filters {
    pub fault: Option<Fault>,
    pub cors: Option<Cors>,
    pub rate_limit: Option<RateLimit>,
}

/// Filters of a route that are known are read; others are refused unless they are optional.
pub(super) fn check_filters(
    at: &At<'_>,
    filters: &std::collections::HashMap<String, Any>,
    known: &[&str],
) -> Result<Filters> {
    let mut said = Filters::default();
    // Sorted, so that the same resource gets the same error.
    let mut names: Vec<&String> = filters.keys().collect();
    names.sort();
    for name in names {
        let any = &filters[name];
        let field = format!("typed_per_filter_config[{}]", name.chars().take(64).collect::<String>());
        let undecodable = |e: prost::DecodeError| at.error(&field, format!("undecodable: {e}"), "a message");
        let (any, optional) = if any.type_url == pb::FilterConfig::type_url() {
            let wrapped = pb::FilterConfig::decode(any.value.as_slice()).map_err(undecodable)?;
            if wrapped.disabled {
                continue;
            }
            (wrapped.config.unwrap_or_default(), wrapped.is_optional)
        } else {
            (any.clone(), false)
        };
        if known.contains(&name.as_str()) && any.type_url == HttpFault::type_url() {
            let message = HttpFault::decode(any.value.as_slice()).map_err(undecodable)?;
            said.fault = Some(fault(&at.within(&field), &message)?);
        } else if known.contains(&name.as_str()) && any.type_url == CorsPolicy::type_url() {
            let message = CorsPolicy::decode(any.value.as_slice()).map_err(undecodable)?;
            said.cors = Some(cors(&at.within(&field), &message)?);
        } else if known.contains(&name.as_str()) && any.type_url == LocalRateLimit::type_url() {
            let message = LocalRateLimit::decode(any.value.as_slice()).map_err(undecodable)?;
            said.rate_limit = rate_limit(&at.within(&field), &message)?;
        } else if !optional {
            let seen = any.type_url.chars().take(128).collect::<String>();
            return Err(at.error(
                &field,
                seen,
                format!("{FAULT}, {CORS}, {LOCAL_RATE_LIMIT}, or an optional filter"),
            ));
        }
    }
    Ok(said)
}

/// One bucket for a route. None if it is not enabled or not enforced, which both are if nothing is said of them.
fn rate_limit(at: &At<'_>, l: &LocalRateLimit) -> Result<Option<RateLimit>> {
    for (field, share) in [("filter_enabled", &l.filter_enabled), ("filter_enforced", &l.filter_enforced)] {
        match share.as_ref().and_then(|share| share.default_value.as_ref()) {
            None => return Ok(None),
            Some(none) if none.numerator == 0 => return Ok(None),
            share if percentage(at, field, share)? == Fraction::ALL => {}
            Some(share) => return Err(at.error(field, share.numerator.to_string(), "none or all")),
        }
    }
    let unset = [
        ("request_headers_to_add_when_not_enforced", !l.request_headers_to_add_when_not_enforced.is_empty()),
        ("response_headers_to_add", !l.response_headers_to_add.is_empty()),
        ("descriptors", !l.descriptors.is_empty()),
        ("rate_limits", !l.rate_limits.is_empty()),
        ("local_rate_limit_per_downstream_connection", l.local_rate_limit_per_downstream_connection),
        ("local_cluster_rate_limit", l.local_cluster_rate_limit.is_some()),
        ("rate_limited_as_resource_exhausted", l.rate_limited_as_resource_exhausted),
    ];
    if let Some((field, _)) = unset.into_iter().find(|(_, set)| *set) {
        return Err(at.error(field, "set", "unset"));
    }
    // Below 400 it is 429 in Envoy too.
    if let Some(status) = l.status.as_ref().filter(|status| status.code >= 400 && status.code != 429) {
        return Err(at.error("status", status.code.to_string(), "429"));
    }
    let Some(bucket) = &l.token_bucket else { return Err(at.error("token_bucket", "nothing", "a bucket")) };
    let at = at.within("token_bucket");
    let some = (1, u32::MAX);
    let burst = Some(number_to_proto(bucket.max_tokens));
    let interval = bucket.fill_interval.as_ref();
    let limits = (FILL_INTERVAL_MIN, TIME_MAX);
    Ok(Some(RateLimit {
        requests: at.v.number(at.field("tokens_per_fill"), bucket.tokens_per_fill.as_ref(), 1, some)?,
        per: at.v.duration(&at.field("fill_interval"), interval, Duration::from_secs(1), limits)?,
        burst: at.v.number(at.field("max_tokens"), burst.as_ref(), 1, some)?,
    }))
}

fn fault(at: &At<'_>, f: &HttpFault) -> Result<Fault> {
    let unset = [
        ("headers", !f.headers.is_empty()),
        ("downstream_nodes", !f.downstream_nodes.is_empty()),
        ("upstream_cluster", !f.upstream_cluster.is_empty()),
        ("response_rate_limit", f.response_rate_limit.is_some()),
    ];
    if let Some((field, _)) = unset.into_iter().find(|(_, set)| *set) {
        return Err(at.error(field, "set", "unset"));
    }
    let delay = match &f.delay {
        None => None,
        Some(d) => match &d.fault_delay_secifier {
            Some(FaultDelaySecifier::FixedDelay(time)) => {
                let time =
                    at.v.duration(&at.field("delay.fixed_delay"), Some(time), Duration::ZERO, TIMES)?;
                Some((time, percentage(at, "delay.percentage", d.percentage.as_ref())?))
            }
            _ => return Err(at.error("delay", "another", "fixed_delay")),
        },
    };
    let abort = match &f.abort {
        None => None,
        Some(a) => {
            let abort = match &a.error_type {
                Some(ErrorType::HttpStatus(code)) => Abort::Http(status(at, "abort.http_status", *code)?),
                Some(ErrorType::GrpcStatus(code @ 0..=16)) => Abort::Grpc(*code),
                _ => return Err(at.error("abort", "another", "http_status or grpc_status")),
            };
            Some((abort, percentage(at, "abort.percentage", a.percentage.as_ref())?))
        }
    };
    Ok(Fault { delay, abort })
}

fn cors(at: &At<'_>, c: &CorsPolicy) -> Result<Cors> {
    at.at_most("allow_origin_string_match", c.allow_origin_string_match.len(), CONDITIONS_MAX)?;
    let origins = c.allow_origin_string_match.iter().map(|m| string_match(at, m));
    let list = |field: &str, text: &str| -> Result<Vec<String>> {
        let text = at.text(field, text)?;
        if !text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
            return Err(at.error(field, format!("{text:?}"), "names with commas between"));
        }
        Ok(text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(str::to_owned).collect())
    };
    let max_age = match c.max_age.as_str() {
        "" => None,
        text => Some(Duration::from_secs(
            text.parse().map_err(|_| at.error("max_age", format!("{text:?}"), "a number of seconds"))?,
        )),
    };
    Ok(Cors {
        origins: origins.collect::<Result<_>>()?,
        methods: list("allow_methods", &c.allow_methods)?,
        headers: list("allow_headers", &c.allow_headers)?,
        expose: list("expose_headers", &c.expose_headers)?,
        max_age,
        credentials: c.allow_credentials.is_some_and(|v| v.value),
    })
}
