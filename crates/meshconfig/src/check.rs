//! What keys and types alone do not say: which parts go together, and what a text means.

use weft_xds_proto::resource::route::pattern;

use crate::document::{
    BackendRef, Filter, FractionSpec, GrpcRouteSpec, HttpMatch, HttpRouteSpec, HttpRule, Items, ObjectRef,
    PathModifier, RouteFilterSpec, Spec, ValueMatch,
};
use crate::policy::PolicySpec;
use crate::shape::Problem;

type Problems = Vec<Problem>;

/// Checks what a document says.
pub fn spec(spec: &Spec, problems: &mut Problems) {
    match spec {
        Spec::Http(s) => http(s, problems),
        Spec::Grpc(s) => grpc(s, problems),
        Spec::Filter(s) => filter_document(s, problems),
        Spec::Policy(s) => {
            group(&s.target_ref.group, "spec.targetRef", problems);
            if s.policy == PolicySpec::default() {
                let message = "it says nothing; `weft schema trafficpolicy` lists what may be said";
                problems.push(Problem::new("spec", message));
            }
            s.policy.check("spec.", problems);
        }
        Spec::Authz(s) => {
            if let Some(target) = &s.target_ref {
                group(&target.group, "spec.targetRef", problems);
            }
            s.check(problems);
        }
        Spec::Jwt(s) => {
            if let Some(target) = &s.target_ref {
                group(&target.group, "spec.targetRef", problems);
            }
            s.check(problems);
        }
    }
}

/// Services are of the whole mesh; a namespace that is not the default one would be misunderstood.
pub fn namespace(namespace: &Option<String>, at: &str, problems: &mut Problems) {
    if let Some(other) = namespace.as_deref().filter(|n| *n != "default") {
        let message = format!("{other:?}; allowed is \"default\": services are of the whole mesh");
        problems.push(Problem::new(format!("{at}.namespace"), message));
    }
}

fn http(s: &HttpRouteSpec, problems: &mut Problems) {
    attachment(&s.parent_refs, &s.hostnames, problems);
    for (at, rule) in each("spec.rules", &s.rules) {
        for (at, m) in each(&format!("{at}.matches"), &rule.matches) {
            http_match(m, &at, problems);
        }
        let prefixes = rule.matches.iter().flatten().all(is_prefix);
        filters(&rule.filters, &format!("{at}.filters"), Some(prefixes), problems);
        backends(&rule.backend_refs, &rule.filters, &at, problems);
        timeouts(rule, &at, problems);
    }
}

fn grpc(s: &GrpcRouteSpec, problems: &mut Problems) {
    attachment(&s.parent_refs, &s.hostnames, problems);
    for (at, rule) in each("spec.rules", &s.rules) {
        for (at, m) in each(&format!("{at}.matches"), &rule.matches) {
            if let Some(method) = &m.method {
                let at = format!("{at}.method");
                let regex = method.r#type.as_deref() == Some("RegularExpression");
                if method.service.is_none() && method.method.is_none() {
                    problems.push(Problem::new(&at, "neither service nor method is given"));
                }
                for (key, text) in [("service", &method.service), ("method", &method.method)] {
                    let Some(text) = text else { continue };
                    let at = format!("{at}.{key}");
                    if regex {
                        check_pattern(text, &at, problems);
                    } else if !text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.')) {
                        let message = format!("{text:?}; allowed are letters, digits, _ and .");
                        problems.push(Problem::new(at, message));
                    }
                }
            }
            values(&m.headers, &format!("{at}.headers"), problems);
        }
        filters(&rule.filters, &format!("{at}.filters"), None, problems);
        backends(&rule.backend_refs, &rule.filters, &at, problems);
    }
}

/// Items with their paths.
fn each<'a, T>(at: &'a str, items: &'a Items<T>) -> impl Iterator<Item = (String, &'a T)> {
    items.iter().enumerate().filter_map(move |(i, item)| Some((format!("{at}[{i}]"), item.as_ref()?)))
}

