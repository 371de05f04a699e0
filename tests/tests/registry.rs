//! The registry API over HTTP, on one real server.

use std::time::Duration;

use http::{Method, StatusCode};
use weft_tests::http_client;
use weft_tests::mesh::Mesh;
use weft_tests::wait::until;

/// Register, heartbeat, discover, deregister, with both spellings of an instance id (ruling D9).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instance_is_discovered_from_register_to_deregister() {
    let mesh = Mesh::with_servers(1).await;
    let at = mesh.servers[0].http();
    let body = r#"{"service":"user-service","instance_id":"user-service-abc123","host":"192.168.1.10","port":8080,
        "metadata":{"version":"1.2.0","region":"us-east-1"}}"#;
    let answer = http_client::request(at, "x", Method::POST, "/register", body).await.expect("answers");
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let found = http_client::get(at, "x", "/discover/user-service").await.expect("answers");
    assert_eq!(found.status, StatusCode::OK, "{}", found.body);
    for part in ["user-service-abc123", "192.168.1.10", "8080", "us-east-1", "registry"] {
        assert!(found.body.contains(part), "{part} in {}", found.body);
    }
    for id in ["abc123", "user-service-abc123"] {
        let path = format!("/heartbeat/user-service/{id}");
        let beat = http_client::request(at, "x", Method::PUT, &path, "").await.expect("answers");
        assert_eq!(beat.status, StatusCode::OK, "{}", beat.body);
    }
    let gone = http_client::request(at, "x", Method::DELETE, "/deregister/user-service/abc123", "")
        .await
        .expect("answers");
    assert_eq!(gone.status, StatusCode::OK, "{}", gone.body);
    let none = http_client::get(at, "x", "/discover/user-service").await.expect("answers");
    assert_eq!(none.status, StatusCode::NOT_FOUND, "{}", none.body);
    let beat = http_client::request(at, "x", Method::PUT, "/heartbeat/user-service/abc123", "")
        .await
        .expect("answers");
    assert_eq!(beat.status, StatusCode::NOT_FOUND, "{}", beat.body);
}

/// HC-09: without heartbeats an instance lives as long as its TTL, and with them as long as they come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instance_without_heartbeats_is_removed_after_its_ttl() {
    let mesh = Mesh::with_servers(1).await;
    let server = &mesh.servers[0];
    let addr = "127.0.0.1:9".parse().expect("an address");
    mesh.register(server, "silent", "one", addr, "2s").await;
    mesh.register(server, "beating", "one", addr, "2s").await;
    until("the silent one is removed", Duration::from_secs(15), || async {
        let beat =
            http_client::request(server.http(), "x", Method::PUT, "/heartbeat/beating/one", "").await?;
        assert_eq!(beat.status, StatusCode::OK, "the beating one is never removed: {}", beat.body);
        let found = http_client::get(server.http(), "x", "/discover/silent").await?;
        if found.status == StatusCode::NOT_FOUND { Ok(()) } else { Err(found.body) }
    })
    .await;
}

/// Each bad body is refused with 400 naming the field, and nothing is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_registrations_are_refused_naming_the_field_and_nothing_is_stored() {
    let mesh = Mesh::with_servers(1).await;
    let at = mesh.servers[0].http();
    let good = serde_json::json!({"service": "s", "instance_id": "i", "host": "10.0.0.1", "port": 80});
    let with = |field: &str, value: serde_json::Value| {
        let mut body = good.clone();
        body[field] = value;
        body.to_string()
    };
    let without = |field: &str| {
        let mut body = good.clone();
        body.as_object_mut().expect("an object").remove(field);
        body.to_string()
    };
    let cases = [
        (without("service"), "service"),
        (without("port"), "port"),
        (with("service", "".into()), "service"),
        (with("service", "Not A Label".into()), "service"),
        (with("instance_id", "a/b".into()), "instance_id"),
        (with("instance_id", "x".repeat(1000).into()), "instance_id"),
        (with("host", "".into()), "host"),
        (with("host", "not a host".into()), "host"),
        (with("port", 0.into()), "port"),
        (with("port", 65536.into()), "port"),
        (with("port", (-1).into()), "port"),
        (with("port", "http".into()), "port"),
        (with("metadata", "text".into()), "metadata"),
        (with("ttl", "0s".into()), "ttl"),
        (with("ttl", "1000h".into()), "ttl"),
        (with("colour", "red".into()), "colour"),
        ("{not json".to_owned(), "JSON"),
        ("".to_owned(), ""),
        ("[]".to_owned(), ""),
    ];
    for (body, names) in cases {
        let answer = http_client::request(at, "x", Method::POST, "/register", &body).await.expect("answers");
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}: {}", answer.body);
        assert!(answer.body.contains(names), "{body} names {names:?}: {}", answer.body);
    }
    let stored = mesh.cli(&mesh.servers[0], &["kv", "get", "--prefix", "weft/registry/"]).await;
    assert!(!stored.stdout.contains("weft/registry/"), "{stored:?}");
    let unknown = http_client::get(at, "x", "/discover/nobody").await.expect("answers");
    assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    assert!(unknown.body.contains("nobody"), "{}", unknown.body);
}
