use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::google::protobuf;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::resource::InvalidResource;

mod envoy;

fn value_match(name: &'static str) -> impl Strategy<Value = ValueMatch> {
    let text = "[a-z]{1,8}";
    let value = prop_oneof![
        text.prop_map(StringMatch::Exact),
        text.prop_map(StringMatch::Prefix),
        text.prop_map(StringMatch::Suffix),
        text.prop_map(StringMatch::Contains),
        "[a-z]{1,4}(\\.\\*)?".prop_map(StringMatch::Regex),
        Just(StringMatch::Present),
    ];
    (name, value).prop_map(|(name, value)| ValueMatch { name, value, invert: false })
}

fn edits() -> impl Strategy<Value = HeaderEdits> {
    let field = || ("x-[a-z]{1,8}", "[ -~]{0,20}");
    (
        prop::collection::vec(field(), 0..3),
        prop::collection::vec(field(), 0..3),
        prop::collection::vec("x-[a-z]{1,8}", 0..3),
    )
        .prop_map(|(set, add, remove)| HeaderEdits { set, add, remove })
}

fn time() -> impl Strategy<Value = Duration> {
    (1u64..86_400_000).prop_map(Duration::from_millis)
}

fn fraction() -> impl Strategy<Value = Fraction> {
    (0u32..=1_000_000).prop_map(|n| Fraction::new(n, 1_000_000).unwrap())
}

fn forward() -> impl Strategy<Value = Forward> {
    let subset = prop::collection::btree_map(
        "[a-z]{1,8}",
        prop_oneof!["[a-z0-9]{1,4}", Just("^1.2".to_owned())],
        0..3,
    )
    .prop_map(|labels| Subset::new(labels.iter().map(|(k, v)| (k.as_str(), v.as_str()))).unwrap());
    let on = prop_oneof![
        Just(HashOn::Source),
        "[a-z]{1,8}".prop_map(HashOn::Header),
        "[A-Z]{1,8}".prop_map(HashOn::Cookie)
    ];
    let hash = (on, any::<bool>()).prop_map(|(on, terminal)| RouteHash { on, terminal });
    let backend = ("[a-z]{1,8}", 1u32..=WEIGHT_MAX, subset, edits(), edits()).prop_map(
        |(cluster, weight, subset, request_headers, response_headers)| Backend {
            cluster,
            weight,
            subset,
            request_headers,
            response_headers,
        },
    );
    let rewrite = prop_oneof![
        "/[a-z/]{0,8}".prop_map(PathRewrite::Prefix),
        "/[a-z/]{0,8}".prop_map(|path| PathRewrite::whole(&path)),
    ];
    let mirror = ("[a-z]{1,8}", fraction()).prop_map(|(cluster, fraction)| Mirror { cluster, fraction });
    let retry = (
        1u32..=ATTEMPTS_MAX,
        prop::collection::btree_set(400u16..600, 0..4),
        prop::sample::subsequence(GRPC_RETRIABLE.map(|c| c.0).to_vec(), 0..=GRPC_RETRIABLE.len()),
        prop::option::of(time()),
    )
        .prop_map(|(attempts, codes, grpc_codes, backoff)| Retry {
            attempts,
            codes: codes.into_iter().collect(),
            grpc_codes,
            backoff,
        });
    (
        prop::collection::vec(backend, 1..4),
        prop::option::of(rewrite),
        prop::option::of("[a-z]{1,8}\\.[a-z]{1,4}"),
        prop::option::of(time()),
        prop::option::of(time()),
        prop::option::of(retry),
        prop::collection::vec(mirror, 0..3),
        prop::collection::vec(hash, 0..3),
    )
        .prop_map(|(mut backends, path, host, timeout, try_timeout, retry, mirrors, hash)| {
            if let [alone] = backends.as_mut_slice()
                && alone.request_headers.is_empty()
                && alone.response_headers.is_empty()
            {
                // Its share is all whatever its weight, so the weight is not sent.
                alone.weight = 1;
            }
            Forward { backends, path, host, timeout, try_timeout, retry, mirrors, hash }
        })
}

fn redirect() -> impl Strategy<Value = Redirect> {
    let path =
        prop_oneof!["/[a-z/]{0,8}".prop_map(PathRewrite::Full), "/[a-z/]{0,8}".prop_map(PathRewrite::Prefix)];
    (
        prop::option::of(prop::sample::select(vec!["http".to_owned(), "https".to_owned()])),
        prop::option::of("[a-z]{1,8}"),
        prop::option::of(1u16..),
        prop::option::of(path),
        prop::sample::select(vec![301u16, 302, 303, 307, 308]),
        any::<bool>(),
    )
        .prop_map(|(scheme, host, port, path, status, strip_query)| Redirect {
            scheme,
            host,
            port,
            path,
            status,
            strip_query,
        })
}

