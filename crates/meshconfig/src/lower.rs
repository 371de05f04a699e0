//! Documents to route configurations: what the words of the Gateway API mean in the order of tries that proxies know.
//!
//! Precedence (`HTTPRouteRule.matches` of the Gateway API): the host with the most characters, an exact one before a
//! wildcard; then an exact path, a pattern, the longest prefix; then a method; then the most headers; then the most
//! query parameters; then the oldest document, then the first by name, then the first in its document.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use weft_xds_proto::resource::guard::Guard;
use weft_xds_proto::resource::route::{
    Abort, Action, Backend, CachePolicy, Compression, Cors, DirectResponse, Fault, Forward, Fraction,
    GRPC_RETRIABLE, HeaderEdits, Hedge, Mirror, OUTBOUND, PathMatch, PathRewrite, Redirect, Retry, Route,
    RouteConfiguration, RouteMatch, RoutePolicy, StringMatch, ValueMatch, VirtualHost,
};
use weft_xds_proto::resource::subset::{Subset, SubsetError};

use crate::document::{
    self, BackendRef, CorsSpec, Filter, GrpcMatch, GrpcRouteSpec, HttpMatch, HttpRouteSpec, Items, Modifier,
    PathModifier, RouteFilterSpec, duration,
};
use crate::policy::Policy;

/// A route document with what decides among equals.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its age: smaller is older.
    pub created: i64,
    /// What it says.
    pub spec: RouteSpec<'a>,
}

/// Of one of the two kinds of routes.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum RouteSpec<'a> {
    Http(&'a HttpRouteSpec),
    Grpc(&'a GrpcRouteSpec),
}

/// What documents mean.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lowered {
    /// By service; those without routes are not here.
    pub services: BTreeMap<String, RouteConfiguration>,
    /// For hosts that are no services; named [`OUTBOUND`].
    pub hosts: Option<RouteConfiguration>,
    /// By service; those without are not here.
    pub policies: BTreeMap<String, Policy>,
    /// Who may call a service; those of which nothing is said are not here.
    pub guards: BTreeMap<String, Guard>,
    /// Who may call any service, beside that.
    pub guard_of_all: Guard,
}

impl Lowered {
    /// The configuration for hosts, empty if there is none.
    pub fn outbound(&self) -> RouteConfiguration {
        let empty = || RouteConfiguration { name: OUTBOUND.to_owned(), virtual_hosts: Vec::new() };
        self.hosts.clone().unwrap_or_else(empty)
    }

    /// Who may call a service, if anything is said of it.
    pub fn guard(&self, service: &str) -> Option<Guard> {
        let own = self.guards.get(service).cloned().unwrap_or_default();
        Some(own.and(&self.guard_of_all)).filter(|guard| !guard.is_empty())
    }

    /// All routes.
    pub fn all(&self) -> impl Iterator<Item = &RouteConfiguration> {
        self.services.values().chain(&self.hosts)
    }
}

/// Route with its rank among others; the smallest is tried first.
struct Ranked {
    rank: Rank,
    route: Route,
}

/// Of what a path is matched by: the kind, then how many characters of it are said.
type PathRank = (u8, usize, usize);

type Rank = (Reverse<PathRank>, Reverse<bool>, Reverse<usize>, Reverse<usize>, i64, String, usize, usize);