fn attachment(parents: &Items<ObjectRef>, hostnames: &Items<String>, problems: &mut Problems) {
    if parents.is_empty() && hostnames.is_empty() {
        problems.push(Problem::new(
            "spec",
            "the route is for nothing; name a service in parentRefs, or a host in hostnames",
        ));
    }
    if !parents.is_empty() && !hostnames.is_empty() {
        problems.push(Problem::new(
            "spec.hostnames",
            "given beside parentRefs; a service is called by its name, so give one of the two",
        ));
    }
    for (at, parent) in each("spec.parentRefs", parents) {
        let kind = parent.kind.as_deref().unwrap_or("Gateway");
        if kind != "Service" {
            problems.push(Problem::new(
                format!("{at}.kind"),
                format!(
                    "{kind}; allowed is Service. For hosts that are no services, leave parentRefs out and give \
                     hostnames"
                ),
            ));
        }
        group(&parent.group, &at, problems);
        namespace(&parent.namespace, &at, problems);
        for (key, given) in [("port", parent.port.is_some()), ("sectionName", parent.section_name.is_some())]
        {
            if given {
                let message = "not supported; services are called by name, so leave it out";
                problems.push(Problem::new(format!("{at}.{key}"), message));
            }
        }
    }
    let mut seen: Vec<&str> = Vec::new();
    for (at, host) in each("spec.hostnames", hostnames) {
        if seen.contains(&host.as_str()) {
            problems.push(Problem::new(at, format!("{host:?} is given twice")));
        }
        seen.push(host);
    }
}

fn group(group: &Option<String>, at: &str, problems: &mut Problems) {
    if let Some(other) = group.as_deref().filter(|g| !g.is_empty()) {
        problems
            .push(Problem::new(format!("{at}.group"), format!("{other:?}; allowed is \"\", for a Service")));
    }
}

fn is_prefix(m: &HttpMatch) -> bool {
    m.path.as_ref().is_none_or(|p| p.r#type.as_deref().unwrap_or("PathPrefix") == "PathPrefix")
}

fn http_match(m: &HttpMatch, at: &str, problems: &mut Problems) {
    if let Some(path) = &m.path {
        let at = format!("{at}.path.value");
        let value = path.value.as_deref().unwrap_or("/");
        match path.r#type.as_deref().unwrap_or("PathPrefix") {
            "RegularExpression" => check_pattern(value, &at, problems),
            _ => check_path(value, &at, problems),
        }
    }
    values(&m.headers, &format!("{at}.headers"), problems);
    values(&m.query_params, &format!("{at}.queryParams"), problems);
    if m.method.as_deref() == Some("CONNECT") {
        problems.push(Problem::new(format!("{at}.method"), "CONNECT tunnels are not routed"));
    }
}

/// Requests are matched in their normal form, so a path that is not in it would match nothing.
fn check_path(value: &str, at: &str, problems: &mut Problems) {
    let lower = value.to_ascii_lowercase();
    let ends = ["/.", "/.."].iter().any(|e| value.ends_with(e));
    let parts = ["//", "/./", "/../", "#", "?", "\\", "%2f", "%5c"];
    if !value.starts_with('/') || !value.bytes().all(|b| b.is_ascii_graphic()) {
        problems.push(Problem::new(at, format!("{value:?}; allowed are visible ASCII characters after a /")));
    } else if let Some(part) = parts.into_iter().find(|p| lower.contains(p)) {
        problems
            .push(Problem::new(at, format!("{value:?} has {part:?}, which no path has when it is matched")));
    } else if ends {
        problems.push(Problem::new(at, format!("{value:?} ends with a dot segment, which no path does")));
    }
}

fn check_pattern(value: &str, at: &str, problems: &mut Problems) {
    if let Err(why) = pattern::whole(value) {
        problems.push(Problem::new(at, format!("{value:?} is no regular expression: {why}")));
    }
}

fn values(values: &Items<ValueMatch>, at: &str, problems: &mut Problems) {
    let mut seen: Vec<String> = Vec::new();
    for (at, value) in each(at, values) {
        if value.r#type.as_deref() == Some("RegularExpression") {
            check_pattern(&value.value, &format!("{at}.value"), problems);
        }
        let name = value.name.to_ascii_lowercase();
        if seen.contains(&name) && !name.is_empty() {
            problems.push(Problem::new(format!("{at}.name"), format!("{name:?} is given twice")));
        }
        seen.push(name);
    }
}

