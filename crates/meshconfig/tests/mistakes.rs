//! What people get wrong: all of it is found at once, each with its place.

use weft_meshconfig::document::{Document, File};

fn problems(yaml: &str) -> Vec<String> {
    File::read(yaml, |_| false).problems.iter().map(ToString::to_string).collect()
}

const BAD: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: orders
  namespace: prod
spec:
  parentRefs:
    - name: orders
  rules:
    - matches:
        - path:
            type: Prefix
            value: /a//b
        - path: {type: RegularExpression, value: '('}
          method: get
          headrs: []
      backendRefs:
        - name: Orders
          weight: -1
        - {name: v2, port: '80'}
      timeouts: {request: 10}
---
kind: HttpRoute
---
apiVersion: weft.dev/v1
kind: HTTPRouteFilter
metadata: {name: f}
spec: {}
";

#[test]
fn every_mistake_is_found_at_once_with_its_place() {
    let found = problems(BAD);
    let expected = [
        "5:14: HTTPRoute orders: metadata.namespace: \"prod\"; allowed is \"default\"",
        "8:7: HTTPRoute orders: spec.parentRefs[0].kind: Gateway; allowed is Service",
        "12:19: HTTPRoute orders: spec.rules[0].matches[0].path.type: \"Prefix\"; allowed are Exact, PathPrefix",
        "13:20: HTTPRoute orders: spec.rules[0].matches[0].path.value: \"/a//b\" has \"//\"",
        "14:50: HTTPRoute orders: spec.rules[0].matches[1].path.value: \"(\" is no regular expression: unclosed group",
        "15:19: HTTPRoute orders: spec.rules[0].matches[1].method: \"get\"; allowed are GET",
        "16:11: HTTPRoute orders: spec.rules[0].matches[1].headrs: unknown key; allowed are path, headers, queryParams, method; did you mean headers?",
        "18:17: HTTPRoute orders: spec.rules[0].backendRefs[0].name: \"Orders\"; allowed is a service name",
        "19:19: HTTPRoute orders: spec.rules[0].backendRefs[0].weight: -1; allowed is a whole number from 0 to 1000000",
        "20:28: HTTPRoute orders: spec.rules[0].backendRefs[1].port: \"80\"; allowed is a whole number",
        "21:27: HTTPRoute orders: spec.rules[0].timeouts.request: the number 10; allowed is a time such as 500ms",
        "23:7: kind: \"HttpRoute\"; allowed are HTTPRoute, GRPCRoute, HTTPRouteFilter, TrafficPolicy, AuthorizationPolicy, RequestAuthentication; did you mean HTTPRoute?",
        "28:1: HTTPRouteFilter f: spec: it does nothing",
    ];
    for (i, expected) in expected.iter().enumerate() {
        assert!(found[i].starts_with(expected), "{:?}\ninstead of\n{expected:?}", found[i]);
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn parts_that_do_not_go_together_are_refused() {
    let rule = |rule: &str| {
        problems(&format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec:\n  hostnames: [a.test]\n  rules:\n  - {rule}\n"
        ))
        .join("\n")
    };
    for (text, part) in [
        ("{filters: [{type: URLRewrite}]}", "urlRewrite is missing, which type URLRewrite needs"),
        (
            "{filters: [{type: URLRewrite, urlRewrite: {hostname: b}}, {type: RequestRedirect, requestRedirect: {hostname: c}}]}",
            "one of the two",
        ),
        (
            "{matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]}",
            "must be of type PathPrefix",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 304}}], backendRefs: [{name: x}]}",
            "given beside a RequestRedirect",
        ),
        ("{filters: [{type: RequestRedirect, requestRedirect: {statusCode: 304}}]}", "304; allowed are 301"),
        (
            "{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: Host, value: x}]}}]}",
            "other than Host",
        ),
        (
            "{filters: [{type: CORS, cors: {allowOrigins: ['*'], allowCredentials: true}}]}",
            "browsers take it for a plain name",
        ),
        ("{timeouts: {request: 1s, backendRequest: 2s}}", "longer than timeouts.request"),
        ("{sessionPersistence: {}}", "unknown key"),
        ("{matches: [{method: CONNECT}]}", "tunnels are not routed"),
    ] {
        let found = rule(text);
        assert!(found.contains(part), "{part:?} not in {found:?} for {text}");
    }
}