/// `filters` are the documents that `ExtensionRef` names; one that is not there makes the rule answer 500, as the
/// Gateway API has it.
pub fn lower<'a>(
    routes: impl IntoIterator<Item = Source<'a>>,
    filters: &BTreeMap<&str, &RouteFilterSpec>,
) -> Lowered {
    let mut by_service: BTreeMap<String, Vec<Ranked>> = BTreeMap::new();
    let mut by_host: BTreeMap<String, Vec<Ranked>> = BTreeMap::new();
    for source in routes {
        let (parents, hostnames) = match source.spec {
            RouteSpec::Http(s) => (&s.parent_refs, &s.hostnames),
            RouteSpec::Grpc(s) => (&s.parent_refs, &s.hostnames),
        };
        // Each once, however often it is named.
        let services: BTreeSet<&str> = parents.iter().flatten().map(|p| p.name.as_str()).collect();
        for service in services {
            by_service.entry(service.to_owned()).or_default().extend(ranked(&source, filters));
        }
        for host in hostnames.iter().flatten() {
            by_host.entry(host.to_ascii_lowercase()).or_default().extend(ranked(&source, filters));
        }
    }
    let services = by_service.into_iter().map(|(name, routes)| {
        let host = VirtualHost { name: name.clone(), domains: vec!["*".to_owned()], routes: sorted(routes) };
        (name.clone(), RouteConfiguration { name, virtual_hosts: vec![host] })
    });
    let services = services.collect();
    let by_host: BTreeMap<String, Vec<Route>> =
        by_host.into_iter().map(|(host, routes)| (host, sorted(routes))).collect();
    let virtual_hosts: Vec<_> = by_host
        .iter()
        .map(|(host, routes)| {
            let mut wider: Vec<&String> = by_host.keys().filter(|w| covers(w, host)).collect();
            wider.sort_by_key(|w| Reverse(w.len()));
            let routes = routes.iter().chain(wider.into_iter().flat_map(|w| &by_host[w])).cloned().collect();
            VirtualHost { name: host.clone(), domains: vec![host.clone()], routes }
        })
        .collect();
    let hosts =
        (!virtual_hosts.is_empty()).then(|| RouteConfiguration { name: OUTBOUND.to_owned(), virtual_hosts });
    Lowered { services, hosts, ..Lowered::default() }
}

/// Whether a wildcard stands for a narrower host or wildcard.
fn covers(wide: &str, narrow: &str) -> bool {
    wide != narrow
        && match wide.strip_prefix('*') {
            Some("") => true,
            Some(suffix) => narrow.len() > suffix.len() && narrow.ends_with(suffix),
            None => false,
        }
}

fn sorted(mut routes: Vec<Ranked>) -> Vec<Route> {
    routes.sort_by(|a, b| a.rank.cmp(&b.rank));
    let mut routes: Vec<Route> = routes.into_iter().map(|r| r.route).collect();
    // What comes after a route for everything is never tried.
    if let Some(any) = routes.iter().position(|r| r.matches.is_any()) {
        routes.truncate(any + 1);
    }
    routes
}

fn ranked(source: &Source<'_>, filters: &BTreeMap<&str, &RouteFilterSpec>) -> Vec<Ranked> {
    let mut all = Vec::new();
    let mut push =
        |rule: usize, name: &Option<String>, matches: Vec<(RouteMatch, PathRank)>, parts: &RuleParts<'_>| {
            for (i, (m, path)) in matches.into_iter().enumerate() {
                let rank = (
                    Reverse(path),
                    Reverse(m.method.is_some()),
                    Reverse(m.headers.len()),
                    Reverse(m.query.len()),
                    source.created,
                    source.name.to_owned(),
                    rule,
                    i,
                );
                let label = match name {
                    Some(name) => format!("{}/{name}", source.name),
                    None => format!("{}/{rule}", source.name),
                };
                all.push(Ranked { rank, route: route(label, m, parts, filters) });
            }
        };
    match source.spec {
        RouteSpec::Http(s) => {
            for (i, rule) in s.rules.iter().enumerate() {
                let Some(rule) = rule else { continue };
                let mut matches: Vec<_> = rule.matches.iter().flatten().map(http_match).collect();
                if matches.is_empty() {
                    matches.push(RouteMatch::any());
                }
                let with_rank = |m: RouteMatch| {
                    let rank = path_rank(&m.path);
                    (m, rank)
                };
                let matches = matches.into_iter().map(with_rank).collect();
                let parts = RuleParts {
                    filters: &rule.filters,
                    backends: &rule.backend_refs,
                    timeouts: rule.timeouts.as_ref(),
                    retry: rule.retry.as_ref().map(retry),
                };
                push(i, &rule.name, matches, &parts);
            }
        }
        RouteSpec::Grpc(s) => {
            for (i, rule) in s.rules.iter().enumerate() {
                let Some(rule) = rule else { continue };
                let mut matches: Vec<_> = rule.matches.iter().flatten().map(grpc_match).collect();
                if matches.is_empty() {
                    matches.push((RouteMatch { grpc: true, ..RouteMatch::any() }, PathRank::default()));
                }
                let parts = RuleParts {
                    filters: &rule.filters,
                    backends: &rule.backend_refs,
                    timeouts: None,
                    retry: rule.retry.as_ref().map(grpc_retry),
                };
                push(i, &rule.name, matches, &parts);
            }
        }
    }
    all
}

