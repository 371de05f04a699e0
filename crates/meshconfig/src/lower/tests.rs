use super::*;
use crate::document::{File, Kind};
use crate::set::MeshConfig;

/// One service or host with the documents' rules in YAML; ages in the order given.
fn config(yaml: &str) -> MeshConfig {
    let file = File::read(yaml, |_| false);
    assert_eq!(file.problems, [], "{yaml}");
    let mut config = MeshConfig::default();
    for (age, (document, _)) in file.documents.into_iter().enumerate() {
        config.insert(document, i64::try_from(age).unwrap());
    }
    assert_eq!(config.problems(), []);
    config
}

fn route(name: &str, attach: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}}}\nspec:\n  {attach}\n  rules:\n{rules}---\n"
    )
}

const ORDERS: &str = "parentRefs: [{kind: Service, group: '', name: orders}]";

fn names(routes: &[Route]) -> Vec<&str> {
    routes.iter().map(|r| r.name.as_str()).collect()
}

#[test]
fn the_most_specific_rule_comes_first_whatever_the_order_it_is_written_in() {
    let rules = "
    - {name: longer, matches: [{path: {value: /a/b/}}], backendRefs: [{name: x}]}
    - {name: regex, matches: [{path: {type: RegularExpression, value: '/a.*'}}], backendRefs: [{name: x}]}
    - {name: exact, matches: [{path: {type: Exact, value: /a}}], backendRefs: [{name: x}]}
    - {name: headers, matches: [{path: {value: /a}, headers: [{name: X-A, value: '1'}]}], backendRefs: [{name: x}]}
    - {name: query, matches: [{path: {value: /a}, queryParams: [{name: q, value: '1'}]}], backendRefs: [{name: x}]}
    - {name: method, matches: [{path: {value: /a}, method: GET}], backendRefs: [{name: x}]}
    - {name: prefix, matches: [{path: {value: /a}}], backendRefs: [{name: x}]}
    - {name: rest, backendRefs: [{name: x}]}
";
    let lowered = config(&route("r", ORDERS, rules)).lowered();
    let routes = &lowered.services["orders"].virtual_hosts[0].routes;
    let order = ["exact", "regex", "longer", "method", "headers", "query", "prefix", "rest"];
    assert_eq!(names(routes), order.map(|n| format!("r/{n}")));
    assert_eq!(routes[2].matches.path, PathMatch::Segments("/a/b".to_owned()));
}

#[test]
fn of_equal_rules_the_older_document_wins_then_the_first_by_name() {
    let rules = "    - backendRefs: [{name: x}]\n";
    let older = config(&(route("b", ORDERS, rules) + &route("a", ORDERS, rules))).lowered();
    assert_eq!(names(&older.services["orders"].virtual_hosts[0].routes), ["b/0"], "the rest is never tried");
    let rules = "    - {matches: [{method: GET}], backendRefs: [{name: x}]}\n";
    let file = File::read(&(route("b", ORDERS, rules) + &route("a", ORDERS, rules)), |_| false);
    let mut same_age = MeshConfig::default();
    file.documents.into_iter().for_each(|(d, _)| same_age.insert(d, 7));
    assert_eq!(names(&same_age.lowered().services["orders"].virtual_hosts[0].routes), ["a/0", "b/0"]);
}

#[test]
fn a_host_has_its_own_rules_first_and_then_those_of_wildcards_that_cover_it() {
    let rule = |path: &str| {
        format!("    - {{matches: [{{path: {{value: {path}}}}}], backendRefs: [{{name: x}}]}}\n")
    };
    let yaml = route("exact", "hostnames: [a.b.test]", &rule("/exact"))
        + &route("near", "hostnames: ['*.b.test']", &rule("/near"))
        + &route("far", "hostnames: ['*.test']", &rule("/far/far/far"));
    let hosts = config(&yaml).lowered().hosts.unwrap();
    let of = |host: &str| {
        let host = hosts.virtual_hosts.iter().find(|h| h.domains == [host]).unwrap();
        names(&host.routes)
    };
    assert_eq!(of("a.b.test"), ["exact/0", "near/0", "far/0"]);
    assert_eq!(of("*.b.test"), ["near/0", "far/0"]);
    assert_eq!(of("*.test"), ["far/0"]);
}

