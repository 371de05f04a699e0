use http::{HeaderMap, HeaderName, HeaderValue, Method};
use proptest::prelude::*;

use super::*;

fn forward_to(name: &str) -> ir::Action {
    let backends = vec![ir::Backend::new(name, 1)];
    ir::Action::Forward(Box::new(ir::Forward { backends, ..ir::Forward::default() }))
}

fn route(name: &str, matches: ir::RouteMatch) -> ir::Route {
    ir::Route { name: name.to_owned(), matches, action: forward_to(name), policy: ir::RoutePolicy::default() }
}

fn host(domain: &str, routes: Vec<ir::Route>) -> ir::VirtualHost {
    ir::VirtualHost { name: domain.to_owned(), domains: vec![domain.to_owned()], routes }
}

fn table(virtual_hosts: Vec<ir::VirtualHost>) -> RouteTable {
    RouteTable::new(&ir::RouteConfiguration { name: "t".to_owned(), virtual_hosts }).unwrap()
}

#[test]
fn a_host_finds_the_narrowest_domain() {
    let domains = ["a.b.test", "*.b.test", "*.test", "*-x.test", "a.*", "*"];
    let table = table(domains.map(|d| host(d, Vec::new())).into());
    for (seen, found) in [
        ("a.b.test", "a.b.test"),
        ("c.b.test", "*.b.test"),
        ("d.c.b.test", "*.b.test"),
        ("b.test", "*.test"),
        ("c-x.test", "*-x.test"),
        ("a.example", "a.*"),
        ("test", "*"),
        ("x", "*"),
    ] {
        assert_eq!(table.host(seen).unwrap().name, found, "{seen}");
    }
    assert!(RouteTable::default().is_empty() && RouteTable::default().host("a").is_none());
}

#[test]
fn an_exact_path_does_not_overtake_what_stands_before_it() {
    let post = ir::RouteMatch { method: Some("POST".to_owned()), ..ir::RouteMatch::any() };
    let exact = ir::RouteMatch { path: ir::PathMatch::Exact("/a".to_owned()), ..ir::RouteMatch::any() };
    let table = table(vec![host(
        "*",
        vec![route("post", post), route("exact", exact), route("rest", ir::RouteMatch::any())],
    )]);
    let select = |method: Method, path| {
        let headers = HeaderMap::new();
        let seen = Seen { method: &method, path, query: "", headers: &headers };
        table.host("x").unwrap().select(&seen).unwrap().name.clone()
    };
    assert_eq!(select(Method::POST, "/a"), "post");
    assert_eq!(select(Method::GET, "/a"), "exact");
    assert_eq!(select(Method::GET, "/b"), "rest");
}

/// A request of few letters, so that conditions often hold.
#[derive(Debug, Clone)]
struct Request {
    method: &'static str,
    path: String,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
}

fn pairs() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec(("x-[ab]", "[ab]{0,2}"), 0..3)
}

prop_compose! {
    fn request()(
        method in prop::sample::select(vec!["GET", "POST"]),
        path in "(/[ab]{0,2}){1,3}",
        query in pairs(),
        headers in pairs(),
    ) -> Request {
        Request { method, path, query, headers }
    }
}

fn value_match() -> impl Strategy<Value = ir::ValueMatch> {
    let text = || "[ab]{0,2}";
    let value = prop_oneof![
        text().prop_map(ir::StringMatch::Exact),
        text().prop_map(ir::StringMatch::Prefix),
        text().prop_map(ir::StringMatch::Suffix),
        text().prop_map(ir::StringMatch::Contains),
        Just(ir::StringMatch::Regex("a.?".to_owned())),
        Just(ir::StringMatch::Present),
    ];
    ("x-[ab]", value, any::<bool>()).prop_map(|(name, value, invert)| ir::ValueMatch { name, value, invert })
}

prop_compose! {
    fn conditions()(
        path in prop_oneof![
            "(/[ab]{0,2}){1,2}".prop_map(ir::PathMatch::Exact),
            "(/[ab]{0,2}){1,2}".prop_map(ir::PathMatch::Prefix),
            "(/[ab]{1,2}){1,2}".prop_map(ir::PathMatch::Segments),
            Just(ir::PathMatch::Regex("/a.*".to_owned())),
        ],
        method in prop::option::of(prop::sample::select(vec!["GET".to_owned(), "POST".to_owned()])),
        headers in prop::collection::vec(value_match(), 0..2),
        query in prop::collection::vec(value_match(), 0..2),
    ) -> ir::RouteMatch {
        ir::RouteMatch { path, method, headers, query, grpc: false }
    }
}

