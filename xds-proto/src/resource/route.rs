//! RDS: which cluster a request goes to, and what happens to it on the way.
//!
//! ```text
//! RouteConfiguration ─▶ virtual host, by Host ─▶ routes, in order: the first that matches ─▶ Action and RoutePolicy
//! ```
//! Hosts: an exact domain comes before `*.x` (the longest first), that before `x.*`, that before `*`. Routes of a
//! virtual host are tried in the order given; who writes them has put the most specific first.
//!
//! [`decode`] refuses what cannot be honoured, by field; [`encode`] writes what Envoy and gRPC read alike.

use std::time::Duration;

use serde::Serialize;

use super::cluster::{HashOn, RateLimit};
use super::subset::Subset;

mod decode;
mod encode;
mod own;
pub mod pattern;

/// Virtual hosts of one configuration.
pub const VIRTUAL_HOSTS_MAX: usize = 10_000;

/// Routes of one virtual host. They are tried one after the other.
pub const ROUTES_MAX: usize = 1_000;

/// Parts of a route's hash key.
pub const HASH_PARTS_MAX: usize = 8;

/// Backends of a route, and mirrors.
pub const BACKENDS_MAX: usize = 64;

/// Conditions on headers, on query parameters, and header edits of each kind.
pub const CONDITIONS_MAX: usize = 64;

/// Bytes of a path, a value or a header in a configuration.
pub const TEXT_BYTES_MAX: usize = 4096;

/// Bytes of the body of a direct response.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Repetitions of a request that a route may ask for.
pub const ATTEMPTS_MAX: u32 = 20;

/// Largest weight of a backend: a million, as the Gateway API has it.
pub const WEIGHT_MAX: u32 = 1_000_000;

/// Longest time of a route.
pub const TIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// The name of the configuration with the routes for hosts that are no services. No service has it: service names
/// have no dots.
pub const OUTBOUND: &str = "outbound.weft";

/// A resource of RDS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteConfiguration {
    /// That of a service, or [`OUTBOUND`].
    pub name: String,
    /// No domain stands twice.
    pub virtual_hosts: Vec<VirtualHost>,
}

/// Routes for some hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VirtualHost {
    /// For people.
    pub name: String,
    /// Lower case, without ports: `a.b`, `*.b`, `a.*` or `*`.
    pub domains: Vec<String>,
    /// The first that matches is taken.
    pub routes: Vec<Route>,
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// For people, logs and metrics; may be empty.
    pub name: String,
    /// Which requests.
    pub matches: RouteMatch,
    /// What happens to them.
    pub action: Action,
    /// And what else.
    pub policy: RoutePolicy,
}

/// Which requests: all conditions must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteMatch {
    /// Without the query.
    pub path: PathMatch,
    /// Any if none.
    pub method: Option<String>,
    /// Conditions on header fields, names in lower case.
    pub headers: Vec<ValueMatch>,
    /// Conditions on query parameters.
    pub query: Vec<ValueMatch>,
    /// Only gRPC, by content type.
    pub grpc: bool,
}

impl RouteMatch {
    /// Every request.
    pub fn any() -> Self {
        Self {
            path: PathMatch::Prefix("/".to_owned()),
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
            grpc: false,
        }
    }

    /// Whether no request can fail it.
    pub fn is_any(&self) -> bool {
        let any_path = matches!(&self.path, PathMatch::Prefix(p) if p.is_empty() || p == "/");
        any_path && self.method.is_none() && self.headers.is_empty() && self.query.is_empty() && !self.grpc
    }
}

/// A condition on the path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Its beginning, in the middle of a segment too.
    Prefix(String),
    /// Its first segments: `/a` matches `/a` and `/a/b`, not `/ab`. Without a slash at the end.
    Segments(String),
    /// The whole path; see [`pattern`].
    Regex(String),
}

/// A condition on a named value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ValueMatch {
    /// Of the header field or query parameter.
    pub name: String,
    /// What it must be.
    pub value: StringMatch,
    /// It must not be so.
    pub invert: bool,
}

/// A condition on a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub enum StringMatch {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    /// The whole text; see [`pattern`].
    Regex(String),
    /// There is one.
    Present,
}

/// What happens to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Action {
    /// It goes to an endpoint.
    Forward(Box<Forward>),
    /// Its client is sent elsewhere.
    Redirect(Redirect),
    /// It is answered at once.
    Respond(DirectResponse),
}

