//! The kinds of documents: `HTTPRoute` and `GRPCRoute` as the Gateway API (v1) has them; `HTTPRouteFilter`, which
//! its `ExtensionRef` filters lead to, for what it has no word for; `TrafficPolicy`, attached to a service as its policies are.

use serde_json::{Value, json};
use weft_core::limits::SERVICE_NAME_BYTES_MAX;
use weft_xds_proto::resource::route as ir;
use weft_xds_proto::resource::route::pattern;

use crate::authz;
use crate::document::{GATEWAY_API, Kind, WEFT_API, duration};
use crate::jwt;
use crate::policy::keys;
use crate::shape::{Field, Rule, Shape, json_schema, optional, required};

/// Rules of a route, as the Gateway API has it.
pub const RULES_MAX: usize = 16;
const MATCHES_MAX: usize = 64;
const FILTERS_MAX: usize = 16;
const REFS_MAX: usize = 32;
const HEADERS_MAX: usize = 16;

const NAME: Shape = Shape::Text(Rule {
    allowed: "1 to 253 lower-case letters, digits, - and ., with a letter or digit at both ends",
    pattern: "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
    check: is_name,
});
const SERVICE: Shape = Shape::Text(Rule {
    allowed: "a service name: 1 to 63 lower-case letters, digits and -, with a letter or digit at both ends",
    pattern: "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    check: |t| is_name(t) && !t.contains('.') && t.len() <= SERVICE_NAME_BYTES_MAX,
});
const SECTION: Shape = Shape::Text(Rule {
    allowed: "1 to 253 lower-case letters, digits, - and .",
    pattern: "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
    check: is_name,
});
const HOSTNAME: Shape = Shape::Text(Rule {
    allowed: "a host name in lower case, without port, that may start with *.",
    pattern: r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    check: |t| is_name(t.strip_prefix("*.").unwrap_or(t)) && t.len() <= 253,
});
const PRECISE_HOSTNAME: Shape = Shape::Text(Rule {
    allowed: "a host name in lower case, without port and wildcard",
    pattern: r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
    check: |t| is_name(t) && t.len() <= 253,
});
const PATH: Shape = Shape::Text(Rule {
    allowed: "visible ASCII characters without #, that start with /",
    pattern: "^/",
    check: |t| t.starts_with('/') && t.len() <= 1024 && t.bytes().all(|b| b.is_ascii_graphic() && b != b'#'),
});
/// A path or a pattern; which one says another key.
const PATH_VALUE: Shape = Shape::Text(Rule {
    allowed: "1 to 1024 characters",
    pattern: "",
    check: |t| !t.is_empty() && t.len() <= pattern::PATTERN_BYTES_MAX,
});
const HEADER_NAME: Shape = Shape::Text(Rule {
    allowed: "the name of a header field",
    pattern: "^[A-Za-z0-9!#$%&'*+\\-.^_`|~]+$",
    check: is_field_name,
});
const EDITED_NAME: Shape = Shape::Text(Rule {
    allowed: "a header field other than Host and those that frame a message or belong to one connection",
    pattern: "^[A-Za-z0-9!#$%&'*+\\-.^_`|~]+$",
    check: |t| ir::is_editable_field(&t.to_ascii_lowercase()),
});
const VALUE: Shape = Shape::Text(Rule {
    allowed: "1 to 4096 bytes without control characters",
    pattern: "",
    check: |t| !t.is_empty() && t.len() <= ir::TEXT_BYTES_MAX && !t.chars().any(char::is_control),
});
const QUERY_NAME: Shape = Shape::Text(Rule {
    allowed: "1 to 256 characters",
    pattern: "",
    check: |t| (1..=256).contains(&t.len()) && !t.chars().any(char::is_control),
});
const DURATION: Shape = Shape::Text(Rule {
    allowed: "a time such as 500ms, 10s or 1m30s, up to 24h",
    pattern: "^([0-9]{1,5}(h|m|s|ms)){1,4}$",
    check: |t| duration(t).is_some_and(|d| d <= ir::TIME_MAX),
});
const ORIGIN: Shape = Shape::Text(Rule {
    allowed: "*, or SCHEME://HOST with an optional port, where HOST may start with *.",
    pattern: "^(\\*|[a-zA-Z][a-zA-Z0-9+.-]*://[^/]+)$",
    check: is_origin,
});
const TOKEN: Shape = Shape::Text(Rule { allowed: "a name, or *", pattern: "", check: is_field_name });
const GRPC_NAME: Shape = Shape::Text(Rule {
    allowed: "1 to 1024 characters",
    pattern: "",
    check: |t| !t.is_empty() && t.len() <= pattern::PATTERN_BYTES_MAX,
});
const BODY: Shape = Shape::Text(Rule {
    allowed: "a text of at most 64 KiB",
    pattern: "",
    check: |t| t.len() <= ir::BODY_BYTES_MAX,
});
const GROUP: Shape =
    Shape::Text(Rule { allowed: "an API group", pattern: "", check: |t| t.is_empty() || is_name(t) });