/// The rules as they are told, without any of the table's ways to be fast.
fn holds(m: &ir::RouteMatch, r: &Request) -> bool {
    let path = match &m.path {
        ir::PathMatch::Exact(p) => *p == r.path,
        ir::PathMatch::Prefix(p) => r.path.starts_with(p),
        ir::PathMatch::Segments(p) => r.path == *p || r.path.starts_with(&format!("{p}/")),
        ir::PathMatch::Regex(_) => r.path.starts_with("/a"),
    };
    let text = |m: &ir::StringMatch, seen: &str| match m {
        ir::StringMatch::Exact(t) => seen == t,
        ir::StringMatch::Prefix(t) => seen.starts_with(t),
        ir::StringMatch::Suffix(t) => seen.ends_with(t),
        ir::StringMatch::Contains(t) => seen.contains(t),
        ir::StringMatch::Regex(_) => seen.starts_with('a') && seen.len() <= 2,
        ir::StringMatch::Present => true,
    };
    let header = |m: &ir::ValueMatch| {
        let all: Vec<_> = r.headers.iter().filter(|(n, _)| *n == m.name).map(|(_, v)| v.as_str()).collect();
        if all.is_empty() { m.invert } else { text(&m.value, &all.join(",")) != m.invert }
    };
    let query = |m: &ir::ValueMatch| match r.query.iter().find(|(n, _)| *n == m.name) {
        None => m.invert,
        Some((_, value)) => text(&m.value, value) != m.invert,
    };
    path && m.method.as_ref().is_none_or(|method| method == r.method)
        && m.headers.iter().all(header)
        && m.query.iter().all(query)
}

proptest! {
    #[test]
    fn the_table_finds_what_the_rules_say(
        all in prop::collection::vec(conditions(), 0..8),
        requests in prop::collection::vec(request(), 1..20),
    ) {
        let routes = all.iter().enumerate().map(|(i, m)| route(&i.to_string(), m.clone())).collect();
        let table = table(vec![host("*", routes)]);
        for r in requests {
            let expected = all.iter().position(|m| holds(m, &r)).map(|i| i.to_string());
            let mut headers = HeaderMap::new();
            for (name, value) in &r.headers {
                headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
            }
            let query: Vec<_> = r.query.iter().map(|(n, v)| format!("{n}={v}")).collect();
            let (query, method) = (query.join("&"), Method::from_bytes(r.method.as_bytes()).unwrap());
            let seen = Seen { method: &method, path: &r.path, query: &query, headers: &headers };
            let found = table.host("any").unwrap().select(&seen).map(|r| r.name.clone());
            prop_assert_eq!(found, expected, "{:?}", r);
        }
    }
}

#[test]
fn encoded_query_parameters_are_decoded_and_the_first_counts() {
    let query = ir::ValueMatch {
        name: "a b".to_owned(),
        value: ir::StringMatch::Exact("x&y".to_owned()),
        invert: false,
    };
    let conditions = ir::RouteMatch { query: vec![query], ..ir::RouteMatch::any() };
    let table = table(vec![host("*", vec![route("r", conditions)])]);
    let found = |query: &str| {
        let (method, headers) = (Method::GET, HeaderMap::new());
        let seen = Seen { method: &method, path: "/", query, headers: &headers };
        table.host("any").unwrap().select(&seen).is_some()
    };
    assert!(found("a%20b=x%26y") && found("z&a%20b=x%26y&a%20b=other"));
    assert!(!found("a%20b=other&a%20b=x%26y") && !found("a%20b=x") && !found("") && !found("a%20b=%ff"));
}

#[test]
fn calls_are_known_by_their_content_type() {
    let conditions = ir::RouteMatch { grpc: true, ..ir::RouteMatch::any() };
    let table = table(vec![host("*", vec![route("r", conditions)])]);
    for (content_type, expected) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc;x=y", true),
        ("application/grpc-web", false),
        ("text/plain", false),
    ] {
        let headers =
            HeaderMap::from_iter([(http::header::CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        let seen = Seen { method: &Method::POST, path: "/", query: "", headers: &headers };
        assert_eq!(table.host("any").unwrap().select(&seen).is_some(), expected, "{content_type}");
    }
}
