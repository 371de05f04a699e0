//! Documents as typed values. Everything optional is so here too: a document with mistakes is still looked at as far as
//! it goes, so that all of them are found at once.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::authz::AuthorizationPolicySpec;
use crate::check;
use crate::jwt::RequestAuthenticationSpec;
use crate::policy::{RateLimitSpec, TrafficPolicySpec};
use crate::schema;
use crate::shape::{self, Problem};
use crate::{DOCUMENT_BYTES_MAX, yaml};

/// `apiVersion` of the Gateway API's kinds.
pub const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

/// `apiVersion` of Weft's own kinds.
pub const WEFT_API: &str = "weft.dev/v1";

/// Kinds of documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Routes of HTTP requests.
    HttpRoute,
    /// Routes of gRPC calls.
    GrpcRoute,
    /// What `ExtensionRef` filters lead to.
    HttpRouteFilter,
    /// How sidecars treat the traffic to a service.
    TrafficPolicy,
    /// Who may call a service.
    AuthorizationPolicy,
    /// Whose tokens a service takes.
    RequestAuthentication,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::HttpRouteFilter,
        Self::TrafficPolicy,
        Self::AuthorizationPolicy,
        Self::RequestAuthentication,
    ];

    /// As in `kind`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::HttpRouteFilter => "HTTPRouteFilter",
            Self::TrafficPolicy => "TrafficPolicy",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::RequestAuthentication => "RequestAuthentication",
        }
    }

    /// From a `kind`, in any case.
    pub fn named(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str().eq_ignore_ascii_case(text))
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A document that is right in itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// Its kind.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What it says.
    pub spec: Spec,
    /// As written, without comments.
    pub json: Value,
}

/// What a document says.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Spec {
    Http(HttpRouteSpec),
    Grpc(GrpcRouteSpec),
    Filter(Box<RouteFilterSpec>),
    Policy(Box<TrafficPolicySpec>),
    Authz(Box<AuthorizationPolicySpec>),
    Jwt(Box<RequestAuthenticationSpec>),
}

impl Document {
    /// Checks one document.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn new(json: Value) -> Result<Self, Vec<Problem>> {
        let (document, problems) = examine(json);
        match document {
            Some(document) if problems.is_empty() => Ok(document),
            _ => Err(problems),
        }
    }

    /// From its stored form.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Vec<Problem>> {
        if bytes.len() > DOCUMENT_BYTES_MAX {
            let message = format!("{} bytes; at most {DOCUMENT_BYTES_MAX} are allowed", bytes.len());
            return Err(vec![Problem::new("", message)]);
        }
        let json = serde_json::from_slice(bytes).map_err(|e| vec![Problem::new("", e.to_string())])?;
        Self::new(json)
    }

    /// Its stored form: equal documents have equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Keys are sorted: the map behind `Value` is.
        serde_json::to_vec(&self.json).expect("JSON values serialise")
    }
}

