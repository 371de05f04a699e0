//! Validated routes as Envoy's messages.

use std::collections::HashMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::XRateLimitHeadersRfcVersion;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::{FaultDelay, fault_delay};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault, fault_abort};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3::{
    FractionalPercent, TokenBucket, fractional_percent::DenominatorType,
};
use envoy_types::pb::google::protobuf::{self, Any};
use envoy_types::util::pack_any;

use super::own::{self, METADATA};
use super::{
    Abort, Action, Cors, Fault, Forward, Fraction, GRPC_RETRIABLE, HeaderEdits, Hedge, PathMatch,
    PathRewrite, Redirect, Route, RouteConfiguration, RouteMatch, RoutePolicy, StringMatch, ValueMatch,
    VirtualHost,
};
use crate::resource::cluster::{RateLimit, balancing};
use crate::resource::subset::Subset;
use crate::resource::{duration_to_proto, number_to_proto};

pub(super) const CORS: &str = "envoy.filters.http.cors";
pub(super) const FAULT: &str = "envoy.filters.http.fault";
pub(super) const LOCAL_RATE_LIMIT: &str = "envoy.filters.http.local_ratelimit";
/// The shortest `fill_interval` that Envoy takes.
pub(super) const FILL_INTERVAL_MIN: Duration = Duration::from_millis(50);
/// Where the labels of a subset stand.
pub(super) const SUBSETS: &str = "envoy.lb";

impl From<&RouteConfiguration> for pb::RouteConfiguration {
    fn from(c: &RouteConfiguration) -> Self {
        Self {
            name: c.name.clone(),
            virtual_hosts: c.virtual_hosts.iter().map(virtual_host).collect(),
            ignore_port_in_host_matching: true,
            ..Self::default()
        }
    }
}

fn virtual_host(h: &VirtualHost) -> pb::VirtualHost {
    pb::VirtualHost {
        name: h.name.clone(),
        domains: h.domains.clone(),
        routes: h.routes.iter().map(route).collect(),
        ..pb::VirtualHost::default()
    }
}

fn route(r: &Route) -> pb::Route {
    let (request_headers_to_add, request_headers_to_remove) = edits(&r.policy.request_headers);
    let (response_headers_to_add, response_headers_to_remove) = edits(&r.policy.response_headers);
    let hedge = match &r.action {
        Action::Forward(f) => r.policy.hedge.filter(|_| hedges_on_try_timeout(f)),
        _ => None,
    };
    pb::Route {
        name: r.name.clone(),
        r#match: Some(route_match(&r.matches)),
        metadata: own::encode(
            &r.policy,
            r.policy.hedge.filter(|_| hedge.is_none()),
            r.policy.rate_limit.filter(|limit| !is_bucket(limit)),
        ),
        typed_per_filter_config: filters(&r.policy),
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        action: Some(match &r.action {
            Action::Forward(f) => pb::route::Action::Route(forward(f, hedge)),
            Action::Redirect(redirect) => pb::route::Action::Redirect(redirection(redirect)),
            Action::Respond(d) => pb::route::Action::DirectResponse(pb::DirectResponseAction {
                status: u32::from(d.status),
                body: (!d.body.is_empty()).then(|| core::DataSource {
                    specifier: Some(core::data_source::Specifier::InlineString(d.body.clone())),
                    ..core::DataSource::default()
                }),
                ..pb::DirectResponseAction::default()
            }),
        }),
        ..pb::Route::default()
    }
}

fn route_match(m: &RouteMatch) -> pb::RouteMatch {
    use pb::route_match::PathSpecifier as P;
    let method = m.method.iter().map(|method| header(":method", &StringMatch::Exact(method.clone()), false));
    let headers = m.headers.iter().map(|h| header(&h.name, &h.value, h.invert));
    pb::RouteMatch {
        path_specifier: Some(match &m.path {
            PathMatch::Exact(path) => P::Path(path.clone()),
            PathMatch::Prefix(prefix) => P::Prefix(prefix.clone()),
            PathMatch::Segments(prefix) => P::PathSeparatedPrefix(prefix.clone()),
            PathMatch::Regex(pattern) => P::SafeRegex(regex(pattern)),
        }),
        headers: method.chain(headers).collect(),
        query_parameters: m.query.iter().map(query).collect(),
        grpc: m.grpc.then(pb::route_match::GrpcRouteMatchOptions::default),
        ..pb::RouteMatch::default()
    }
}