const WORD: Shape = Shape::Text(Rule {
    allowed: "a kind, such as Service",
    pattern: "",
    check: |t| (1..=63).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_alphanumeric()),
});

fn is_name(t: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let end = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let b = t.as_bytes();
    t.len() <= 253 && b.iter().all(|b| inner(*b)) && end(b.first()) && end(b.last()) && !t.contains("..")
}

fn is_field_name(t: &str) -> bool {
    (1..=256).contains(&t.len())
        && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

fn is_origin(t: &str) -> bool {
    if t == "*" {
        return true;
    }
    let Some((scheme, rest)) = t.split_once("://") else { return false };
    let host = rest.strip_prefix("*.").unwrap_or(rest);
    let (host, port) = host.rsplit_once(':').unwrap_or((host, "0"));
    !scheme.is_empty()
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'.' | b'-'))
        && is_name(&host.to_ascii_lowercase())
        && port.parse::<u16>().is_ok()
}

const PORT: Shape = Shape::Integer(1, 65_535);

const METADATA: Shape = Shape::Object(&[
    required("name", &NAME, "a name that no other document of this kind has"),
    optional("namespace", &NAME, "only \"default\": services are of the whole mesh"),
    optional("labels", &Shape::Labels, "for people and tools"),
    optional("annotations", &Shape::Labels, "for people and tools"),
]);

const PARENT: Shape = Shape::Object(&[
    optional("group", &GROUP, "\"\" for a Service"),
    optional("kind", &WORD, "Service"),
    optional("namespace", &NAME, "only \"default\""),
    required("name", &SERVICE, "the service whose calls the route is for"),
    optional("sectionName", &SECTION, "not supported"),
    optional("port", &PORT, "not supported: services are known by name"),
]);

const MODIFIED: Shape =
    Shape::Object(&[required("name", &EDITED_NAME, "the field"), required("value", &VALUE, "its value")]);
const MODIFIER: Shape = Shape::Object(&[
    optional("set", &Shape::List(&MODIFIED, HEADERS_MAX), "fields that replace those of their name"),
    optional("add", &Shape::List(&MODIFIED, HEADERS_MAX), "fields beside those of their name"),
    optional("remove", &Shape::List(&EDITED_NAME, HEADERS_MAX), "fields taken away"),
]);

const PATH_MODIFIER: Shape = Shape::Object(&[
    required("type", &Shape::Choice(&["ReplaceFullPath", "ReplacePrefixMatch"]), "what is replaced"),
    optional("replaceFullPath", &PATH, "the whole path"),
    optional("replacePrefixMatch", &PATH, "instead of the prefix that the rule matched"),
]);

