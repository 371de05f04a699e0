//! Envoy's messages as validated routes. What cannot be honoured and would change where a request goes or what it is
//! answered is refused; mere hints are passed over.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{HttpFault, fault_abort::ErrorType};
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use envoy_types::pb::google::protobuf::{Any, value::Kind};
use prost::{Message, Name};

use super::encode::{CORS, FAULT, SUBSETS};
use super::own::{self, METADATA};
use super::{
    ATTEMPTS_MAX, Abort, Action, BACKENDS_MAX, BODY_BYTES_MAX, Backend, CONDITIONS_MAX, Cors, DirectResponse,
    Fault, Forward, Fraction, HASH_PARTS_MAX, HeaderEdits, Mirror, PathMatch, PathRewrite, ROUTES_MAX,
    Redirect, Retry, Route, RouteConfiguration, RouteHash, RouteMatch, RoutePolicy, StringMatch,
    TEXT_BYTES_MAX, TIME_MAX, VIRTUAL_HOSTS_MAX, ValueMatch, VirtualHost, WEIGHT_MAX, pattern,
};
use crate::resource::cluster::balancing;
use crate::resource::subset::Subset;
use crate::resource::{InvalidResource, Validator};

type Result<T> = std::result::Result<T, InvalidResource>;

const TIMES: (Duration, Duration) = (Duration::ZERO, TIME_MAX);

impl TryFrom<pb::RouteConfiguration> for RouteConfiguration {
    type Error = InvalidResource;

    fn try_from(p: pb::RouteConfiguration) -> Result<Self> {
        let v = Validator { kind: "RouteConfiguration", name: &p.name };
        let name = v.name("name")?;
        if p.vhds.is_some() {
            return Err(v.error("vhds", "set", "unset"));
        }
        let edits = edits(&v, "", &p.request_headers_to_add, &p.request_headers_to_remove)?;
        let answer = self::edits(&v, "", &p.response_headers_to_add, &p.response_headers_to_remove)?;
        if !edits.is_empty() || !answer.is_empty() {
            return Err(v.error("request_headers_to_add", "set", "unset; set them on routes"));
        }
        at_most(&v, "virtual_hosts", p.virtual_hosts.len(), VIRTUAL_HOSTS_MAX)?;
        let mut seen = HashSet::new();
        let mut virtual_hosts = Vec::with_capacity(p.virtual_hosts.len());
        for (i, host) in p.virtual_hosts.iter().enumerate() {
            let at = At { v: &v, path: format!("virtual_hosts[{i}]") };
            let host = virtual_host(&at, host)?;
            if let Some(twice) = host.domains.iter().find(|d| !seen.insert((*d).clone())) {
                return Err(at.error("domains", format!("{twice:?} again"), "each domain once"));
            }
            virtual_hosts.push(host);
        }
        Ok(Self { name, virtual_hosts })
    }
}

/// Where in the resource we are.
struct At<'a> {
    v: &'a Validator<'a>,
    path: String,
}

impl At<'_> {
    fn error(&self, field: &str, seen: impl Into<String>, allowed: impl Into<String>) -> InvalidResource {
        self.v.error(self.field(field), seen, allowed)
    }

    fn field(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    fn within(&self, field: &str) -> At<'_> {
        At { v: self.v, path: self.field(field) }
    }

    fn at_most(&self, field: &str, seen: usize, limit: usize) -> Result<()> {
        at_most(self.v, &self.field(field), seen, limit)
    }

    fn text(&self, field: &str, text: &str) -> Result<String> {
        self.at_most(field, text.len(), TEXT_BYTES_MAX)?;
        Ok(text.to_owned())
    }
}

fn at_most(v: &Validator<'_>, field: &str, seen: usize, limit: usize) -> Result<()> {
    if seen <= limit { Ok(()) } else { Err(v.error(field, seen.to_string(), format!("at most {limit}"))) }
}