fn header(name: &str, value: &StringMatch, invert: bool) -> pb::HeaderMatcher {
    use pb::header_matcher::HeaderMatchSpecifier as H;
    pb::HeaderMatcher {
        name: name.to_owned(),
        invert_match: invert,
        header_match_specifier: Some(match string_match(value) {
            Some(matcher) => H::StringMatch(matcher),
            None => H::PresentMatch(true),
        }),
        ..pb::HeaderMatcher::default()
    }
}

fn query(q: &ValueMatch) -> pb::QueryParameterMatcher {
    use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Q;
    pb::QueryParameterMatcher {
        name: q.name.clone(),
        query_parameter_match_specifier: Some(match string_match(&q.value) {
            Some(matcher) => Q::StringMatch(matcher),
            None => Q::PresentMatch(true),
        }),
    }
}

/// None for a presence.
fn string_match(value: &StringMatch) -> Option<matcher::StringMatcher> {
    use matcher::string_matcher::MatchPattern as M;
    let pattern = match value {
        StringMatch::Exact(text) => M::Exact(text.clone()),
        StringMatch::Prefix(text) => M::Prefix(text.clone()),
        StringMatch::Suffix(text) => M::Suffix(text.clone()),
        StringMatch::Contains(text) => M::Contains(text.clone()),
        StringMatch::Regex(pattern) => M::SafeRegex(regex(pattern)),
        StringMatch::Present => return None,
    };
    Some(matcher::StringMatcher { match_pattern: Some(pattern), ..matcher::StringMatcher::default() })
}

fn regex(pattern: &str) -> matcher::RegexMatcher {
    matcher::RegexMatcher { regex: pattern.to_owned(), ..matcher::RegexMatcher::default() }
}

/// Envoy hedges when a try has taken too long, and counts it as a repetition: where tries have a time of their own, or there is
/// none, it cannot be said so.
fn hedges_on_try_timeout(f: &Forward) -> bool {
    f.try_timeout.is_none() && f.retry.as_ref().is_none_or(|retry| retry.attempts > 0)
}

fn forward(f: &Forward, hedge: Option<Hedge>) -> pb::RouteAction {
    use pb::route_action::{ClusterSpecifier, HostRewriteSpecifier, MaxStreamDuration, RequestMirrorPolicy};
    let (prefix_rewrite, regex_rewrite) = match &f.path {
        None => (String::new(), None),
        Some(PathRewrite::Prefix(prefix)) => (prefix.clone(), None),
        Some(PathRewrite::Regex { pattern, substitution }) => {
            (String::new(), Some(substitute(pattern, substitution)))
        }
        Some(PathRewrite::Full(path)) => {
            let PathRewrite::Regex { pattern, substitution } = PathRewrite::whole(path) else {
                unreachable!("a whole path is rewritten by a pattern")
            };
            (String::new(), Some(substitute(&pattern, &substitution)))
        }
    };
    let alone = match f.backends.as_slice() {
        [b] if b.weight > 0 && b.request_headers.is_empty() && b.response_headers.is_empty() => Some(b),
        _ => None,
    };
    pb::RouteAction {
        cluster_specifier: Some(match alone {
            Some(b) => ClusterSpecifier::Cluster(b.cluster.clone()),
            None => ClusterSpecifier::WeightedClusters(pb::WeightedCluster {
                clusters: f.backends.iter().map(backend).collect(),
                ..pb::WeightedCluster::default()
            }),
        }),
        metadata_match: alone.and_then(|b| subset(&b.subset)),
        hash_policy: f.hash.iter().map(|part| balancing::key_to_proto(&part.on, part.terminal)).collect(),
        prefix_rewrite,
        regex_rewrite,
        host_rewrite_specifier: f.host.clone().map(HostRewriteSpecifier::HostRewriteLiteral),
        timeout: f.timeout.map(duration_to_proto),
        // What gRPC reads (A31).
        max_stream_duration: f.timeout.filter(|t| !t.is_zero()).map(|t| MaxStreamDuration {
            max_stream_duration: Some(duration_to_proto(t)),
            ..MaxStreamDuration::default()
        }),
        retry_policy: retry(f, hedge),
        hedge_policy: hedge
            .map(|_| pb::HedgePolicy { hedge_on_per_try_timeout: true, ..pb::HedgePolicy::default() }),
        request_mirror_policies: f
            .mirrors
            .iter()
            .map(|m| RequestMirrorPolicy {
                cluster: m.cluster.clone(),
                runtime_fraction: Some(core::RuntimeFractionalPercent {
                    default_value: Some(percent(m.fraction)),
                    ..core::RuntimeFractionalPercent::default()
                }),
                ..RequestMirrorPolicy::default()
            })
            .collect(),
        ..pb::RouteAction::default()
    }
}