const MIRROR: Shape = Shape::Object(&[
    required("backendRef", &BACKEND_OBJECT, "the service that gets a copy"),
    optional("percent", &Shape::Integer(0, 100), "share of the requests; all if missing"),
    optional(
        "fraction",
        &Shape::Object(&[
            required("numerator", &Shape::Integer(0, i32::MAX as i64), "so many"),
            optional("denominator", &Shape::Integer(1, i32::MAX as i64), "of so many; 100 if missing"),
        ]),
        "share of the requests, instead of percent",
    ),
]);

const BACKEND_OBJECT: Shape = Shape::Object(&[
    optional("group", &GROUP, "\"\""),
    optional("kind", &WORD, "Service"),
    optional("namespace", &NAME, "only \"default\""),
    required("name", &SERVICE, "the service"),
    optional("port", &PORT, "not used: endpoints bring their own ports"),
]);

const CORS: Shape = Shape::Object(&[
    optional("allowOrigins", &Shape::List(&ORIGIN, 64), "origins whose pages may ask"),
    optional("allowCredentials", &Shape::Flag, "with cookies; false if missing"),
    optional("allowMethods", &Shape::List(&TOKEN, 9), "methods that they may use"),
    optional("allowHeaders", &Shape::List(&TOKEN, 64), "header fields that they may send"),
    optional("exposeHeaders", &Shape::List(&TOKEN, 64), "header fields that they may see"),
    optional(
        "maxAge",
        &Shape::Integer(1, i32::MAX as i64),
        "seconds that a browser may remember this; 5 if missing",
    ),
]);

const EXTENSION: Shape = Shape::Object(&[
    required("group", &Shape::Choice(&["weft.dev"]), "weft.dev"),
    required("kind", &Shape::Choice(&["HTTPRouteFilter"]), "HTTPRouteFilter"),
    required("name", &NAME, "name of the HTTPRouteFilter"),
]);

const FILTER_TYPES: &[&str] = &[
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestMirror",
    "RequestRedirect",
    "URLRewrite",
    "CORS",
    "ExtensionRef",
];

const FILTER: Shape = Shape::Object(&[
    required("type", &Shape::Choice(FILTER_TYPES), "which of the other keys is given"),
    optional("requestHeaderModifier", &MODIFIER, "changes of the request's fields"),
    optional("responseHeaderModifier", &MODIFIER, "changes of the answer's fields"),
    optional("requestMirror", &MIRROR, "a copy of the request to another service"),
    optional(
        "requestRedirect",
        &Shape::Object(&[
            optional("scheme", &Shape::Choice(&["http", "https"]), "that of the request if missing"),
            optional("hostname", &PRECISE_HOSTNAME, "that of the request if missing"),
            optional("path", &PATH_MODIFIER, "the same if missing"),
            optional("port", &PORT, "that of the scheme or of the request if missing"),
            optional("statusCode", &Shape::Integer(300, 399), "301, 302, 303, 307 or 308; 302 if missing"),
        ]),
        "an answer that sends the client elsewhere",
    ),
    optional(
        "urlRewrite",
        &Shape::Object(&[
            optional("hostname", &PRECISE_HOSTNAME, "the Host that the service sees"),
            optional("path", &PATH_MODIFIER, "the path that the service sees"),
        ]),
        "another host or path for the service",
    ),
    optional("cors", &CORS, "cross-origin requests of browsers"),
    optional("extensionRef", &EXTENSION, "an HTTPRouteFilter"),
]);

const BACKEND: Shape = Shape::Object(&[
    optional("group", &GROUP, "\"\""),
    optional("kind", &WORD, "Service"),
    optional("namespace", &NAME, "only \"default\""),
    required("name", &SERVICE, "the service"),
    optional("port", &PORT, "not used: endpoints bring their own ports"),
    optional(
        "weight",
        &Shape::Integer(0, ir::WEIGHT_MAX as i64),
        "its part of the sum of weights; 1 if missing",
    ),
    optional("subset", &Shape::Labels, "only instances with these labels, such as version: \"^1.4\""),
    optional("filters", &Shape::List(&FILTER, FILTERS_MAX), "header modifiers for this service alone"),
]);