/// To an endpoint of one of some clusters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Forward {
    /// One is drawn by weight for each request. At least one weight is above 0.
    pub backends: Vec<Backend>,
    /// The path that the endpoint sees.
    pub path: Option<PathRewrite>,
    /// The `Host` that the endpoint sees.
    pub host: Option<String>,
    /// From the request to the end of its answer, all tries together; 0: for ever; none: the proxy's own limit.
    pub timeout: Option<Duration>,
    /// For each try; 0: for ever; none: no limit of its own.
    pub try_timeout: Option<Duration>,
    /// When to try again.
    pub retry: Option<Retry>,
    /// Who gets a copy. Its answer is thrown away.
    pub mirrors: Vec<Mirror>,
    /// By what a request sticks to an endpoint, if its cluster hashes and names no key itself.
    pub hash: Vec<RouteHash>,
}

/// A part of a route's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteHash {
    /// Which part of the request.
    #[serde(serialize_with = "as_text")]
    pub on: HashOn,
    /// If the request has it, what follows does not count.
    pub terminal: bool,
}

fn as_text<S: serde::Serializer>(on: &HashOn, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(on)
}

/// A cluster with its share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// Its name.
    pub cluster: String,
    /// Its part of the sum of weights.
    pub weight: u32,
    /// Only these of its instances.
    pub subset: Subset,
    /// Beside those of the route, after them.
    pub request_headers: HeaderEdits,
    /// Beside those of the route, before them.
    pub response_headers: HeaderEdits,
}

impl Backend {
    /// All traffic to one cluster.
    pub fn new(cluster: impl Into<String>, weight: u32) -> Self {
        Self {
            cluster: cluster.into(),
            weight,
            subset: Subset::default(),
            request_headers: HeaderEdits::default(),
            response_headers: HeaderEdits::default(),
        }
    }
}

/// A path made from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum PathRewrite {
    /// This instead of all of it. Only redirects.
    Full(String),
    /// This instead of what the route's path condition matched.
    Prefix(String),
    /// Each part that the pattern matches replaced; `\1` stands for the first group, `\0` for all of it, `\\` for `\`.
    Regex {
        /// See [`pattern`]; it need not match the whole path.
        pattern: String,
        /// What comes instead.
        substitution: String,
    },
}

impl PathRewrite {
    /// This path whatever the request's was.
    pub fn whole(path: &str) -> Self {
        Self::Regex { pattern: "^/.*$".to_owned(), substitution: path.replace('\\', "\\\\") }
    }
}

/// When to try again. Only what is safe to repeat is repeated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Retry {
    /// Tries after the first; 1 to [`ATTEMPTS_MAX`].
    pub attempts: u32,
    /// Statuses that are not good enough, sorted.
    pub codes: Vec<u16>,
    /// Codes of gRPC that are not good enough, sorted; of [`GRPC_RETRIABLE`]. With any, calls are repeated although they are
    /// POST: who writes them knows the methods of the route.
    pub grpc_codes: Vec<u8>,
    /// Wait before the first repetition; it doubles. None: 25 ms.
    pub backoff: Option<Duration>,
}

/// The codes of gRPC for which a call may be repeated (gRFC A44): number, name, and word of Envoy.
pub const GRPC_RETRIABLE: [(u8, &str, &str); 5] = [
    (1, "CANCELLED", "cancelled"),
    (4, "DEADLINE_EXCEEDED", "deadline-exceeded"),
    (8, "RESOURCE_EXHAUSTED", "resource-exhausted"),
    (13, "INTERNAL", "internal"),
    (14, "UNAVAILABLE", "unavailable"),
];

/// A copy of some requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mirror {
    /// Where to.
    pub cluster: String,
    /// How many.
    pub fraction: Fraction,
}

/// A share, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Fraction(u32);

impl Fraction {
    /// All.
    pub const ALL: Self = Self(1_000_000);

    /// `numerator` of `denominator`, rounded down; none if it is more than all or of nothing.
    pub fn new(numerator: u32, denominator: u32) -> Option<Self> {
        if denominator == 0 || numerator > denominator {
            return None;
        }
        let millionths = u64::from(numerator) * 1_000_000 / u64::from(denominator);
        Some(Self(u32::try_from(millionths).ok()?))
    }

    /// 0 to 1,000,000.
    pub const fn millionths(self) -> u32 {
        self.0
    }
}

/// Where else to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Redirect {
    /// `http` or `https`; that of the request if none.
    pub scheme: Option<String>,
    /// That of the request if none.
    pub host: Option<String>,
    /// That of the request, or of the new scheme, if none.
    pub port: Option<u16>,
    /// The same path if none.
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// The query is not kept.
    pub strip_query: bool,
}

/// An answer of the proxy's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DirectResponse {
    /// 200 to 599.
    pub status: u16,
    /// Plain text; may be empty.
    pub body: String,
}