/// A document as far as it can be read, and what is wrong with it.
pub fn examine(mut json: Value) -> (Option<Document>, Vec<Problem>) {
    let written = json.clone();
    let mut problems = Vec::new();
    let Value::Object(entries) = &json else {
        let message = "no document; allowed is a mapping with apiVersion, kind, metadata and spec";
        return (None, vec![Problem::new("", message)]);
    };
    let kinds = || Kind::ALL.map(Kind::as_str).join(", ");
    let kind = match entries.get("kind") {
        Some(Value::String(text)) => match Kind::ALL.into_iter().find(|k| k.as_str() == text) {
            Some(kind) => kind,
            None => {
                let near = shape::near(text, Kind::ALL.iter().map(|k| k.as_str()));
                let seen: String = text.chars().take(80).collect();
                let message = format!("{seen:?}; allowed are {}{near}", kinds());
                return (None, vec![Problem::new("kind", message)]);
            }
        },
        _ => return (None, vec![Problem::new("", format!("kind is missing; allowed are {}", kinds()))]),
    };
    shape::check(schema::of(kind), &mut json, "", &mut problems);
    // What is wrong as a whole is null now, and read as nothing.
    let read = |json: &Value| -> Result<(String, Spec), serde_json::Error> {
        let spec = json.get("spec").cloned().unwrap_or_else(|| Value::Object(Default::default()));
        let metadata: Metadata =
            json.get("metadata").cloned().map(serde_json::from_value).transpose()?.unwrap_or_default();
        let spec = match kind {
            Kind::HttpRoute => Spec::Http(serde_json::from_value(spec)?),
            Kind::GrpcRoute => Spec::Grpc(serde_json::from_value(spec)?),
            Kind::HttpRouteFilter => Spec::Filter(Box::new(serde_json::from_value(spec)?)),
            Kind::TrafficPolicy => Spec::Policy(Box::new(serde_json::from_value(spec)?)),
            Kind::AuthorizationPolicy => Spec::Authz(Box::new(serde_json::from_value(spec)?)),
            Kind::RequestAuthentication => Spec::Jwt(Box::new(serde_json::from_value(spec)?)),
        };
        Ok((metadata.name, spec))
    };
    match read(&json) {
        Ok((name, spec)) => {
            let namespace = json.pointer("/metadata/namespace").and_then(Value::as_str).map(str::to_owned);
            check::namespace(&namespace, "metadata", &mut problems);
            check::spec(&spec, &mut problems);
            (Some(Document { kind, name, spec, json: written }), problems)
        }
        Err(error) => {
            problems.push(Problem::new("spec", error.to_string()));
            (None, problems)
        }
    }
}

/// A problem of a document in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Located {
    /// Where in the text.
    pub place: yaml::Place,
    /// `HTTPRoute orders`, as far as known.
    pub document: String,
    /// What is wrong.
    pub problem: Problem,
}

impl std::fmt::Display for Located {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: ", self.place.line, self.place.column)?;
        if !self.document.is_empty() {
            write!(f, "{}: ", self.document)?;
        }
        write!(f, "{}", self.problem)
    }
}

/// Documents of a text with their places.
#[derive(Debug, Default)]
pub struct File {
    /// Those that could be read, also with mistakes, each with its node.
    pub documents: Vec<(Document, yaml::Node)>,
    /// All mistakes within single documents, in the order of the text.
    pub problems: Vec<Located>,
}

impl File {
    /// Reads documents. `skip` leaves some out, such as those of another schema.
    pub fn read(text: &str, skip: impl Fn(&yaml::Node) -> bool) -> Self {
        let mut file = Self::default();
        for parsed in yaml::documents(text) {
            let node = match parsed.node {
                Ok(node) if skip(&node) => continue,
                Ok(node) => node,
                Err((place, message)) => {
                    let problem = Problem::new("", message);
                    file.problems.push(Located { place, document: String::new(), problem });
                    continue;
                }
            };
            let (document, problems) = examine(node.to_json());
            let title = document.as_ref().map(Document::title).unwrap_or_default();
            file.problems.extend(problems.into_iter().map(|problem| located(&node, &title, problem)));
            if let Some(document) = document {
                file.documents.push((document, node));
            }
        }
        file.problems.sort();
        file
    }
}

/// A text with documents beside something else: that other text, with its lines where they were, and the documents. What
/// is no YAML is among the mistakes of the documents, whatever it was meant to be.
pub fn divide(text: &str) -> (String, File) {
    let is_ours = |node: &yaml::Node| {
        let json = node.to_json();
        json.get("kind").is_some() || json.get("apiVersion").is_some()
    };
    let mut rest = String::with_capacity(text.len());
    for (_, part) in yaml::parts(text) {
        let ours = yaml::documents(part).iter().any(|p| p.node.as_ref().map_or(true, is_ours));
        // The line with the marker went as well.
        let lines = part.matches('\n').count() + usize::from(!rest.is_empty());
        if ours || part.trim().is_empty() {
            rest.extend(std::iter::repeat_n('\n', lines));
        } else {
            if !rest.is_empty() {
                rest.push('\n');
            }
            rest.push_str(part);
        }
    }
    (rest, File::read(text, |node| !is_ours(node)))
}

impl Document {
    /// `HTTPRoute orders`.
    pub fn title(&self) -> String {
        if self.name.is_empty() { self.kind.to_string() } else { format!("{} {}", self.kind, self.name) }
    }
}