fn virtual_host(at: &At<'_>, p: &pb::VirtualHost) -> Result<VirtualHost> {
    let unset = [
        ("require_tls", p.require_tls != 0),
        ("matcher", p.matcher.is_some()),
        ("retry_policy", p.retry_policy.is_some()),
        ("request_headers_to_add", !p.request_headers_to_add.is_empty()),
        ("response_headers_to_add", !p.response_headers_to_add.is_empty()),
        ("request_mirror_policies", !p.request_mirror_policies.is_empty()),
    ];
    if let Some((field, _)) = unset.into_iter().find(|(_, set)| *set) {
        return Err(at.error(field, "set", "unset; set it on routes"));
    }
    check_filters(at, &p.typed_per_filter_config, &[])?;
    if p.domains.is_empty() {
        return Err(at.error("domains", "none", "at least one"));
    }
    at.at_most("domains", p.domains.len(), VIRTUAL_HOSTS_MAX)?;
    at.at_most("routes", p.routes.len(), ROUTES_MAX)?;
    let mut domains = Vec::with_capacity(p.domains.len());
    for domain in &p.domains {
        let domain = self::domain(at, domain)?;
        // The same host with and without a port.
        if !domains.contains(&domain) {
            domains.push(domain);
        }
    }
    let mut routes = Vec::with_capacity(p.routes.len());
    for (i, route) in p.routes.iter().enumerate() {
        routes.push(self::route(&at.within(&format!("routes[{i}]")), route)?);
    }
    Ok(VirtualHost { name: at.text("name", &p.name)?, domains, routes })
}

/// Hosts are compared without ports.
fn domain(at: &At<'_>, domain: &str) -> Result<String> {
    let allowed = "a host, *.host, host.* or *, in at most 253 bytes";
    let host = match domain.rsplit_once(':') {
        Some((host, port)) if port == "*" || port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => domain,
    };
    let name = host.strip_prefix('*').or_else(|| host.strip_suffix('*')).unwrap_or(host);
    let usable = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'[' | b']' | b':');
    if host.is_empty() || host.len() > 253 || !name.bytes().all(usable) {
        return Err(at.error(
            "domains",
            format!("{:?}", domain.chars().take(253).collect::<String>()),
            allowed,
        ));
    }
    Ok(host.to_ascii_lowercase())
}

fn route(at: &At<'_>, p: &pb::Route) -> Result<Route> {
    let Some(matches) = &p.r#match else { return Err(at.error("match", "nothing", "a match")) };
    let action = match &p.action {
        Some(pb::route::Action::Route(action)) => {
            Action::Forward(Box::new(forward(&at.within("route"), action)?))
        }
        Some(pb::route::Action::Redirect(r)) => Action::Redirect(redirect(&at.within("redirect"), r)?),
        Some(pb::route::Action::DirectResponse(d)) => {
            Action::Respond(respond(&at.within("direct_response"), d)?)
        }
        Some(_) | None => {
            return Err(at.error("action", "another or none", "route, redirect or direct_response"));
        }
    };
    let at_field = |field| at.within(field).path;
    let request =
        edits(at.v, &at_field("request_headers"), &p.request_headers_to_add, &p.request_headers_to_remove)?;
    let response = edits(
        at.v,
        &at_field("response_headers"),
        &p.response_headers_to_add,
        &p.response_headers_to_remove,
    )?;
    let (fault, cors) = check_filters(at, &p.typed_per_filter_config, &[FAULT, CORS])?;
    let mut policy = RoutePolicy {
        request_headers: request,
        response_headers: response,
        fault,
        cors,
        ..RoutePolicy::default()
    };
    if let Some(weft) = p.metadata.as_ref().and_then(|m| m.filter_metadata.get(METADATA)) {
        own::decode(weft, &mut policy);
    }
    Ok(Route {
        name: at.text("name", &p.name)?,
        matches: route_match(&at.within("match"), matches)?,
        action,
        policy,
    })
}