fn path_rank(path: &PathMatch) -> PathRank {
    match path {
        PathMatch::Exact(p) => (2, p.len(), 0),
        PathMatch::Regex(p) => (1, p.len(), 0),
        PathMatch::Segments(p) => (0, p.len(), 0),
        // "/" has no segment.
        PathMatch::Prefix(_) => (0, 0, 0),
    }
}

/// The characters of the service, then those of the method, by whatever they are matched (Gateway API, `GRPCRouteRule.matches`).
fn grpc_rank(m: &GrpcMatch) -> PathRank {
    let len = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    m.method.as_ref().map_or_else(PathRank::default, |m| (2, len(&m.service), len(&m.method)))
}

fn http_match(m: &HttpMatch) -> RouteMatch {
    let (kind, value) = match &m.path {
        None => ("PathPrefix", "/"),
        Some(p) => (p.r#type.as_deref().unwrap_or("PathPrefix"), p.value.as_deref().unwrap_or("/")),
    };
    RouteMatch {
        path: match kind {
            "Exact" => PathMatch::Exact(value.to_owned()),
            "RegularExpression" => PathMatch::Regex(value.to_owned()),
            _ => match value.trim_end_matches('/') {
                "" => PathMatch::Prefix("/".to_owned()),
                segments => PathMatch::Segments(segments.to_owned()),
            },
        },
        method: m.method.clone(),
        headers: values(&m.headers, true),
        query: values(&m.query_params, false),
        grpc: false,
    }
}

fn grpc_match(m: &GrpcMatch) -> (RouteMatch, PathRank) {
    let path = match &m.method {
        None => PathMatch::Prefix("/".to_owned()),
        Some(method) => {
            let regex = method.r#type.as_deref() == Some("RegularExpression");
            match (&method.service, &method.method) {
                (None, None) => PathMatch::Prefix("/".to_owned()),
                (Some(service), Some(method)) if !regex => PathMatch::Exact(format!("/{service}/{method}")),
                (Some(service), None) if !regex => PathMatch::Segments(format!("/{service}")),
                (None, Some(method)) if !regex => {
                    PathMatch::Regex(format!("/[^/]+/{}", method.replace('.', "\\.")))
                }
                (service, method) => {
                    let part = |text: &Option<String>| match text {
                        Some(pattern) => format!("(?:{pattern})"),
                        None => "[^/]+".to_owned(),
                    };
                    PathMatch::Regex(format!("/{}/{}", part(service), part(method)))
                }
            }
        }
    };
    let headers = values(&m.headers, true);
    (RouteMatch { path, method: None, headers, query: Vec::new(), grpc: true }, grpc_rank(m))
}

fn values(values: &Items<document::ValueMatch>, lower_case: bool) -> Vec<ValueMatch> {
    let one = |v: &document::ValueMatch| ValueMatch {
        name: if lower_case { v.name.to_ascii_lowercase() } else { v.name.clone() },
        value: match v.r#type.as_deref() {
            Some("RegularExpression") => StringMatch::Regex(v.value.clone()),
            _ => StringMatch::Exact(v.value.clone()),
        },
        invert: false,
    };
    values.iter().flatten().map(one).collect()
}

struct RuleParts<'a> {
    filters: &'a Items<Filter>,
    backends: &'a Items<BackendRef>,
    timeouts: Option<&'a document::Timeouts>,
    retry: Option<Retry>,
}

