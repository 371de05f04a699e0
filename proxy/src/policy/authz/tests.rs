use super::*;

const WEB: &str = "spiffe://m/ns/shop/sa/web";

/// `METHOD PATH` by a caller, with fields of the head.
fn ask<'a>(
    policies: &'a Policies,
    id: Option<&SpiffeId>,
    what: &str,
    fields: &[(&str, &str)],
) -> Decision<'a> {
    let (method, path) = what.split_once(' ').unwrap();
    let headers: HeaderMap =
        fields.iter().map(|(n, v)| (n.parse::<http::HeaderName>().unwrap(), v.parse().unwrap())).collect();
    let http = Http { method, path, host: "orders", headers: &headers };
    let client = "10.0.0.1".parse().unwrap();
    policies.decide(&Call { principal: id, request_principal: None, client, http: Some(http) })
}

/// From the form that is sent, as JSON.
fn policies(json: serde_json::Value) -> Policies {
    let policies: Vec<AuthzPolicy> = serde_json::from_value(json).unwrap();
    Policies::new(&policies).unwrap()
}

fn policy(name: &str, action: &str, audit: bool, rules: serde_json::Value) -> serde_json::Value {
    serde_json::json!({"name": name, "action": action, "audit": audit, "rules": rules})
}

fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

#[test]
fn without_policies_all_are_let_in_and_with_one_that_allows_only_those() {
    assert_eq!(ask(&policies(serde_json::json!([])), None, "GET /", &[]), Decision::LetIn);
    let web = serde_json::json!([{"from": [{"principals": ["spiffe://m/ns/shop/sa/*"]}]}]);
    let one = policies(serde_json::json!([policy("p", "Allow", false, web)]));
    assert_eq!(ask(&one, Some(&id(WEB)), "GET /", &[]), Decision::LetIn);
    let refused = Decision::Refused(Refusal::NotAllowed);
    assert_eq!(ask(&one, None, "GET /", &[]), refused);
    assert_eq!(ask(&one, Some(&id("spiffe://m/ns/bank/sa/web")), "GET /", &[]), refused);
    assert_eq!(ask(&one, Some(&id("spiffe://other/ns/shop/sa/web")), "GET /", &[]), refused);
}

#[test]
fn a_denial_wins_over_what_others_allow() {
    let all = policy("all", "Allow", false, serde_json::json!([{}]));
    let admin = serde_json::json!([{"to": [{"paths": ["/admin*"], "methods": ["GET", "POST"]}]}]);
    let both = policies(serde_json::json!([all, policy("no-admin", "Deny", false, admin)]));
    assert_eq!(ask(&both, None, "GET /orders", &[]), Decision::LetIn);
    assert_eq!(ask(&both, None, "GET /admin/x", &[]), Decision::Refused(Refusal::Denied("no-admin")));
    assert_eq!(ask(&both, None, "PUT /admin/x", &[]), Decision::LetIn);
}

#[test]
fn a_policy_without_rules_allows_nothing_and_an_empty_rule_is_for_everything() {
    let nothing = policies(serde_json::json!([policy("p", "Allow", false, serde_json::json!([]))]));
    assert_eq!(ask(&nothing, Some(&id(WEB)), "GET /", &[]), Decision::Refused(Refusal::NotAllowed));
    let everything = policies(serde_json::json!([policy("p", "Deny", false, serde_json::json!([{}]))]));
    assert_eq!(ask(&everything, None, "GET /", &[]), Decision::Refused(Refusal::Denied("p")));
    assert_eq!(ask(&Policies::closed(), None, "GET /", &[]), Decision::Refused(Refusal::NotAllowed));
}

#[test]
fn an_audit_decides_nothing_and_notes_what_it_would() {
    let deny = policy("later", "Deny", true, serde_json::json!([{"from": [{"not_namespaces": ["shop"]}]}]));
    let audited = policies(serde_json::json!([deny]));
    assert_eq!(ask(&audited, Some(&id(WEB)), "GET /", &[]), Decision::LetIn);
    let would = Decision::LetInWouldRefuse(Refusal::Denied("later"));
    assert_eq!(ask(&audited, None, "GET /", &[]), would);
    let allow = policy("later", "Allow", true, serde_json::json!([{"from": [{"namespaces": ["shop"]}]}]));
    let audited = policies(serde_json::json!([allow]));
    assert_eq!(ask(&audited, Some(&id(WEB)), "GET /", &[]), Decision::LetIn);
    assert_eq!(ask(&audited, None, "GET /", &[]), Decision::LetInWouldRefuse(Refusal::NotAllowed));
}