fn policy() -> impl Strategy<Value = RoutePolicy> {
    let abort = prop_oneof![(200u16..600).prop_map(Abort::Http), (1u32..=16).prop_map(Abort::Grpc)];
    let fault = (prop::option::of((time(), fraction())), prop::option::of((abort, fraction())))
        .prop_map(|(delay, abort)| Fault { delay, abort });
    let cors = (
        prop::collection::vec("https://[a-z]{1,8}".prop_map(StringMatch::Exact), 0..3),
        prop::collection::vec("[A-Z]{3,6}", 0..3),
        any::<bool>(),
        prop::option::of((1u64..1_000_000).prop_map(Duration::from_secs)),
    )
        .prop_map(|(origins, methods, credentials, max_age)| Cors {
            origins,
            methods,
            credentials,
            max_age,
            ..Cors::default()
        });
    let cache = (1u32..10_000_000, prop::option::of((1u64..86_400).prop_map(Duration::from_secs)))
        .prop_map(|(body_bytes_max, ttl_default)| CachePolicy { body_bytes_max, ttl_default });
    (
        edits(),
        edits(),
        prop::option::of(fault),
        prop::option::of(cors),
        prop::option::of((0u32..1_000_000).prop_map(|bytes_min| Compression { bytes_min })),
        prop::option::of(cache),
        prop::option::of((1u32.., 1u64..1000, 1u32..).prop_map(|(requests, per, burst)| RateLimit {
            requests,
            per: Duration::from_secs(per),
            burst,
        })),
        prop::option::of((1u64..1000).prop_map(|secs| Hedge { after: Duration::from_secs(secs) })),
    )
        .prop_map(
            |(request_headers, response_headers, fault, cors, compression, cache, rate_limit, hedge)| {
                RoutePolicy {
                    rate_limit,
                    hedge,
                    request_headers,
                    response_headers,
                    fault,
                    cors,
                    compression,
                    cache,
                }
            },
        )
}

prop_compose! {
    fn route()(
        name in "[a-z]{0,8}",
        path in prop_oneof![
            "/[a-z/]{0,12}".prop_map(PathMatch::Exact),
            "/[a-z/]{0,12}".prop_map(PathMatch::Prefix),
            "(/[a-z]{1,4}){1,3}".prop_map(PathMatch::Segments),
            "/[a-z]{0,6}(\\.\\*)?".prop_map(PathMatch::Regex),
        ],
        method in prop::option::of("[A-Z]{3,6}"),
        headers in prop::collection::vec((value_match("x-[a-z]{1,8}"), any::<bool>()), 0..3),
        query in prop::collection::vec(value_match("[a-z]{1,8}"), 0..3),
        grpc in any::<bool>(),
        action in prop_oneof![
            forward().prop_map(|f| Action::Forward(Box::new(f))),
            redirect().prop_map(Action::Redirect),
            (200u16..600, "[ -~]{0,20}").prop_map(|(status, body)| {
                Action::Respond(DirectResponse { status, body })
            }),
        ],
        policy in policy(),
    ) -> Route {
        let headers = headers.into_iter().map(|(h, invert)| ValueMatch { invert, ..h }).collect();
        Route { name, matches: RouteMatch { path, method, headers, query, grpc }, action, policy }
    }
}

prop_compose! {
    fn configuration()(
        name in "[a-z][a-z0-9-]{0,20}",
        hosts in prop::collection::btree_map(
            prop_oneof!["[a-z]{1,8}\\.test", "\\*\\.[a-z]{1,8}", "[a-z]{1,8}\\.\\*"],
            prop::collection::vec(route(), 0..4),
            0..4,
        ),
    ) -> RouteConfiguration {
        let virtual_hosts = hosts
            .into_iter()
            .map(|(domain, routes)| VirtualHost { name: domain.clone(), domains: vec![domain], routes })
            .collect();
        RouteConfiguration { name, virtual_hosts }
    }
}

proptest! {
    #[test]
    fn what_is_sent_is_what_is_received(config in configuration()) {
        let bytes = pb::RouteConfiguration::from(&config).encode_to_vec();
        let back = pb::RouteConfiguration::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(RouteConfiguration::try_from(back).unwrap(), config);
    }
}