fn route(
    name: String,
    matches: RouteMatch,
    parts: &RuleParts<'_>,
    documents: &BTreeMap<&str, &RouteFilterSpec>,
) -> Route {
    let mut policy = RoutePolicy::default();
    let mut forward = Forward {
        backends: parts.backends.iter().flatten().map(backend).collect(),
        timeout: parts.timeouts.and_then(|t| time(&t.request)),
        try_timeout: parts.timeouts.and_then(|t| time(&t.backend_request)),
        retry: parts.retry.clone(),
        ..Forward::default()
    };
    let mut own: Option<Action> = None;
    let respond = |status, body: &str| Action::Respond(DirectResponse { status, body: body.to_owned() });
    for filter in parts.filters.iter().flatten() {
        if let Some(m) = &filter.request_header_modifier {
            policy.request_headers = edits(m);
        }
        if let Some(m) = &filter.response_header_modifier {
            policy.response_headers = edits(m);
        }
        if let Some(m) = &filter.request_mirror {
            let fraction = match (&m.percent, &m.fraction) {
                (Some(percent), _) => Fraction::new(*percent, 100),
                (None, Some(f)) => Fraction::new(f.numerator, f.denominator.unwrap_or(100)),
                (None, None) => Some(Fraction::ALL),
            };
            let cluster = m.backend_ref.name.clone();
            forward.mirrors.push(Mirror { cluster, fraction: fraction.unwrap_or(Fraction::ALL) });
        }
        if let Some(r) = &filter.request_redirect {
            own = Some(Action::Redirect(Redirect {
                scheme: r.scheme.clone(),
                host: r.hostname.clone(),
                port: r.port,
                path: r.path.as_ref().and_then(|p| rewrite(p, &matches.path, true)),
                status: r.status_code.unwrap_or(302),
                strip_query: false,
            }));
        }
        if let Some(r) = &filter.url_rewrite {
            forward.host.clone_from(&r.hostname);
            forward.path = r.path.as_ref().and_then(|p| rewrite(p, &matches.path, false));
        }
        if let Some(c) = &filter.cors {
            policy.cors = Some(cors(c));
        }
        if let Some(reference) = &filter.extension_ref {
            match documents.get(reference.name.as_str()) {
                Some(document) => {
                    extend(&mut policy, document);
                    if let Some(direct) = &document.direct_response {
                        own = Some(respond(direct.status_code, &direct.body));
                    }
                }
                None => {
                    let text = format!(
                        "route {name} refers to HTTPRouteFilter {}, which is not there\n",
                        reference.name
                    );
                    own = Some(respond(500, &text));
                }
            }
        }
    }
    let action = own.unwrap_or_else(|| {
        if forward.backends.iter().all(|b| b.weight == 0) {
            return respond(500, &format!("route {name} has no service with a weight above 0\n"));
        }
        Action::Forward(Box::new(forward))
    });
    Route { name, matches, action, policy }
}

fn backend(b: &BackendRef) -> Backend {
    let edits = |of: fn(&Filter) -> Option<&Modifier>| {
        b.filters.iter().flatten().find_map(of).map(edits).unwrap_or_default()
    };
    Backend {
        request_headers: edits(|f| f.request_header_modifier.as_ref()),
        response_headers: edits(|f| f.response_header_modifier.as_ref()),
        // Checked when it was read.
        subset: subset(&b.subset).unwrap_or_default(),
        ..Backend::new(b.name.clone(), b.weight.unwrap_or(1))
    }
}

/// Labels of a backend.
pub(crate) fn subset(labels: &BTreeMap<String, String>) -> Result<Subset, SubsetError> {
    Subset::new(labels.iter().map(|(key, text)| (key.as_str(), text.as_str())))
}

fn time(text: &Option<String>) -> Option<Duration> {
    text.as_deref().and_then(duration)
}

fn retry(r: &document::RetrySpec) -> Retry {
    let mut codes: Vec<u16> = r.codes.iter().flatten().copied().collect();
    codes.sort_unstable();
    codes.dedup();
    Retry {
        attempts: r.attempts.unwrap_or(ATTEMPTS),
        codes,
        grpc_codes: Vec::new(),
        backoff: time(&r.backoff),
    }
}

/// Where no code is named, it is the one by which a service says that another try may do.
fn grpc_retry(r: &document::GrpcRetrySpec) -> Retry {
    let named = |name: &str| r.codes.iter().flatten().any(|code| code == name);
    let unnamed = |name: &str| r.codes.is_empty() && name == "UNAVAILABLE";
    let wanted = GRPC_RETRIABLE.iter().filter(|(_, name, _)| named(name) || unnamed(name));
    Retry {
        attempts: r.attempts.unwrap_or(ATTEMPTS),
        codes: Vec::new(),
        grpc_codes: wanted.map(|(code, ..)| *code).collect(),
        backoff: time(&r.backoff),
    }
}