/// A range of versions is nothing that Envoy could compare, so it stands where only Weft looks.
fn subset(s: &Subset) -> Option<core::Metadata> {
    let mut filter_metadata: HashMap<String, protobuf::Struct> = HashMap::new();
    for (key, text, range) in s.texts() {
        let value = protobuf::Value { kind: Some(protobuf::value::Kind::StringValue(text.to_owned())) };
        let namespace = if range { METADATA } else { SUBSETS };
        filter_metadata.entry(namespace.to_owned()).or_default().fields.insert(key.to_owned(), value);
    }
    (!s.is_empty()).then(|| core::Metadata { filter_metadata, ..core::Metadata::default() })
}

fn backend(b: &super::Backend) -> pb::weighted_cluster::ClusterWeight {
    let (request_headers_to_add, request_headers_to_remove) = edits(&b.request_headers);
    let (response_headers_to_add, response_headers_to_remove) = edits(&b.response_headers);
    pb::weighted_cluster::ClusterWeight {
        name: b.cluster.clone(),
        weight: Some(number_to_proto(b.weight)),
        metadata_match: subset(&b.subset),
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        ..pb::weighted_cluster::ClusterWeight::default()
    }
}

fn retry(f: &Forward, hedge: Option<Hedge>) -> Option<pb::RetryPolicy> {
    let per_try = hedge.map(|hedge| hedge.after).or(f.try_timeout);
    if f.retry.is_none() && per_try.is_none() {
        return None;
    }
    let mut policy = pb::RetryPolicy {
        num_retries: Some(number_to_proto(u32::from(hedge.is_some()))),
        per_try_timeout: per_try.map(duration_to_proto),
        ..pb::RetryPolicy::default()
    };
    if hedge.is_some() {
        // Without any condition Envoy repeats nothing, and does not hedge.
        policy.retry_on = "connect-failure,refused-stream".to_owned();
    }
    if let Some(retry) = &f.retry {
        let mut words = vec!["connect-failure", "refused-stream"];
        // One that names neither repeats what broke off, which Envoy has no word for that calls of gRPC would not hear too.
        if !retry.codes.is_empty() || retry.grpc_codes.is_empty() {
            words.push("retriable-status-codes");
        }
        let of_grpc = GRPC_RETRIABLE.iter().filter(|(code, ..)| retry.grpc_codes.contains(code));
        words.extend(of_grpc.map(|(.., of_envoy)| of_envoy));
        policy.retry_on = words.join(",");
        policy.num_retries = Some(number_to_proto(retry.attempts));
        policy.retriable_status_codes = retry.codes.iter().map(|c| u32::from(*c)).collect();
        policy.retry_back_off = retry.backoff.map(|base| pb::retry_policy::RetryBackOff {
            base_interval: Some(duration_to_proto(base.max(Duration::from_millis(1)))),
            max_interval: None,
        });
    }
    Some(policy)
}

fn substitute(pattern: &str, substitution: &str) -> matcher::RegexMatchAndSubstitute {
    matcher::RegexMatchAndSubstitute { pattern: Some(regex(pattern)), substitution: substitution.to_owned() }
}

fn redirection(r: &Redirect) -> pb::RedirectAction {
    use pb::redirect_action::{
        PathRewriteSpecifier as P, RedirectResponseCode as Code, SchemeRewriteSpecifier,
    };
    pb::RedirectAction {
        host_redirect: r.host.clone().unwrap_or_default(),
        port_redirect: r.port.map_or(0, u32::from),
        response_code: match r.status {
            302 => Code::Found,
            303 => Code::SeeOther,
            307 => Code::TemporaryRedirect,
            308 => Code::PermanentRedirect,
            _ => Code::MovedPermanently,
        } as i32,
        strip_query: r.strip_query,
        scheme_rewrite_specifier: r.scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: r.path.as_ref().map(|path| match path {
            PathRewrite::Full(path) => P::PathRedirect(path.clone()),
            PathRewrite::Prefix(prefix) => P::PrefixRewrite(prefix.clone()),
            PathRewrite::Regex { pattern, substitution } => {
                P::RegexRewrite(substitute(pattern, substitution))
            }
        }),
    }
}