fn route_match(at: &At<'_>, p: &pb::RouteMatch) -> Result<RouteMatch> {
    use pb::route_match::PathSpecifier as P;
    let unset = [
        ("runtime_fraction", p.runtime_fraction.is_some()),
        ("cookies", !p.cookies.is_empty()),
        ("tls_context", p.tls_context.is_some()),
        ("dynamic_metadata", !p.dynamic_metadata.is_empty()),
        ("filter_state", !p.filter_state.is_empty()),
    ];
    if let Some((field, _)) = unset.into_iter().find(|(_, set)| *set) {
        return Err(at.error(field, "set", "unset"));
    }
    if p.case_sensitive.is_some_and(|c| !c.value) {
        return Err(at.error("case_sensitive", "false", "true"));
    }
    let path = match &p.path_specifier {
        Some(P::Path(path)) => PathMatch::Exact(at.text("path", path)?),
        Some(P::Prefix(prefix)) => PathMatch::Prefix(at.text("prefix", prefix)?),
        Some(P::PathSeparatedPrefix(prefix)) => {
            if !prefix.starts_with('/') || prefix.ends_with('/') {
                return Err(at.error(
                    "path_separated_prefix",
                    format!("{prefix:?}"),
                    "a path with / at its beginning and not at its end",
                ));
            }
            PathMatch::Segments(at.text("path_separated_prefix", prefix)?)
        }
        Some(P::SafeRegex(regex)) => PathMatch::Regex(whole(at, "safe_regex", &regex.regex)?),
        Some(P::ConnectMatcher(_) | P::PathMatchPolicy(_)) | None => {
            return Err(at.error(
                "path_specifier",
                "another or none",
                "prefix, path, safe_regex or path_separated_prefix",
            ));
        }
    };
    at.at_most("headers", p.headers.len(), CONDITIONS_MAX)?;
    at.at_most("query_parameters", p.query_parameters.len(), CONDITIONS_MAX)?;
    let (mut method, mut headers, mut query) = (None, Vec::new(), Vec::new());
    for (i, h) in p.headers.iter().enumerate() {
        let at = at.within(&format!("headers[{i}]"));
        let condition = header(&at, h)?;
        match (&condition.value, condition.name.as_str()) {
            (StringMatch::Exact(text), ":method") if !condition.invert && method.is_none() => {
                method = Some(text.clone());
            }
            (_, name) if name.starts_with(':') => {
                return Err(at.error("name", format!("{name:?}"), "a header field, or :method with exact"));
            }
            _ => headers.push(condition),
        }
    }
    for (i, q) in p.query_parameters.iter().enumerate() {
        use pb::query_parameter_matcher::QueryParameterMatchSpecifier as Q;
        let at = at.within(&format!("query_parameters[{i}]"));
        let (value, invert) = match &q.query_parameter_match_specifier {
            Some(Q::StringMatch(m)) => (string_match(&at, m)?, false),
            Some(Q::PresentMatch(present)) => (StringMatch::Present, !present),
            None => (StringMatch::Present, false),
        };
        query.push(ValueMatch { name: at.text("name", &q.name)?, value, invert });
    }
    Ok(RouteMatch { path, method, headers, query, grpc: p.grpc.is_some() })
}

fn whole(at: &At<'_>, field: &str, text: &str) -> Result<String> {
    pattern::whole(text).map_err(|why| at.error(field, why, "a regular expression"))?;
    Ok(text.to_owned())
}

