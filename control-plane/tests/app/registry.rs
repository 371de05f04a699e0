//! The registry API over real HTTP.

use http::{Method, StatusCode};

use crate::harness::{TestServer, until};

const EXAMPLE: &str = r#"{"service":"user-service","instance_id":"user-service-abc123","host":"192.168.1.10",
    "port":8080,"metadata":{"version":"1.2.0","region":"us-east-1"}}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_found_from_register_to_deregister() {
    let server = TestServer::start().await;
    let stored = server.http(Method::POST, "/register", EXAMPLE).await;
    assert_eq!(stored.status, StatusCode::OK, "{}", stored.body);
    let stored = stored.json();
    assert_eq!(stored["instance_id"], "user-service-abc123");
    assert_eq!(stored["metadata"]["version"], "1.2.0");
    assert_eq!((&stored["ttl"], &stored["heartbeat_interval_secs"]), (&"30s".into(), &10.0.into()));

    let found = server.get("/discover/user-service").await;
    let label = found.headers["x-weft-consistency"].to_str().unwrap().to_owned();
    assert!(label.starts_with("linearizable("), "{label}");
    let found = found.json();
    assert_eq!(found["consistency"], label);
    let instance = &found["instances"][0];
    assert_eq!((&instance["host"], &instance["port"]), (&"192.168.1.10".into(), &8080.into()));
    assert_eq!((&instance["source"], &instance["owner"]), (&"registry".into(), &stored["lease"]));
    assert_eq!(instance["metadata"]["region"], "us-east-1");
    assert!(instance["age_ms"].is_u64());

    // Both spellings of the id (ruling D9).
    for id in ["abc123", "user-service-abc123"] {
        let beat = server.http(Method::PUT, &format!("/heartbeat/user-service/{id}"), "").await;
        assert_eq!(beat.status, StatusCode::OK, "{}", beat.body);
        assert_eq!(beat.json()["instance_id"], "user-service-abc123");
    }
    let gone = server.http(Method::DELETE, "/deregister/user-service/abc123", "").await;
    assert_eq!(gone.status, StatusCode::OK, "{}", gone.body);
    assert_eq!(server.get("/discover/user-service").await.status, StatusCode::NOT_FOUND);
    let again = server.http(Method::DELETE, "/deregister/user-service/abc123", "").await;
    assert_eq!(again.status, StatusCode::NOT_FOUND);
    let beat = server.http(Method::PUT, "/heartbeat/user-service/abc123", "").await;
    assert_eq!(beat.status, StatusCode::NOT_FOUND);
    assert!(beat.body.contains("POST /register again"), "{}", beat.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_registered_by_its_short_id_answers_to_the_long_one() {
    let server = TestServer::start().await;
    server.register("web", "one", 80, "30s").await;
    let beat = server.http(Method::PUT, "/heartbeat/web/web-one", "").await;
    assert_eq!(beat.status, StatusCode::OK, "{}", beat.body);
    let gone = server.http(Method::DELETE, "/deregister/web/web-one", "").await;
    assert_eq!(gone.json()["instance_id"], "one");
}

/// HC-09.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_lives_as_long_as_its_heartbeats() {
    let server = TestServer::start().await;
    server.register("silent", "one", 81, "2s").await;
    server.register("beating", "one", 82, "2s").await;
    until("the silent one expires", async || {
        let beat = server.http(Method::PUT, "/heartbeat/beating/one", "").await;
        assert_eq!(beat.status, StatusCode::OK, "the beating one stays: {}", beat.body);
        let found = server.get("/discover/silent").await;
        if found.status == StatusCode::NOT_FOUND { Ok(()) } else { Err(found.body) }
    })
    .await;
    assert_eq!(server.get("/discover/beating").await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_is_replaced_and_keeps_its_lease() {
    let server = TestServer::start().await;
    let first = server.register("web", "one", 80, "30s").await.json();
    let second = server.register("web", "one", 81, "60s").await.json();
    assert_eq!(first["lease"], second["lease"]);
    let found = server.get("/discover/web").await.json();
    assert_eq!(found["instances"].as_array().unwrap().len(), 1);
    assert_eq!(found["instances"][0]["port"], 81);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_name_the_field_and_store_nothing() {
    let server = TestServer::start().await;
    let before = server.server().coordinator().read(|m| m.revision());
    let bad = server.http(Method::POST, "/register", r#"{"service":"Web","port":0,"x":1}"#).await;
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
    let bad = bad.json();
    assert_eq!(bad["field"], "service");
    assert!(bad["allowed"].as_str().unwrap().contains("DNS label"));
    let fields: Vec<&str> =
        bad["problems"].as_array().unwrap().iter().map(|p| p["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["service", "instance_id", "host", "port", "x"]);

    let large = format!("{{\"service\":\"{}\"}}", "a".repeat(200_000));
    let large = server.http(Method::POST, "/register", &large).await;
    assert_eq!((large.status, &large.json()["field"]), (StatusCode::PAYLOAD_TOO_LARGE, &"body".into()));

    let path = server.http(Method::PUT, "/heartbeat/Web/a%2Fb", "").await;
    assert_eq!(path.status, StatusCode::BAD_REQUEST, "{}", path.body);
    let query = server.get("/discover/web?consistency=maybe").await;
    assert_eq!(query.status, StatusCode::BAD_REQUEST);
    assert!(query.json()["allowed"].as_str().unwrap().contains("serializable"));
    assert_eq!(server.server().coordinator().read(|m| m.revision()), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_services_are_named_with_what_resembles_them() {
    let server = TestServer::start().await;
    server.register("orders", "one", 80, "30s").await;
    until("the catalogue knows it", async || {
        let answer = server.get("/discover/ordres").await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        let answer = answer.json();
        assert!(answer["error"].as_str().unwrap().contains("ordres"));
        if answer["near"] == serde_json::json!(["orders"]) { Ok(()) } else { Err(answer.to_string()) }
    })
    .await;
    let services = server.get("/services").await.json();
    assert_eq!(services["services"][0]["name"], "orders");
    assert_eq!(services["services"][0]["load_balancing"], "round-robin");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_paths_and_methods_are_clear_json() {
    let server = TestServer::start().await;
    let path = server.get("/nothing/here").await;
    assert_eq!(path.status, StatusCode::NOT_FOUND);
    assert!(path.json()["error"].as_str().unwrap().contains("/nothing/here"));
    assert!(path.body.contains("POST /register"));
    let method = server.get("/register").await;
    assert_eq!(method.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(method.json()["allowed"], serde_json::json!(["POST /register"]));
    assert_eq!(method.headers["allow"], "POST");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_read_is_only_given_to_those_who_ask_and_says_so() {
    let server = TestServer::start().await;
    server.register("web", "one", 80, "30s").await;
    let answer = server.get("/discover/web?consistency=serializable").await;
    let label = answer.headers["x-weft-consistency"].to_str().unwrap();
    assert!(label.starts_with("serializable(") && label.ends_with("ms)"), "{label}");
}