/// Tries after the first, where a rule does not say how many.
const ATTEMPTS: u32 = 1;

fn edits(m: &Modifier) -> HeaderEdits {
    let fields = |list: &Items<document::HeaderValue>| {
        list.iter().flatten().map(|h| (h.name.to_ascii_lowercase(), h.value.clone())).collect()
    };
    HeaderEdits {
        set: fields(&m.set),
        add: fields(&m.add),
        remove: m.remove.iter().flatten().map(|n| n.to_ascii_lowercase()).collect(),
    }
}

/// A prefix is replaced by whole segments, whether or not one of the two has a slash at its end.
fn rewrite(p: &PathModifier, matched: &PathMatch, redirect: bool) -> Option<PathRewrite> {
    if let Some(full) = &p.replace_full_path {
        return Some(if redirect { PathRewrite::Full(full.clone()) } else { PathRewrite::whole(full) });
    }
    let replacement = p.replace_prefix_match.as_deref()?.trim_end_matches('/');
    match matched {
        PathMatch::Segments(prefix) if replacement.is_empty() => {
            // `/a/b` without `/a` is `/b`, and `/a` alone is `/`.
            let escaped = escape(prefix);
            Some(PathRewrite::Regex { pattern: format!("^{escaped}/*"), substitution: "/".to_owned() })
        }
        PathMatch::Segments(_) => Some(PathRewrite::Prefix(replacement.to_owned())),
        // The slash of "/" is part of what is replaced.
        _ => Some(PathRewrite::Prefix(format!("{replacement}/"))),
    }
}

fn escape(text: &str) -> String {
    let special = |c: char| c.is_ascii_punctuation() && !matches!(c, '/' | '_');
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

fn cors(c: &CorsSpec) -> Cors {
    let list = |items: &Items<String>| items.iter().flatten().cloned().collect();
    Cors {
        origins: c.allow_origins.iter().flatten().map(|o| origin(o)).collect(),
        methods: list(&c.allow_methods),
        headers: list(&c.allow_headers),
        expose: list(&c.expose_headers),
        max_age: Some(Duration::from_secs(u64::from(c.max_age.unwrap_or(5)))),
        credentials: c.allow_credentials,
    }
}

fn origin(text: &str) -> StringMatch {
    match text.split_once("://*.") {
        _ if text == "*" => StringMatch::Regex(".*".to_owned()),
        Some((scheme, host)) => StringMatch::Regex(format!("{}://[^/]+\\.{}", escape(scheme), escape(host))),
        None => StringMatch::Exact(text.to_owned()),
    }
}

fn extend(policy: &mut RoutePolicy, f: &RouteFilterSpec) {
    // Checked to be from 0 to 100; to a millionth.
    let share = |percent: Option<f64>| {
        let millionths = (percent.unwrap_or(100.0) * 10_000.0).round().clamp(0.0, 1_000_000.0);
        Fraction::new(millionths as u32, 1_000_000).unwrap_or(Fraction::ALL)
    };
    if let Some(fault) = &f.fault {
        policy.fault = Some(Fault {
            delay: fault.delay.as_ref().and_then(|d| Some((duration(&d.duration)?, share(d.percent)))),
            abort: fault.abort.as_ref().and_then(|a| {
                let abort = match (a.http_status, a.grpc_status) {
                    (Some(status), _) => Abort::Http(status),
                    (None, Some(status)) => Abort::Grpc(status),
                    (None, None) => return None,
                };
                Some((abort, share(a.percent)))
            }),
        });
    }
    if let Some(c) = &f.compression {
        policy.compression =
            Some(Compression { bytes_min: c.min_bytes.unwrap_or(Compression::default().bytes_min) });
    }
    if let Some(limit) = &f.rate_limit {
        policy.rate_limit = Some(limit.meant());
    }
    if let Some(hedge) = &f.hedge {
        policy.hedge = duration(&hedge.after).map(|after| Hedge { after });
    }
    if let Some(c) = &f.cache {
        policy.cache = Some(CachePolicy {
            body_bytes_max: c.max_body_bytes.unwrap_or(CachePolicy::default().body_bytes_max),
            ttl_default: time(&c.default_ttl),
        });
    }
}

#[cfg(test)]
mod tests;