fn header(at: &At<'_>, h: &pb::HeaderMatcher) -> Result<ValueMatch> {
    use pb::header_matcher::HeaderMatchSpecifier as H;
    let mut invert = h.invert_match;
    #[allow(deprecated)]
    let value = match &h.header_match_specifier {
        None => StringMatch::Present,
        Some(H::PresentMatch(present)) => {
            invert ^= !present;
            StringMatch::Present
        }
        Some(H::StringMatch(m)) => string_match(at, m)?,
        Some(H::ExactMatch(text)) => StringMatch::Exact(at.text("exact_match", text)?),
        Some(H::PrefixMatch(text)) => StringMatch::Prefix(at.text("prefix_match", text)?),
        Some(H::SuffixMatch(text)) => StringMatch::Suffix(at.text("suffix_match", text)?),
        Some(H::ContainsMatch(text)) => StringMatch::Contains(at.text("contains_match", text)?),
        Some(H::SafeRegexMatch(m)) => StringMatch::Regex(whole(at, "safe_regex_match", &m.regex)?),
        Some(H::RangeMatch(_)) => return Err(at.error("range_match", "set", "unset")),
    };
    if h.treat_missing_header_as_empty {
        return Err(at.error("treat_missing_header_as_empty", "true", "false"));
    }
    let name = h.name.to_ascii_lowercase();
    if name.is_empty() || name.len() > 256 {
        return Err(at.error("name", format!("{} bytes", name.len()), "1 to 256 bytes"));
    }
    Ok(ValueMatch { name, value, invert })
}

fn string_match(at: &At<'_>, m: &matcher::StringMatcher) -> Result<StringMatch> {
    use matcher::string_matcher::MatchPattern as M;
    if m.ignore_case {
        return Err(at.error("string_match.ignore_case", "true", "false"));
    }
    Ok(match &m.match_pattern {
        Some(M::Exact(text)) => StringMatch::Exact(at.text("string_match", text)?),
        Some(M::Prefix(text)) => StringMatch::Prefix(at.text("string_match", text)?),
        Some(M::Suffix(text)) => StringMatch::Suffix(at.text("string_match", text)?),
        Some(M::Contains(text)) => StringMatch::Contains(at.text("string_match", text)?),
        Some(M::SafeRegex(m)) => StringMatch::Regex(whole(at, "string_match.safe_regex", &m.regex)?),
        Some(_) | None => {
            return Err(at.error(
                "string_match",
                "another or none",
                "exact, prefix, suffix, contains or safe_regex",
            ));
        }
    })
}

fn forward(at: &At<'_>, p: &pb::RouteAction) -> Result<Forward> {
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
    Ok(Forward {
        backends,
        path,
        host,
        timeout: time("timeout", p.timeout.as_ref())?,
        try_timeout,
        retry,
        mirrors,
        hash: hash(at, &p.hash_policy)?,
    })
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
            weight: at.v.number(&at.field("weight"), c.weight.as_ref(), 0, (0, WEIGHT_MAX))?,
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

fn regex_rewrite(at: &At<'_>, r: &matcher::RegexMatchAndSubstitute) -> Result<PathRewrite> {
    let text = r.pattern.as_ref().map(|p| p.regex.as_str()).unwrap_or_default();
    let regex = pattern::part(text).map_err(|why| at.error("pattern", why, "a regular expression"))?;
    at.at_most("substitution", r.substitution.len(), TEXT_BYTES_MAX)?;
    pattern::substitution(&r.substitution, &regex)
        .map_err(|why| at.error("substitution", why, "text with \\0 to \\9 for groups"))?;
    Ok(PathRewrite::Regex { pattern: text.to_owned(), substitution: r.substitution.clone() })
}

fn retry(at: &At<'_>, r: &pb::RetryPolicy) -> Result<(Option<Retry>, Option<Duration>)> {
    let time = |field: &str, value: Option<&_>| -> Result<Option<Duration>> {
        value.map(|t| at.v.duration(&at.field(field), Some(t), Duration::ZERO, TIMES)).transpose()
    };
    let try_timeout = time("per_try_timeout", r.per_try_timeout.as_ref())?;
    let attempts = at.v.number(&at.field("num_retries"), r.num_retries.as_ref(), 1, (0, ATTEMPTS_MAX))?;
    if r.retry_on.is_empty() || attempts == 0 {
        return Ok((None, try_timeout));
    }
    let mut codes: Vec<u16> = Vec::new();
    for word in r.retry_on.split(',').map(str::trim) {
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
            // A request that was not sent is always tried elsewhere, and the rest are conditions of other filters.
            _ => {}
        }
    }
    codes.sort_unstable();
    codes.dedup();
    let backoff = r.retry_back_off.as_ref().and_then(|b| b.base_interval.as_ref());
    Ok((Some(Retry { attempts, codes, backoff: time("retry_back_off", backoff)? }), try_timeout))
}