/// Values are format strings there; a percent sign stands for itself if it is doubled.
fn edits(e: &HeaderEdits) -> (Vec<core::HeaderValueOption>, Vec<String>) {
    use core::header_value_option::HeaderAppendAction as Append;
    let option = |(name, value): &(String, String), action: Append| core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: name.clone(),
            value: value.replace('%', "%%"),
            ..core::HeaderValue::default()
        }),
        append_action: action as i32,
        keep_empty_value: true,
        ..core::HeaderValueOption::default()
    };
    let set = e.set.iter().map(|field| option(field, Append::OverwriteIfExistsOrAdd));
    let add = e.add.iter().map(|field| option(field, Append::AppendIfExistsOrAdd));
    (set.chain(add).collect(), e.remove.clone())
}

fn percent(f: Fraction) -> FractionalPercent {
    FractionalPercent { numerator: f.millionths(), denominator: DenominatorType::Million as i32 }
}

fn filters(p: &RoutePolicy) -> HashMap<String, Any> {
    // Wrapped, so that a client without such a filter passes over it instead of refusing the whole (A39).
    let optional = |any| {
        pack_any(pb::FilterConfig { config: Some(any), is_optional: true, ..pb::FilterConfig::default() })
    };
    let mut filters = HashMap::new();
    if let Some(f) = &p.fault {
        filters.insert(FAULT.to_owned(), optional(pack_any(fault(f))));
    }
    if let Some(c) = &p.cors {
        filters.insert(CORS.to_owned(), optional(pack_any(cors(c))));
    }
    if let Some(limit) = p.rate_limit.filter(is_bucket) {
        filters.insert(LOCAL_RATE_LIMIT.to_owned(), optional(pack_any(local_rate_limit(limit))));
    }
    filters
}

/// Whether Envoy's bucket can be filled so often.
fn is_bucket(limit: &RateLimit) -> bool {
    limit.per >= FILL_INTERVAL_MIN
}

fn local_rate_limit(limit: RateLimit) -> LocalRateLimit {
    // Nothing is limited where it is not said for how many requests.
    let all = || core::RuntimeFractionalPercent {
        default_value: Some(percent(Fraction::ALL)),
        ..core::RuntimeFractionalPercent::default()
    };
    LocalRateLimit {
        stat_prefix: "route".to_owned(),
        token_bucket: Some(TokenBucket {
            max_tokens: limit.burst,
            tokens_per_fill: Some(number_to_proto(limit.requests)),
            fill_interval: Some(duration_to_proto(limit.per)),
        }),
        filter_enabled: Some(all()),
        filter_enforced: Some(all()),
        enable_x_ratelimit_headers: XRateLimitHeadersRfcVersion::DraftVersion03 as i32,
        ..LocalRateLimit::default()
    }
}

fn fault(f: &Fault) -> HttpFault {
    HttpFault {
        delay: f.delay.map(|(delay, fraction)| FaultDelay {
            percentage: Some(percent(fraction)),
            fault_delay_secifier: Some(fault_delay::FaultDelaySecifier::FixedDelay(duration_to_proto(delay))),
        }),
        abort: f.abort.map(|(abort, fraction)| FaultAbort {
            percentage: Some(percent(fraction)),
            error_type: Some(match abort {
                Abort::Http(status) => fault_abort::ErrorType::HttpStatus(u32::from(status)),
                Abort::Grpc(status) => fault_abort::ErrorType::GrpcStatus(status),
            }),
            ..FaultAbort::default()
        }),
        ..HttpFault::default()
    }
}

fn cors(c: &Cors) -> CorsPolicy {
    CorsPolicy {
        allow_origin_string_match: c.origins.iter().filter_map(string_match).collect(),
        allow_methods: c.methods.join(","),
        allow_headers: c.headers.join(","),
        expose_headers: c.expose.join(","),
        max_age: c.max_age.map(|age| age.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: c.credentials.then_some(protobuf::BoolValue { value: true }),
        ..CorsPolicy::default()
    }
}