#[test]
fn prefixes_are_rewritten_by_whole_segments() {
    use weft_xds_proto::resource::route::pattern;
    for (prefix, replacement, path, expected) in [
        ("/foo", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz/", "/foo/bar", "/xyz/bar"),
        ("/foo/", "/xyz", "/foo/bar", "/xyz/bar"),
        ("/foo", "/xyz", "/foo", "/xyz"),
        ("/foo", "/xyz", "/foo/", "/xyz/"),
        ("/foo", "/", "/foo/bar", "/bar"),
        ("/foo", "/", "/foo", "/"),
        ("/foo", "/", "/foo/", "/"),
        ("/f.o", "/", "/f.o/a", "/a"),
        ("/", "/v2", "/a", "/v2/a"),
        ("/", "/", "/a", "/a"),
    ] {
        let rules = format!(
            "    - matches: [{{path: {{value: {prefix}}}}}]\n      filters: [{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: {replacement}}}}}}}]\n      backendRefs: [{{name: x}}]\n"
        );
        let lowered = config(&route("r", ORDERS, &rules)).lowered();
        let route = &lowered.services["orders"].virtual_hosts[0].routes[0];
        let Action::Forward(forward) = &route.action else { panic!("it forwards") };
        let seen = match forward.path.as_ref().unwrap() {
            PathRewrite::Prefix(new) => {
                let matched = match &route.matches.path {
                    PathMatch::Segments(p) => p.len(),
                    _ => 1,
                };
                format!("{new}{}", &path[matched..])
            }
            PathRewrite::Regex { pattern: p, substitution } => {
                let regex = pattern::part(p).unwrap();
                let new = pattern::substitution(substitution, &regex).unwrap();
                regex.replace_all(path, new.as_str()).into_owned()
            }
            PathRewrite::Full(_) => panic!("only redirects"),
        };
        assert_eq!(seen, expected, "{prefix} to {replacement} in {path}");
    }
}

#[test]
fn a_rule_without_anywhere_to_go_answers_500() {
    let rules = "    - {backendRefs: [{name: x, weight: 0}]}\n";
    let lowered = config(&route("r", ORDERS, rules)).lowered();
    let route = &lowered.services["orders"].virtual_hosts[0].routes[0];
    assert!(matches!(&route.action, Action::Respond(d) if d.status == 500), "{route:?}");
}

#[test]
fn a_filter_document_gives_its_route_what_it_says() {
    let filter = "apiVersion: weft.dev/v1\nkind: HTTPRouteFilter\nmetadata: {name: slow}\nspec:\n  fault:\n    delay: {duration: 100ms, percent: 12.5}\n    abort: {httpStatus: 503}\n  compression: {}\n  cache: {defaultTtl: 1m}\n---\n";
    let rules = "    - filters: [{type: ExtensionRef, extensionRef: {group: weft.dev, kind: HTTPRouteFilter, name: slow}}]\n      backendRefs: [{name: x}]\n";
    let config = config(&(filter.to_owned() + &route("r", ORDERS, rules)));
    let lowered = config.lowered();
    let policy = &lowered.services["orders"].virtual_hosts[0].routes[0].policy;
    let fault = policy.fault.as_ref().unwrap();
    assert_eq!(fault.delay, Some((Duration::from_millis(100), Fraction::new(125, 1000).unwrap())));
    assert_eq!(fault.abort, Some((Abort::Http(503), Fraction::ALL)));
    assert_eq!(policy.compression, Some(Compression::default()));
    assert_eq!(policy.cache.as_ref().unwrap().ttl_default, Some(Duration::from_secs(60)));

    let mut without = config.clone();
    without.remove(Kind::HttpRouteFilter, "slow").unwrap();
    let (key, problem) = without.problems().pop().unwrap();
    assert_eq!(key, Some((Kind::HttpRoute, "r".to_owned())));
    assert_eq!(
        problem.to_string(),
        "spec.rules[0].filters[0].extensionRef.name: no HTTPRouteFilter \"slow\""
    );
}

#[test]
fn calls_are_routed_by_service_and_method() {
    let yaml = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g}\nspec:\n  parentRefs: [{kind: Service, name: orders}]\n  rules:\n    - matches: [{method: {service: a.B}}, {method: {service: a.B, method: C}}, {method: {method: D}}]\n      backendRefs: [{name: x}]\n";
    let lowered = config(yaml).lowered();
    let routes = &lowered.services["orders"].virtual_hosts[0].routes;
    let paths: Vec<_> = routes.iter().map(|r| r.matches.path.clone()).collect();
    assert_eq!(
        paths,
        [
            PathMatch::Exact("/a.B/C".to_owned()),
            // A service that is named comes before a method that is.
            PathMatch::Segments("/a.B".to_owned()),
            PathMatch::Regex("/[^/]+/D".to_owned()),
        ]
    );
    assert!(routes.iter().all(|r| r.matches.grpc));
}

#[test]
fn calls_are_repeated_after_the_codes_that_a_rule_names() {
    let with = |retry: &str| {
        let yaml = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {{name: g}}\nspec:\n  parentRefs: [{{kind: Service, name: orders}}]\n  rules:\n    - {{{retry}backendRefs: [{{name: x}}]}}\n"
        );
        let lowered = config(&yaml).lowered();
        let Action::Forward(forward) = &lowered.services["orders"].virtual_hosts[0].routes[0].action else {
            panic!("it forwards")
        };
        forward.retry.clone()
    };
    let retry = |attempts, grpc_codes: &[u8]| {
        Some(Retry { attempts, codes: Vec::new(), grpc_codes: grpc_codes.to_vec(), backoff: None })
    };
    assert_eq!(with(""), None);
    assert_eq!(with("retry: {}, "), retry(1, &[14]));
    assert_eq!(with("retry: {codes: [UNAVAILABLE, CANCELLED], attempts: 3}, "), retry(3, &[1, 14]));
}