#[test]
fn the_plain_configuration_of_a_service_is_known_again() {
    let plain = RouteConfiguration::plain("orders");
    assert!(plain.is_plain());
    assert_eq!(RouteConfiguration::try_from(pb::RouteConfiguration::from(&plain)).unwrap(), plain);
    assert!(!RouteConfiguration { name: "other".to_owned(), ..plain.clone() }.is_plain());
    let mut slow = plain.clone();
    slow.virtual_hosts[0].routes[0].policy.fault = Some(Fault::default());
    assert!(!slow.is_plain());
    assert_eq!(plain.clusters(), ["orders"]);
}

fn refused(change: impl FnOnce(&mut pb::RouteConfiguration)) -> InvalidResource {
    let mut p = pb::RouteConfiguration::from(&RouteConfiguration::plain("orders"));
    change(&mut p);
    RouteConfiguration::try_from(p).unwrap_err()
}

fn refused_route(change: impl FnOnce(&mut pb::Route)) -> InvalidResource {
    refused(|p| change(&mut p.virtual_hosts[0].routes[0]))
}

fn action(route: &mut pb::Route) -> &mut pb::RouteAction {
    match route.action.as_mut().unwrap() {
        pb::route::Action::Route(action) => action,
        _ => panic!("it forwards"),
    }
}

#[test]
fn what_cannot_be_honoured_is_refused_by_field() {
    use envoy_types::pb::envoy::config::core::v3 as core;
    use envoy_types::pb::google::protobuf::Any;
    let cases = [
        (refused(|p| p.name.clear()), "name"),
        (refused(|p| p.virtual_hosts.push(p.virtual_hosts[0].clone())), "virtual_hosts[1].domains"),
        (refused(|p| p.virtual_hosts[0].domains.clear()), "virtual_hosts[0].domains"),
        (refused(|p| p.virtual_hosts[0].domains = vec!["a/b".to_owned()]), "virtual_hosts[0].domains"),
        (refused(|p| p.virtual_hosts[0].require_tls = 2), "virtual_hosts[0].require_tls"),
        (refused_route(|r| r.r#match = None), "virtual_hosts[0].routes[0].match"),
        (refused_route(|r| r.action = None), "virtual_hosts[0].routes[0].action"),
        (
            refused_route(|r| r.r#match.as_mut().unwrap().path_specifier = None),
            "virtual_hosts[0].routes[0].match.path_specifier",
        ),
        (
            refused_route(|r| {
                let value =
                    protobuf::Value { kind: Some(protobuf::value::Kind::StringValue(">=x".to_owned())) };
                let fields = protobuf::Struct { fields: [("version".to_owned(), value)].into() };
                let filter_metadata = [("envoy.lb".to_owned(), fields)].into();
                action(r).metadata_match = Some(core::Metadata { filter_metadata, ..Default::default() });
            }),
            "virtual_hosts[0].routes[0].route.metadata_match.version",
        ),
        (
            refused_route(|r| {
                r.typed_per_filter_config.insert("x".to_owned(), Any::default());
            }),
            "virtual_hosts[0].routes[0].typed_per_filter_config[x]",
        ),
        (
            refused_route(|r| r.request_headers_to_remove.push("Host".to_owned())),
            "virtual_hosts[0].routes[0].request_headers.to_remove[0].key",
        ),
    ];
    for (error, field) in cases {
        assert_eq!(error.field, field, "{error}");
    }
}

#[test]
fn a_header_value_with_a_format_command_is_refused() {
    let error = refused_route(|r| {
        use envoy_types::pb::envoy::config::core::v3 as core;
        r.response_headers_to_add.push(core::HeaderValueOption {
            header: Some(core::HeaderValue {
                key: "x-a".to_owned(),
                value: "%REQ(secret)%".to_owned(),
                ..core::HeaderValue::default()
            }),
            ..core::HeaderValueOption::default()
        });
    });
    assert!(error.to_string().contains("%% for a percent sign"), "{error}");
}

#[test]
fn an_optional_filter_that_is_not_known_is_passed_over() {
    use envoy_types::util::pack_any;
    let mut p = pb::RouteConfiguration::from(&RouteConfiguration::plain("orders"));
    let filter = pb::FilterConfig { is_optional: true, ..pb::FilterConfig::default() };
    p.virtual_hosts[0].routes[0].typed_per_filter_config.insert("x".to_owned(), pack_any(filter));
    RouteConfiguration::try_from(p).unwrap();
}
