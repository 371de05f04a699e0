//! Filters of a route that are known; others are refused unless they are optional.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{HttpFault, fault_abort::ErrorType};
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use super::super::encode::{CORS, FAULT};
use super::super::{Abort, CONDITIONS_MAX, Cors, Fault};
use super::matching::string_match;
use super::{At, Result, TIMES, percentage, status};

/// Filters of a route that are known are read; others are refused unless they are optional.
pub(super) fn check_filters(
    at: &At<'_>,
    filters: &std::collections::HashMap<String, Any>,
    known: &[&str],
) -> Result<(Option<Fault>, Option<Cors>)> {
    let (mut fault, mut cors) = (None, None);
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
            fault = Some(self::fault(&at.within(&field), &message)?);
        } else if known.contains(&name.as_str()) && any.type_url == CorsPolicy::type_url() {
            let message = CorsPolicy::decode(any.value.as_slice()).map_err(undecodable)?;
            cors = Some(self::cors(&at.within(&field), &message)?);
        } else if !optional {
            let seen = any.type_url.chars().take(128).collect::<String>();
            return Err(at.error(&field, seen, format!("{FAULT}, {CORS}, or an optional filter")));
        }
    }
    Ok((fault, cors))
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