/// What else happens to a request and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct RoutePolicy {
    /// Before it is forwarded.
    pub request_headers: HeaderEdits,
    /// Before it is answered.
    pub response_headers: HeaderEdits,
    /// Failures made on purpose.
    pub fault: Option<Fault>,
    /// Which pages of other origins may ask.
    pub cors: Option<Cors>,
    /// Answers are compressed where the client takes it.
    pub compression: Option<Compression>,
    /// Answers are kept and used again.
    pub cache: Option<CachePolicy>,
    /// How many requests a proxy lets pass; none: all.
    pub rate_limit: Option<RateLimit>,
    /// Slow requests are sent a second time.
    pub hedge: Option<Hedge>,
}

/// A request that is safe to repeat and has no answer after a while is sent to a second endpoint as well; the first good
/// answer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Hedge {
    /// The while.
    pub after: Duration,
}

/// Changes of header fields: removed, then set, then added. Names in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct HeaderEdits {
    /// Replace what is there.
    pub set: Vec<(String, String)>,
    /// Beside what is there.
    pub add: Vec<(String, String)>,
    /// Taken away.
    pub remove: Vec<String>,
}

impl HeaderEdits {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

/// Failures made on purpose, to see what they do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Fault {
    /// How long some requests wait before anything else happens to them.
    pub delay: Option<(Duration, Fraction)>,
    /// What some requests are answered instead.
    pub abort: Option<(Abort, Fraction)>,
}

/// The answer of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Abort {
    /// 200 to 599.
    Http(u16),
    /// 1 to 16.
    Grpc(u32),
}

/// Cross-origin resource sharing, as the Fetch standard has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Default)]
pub struct Cors {
    /// Origins that may ask.
    pub origins: Vec<StringMatch>,
    /// With what methods; `*` for any.
    pub methods: Vec<String>,
    /// With what header fields; `*` for any.
    pub headers: Vec<String>,
    /// What fields of an answer a page may see.
    pub expose: Vec<String>,
    /// How long a browser may remember this.
    pub max_age: Option<Duration>,
    /// With cookies.
    pub credentials: bool,
}

/// Compression of answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compression {
    /// Shorter answers are left alone.
    pub bytes_min: u32,
}

impl Default for Compression {
    /// Below a packet there is nothing to win.
    fn default() -> Self {
        Self { bytes_min: 1024 }
    }
}

/// A store of answers, as RFC 9111 has it for a shared cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CachePolicy {
    /// Larger answers are not kept.
    pub body_bytes_max: u32,
    /// For how long an answer that does not say is fresh; none: it is not kept.
    pub ttl_default: Option<Duration>,
}

impl Default for CachePolicy {
    fn default() -> Self {
        Self { body_bytes_max: 1024 * 1024, ttl_default: None }
    }
}

impl RouteConfiguration {
    /// Everything to the cluster of the same name: what a service has that nobody wrote routes for.
    pub fn plain(service: impl Into<String>) -> Self {
        let name = service.into();
        let forward = Forward { backends: vec![Backend::new(name.clone(), 1)], ..Forward::default() };
        let route = Route {
            name: String::new(),
            matches: RouteMatch::any(),
            action: Action::Forward(Box::new(forward)),
            policy: RoutePolicy::default(),
        };
        let host = VirtualHost { name: name.clone(), domains: vec!["*".to_owned()], routes: vec![route] };
        Self { name, virtual_hosts: vec![host] }
    }

    /// Whether it says no more than [`Self::plain`] of its name.
    pub fn is_plain(&self) -> bool {
        let [host] = self.virtual_hosts.as_slice() else { return false };
        let [route] = host.routes.as_slice() else { return false };
        let Action::Forward(forward) = &route.action else { return false };
        let alone = matches!(forward.backends.as_slice(), [b] if b.cluster == self.name
            && b.subset.is_empty() && b.request_headers.is_empty() && b.response_headers.is_empty());
        let rest = Forward { backends: Vec::new(), ..(**forward).clone() };
        alone
            && rest == Forward::default()
            && host.domains == ["*"]
            && route.matches.is_any()
            && route.policy == RoutePolicy::default()
    }

    /// Clusters that a request may go to or be mirrored to, each once, sorted.
    pub fn clusters(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for route in self.virtual_hosts.iter().flat_map(|h| &h.routes) {
            if let Action::Forward(forward) = &route.action {
                names.extend(forward.backends.iter().map(|b| b.cluster.as_str()));
                names.extend(forward.mirrors.iter().map(|m| m.cluster.as_str()));
            }
        }
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Whether a route may set or remove a header field, named in lower case. Those that frame a message, say where it
/// goes, or belong to one connection are the proxy's own.
pub fn is_editable_field(name: &str) -> bool {
    const OWN: [&str; 14] = [
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "http2-settings",
        "expect",
        "via",
        "x-weft-error",
    ];
    let token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
    (1..=256).contains(&name.len()) && name.bytes().all(token) && !OWN.contains(&name)
}

#[cfg(test)]
mod tests;
