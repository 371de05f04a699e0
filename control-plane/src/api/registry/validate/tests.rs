use super::*;

const GOOD: &str = r#"{"service":"user-service","instance_id":"user-service-abc123","host":"192.168.1.10",
    "port":8080,"metadata":{"version":"1.2.0","region":"us-east-1"}}"#;

/// The good body with one field replaced by a JSON text, or removed.
fn with(field: &str, value: Option<&str>) -> String {
    let mut body: serde_json::Map<String, Value> = serde_json::from_str(GOOD).unwrap();
    match value {
        Some(value) => body.insert(field.into(), serde_json::from_str(value).unwrap()),
        None => body.remove(field),
    };
    Value::Object(body).to_string()
}

fn problems(body: &str) -> Vec<Problem> {
    registration(body.as_bytes()).expect_err("must be refused")
}

#[test]
fn the_example_of_the_source_document_is_accepted() {
    let stored = registration(GOOD.as_bytes()).unwrap();
    assert_eq!(stored.service, "user-service");
    assert_eq!(stored.instance_id, "user-service-abc123");
    assert_eq!((stored.host.as_str(), stored.port), ("192.168.1.10", 8080));
    assert_eq!(stored.metadata["region"], "us-east-1");
    assert_eq!(stored.ttl_secs, TTL_SECS_DEFAULT);
    assert_eq!(stored.health_path, None);
}

#[test]
fn optional_fields_are_read() {
    for (ttl, secs) in [("\"30s\"", 30), ("\"5m\"", 300), ("2", 2), ("86400", 86_400), ("\"24h\"", 86_400)] {
        assert_eq!(registration(with("ttl", Some(ttl)).as_bytes()).unwrap().ttl_secs, secs);
    }
    let stored = registration(with("check", Some(r#"{"path":"/health?deep=1"}"#)).as_bytes()).unwrap();
    assert_eq!(stored.health_path.as_deref(), Some("/health?deep=1"));
}

#[test]
fn hosts_are_addresses_or_names_in_one_spelling() {
    for (given, stored) in [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("db.Prod.internal.", "db.prod.internal"),
        ("my_host", "my_host"),
    ] {
        let body = with("host", Some(&format!("\"{given}\"")));
        assert_eq!(registration(body.as_bytes()).unwrap().host, stored);
    }
}

#[test]
fn each_bad_value_names_its_field_and_what_is_allowed() {
    let long = |n: usize| format!("\"{}\"", "a".repeat(n));
    let many: String = (0..65).map(|i| format!("\"k{i}\":\"v\"")).collect::<Vec<_>>().join(",");
    let table: Vec<(&str, Option<String>, &str)> = vec![
        ("service", None, "service"),
        ("service", Some("7".into()), "service"),
        ("service", Some("\"\"".into()), "service"),
        ("service", Some("\"User\"".into()), "service"),
        ("service", Some("\"-a\"".into()), "service"),
        ("service", Some("\"a-\"".into()), "service"),
        ("service", Some("\"a.b\"".into()), "service"),
        ("service", Some("\"a/b\"".into()), "service"),
        ("service", Some(long(64)), "service"),
        ("instance_id", None, "instance_id"),
        ("instance_id", Some("null".into()), "instance_id"),
        ("instance_id", Some("\"a/b\"".into()), "instance_id"),
        ("instance_id", Some("\"a b\"".into()), "instance_id"),
        ("instance_id", Some("\"a\\nb\"".into()), "instance_id"),
        ("instance_id", Some(long(129)), "instance_id"),
        ("host", None, "host"),
        ("host", Some("\"\"".into()), "host"),
        ("host", Some("\"0.0.0.0\"".into()), "host"),
        ("host", Some("\"::\"".into()), "host"),
        ("host", Some("\"224.0.0.1\"".into()), "host"),
        ("host", Some("\"999.1.1.1\"".into()), "host"),
        ("host", Some("\"10.0.0.1:80\"".into()), "host"),
        ("host", Some("\"[::1]\"".into()), "host"),
        ("host", Some("\"a..b\"".into()), "host"),
        ("host", Some("\"http://a\"".into()), "host"),
        ("port", None, "port"),
        ("port", Some("0".into()), "port"),
        ("port", Some("65536".into()), "port"),
        ("port", Some("-1".into()), "port"),
        ("port", Some("80.5".into()), "port"),
        ("port", Some("\"80\"".into()), "port"),
        ("metadata", Some("[]".into()), "metadata"),
        ("metadata", Some(format!("{{{many}}}")), "metadata"),
        ("metadata", Some("{\"load\":7}".into()), "metadata.load"),
        ("metadata", Some("{\"\":\"x\"}".into()), "metadata."),
        ("metadata", Some("{\"protocol\":\"http3\"}".into()), "metadata.protocol"),
        ("metadata", Some("{\"weight\":\"0\"}".into()), "metadata.weight"),
        ("metadata", Some(format!("{{\"v\":{}}}", long(1_025))), "metadata.v"),
        ("ttl", Some("1".into()), "ttl"),
        ("ttl", Some("\"1s\"".into()), "ttl"),
        ("ttl", Some("\"25h\"".into()), "ttl"),
        ("ttl", Some("\"2500ms\"".into()), "ttl"),
        ("ttl", Some("\"soon\"".into()), "ttl"),
        ("ttl", Some("2.5".into()), "ttl"),
        ("ttl", Some("true".into()), "ttl"),
        ("check", Some("\"/health\"".into()), "check"),
        ("check", Some("{}".into()), "check.path"),
        ("check", Some("{\"path\":\"health\"}".into()), "check.path"),
        ("check", Some("{\"path\":\"/a b\"}".into()), "check.path"),
        ("check", Some("{\"path\":\"/a\",\"every\":\"5s\"}".into()), "check.every"),
        ("weight", Some("3".into()), "weight"),
    ];
    for (field, value, named) in table {
        let body = with(field, value.as_deref());
        let found = problems(&body);
        assert_eq!(found.len(), 1, "{body}: {found:?}");
        assert_eq!(found[0].field, named, "{body}");
        assert!(!found[0].allowed.is_empty() && !found[0].error.is_empty());
    }
}

#[test]
fn all_problems_are_told_at_once() {
    let found = problems(r#"{"service":"Bad Name","port":0,"ttl":"1s","colour":"red"}"#);
    let fields: Vec<&str> = found.iter().map(|p| p.field.as_str()).collect();
    assert_eq!(fields, ["service", "instance_id", "host", "port", "ttl", "colour"]);
    assert!(found[0].error.contains("Bad Name"));
    assert!(found[3].allowed.contains("1 to 65535"));
}

#[test]
fn bodies_that_are_no_object_are_refused() {
    for body in ["", "{", "[]", "null", "7", "{\"service\":\"a\"} trailing", "\u{feff}{}"] {
        let found = problems(body);
        assert_eq!(found.len(), 1, "{body}");
        assert_eq!(found[0].field, "body", "{body}");
    }
    assert_eq!(registration(b"\xff\xfe").unwrap_err()[0].field, "body");
}

#[test]
fn a_field_given_twice_is_refused() {
    let body = GOOD.replacen('{', "{\"port\":9,", 1);
    assert_eq!(problems(&body)[0].error, "is given more than once");
}

#[test]
fn long_values_are_cut_in_the_error() {
    let found = problems(&with("service", Some(&format!("\"{}\"", "x".repeat(10_000)))));
    assert!(found[0].error.len() < 200, "{}", found[0].error.len());
}

proptest::proptest! {
    #[test]
    fn no_body_makes_it_panic(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        let _ = registration(&body);
    }
}