fn redirect(at: &At<'_>, r: &pb::RedirectAction) -> Result<Redirect> {
    use pb::redirect_action::{
        PathRewriteSpecifier as P, RedirectResponseCode as Code, SchemeRewriteSpecifier as S,
    };
    let scheme = match &r.scheme_rewrite_specifier {
        None | Some(S::HttpsRedirect(false)) => None,
        Some(S::HttpsRedirect(true)) => Some("https".to_owned()),
        Some(S::SchemeRedirect(scheme)) if scheme == "http" || scheme == "https" => Some(scheme.clone()),
        Some(S::SchemeRedirect(other)) => {
            return Err(at.error("scheme_redirect", format!("{other:?}"), "http or https"));
        }
    };
    let host = match r.host_redirect.as_str() {
        "" => None,
        host => Some(host_text(at, "host_redirect", host)?),
    };
    let port = match u16::try_from(r.port_redirect) {
        Ok(port) => (port > 0).then_some(port),
        Err(_) => return Err(at.error("port_redirect", r.port_redirect.to_string(), "0 to 65535")),
    };
    let path = match &r.path_rewrite_specifier {
        None => None,
        Some(P::PathRedirect(path)) => Some(PathRewrite::Full(path_text(at, "path_redirect", path)?)),
        Some(P::PrefixRewrite(prefix)) => Some(PathRewrite::Prefix(path_text(at, "prefix_rewrite", prefix)?)),
        Some(P::RegexRewrite(r)) => Some(regex_rewrite(&at.within("regex_rewrite"), r)?),
        Some(P::PathRewrite(_)) => return Err(at.error("path_rewrite", "set", "unset")),
    };
    let status = match Code::try_from(r.response_code) {
        Ok(Code::MovedPermanently) => 301,
        Ok(Code::Found) => 302,
        Ok(Code::SeeOther) => 303,
        Ok(Code::TemporaryRedirect) => 307,
        Ok(Code::PermanentRedirect) => 308,
        Err(_) => {
            return Err(at.error("response_code", r.response_code.to_string(), "301, 302, 303, 307 or 308"));
        }
    };
    Ok(Redirect { scheme, host, port, path, status, strip_query: r.strip_query })
}

/// A path that can stand in a request line or a `Location` as it is.
fn path_text(at: &At<'_>, field: &str, path: &str) -> Result<String> {
    let text = at.text(field, path)?;
    if !text.starts_with('/') || !text.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(at.error(field, format!("{text:?}"), "visible ASCII characters that start with /"));
    }
    Ok(text)
}

fn host_text(at: &At<'_>, field: &str, host: &str) -> Result<String> {
    let usable = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':' | b'[' | b']');
    if host.is_empty() || host.len() > 253 || !host.bytes().all(usable) {
        return Err(at.error(field, format!("{:?}", host.chars().take(64).collect::<String>()), "a host"));
    }
    Ok(host.to_owned())
}