#[test]
fn a_code_of_grpc_after_which_no_call_is_repeated_is_refused_with_those_that_are() {
    let found = problems(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g}\nspec:\n  hostnames: [a.test]\n  rules:\n  - retry: {codes: [UNAVAILABLE, NOT_FOUND, 14]}\n",
    );
    let allowed = "CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE";
    assert_eq!(found.len(), 2, "{found:#?}");
    for (found, seen) in found.iter().zip(["codes[1]: \"NOT_FOUND\"", "codes[2]: the number 14"]) {
        assert!(found.contains(seen) && found.contains(allowed), "{found}");
    }
}

#[test]
fn a_valid_document_survives_its_stored_form() {
    let yaml = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, labels: {a: b}}\nspec: {hostnames: ['*.a.test'], rules: [{backendRefs: [{name: x, weight: 3}]}]}\n";
    let file = File::read(yaml, |_| false);
    assert_eq!(file.problems, []);
    let document = &file.documents[0].0;
    assert_eq!(Document::from_bytes(&document.to_bytes()).unwrap(), *document);
    assert!(Document::from_bytes(b"{\"kind\":\"HTTPRoute\"}").is_err());
    assert!(Document::from_bytes(b"nonsense").is_err());
}

proptest::proptest! {
    /// Whatever stands in a file, a check ends with answers, and what it accepts can be made into routes.
    #[test]
    fn no_text_stops_a_check(text in "(kind: (HTTPRoute|GRPCRoute|HTTPRouteFilter|TrafficPolicy)\n)?([a-zA-Z]{1,8}: ?[\\[\\]{}&*!|>'\"%@`#,?:/a-z0-9 -]{0,20}\n){0,8}") {
        let file = File::read(&text, |_| false);
        for (document, _) in file.documents {
            let mut config = weft_meshconfig::MeshConfig::default();
            config.insert(document, 1);
            let _ = (config.problems(), config.lowered());
        }
    }

    #[test]
    fn documents_with_random_parts_are_lowered_if_they_are_accepted(
        path in "/[a-z./%]{0,10}", kind in "(Exact|PathPrefix|RegularExpression)", host in "[a-z.*]{1,10}",
    ) {
        let json = serde_json::json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "r"},
            "spec": {"hostnames": [host], "rules": [
                {"matches": [{"path": {"type": kind, "value": path}}], "backendRefs": [{"name": "x"}]}
            ]},
        });
        if let Ok(document) = Document::new(json) {
            use weft_xds_proto::envoy_types::pb::envoy::config::route::v3 as pb;
            use weft_xds_proto::resource::route::RouteConfiguration;
            let mut config = weft_meshconfig::MeshConfig::default();
            config.insert(document, 1);
            let hosts = config.lowered().hosts.unwrap();
            // What is accepted here is accepted by every proxy.
            proptest::prop_assert_eq!(RouteConfiguration::try_from(pb::RouteConfiguration::from(&hosts)), Ok(hosts));
        }
    }
}

/// Networks are those that sidecars take: what one could not read there would be a policy that nobody obeys.
#[test]
fn a_network_that_no_sidecar_reads_is_a_mistake() {
    let policy = |network: &str| {
        format!(
            "apiVersion: weft.dev/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec:\n  \
             targetRef: {{kind: Service, name: orders}}\n  action: DENY\n  rules: [{{from: [{{ipBlocks: ['{network}']}}]}}]\n"
        )
    };
    for good in ["10.0.0.7", "10.0.0.0/8", "0.0.0.0/0", "fd00::/8", "::ffff:10.0.0.0/104"] {
        assert_eq!(problems(&policy(good)), [""; 0], "{good}");
    }
    for bad in ["10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/", "localnet", "::/129", "::ffff:10.0.0.0/95"] {
        let found = problems(&policy(bad));
        assert!(found.len() == 1 && found[0].contains("an address or a network"), "{bad}: {found:?}");
    }
}