/// Each list is alternatives; what stands beside each other has to hold together.
#[test]
fn conditions_of_a_rule_hold_together() {
    let rule = serde_json::json!([{
        "from": [{"principals": [WEB], "ip_blocks": ["10.0.0.0/8"]}, {"ip_blocks": ["192.0.2.7"]}],
        "to": [{"methods": ["GET"], "not_paths": ["*/secret"]}],
        "when": [{"header": "x-tenant", "values": ["a", "b*"]}, {"header": "x-debug", "not_values": ["*"]}],
    }]);
    let one = policies(serde_json::json!([policy("p", "Allow", false, rule)]));
    let (web, tenant) = (id(WEB), ("x-tenant", "bank"));
    assert_eq!(ask(&one, Some(&web), "GET /a", &[tenant]), Decision::LetIn);
    for (who, what, fields) in [
        (None, "GET /a", vec![tenant]),
        (Some(&web), "POST /a", vec![tenant]),
        (Some(&web), "GET /a/secret", vec![tenant]),
        (Some(&web), "GET /a", vec![]),
        (Some(&web), "GET /a", vec![("x-tenant", "c")]),
        (Some(&web), "GET /a", vec![tenant, ("x-debug", "")]),
    ] {
        assert_eq!(
            ask(&one, who, what, &fields),
            Decision::Refused(Refusal::NotAllowed),
            "{what} {fields:?}"
        );
    }
}

/// A field given twice must not hide a value from a denial.
#[test]
fn a_field_that_stands_twice_has_both_values() {
    let rule = serde_json::json!([{"when": [{"header": "x-role", "values": ["admin"]}]}]);
    let one = policies(serde_json::json!([policy("p", "Deny", false, rule)]));
    let refused = Decision::Refused(Refusal::Denied("p"));
    assert_eq!(ask(&one, None, "GET /", &[("x-role", "user"), ("x-role", "admin")]), refused);
    assert_eq!(ask(&one, None, "GET /", &[("x-role", "user")]), Decision::LetIn);
}

#[test]
fn bytes_that_are_no_http_are_allowed_by_no_path_and_denied_by_any() {
    let to = serde_json::json!([{"to": [{"paths": ["/a"]}]}]);
    let call = Call { principal: None, request_principal: None, client: "::1".parse().unwrap(), http: None };
    let allow = policies(serde_json::json!([policy("p", "Allow", false, to.clone())]));
    assert_eq!(allow.decide(&call), Decision::Refused(Refusal::NotAllowed));
    let deny = policies(serde_json::json!([policy("p", "Deny", false, to)]));
    assert_eq!(deny.decide(&call), Decision::Refused(Refusal::Denied("p")));
}

#[test]
fn a_star_stands_for_any_text() {
    for (pattern, text, expected) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("*", "", true),
        ("a*", "a", true),
        ("a*", "ba", false),
        ("*a", "ba", true),
        ("a*a", "a", false),
        ("a*a", "aa", true),
        ("a*b*c", "a-b-b-c", true),
        ("a*b*c", "a-c", false),
        ("a*b*b", "ab", false),
        ("spiffe://m/ns/*/sa/web", "spiffe://m/ns/shop/sa/web", true),
        ("spiffe://m/ns/*/sa/web", "spiffe://m/ns/shop/sa/web2", false),
    ] {
        let patterns = Patterns::new(&[pattern.to_owned()]);
        assert_eq!(patterns.has(Some(text)), expected, "{pattern} {text}");
    }
}

proptest::proptest! {
    /// Against a matcher that tries everything.
    #[test]
    fn a_pattern_takes_what_the_obvious_matcher_takes(pattern in "[ab*]{0,6}", text in "[ab]{0,8}") {
        fn obvious(pattern: &[u8], text: &[u8]) -> bool {
            match pattern {
                [] => text.is_empty(),
                [b'*', rest @ ..] => (0..=text.len()).any(|i| obvious(rest, &text[i..])),
                [c, rest @ ..] => text.first() == Some(c) && obvious(rest, &text[1..]),
            }
        }
        let patterns = Patterns::new(std::slice::from_ref(&pattern));
        proptest::prop_assert_eq!(patterns.has(Some(&text)), obvious(pattern.as_bytes(), text.as_bytes()));
    }
}