/// A document that stands a second time; the first one is in that file, at that node.
pub fn given_twice(document: &Document, node: &yaml::Node, first: (&str, &yaml::Node)) -> Located {
    let (file, line) = (first.0, first.1.locate("metadata.name").line);
    let message = format!("{:?} is given twice, first at {file}:{line}", document.name);
    located(node, &document.title(), Problem::new("metadata.name", message))
}

/// Finds the place of a problem.
pub fn located(node: &yaml::Node, title: &str, problem: Problem) -> Located {
    let place = match &problem.key {
        Some(key) => node.locate_key(&problem.at, key),
        None => node.locate(&problem.at),
    };
    Located { place, document: title.to_owned(), problem }
}

/// A Gateway API duration (GEP-2257): one to four numbers with units, such as `1m30s`.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut millis: u64 = 0;
    for _ in 0..4 {
        if rest.is_empty() {
            break;
        }
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest.get(..digits).filter(|d| (1..=5).contains(&d.len()))?.parse().ok()?;
        rest = &rest[digits..];
        let (unit, factor) = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)]
            .into_iter()
            .find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        millis += number * factor;
    }
    (!text.is_empty() && rest.is_empty()).then(|| Duration::from_millis(millis))
}

macro_rules! spec {
    ($(#[$doc:meta])* $name:ident { $( $field:ident: $type:ty, )* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        #[allow(missing_docs)]
        pub struct $name { $(
            #[serde(deserialize_with = "null_is_default")]
            pub $field: $type,
        )* }
    };
}
pub(crate) use spec;

/// Parts that were wrong are null; they were reported, and are read as if they were not there.
pub(crate) fn null_is_default<'de, D, T>(d: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// A list in which a part that was wrong is null.
pub type Items<T> = Vec<Option<T>>;

spec!(
    /// `metadata`.
    Metadata { name: String, namespace: Option<String>, labels: BTreeMap<String, String>, annotations: BTreeMap<String, String>, }
);
spec!(
    /// `spec` of an `HTTPRoute`.
    HttpRouteSpec { parent_refs: Items<ObjectRef>, hostnames: Items<String>, rules: Items<HttpRule>, }
);
spec!(
    /// `spec` of a `GRPCRoute`.
    GrpcRouteSpec { parent_refs: Items<ObjectRef>, hostnames: Items<String>, rules: Items<GrpcRule>, }
);
spec!(
    /// A parent or a backend without a weight.
    #[derive(Eq)]
    ObjectRef { group: Option<String>, kind: Option<String>, namespace: Option<String>, name: String, port: Option<u16>, section_name: Option<String>, }
);
spec!(
    /// A rule of an `HTTPRoute`.
    HttpRule { name: Option<String>, matches: Items<HttpMatch>, filters: Items<Filter>, backend_refs: Items<BackendRef>, timeouts: Option<Timeouts>, retry: Option<RetrySpec>, }
);
spec!(
    /// A rule of a `GRPCRoute`.
    GrpcRule { name: Option<String>, matches: Items<GrpcMatch>, filters: Items<Filter>, backend_refs: Items<BackendRef>, retry: Option<GrpcRetrySpec>, }
);
spec!(
    /// Conditions on a request.
    HttpMatch { path: Option<PathMatch>, headers: Items<ValueMatch>, query_params: Items<ValueMatch>, method: Option<String>, }
);
spec!(
    /// Conditions on a call.
    GrpcMatch { method: Option<GrpcMethodMatch>, headers: Items<ValueMatch>, }
);
spec!(
    /// Condition on a path.
    PathMatch { r#type: Option<String>, value: Option<String>, }
);
spec!(
    /// Condition on a service and its method.
    GrpcMethodMatch { r#type: Option<String>, service: Option<String>, method: Option<String>, }
);
spec!(
    /// Condition on a named value.
    ValueMatch { r#type: Option<String>, name: String, value: String, }
);
spec!(
    /// A service with its share.
    BackendRef { group: Option<String>, kind: Option<String>, namespace: Option<String>, name: String, port: Option<u16>, weight: Option<u32>, subset: BTreeMap<String, String>, filters: Items<Filter>, }
);
spec!(
    /// Times of a rule.
    Timeouts { request: Option<String>, backend_request: Option<String>, }
);
spec!(
    /// Repetitions of a rule.
    RetrySpec { codes: Items<u16>, attempts: Option<u32>, backoff: Option<String>, }
);
spec!(
    /// Repetitions of a rule for calls.
    GrpcRetrySpec { codes: Items<String>, attempts: Option<u32>, backoff: Option<String>, }
);
spec!(
    /// One filter: `type` says which of the others is given.
    Filter { r#type: String, request_header_modifier: Option<Modifier>, response_header_modifier: Option<Modifier>, request_mirror: Option<MirrorSpec>, request_redirect: Option<RedirectSpec>, url_rewrite: Option<RewriteSpec>, cors: Option<CorsSpec>, extension_ref: Option<ExtensionRef>, }
);
spec!(
    /// Changes of header fields.
    Modifier { set: Items<HeaderValue>, add: Items<HeaderValue>, remove: Items<String>, }
);
spec!(
    /// A header field.
    HeaderValue { name: String, value: String, }
);
spec!(
    /// A copy of requests.
    MirrorSpec { backend_ref: ObjectRef, percent: Option<u32>, fraction: Option<FractionSpec>, }
);
spec!(
    /// A share.
    FractionSpec { numerator: u32, denominator: Option<u32>, }
);
spec!(
    /// Where else to go.
    RedirectSpec { scheme: Option<String>, hostname: Option<String>, path: Option<PathModifier>, port: Option<u16>, status_code: Option<u16>, }
);
spec!(
    /// What the service sees.
    RewriteSpec { hostname: Option<String>, path: Option<PathModifier>, }
);
spec!(
    /// Another path.
    PathModifier { r#type: String, replace_full_path: Option<String>, replace_prefix_match: Option<String>, }
);
spec!(
    /// Cross-origin requests.
    CorsSpec { allow_origins: Items<String>, allow_credentials: bool, allow_methods: Items<String>, allow_headers: Items<String>, expose_headers: Items<String>, max_age: Option<u32>, }
);
spec!(
    /// A document of Weft's own.
    ExtensionRef { group: String, kind: String, name: String, }
);
spec!(
    /// `spec` of an `HTTPRouteFilter`.
    RouteFilterSpec { fault: Option<FaultSpec>, direct_response: Option<DirectSpec>, compression: Option<CompressionSpec>, cache: Option<CacheSpec>, rate_limit: Option<RateLimitSpec>, hedge: Option<HedgeSpec>, }
);
spec!(
    /// A second try beside the first.
    HedgeSpec { after: String, }
);
spec!(
    /// Failures made on purpose.
    FaultSpec { delay: Option<DelaySpec>, abort: Option<AbortSpec>, }
);
spec!(
    /// Some requests wait.
    DelaySpec { duration: String, percent: Option<f64>, }
);
spec!(
    /// Some requests are answered.
    AbortSpec { http_status: Option<u16>, grpc_status: Option<u32>, percent: Option<f64>, }
);
spec!(
    /// An answer.
    DirectSpec { status_code: u16, body: String, }
);
spec!(
    /// Compression of answers.
    CompressionSpec { min_bytes: Option<u32>, }
);
spec!(
    /// A store of answers.
    CacheSpec { max_body_bytes: Option<u32>, default_ttl: Option<String>, }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_beside_another_text_are_taken_apart_with_their_lines() {
        let text = "name: edge\n---\nkind: HTTPRoute\n---\nworkers: x\n";
        let (rest, file) = divide(text);
        assert_eq!(rest.lines().position(|l| l == "workers: x"), Some(4));
        assert!(rest.starts_with("name: edge\n") && !rest.contains("HTTPRoute"));
        assert_eq!(file.documents.len(), 1);
        assert_eq!(file.problems[0].place.line, 3);
    }

    #[test]
    fn durations_are_those_of_the_gateway_api() {
        for (text, millis) in [("0s", 0), ("500ms", 500), ("1m30s", 90_000), ("1h2m3s4ms", 3_723_004)] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "1", "s", "1.5s", "-1s", "1d", "123456s", "1s1s1s1s1s", "1s "] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