const MATCH_TYPE: Shape = Shape::Choice(&["Exact", "RegularExpression"]);

const HEADER_MATCH: Shape = Shape::Object(&[
    optional("type", &MATCH_TYPE, "Exact if missing"),
    required("name", &HEADER_NAME, "the header field"),
    required("value", &VALUE, "its value, or a pattern for the whole of it"),
]);

const HTTP_MATCH: Shape = Shape::Object(&[
    optional(
        "path",
        &Shape::Object(&[
            optional(
                "type",
                &Shape::Choice(&["Exact", "PathPrefix", "RegularExpression"]),
                "PathPrefix if missing",
            ),
            optional("value", &PATH_VALUE, "/ if missing"),
        ]),
        "any path if missing",
    ),
    optional("headers", &Shape::List(&HEADER_MATCH, HEADERS_MAX), "all must match"),
    optional(
        "queryParams",
        &Shape::List(
            &Shape::Object(&[
                optional("type", &MATCH_TYPE, "Exact if missing"),
                required("name", &QUERY_NAME, "the parameter"),
                required("value", &VALUE, "its value, or a pattern for the whole of it"),
            ]),
            HEADERS_MAX,
        ),
        "all must match",
    ),
    optional(
        "method",
        &Shape::Choice(&["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"]),
        "any if missing",
    ),
]);

const ATTEMPTS: Field =
    optional("attempts", &Shape::Integer(1, ir::ATTEMPTS_MAX as i64), "tries after the first; 1 if missing");
const BACKOFF: Field = optional(
    "backoff",
    &DURATION,
    "wait before the first repetition, then twice as long each; 25ms if missing",
);

const HTTP_RULE: Shape = Shape::Object(&[
    optional("name", &SECTION, "for logs"),
    optional("matches", &Shape::List(&HTTP_MATCH, MATCHES_MAX), "one must match; all requests if missing"),
    optional("filters", &Shape::List(&FILTER, FILTERS_MAX), "what happens beside forwarding"),
    optional("backendRefs", &Shape::List(&BACKEND, REFS_MAX), "one is drawn by weight"),
    optional(
        "timeouts",
        &Shape::Object(&[
            optional("request", &DURATION, "for the whole request; 0s for no limit"),
            optional("backendRequest", &DURATION, "for each try; 0s for no limit"),
        ]),
        "60 s for the head of the answer if missing",
    ),
    optional(
        "retry",
        &Shape::Object(&[
            optional(
                "codes",
                &Shape::List(&Shape::Integer(400, 599), 200),
                "answers after which to try again",
            ),
            ATTEMPTS,
            BACKOFF,
        ]),
        "requests that are safe to repeat are tried again",
    ),
]);

const GRPC_MATCH: Shape = Shape::Object(&[
    optional(
        "method",
        &Shape::Object(&[
            optional("type", &MATCH_TYPE, "Exact if missing"),
            optional("service", &GRPC_NAME, "gRPC service, with its package; any if missing"),
            optional("method", &GRPC_NAME, "its method; any if missing"),
        ]),
        "any if missing",
    ),
    optional("headers", &Shape::List(&HEADER_MATCH, HEADERS_MAX), "all must match"),
]);

const GRPC_CODES: [&str; ir::GRPC_RETRIABLE.len()] = {
    let mut names = [""; ir::GRPC_RETRIABLE.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = ir::GRPC_RETRIABLE[i].1;
        i += 1;
    }
    names
};