fn respond(at: &At<'_>, d: &pb::DirectResponseAction) -> Result<DirectResponse> {
    use core::data_source::Specifier;
    if d.body_format.is_some() {
        return Err(at.error("body_format", "set", "unset"));
    }
    let body = match d.body.as_ref().and_then(|b| b.specifier.as_ref()) {
        None => String::new(),
        Some(Specifier::InlineString(text)) => text.clone(),
        Some(Specifier::InlineBytes(bytes)) => {
            String::from_utf8(bytes.clone()).map_err(|_| at.error("body.inline_bytes", "no UTF-8", "text"))?
        }
        Some(_) => return Err(at.error("body", "another", "inline_string or inline_bytes")),
    };
    at.at_most("body", body.len(), BODY_BYTES_MAX)?;
    Ok(DirectResponse { status: status(at, "status", d.status)?, body })
}

fn status(at: &At<'_>, field: &str, status: u32) -> Result<u16> {
    match u16::try_from(status) {
        Ok(status @ 200..=599) => Ok(status),
        _ => Err(at.error(field, status.to_string(), "200 to 599")),
    }
}

fn edits(
    v: &Validator<'_>,
    path: &str,
    options: &[core::HeaderValueOption],
    remove: &[String],
) -> Result<HeaderEdits> {
    use core::header_value_option::HeaderAppendAction as Append;
    let at = At { v, path: path.to_owned() };
    at.at_most("to_add", options.len(), CONDITIONS_MAX)?;
    at.at_most("to_remove", remove.len(), CONDITIONS_MAX)?;
    let mut edits = HeaderEdits::default();
    for (i, option) in options.iter().enumerate() {
        let at = at.within(&format!("to_add[{i}]"));
        let Some(header) = &option.header else { return Err(at.error("header", "nothing", "a header")) };
        let name = field_name(&at, &header.key)?;
        let value = plain(&at, &header.value)?;
        #[allow(deprecated)]
        let append = option.append.map(|a| a.value);
        match (Append::try_from(option.append_action), append) {
            (Ok(Append::OverwriteIfExistsOrAdd), _) | (Ok(Append::AppendIfExistsOrAdd), Some(false)) => {
                edits.set.push((name, value));
            }
            (Ok(Append::AppendIfExistsOrAdd), _) => edits.add.push((name, value)),
            _ => {
                return Err(at.error(
                    "append_action",
                    option.append_action.to_string(),
                    "APPEND_IF_EXISTS_OR_ADD or OVERWRITE_IF_EXISTS_OR_ADD",
                ));
            }
        }
    }
    for (i, name) in remove.iter().enumerate() {
        edits.remove.push(field_name(&at.within(&format!("to_remove[{i}]")), name)?);
    }
    Ok(edits)
}

/// Fields that frame, route or belong to one connection are the proxy's own.
fn field_name(at: &At<'_>, name: &str) -> Result<String> {
    let name = name.to_ascii_lowercase();
    if super::is_editable_field(&name) {
        return Ok(name);
    }
    let seen = format!("{:?}", name.chars().take(64).collect::<String>());
    Err(at.error("key", seen, "a header field other than host and those that frame a message or name hops"))
}

/// Without the format commands that others allow.
fn plain(at: &At<'_>, value: &str) -> Result<String> {
    let value = at.text("value", value)?;
    let text = value.replace("%%", "\u{0}");
    if text.contains('%') {
        return Err(at.error("value", format!("{value:?}"), "text; %% for a percent sign"));
    }
    let text = text.replace('\u{0}', "%");
    if text.chars().any(|c| c.is_control() && c != '\t') {
        return Err(at.error("value", format!("{text:?}"), "text without control characters"));
    }
    Ok(text)
}

fn percentage(at: &At<'_>, field: &str, p: Option<&FractionalPercent>) -> Result<Fraction> {
    let Some(p) = p else { return Ok(Fraction::ALL) };
    let denominator = match DenominatorType::try_from(p.denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => return Err(at.error(field, "another denominator", "HUNDRED, TEN_THOUSAND or MILLION")),
    };
    // More than all is all, as others read it.
    Ok(Fraction::new(p.numerator.min(denominator), denominator).unwrap_or(Fraction::ALL))
}

/// Filters of a route that are known are read; others are refused unless they are optional.
fn check_filters(
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