fn backends(backends: &Items<BackendRef>, filters: &Items<Filter>, at: &str, problems: &mut Problems) {
    let redirects = filters.iter().flatten().any(|f| f.r#type == "RequestRedirect");
    if redirects && !backends.is_empty() {
        problems.push(Problem::new(format!("{at}.backendRefs"), "given beside a RequestRedirect filter"));
    }
    for (at, backend) in each(&format!("{at}.backendRefs"), backends) {
        reference(&backend.group, &backend.kind, &backend.namespace, &at, problems);
        if let Err(error) = crate::lower::subset(&backend.subset) {
            let message = format!("{:?}; allowed is {}", error.seen, error.allowed);
            problems.push(Problem::new(format!("{at}.subset.{}", error.key), message));
        }
        for (at, filter) in each(&format!("{at}.filters"), &backend.filters) {
            if !matches!(filter.r#type.as_str(), "RequestHeaderModifier" | "ResponseHeaderModifier" | "") {
                let message = format!(
                    "{}; allowed for one service alone are RequestHeaderModifier and ResponseHeaderModifier",
                    filter.r#type
                );
                problems.push(Problem::new(format!("{at}.type"), message));
            }
        }
        self::filters(&backend.filters, &format!("{at}.filters"), None, problems);
    }
}

fn reference(
    group: &Option<String>,
    kind: &Option<String>,
    namespace: &Option<String>,
    at: &str,
    problems: &mut Problems,
) {
    self::group(group, at, problems);
    if let Some(other) = kind.as_deref().filter(|k| *k != "Service") {
        problems.push(Problem::new(format!("{at}.kind"), format!("{other}; allowed is Service")));
    }
    self::namespace(namespace, at, problems);
}

/// `prefixes`: whether all matches of the rule are by prefix; none for gRPC, which has no paths to change.
fn filters(filters: &Items<Filter>, at: &str, prefixes: Option<bool>, problems: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (at, f) in each(at, filters) {
        let given = [
            ("RequestHeaderModifier", "requestHeaderModifier", f.request_header_modifier.is_some()),
            ("ResponseHeaderModifier", "responseHeaderModifier", f.response_header_modifier.is_some()),
            ("RequestMirror", "requestMirror", f.request_mirror.is_some()),
            ("RequestRedirect", "requestRedirect", f.request_redirect.is_some()),
            ("URLRewrite", "urlRewrite", f.url_rewrite.is_some()),
            ("CORS", "cors", f.cors.is_some()),
            ("ExtensionRef", "extensionRef", f.extension_ref.is_some()),
        ];
        for (r#type, key, given) in given {
            if r#type == f.r#type && !given {
                problems.push(Problem::new(&at, format!("{key} is missing, which type {type} needs")));
            }
            if r#type != f.r#type && given && !f.r#type.is_empty() {
                problems.push(Problem {
                    at: at.clone(),
                    key: Some(key.to_owned()),
                    message: format!("given, but the type is {}", f.r#type),
                });
            }
        }
        let repeatable = matches!(f.r#type.as_str(), "RequestMirror" | "ExtensionRef" | "");
        if !repeatable && seen.contains(&f.r#type.as_str()) {
            problems.push(Problem::new(format!("{at}.type"), format!("{} is given twice", f.r#type)));
        }
        let rewrites = ["RequestRedirect", "URLRewrite"];
        if rewrites.contains(&f.r#type.as_str()) {
            if seen.iter().any(|s| rewrites.contains(s) && *s != f.r#type) {
                let message = "RequestRedirect and URLRewrite are given; allowed is one of the two";
                problems.push(Problem::new(format!("{at}.type"), message));
            }
            if prefixes.is_none() {
                problems.push(Problem::new(
                    format!("{at}.type"),
                    format!("{}; calls of gRPC have no paths to change", f.r#type),
                ));
            }
        }
        seen.push(&f.r#type);
        filter(f, &at, prefixes.unwrap_or(false), problems);
    }
}

fn filter(f: &Filter, at: &str, prefixes: bool, problems: &mut Problems) {
    if let Some(redirect) = &f.request_redirect {
        let at = format!("{at}.requestRedirect");
        if let Some(code) = redirect.status_code.filter(|c| ![301, 302, 303, 307, 308].contains(c)) {
            let message = format!("{code}; allowed are 301, 302, 303, 307 and 308");
            problems.push(Problem::new(format!("{at}.statusCode"), message));
        }
        path_modifier(&redirect.path, &format!("{at}.path"), prefixes, problems);
    }
    if let Some(rewrite) = &f.url_rewrite {
        let at = format!("{at}.urlRewrite");
        if rewrite.hostname.is_none() && rewrite.path.is_none() {
            problems.push(Problem::new(&at, "neither hostname nor path is given"));
        }
        path_modifier(&rewrite.path, &format!("{at}.path"), prefixes, problems);
    }
    if let Some(mirror) = &f.request_mirror {
        let at = format!("{at}.requestMirror");
        let backend = &mirror.backend_ref;
        reference(&backend.group, &backend.kind, &backend.namespace, &format!("{at}.backendRef"), problems);
        if mirror.percent.is_some() && mirror.fraction.is_some() {
            problems
                .push(Problem::new(format!("{at}.fraction"), "given beside percent; allowed is one of them"));
        }
        if let Some(FractionSpec { numerator, denominator }) = &mirror.fraction
            && *numerator > denominator.unwrap_or(100)
        {
            let message = format!("{numerator} of {}; allowed is at most all", denominator.unwrap_or(100));
            problems.push(Problem::new(format!("{at}.fraction.numerator"), message));
        }
    }
    if let Some(cors) = &f.cors
        && cors.allow_credentials
    {
        let lists = [
            ("allowOrigins", &cors.allow_origins),
            ("allowMethods", &cors.allow_methods),
            ("allowHeaders", &cors.allow_headers),
        ];
        for (key, list) in lists {
            for (at, _) in each(&format!("{at}.cors.{key}"), list).filter(|(_, text)| *text == "*") {
                let message = "\"*\" with allowCredentials; browsers take it for a plain name, so list them";
                problems.push(Problem::new(at, message));
            }
        }
    }
}

fn path_modifier(path: &Option<PathModifier>, at: &str, prefixes: bool, problems: &mut Problems) {
    let Some(path) = path else { return };
    let (full, prefix) = (path.replace_full_path.is_some(), path.replace_prefix_match.is_some());
    match path.r#type.as_str() {
        "ReplaceFullPath" if !full || prefix => {
            problems.push(Problem::new(at, "type ReplaceFullPath needs replaceFullPath, and no other"));
        }
        "ReplacePrefixMatch" if !prefix || full => {
            problems.push(Problem::new(at, "type ReplacePrefixMatch needs replacePrefixMatch, and no other"));
        }
        "ReplacePrefixMatch" if !prefixes => {
            let message = "ReplacePrefixMatch; all matches of the rule must be of type PathPrefix";
            problems.push(Problem::new(format!("{at}.type"), message));
        }
        _ => {}
    }
}

fn timeouts(rule: &HttpRule, at: &str, problems: &mut Problems) {
    let Some(timeouts) = &rule.timeouts else { return };
    let time = |text: &Option<String>| text.as_deref().and_then(crate::document::duration);
    if let (Some(request), Some(backend)) = (time(&timeouts.request), time(&timeouts.backend_request))
        && !request.is_zero()
        && (backend > request || backend.is_zero())
    {
        let message = "longer than timeouts.request, which ends all tries together";
        problems.push(Problem::new(format!("{at}.timeouts.backendRequest"), message));
    }
}

fn filter_document(s: &RouteFilterSpec, problems: &mut Problems) {
    if *s == RouteFilterSpec::default() {
        let message = "it does nothing; give fault, directResponse, compression, cache, rateLimit or hedge";
        problems.push(Problem::new("spec", message));
    }
    let Some(fault) = &s.fault else { return };
    if fault.delay.is_none() && fault.abort.is_none() {
        problems.push(Problem::new("spec.fault", "neither delay nor abort is given"));
    }
    if let Some(abort) = &fault.abort
        && abort.http_status.is_some() == abort.grpc_status.is_some()
    {
        problems.push(Problem::new("spec.fault.abort", "allowed is one of httpStatus and grpcStatus"));
    }
}