const GRPC_RULE: Shape = Shape::Object(&[
    optional("name", &SECTION, "for logs"),
    optional("matches", &Shape::List(&GRPC_MATCH, MATCHES_MAX), "one must match; all calls if missing"),
    optional("filters", &Shape::List(&FILTER, FILTERS_MAX), "what happens beside forwarding"),
    optional("backendRefs", &Shape::List(&BACKEND, REFS_MAX), "one is drawn by weight"),
    optional(
        "retry",
        &Shape::Object(&[
            optional(
                "codes",
                &Shape::List(&Shape::Choice(&GRPC_CODES), GRPC_CODES.len()),
                "codes after which to try again; UNAVAILABLE if missing",
            ),
            ATTEMPTS,
            BACKOFF,
        ]),
        "calls are tried again: its methods may be carried out twice",
    ),
]);

const HOSTNAMES: Field = optional(
    "hostnames",
    &Shape::List(&HOSTNAME, 64),
    "hosts that the route is for, of a route without parentRefs",
);
const PARENTS: Field =
    optional("parentRefs", &Shape::List(&PARENT, REFS_MAX), "services whose calls the route is for");

const HTTP_ROUTE: Shape = Shape::Object(&[
    required("apiVersion", &Shape::Choice(&[GATEWAY_API]), GATEWAY_API),
    required("kind", &Shape::Choice(&["HTTPRoute"]), "HTTPRoute"),
    required("metadata", &METADATA, "its name"),
    required(
        "spec",
        &Shape::Object(&[
            PARENTS,
            HOSTNAMES,
            required("rules", &Shape::List(&HTTP_RULE, RULES_MAX), "the most specific that matches is taken"),
        ]),
        "what it does",
    ),
]);

const GRPC_ROUTE: Shape = Shape::Object(&[
    required("apiVersion", &Shape::Choice(&[GATEWAY_API]), GATEWAY_API),
    required("kind", &Shape::Choice(&["GRPCRoute"]), "GRPCRoute"),
    required("metadata", &METADATA, "its name"),
    required(
        "spec",
        &Shape::Object(&[
            PARENTS,
            HOSTNAMES,
            required("rules", &Shape::List(&GRPC_RULE, RULES_MAX), "the most specific that matches is taken"),
        ]),
        "what it does",
    ),
]);

const PERCENT: Shape = Shape::Number(0.0, 100.0);

const ROUTE_FILTER: Shape = Shape::Object(&[
    required("apiVersion", &Shape::Choice(&[WEFT_API]), WEFT_API),
    required("kind", &Shape::Choice(&["HTTPRouteFilter"]), "HTTPRouteFilter"),
    required("metadata", &METADATA, "its name"),
    required(
        "spec",
        &Shape::Object(&[
            optional(
                "fault",
                &Shape::Object(&[
                    optional(
                        "delay",
                        &Shape::Object(&[
                            required("duration", &DURATION, "how long"),
                            optional("percent", &PERCENT, "share of the requests; 100 if missing"),
                        ]),
                        "some requests wait",
                    ),
                    optional(
                        "abort",
                        &Shape::Object(&[
                            optional("httpStatus", &Shape::Integer(200, 599), "the answer's status"),
                            optional("grpcStatus", &Shape::Integer(1, 16), "the answer's gRPC status"),
                            optional("percent", &PERCENT, "share of the requests; 100 if missing"),
                        ]),
                        "some requests are answered without being forwarded",
                    ),
                ]),
                "failures made on purpose",
            ),
            optional(
                "directResponse",
                &Shape::Object(&[
                    required("statusCode", &Shape::Integer(200, 599), "the answer's status"),
                    optional("body", &BODY, "the answer's text"),
                ]),
                "an answer without forwarding",
            ),
            optional(
                "compression",
                &Shape::Object(&[optional(
                    "minBytes",
                    &Shape::Integer(0, 1 << 30),
                    "shorter answers are left alone; 1024 if missing",
                )]),
                "answers are compressed if the client takes it",
            ),
            optional(
                "cache",
                &Shape::Object(&[
                    optional(
                        "maxBodyBytes",
                        &Shape::Integer(1, 16 << 20),
                        "larger answers are not kept; 1048576 if missing",
                    ),
                    optional("defaultTtl", &DURATION, "for answers that do not say how long they are fresh"),
                ]),
                "answers are kept and used again (RFC 9111)",
            ),
            optional(
                "rateLimit",
                &keys::RATE_LIMIT,
                "how many requests each sidecar lets pass on the route; more are answered 429",
            ),
            optional(
                "hedge",
                &Shape::Object(&[required("after", &keys::TIME, "so long without an answer")]),
                "requests that are safe to repeat are sent to a second endpoint as well",
            ),
        ]),
        "what it does",
    ),
]);

const TARGET: Field = required(
    "targetRef",
    &Shape::Object(&[
        optional("group", &GROUP, "\"\" for a Service"),
        required("kind", &Shape::Choice(&["Service"]), "Service"),
        required("name", &SERVICE, "the service; it may have one policy"),
    ]),
    "the service whose traffic it is for",
);

const TRAFFIC_POLICY: Shape = Shape::Object(&[
    required("apiVersion", &Shape::Choice(&[WEFT_API]), WEFT_API),
    required("kind", &Shape::Choice(&["TrafficPolicy"]), "TrafficPolicy"),
    required("metadata", &METADATA, "its name"),
    required("spec", &Shape::Object(&keys::with::<16>(TARGET)), "what it does"),
]);

const AUTHORIZATION_POLICY: Shape = Shape::Object(&[
    required("apiVersion", &Shape::Choice(&[WEFT_API]), WEFT_API),
    required("kind", &Shape::Choice(&["AuthorizationPolicy"]), "AuthorizationPolicy"),
    required("metadata", &METADATA, "its name"),
    required("spec", &Shape::Object(&authz::keys(TARGET)), "who may do what"),
]);
const REQUEST_AUTHENTICATION: Shape = Shape::Object(&[
    required("apiVersion", &Shape::Choice(&[WEFT_API]), WEFT_API),
    required("kind", &Shape::Choice(&["RequestAuthentication"]), "RequestAuthentication"),
    required("metadata", &METADATA, "its name"),
    required("spec", &Shape::Object(&jwt::keys(TARGET)), "whose tokens are taken"),
]);

/// The shape of a kind's documents.
pub fn of(kind: Kind) -> &'static Shape {
    match kind {
        Kind::HttpRoute => &HTTP_ROUTE,
        Kind::GrpcRoute => &GRPC_ROUTE,
        Kind::HttpRouteFilter => &ROUTE_FILTER,
        Kind::TrafficPolicy => &TRAFFIC_POLICY,
        Kind::AuthorizationPolicy => &AUTHORIZATION_POLICY,
        Kind::RequestAuthentication => &REQUEST_AUTHENTICATION,
    }
}

/// JSON Schema for editors: of one kind, or of all.
pub fn json(kind: Option<Kind>) -> Value {
    const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
    let mut schema = match kind {
        Some(kind) => json_schema(of(kind)),
        None => json!({"oneOf": Kind::ALL.map(|kind| json_schema(of(kind)))}),
    };
    if let Value::Object(entries) = &mut schema {
        entries.insert("$schema".to_owned(), DIALECT.into());
        let title = kind.map_or("Weft mesh configuration", Kind::as_str);
        entries.insert("title".to_owned(), title.into());
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_schema_that_names_its_keys() {
        for kind in Kind::ALL {
            let schema = json(Some(kind));
            assert_eq!(schema["properties"]["kind"]["enum"][0], kind.as_str());
            assert_eq!(schema["additionalProperties"], false);
        }
        assert_eq!(json(None)["oneOf"].as_array().unwrap().len(), Kind::ALL.len());
    }

    #[test]
    fn origins_are_schemes_with_hosts() {
        for good in ["*", "https://a.b", "https://*.a.b:8443", "http://localhost:3000"] {
            assert!(is_origin(good), "{good}");
        }
        for bad in ["", "a.b", "https://", "https://a/b", "https://*.", "https://a:x"] {
            assert!(!is_origin(bad), "{bad}");
        }
    }
}
