//! Who may call a service, decided by its sidecar.

use std::net::SocketAddr;

use http::{Method, StatusCode};
use weft_proxy::app::{self, RunningProxy};
use weft_proxy::tls::mesh::MeshMode;

use crate::inbound::inbound;
use crate::pki::Ca;
use crate::support::*;

const ORDERS: &str = "spiffe://mesh.example/ns/shop/sa/orders";
const WEB: &str = "spiffe://mesh.example/ns/shop/sa/web";
const BANK: &str = "spiffe://mesh.example/ns/bank/sa/batch";

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: weft.dev/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}}}\nspec: {spec}\n"
    )
}

const FOR_ORDERS: &str = "targetRef: {kind: Service, name: orders}";

/// A sidecar of `orders` with these documents.
async fn server_side(app_addr: SocketAddr, ca: &Ca, documents: &str) -> (RunningProxy, SocketAddr) {
    let mut config = inbound(&[("orders", app_addr)]);
    config.static_config = crate::support::config(documents).static_config;
    config.mesh = Some(ca.mesh("orders", ORDERS, MeshMode::Permissive));
    let running = app::start(config).await.unwrap();
    let addr = running.addrs().inbound.unwrap();
    (running, addr)
}

pub async fn caller(addr: SocketAddr, ca: &Ca, id: &str) -> Proxy {
    let mut client = config(&orders(&[addr], "    tls: {mode: mesh}\n"));
    client.mesh = Some(ca.mesh("caller", id, MeshMode::Strict));
    start(client).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_are_let_in_by_identity_path_and_method() {
    let (app_itself, ca) = (Upstream::start("a").await, Ca::new("mesh"));
    let documents = [
        policy("shop", &format!("{{{FOR_ORDERS}, rules: [{{from: [{{namespaces: [shop]}}]}}, {{to: [{{paths: [/text], methods: [GET]}}]}}]}}")),
        policy("no-admin", &format!("{{{FOR_ORDERS}, action: DENY, rules: [{{to: [{{paths: [\"/bytes/*\"]}}]}}]}}")),
    ]
    .concat();
    let (server, addr) = server_side(app_itself.addr, &ca, &documents).await;
    let (web, bank) = (caller(addr, &ca, WEB).await, caller(addr, &ca, BANK).await);
    let (ok, forbidden) = (StatusCode::OK, StatusCode::FORBIDDEN);
    for (who, path, expected) in [
        (web.outbound, "/request", ok),
        (web.outbound, "/bytes/65536", forbidden),
        (web.outbound, "//bytes/65536", forbidden),
        (web.outbound, "/x/../bytes/65536", forbidden),
        (web.outbound, "/%62ytes/65536", forbidden),
        (bank.outbound, "/request", forbidden),
        (bank.outbound, "/text", ok),
        (addr, "/request", forbidden),
        (addr, "/text", ok),
    ] {
        let answer = get(who, "orders", path).await;
        assert_eq!(answer.status, expected, "{path}: {}", answer.body);
        if expected == forbidden {
            assert_eq!(answer.header("x-weft-error"), "forbidden");
            assert!(
                !answer.body.contains("no-admin"),
                "the caller does not learn how it is decided: {}",
                answer.body
            );
        }
    }
    let served = app_itself.served();
    let mut client = Client::http1(bank.outbound).await;
    let request = client.request(Method::POST, "orders", "/text", full("x"));
    assert_eq!(client.call(request).await.unwrap().status, forbidden);
    assert_eq!(app_itself.served(), served);
    let metrics = get(server.addrs().admin, "admin", "/metrics").await.body;
    let counted = metrics
        .lines()
        .find(|l| l.starts_with("weft_proxy_flagged_requests_total") && l.contains("\"forbidden\""));
    assert!(counted.is_some_and(|l| l.contains("orders")), "{metrics}");
    let requests = metrics.lines().find(|l| l.starts_with("weft_proxy_requests_total{") && l.contains("4xx"));
    assert!(requests.is_some_and(|l| l.contains("inbound") && l.ends_with(" 7")), "{metrics}");
}

/// RFC 9111 §3.5: the app is not shown the token, and the answer is for whoever has it all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_a_token_is_not_stored_for_others() {
    let upstream = Upstream::start("a").await;
    let (token, jwks) = token("login");
    let yaml = format!(
        "listeners: [{{name: web, address: \"127.0.0.1:0\"}}]\n{}---
apiVersion: weft.dev/v1
kind: RequestAuthentication
metadata: {{name: login}}
spec: {{{FOR_ORDERS}, jwtRules: [{{issuer: login, jwks: '{jwks}'}}]}}
---
apiVersion: weft.dev/v1
kind: HTTPRouteFilter
metadata: {{name: f}}
spec: {{cache: {{defaultTtl: 1m}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r}}
spec:
  parentRefs: [{{kind: Service, group: '', name: orders}}]
  rules:
    - filters: [{{type: ExtensionRef, extensionRef: {{group: weft.dev, kind: HTTPRouteFilter, name: f}}}}]
      backendRefs: [{{name: orders}}]
",
        orders(&[upstream.addr], ""),
    );
    let mut config = config(&yaml);
    config.workers = 1;
    let proxy = start(config).await;
    let addr = proxy.running.addrs().listeners[0].1;
    for (token, hit) in [(Some(&*token), ""), (Some(&*token), ""), (None, ""), (None, "weft; hit")] {
        let answer = ask_with(addr, token).await;
        assert_eq!((answer.status, answer.header("cache-status")), (StatusCode::OK, hit), "{token:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grpc_caller_is_told_permission_denied() {
    let (app_itself, ca) = (Upstream::start("a").await, Ca::new("mesh"));
    let documents = policy("nobody", "{rules: []}");
    let (_server, addr) = server_side(app_itself.addr, &ca, &documents).await;
    let mut client = Client::http2(addr).await;
    let mut request = client.request(Method::POST, "orders", "/shop.Orders/Get", empty());
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let answer = client.call(request).await.unwrap();
    assert_eq!((answer.status, answer.header("grpc-status")), (StatusCode::OK, "7"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_lets_in_and_counts() {
    let (app_itself, ca) = (Upstream::start("a").await, Ca::new("mesh"));
    let documents = policy(
        "later",
        &format!("{{{FOR_ORDERS}, mode: Audit, rules: [{{from: [{{namespaces: [shop]}}]}}]}}"),
    );
    let (server, addr) = server_side(app_itself.addr, &ca, &documents).await;
    assert_eq!(get(addr, "orders", "/").await.status, StatusCode::OK);
    let metrics = get(server.addrs().admin, "admin", "/metrics").await.body;
    assert!(metrics.contains("\"forbidden-audit\""), "{metrics}");
}

/// A listener of the file is where others come in; the app's own port is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_hold_on_listeners_also_behind_routes_and_for_tunnels_and_not_for_the_local_app() {
    let upstream = Upstream::start("a").await;
    let route = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r}\nspec:\n  hostnames: [shop.example]\n  rules: [{backendRefs: [{name: orders}]}]\n";
    let yaml = format!(
        "listeners: [{{name: web, address: \"127.0.0.1:0\"}}]\n{}{route}{}",
        orders(&[upstream.addr], ""),
        policy(
            "p",
            &format!(
                "{{{FOR_ORDERS}, action: DENY, rules: [{{to: [{{paths: [/request]}}]}}, {{when: [{{header: x-evil, values: [\"*\"]}}]}}]}}"
            )
        )
    );
    let proxy = start(config(&yaml)).await;
    let listener = proxy.running.addrs().listeners[0].1;
    for host in ["orders", "shop.example"] {
        assert_eq!(get(listener, host, "/").await.status, StatusCode::OK, "{host}");
        assert_eq!(get(listener, host, "/request").await.status, StatusCode::FORBIDDEN, "{host}");
        assert_eq!(get(listener, host, "/./request").await.status, StatusCode::FORBIDDEN, "{host}");
        assert_eq!(get(proxy.outbound, host, "/request").await.status, StatusCode::OK, "{host}");
        let mut client = Client::http1(listener).await;
        let mut request = client.request(Method::GET, host, "/", empty());
        request.headers_mut().insert("x-evil", "1".parse().unwrap());
        assert_eq!(client.call(request).await.unwrap().status, StatusCode::FORBIDDEN, "{host}");
    }
    let mut tunnel = tokio::net::TcpStream::connect(listener).await.unwrap();
    let ask = b"CONNECT orders:1 HTTP/1.1\r\nHost: orders:1\r\nx-evil: 1\r\n\r\n";
    tokio::io::AsyncWriteExt::write_all(&mut tunnel, ask).await.unwrap();
    let tunnel = read_head(&mut tunnel).await.unwrap();
    assert!(tunnel.starts_with("HTTP/1.1 403"), "{tunnel}");
}

#[test]
fn mistakes_in_policies_are_named_with_their_keys() {
    for (spec, why) in [
        ("{action: LOG}", "allowed are ALLOW, DENY"),
        ("{mode: DryRun}", "allowed are Enforce, Audit"),
        ("{action: DENY}", "denies nothing"),
        ("{rules: [{from: [{}]}]}", "leave it out for any"),
        ("{rules: [{to: [{paths: [admin]}]}]}", "starts with / or *"),
        ("{rules: [{to: [{paths: [/a/../b]}]}]}", "normal form"),
        ("{rules: [{to: [{methods: [get]}]}]}", "in capitals"),
        ("{rules: [{from: [{ipBlocks: [10.0.0.0/33]}]}]}", "such as 10.0.0.0/8"),
        ("{rules: [{when: [{header: a}]}]}", "neither values nor notValues"),
        ("{rules: [{from: [{principal: [a]}]}]}", "did you mean principals?"),
        ("{targetRef: {kind: Gateway, name: a}, rules: [{}]}", "allowed are Service"),
    ] {
        let (_, file) = weft_meshconfig::document::divide(&policy("p", spec));
        let problems: Vec<_> = file.problems.iter().map(ToString::to_string).collect();
        assert!(problems.join("\n").contains(why), "{spec}: {problems:?}");
    }
}

/// A signed token of alice, for `orders`, and the keys of its issuer.
fn token(issuer: &str) -> (String, String) {
    signed(issuer, 4_000_000_000)
}

/// The same that ends then, in seconds of the Unix epoch.
pub fn signed(issuer: &str, exp: u64) -> (String, String) {
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
    use base64::Engine;
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let point = key.public_key().as_ref();
    let jwk = serde_json::json!({"kty": "EC", "crv": "P-256", "x": encode(&point[1..33]), "y": encode(&point[33..])});
    let claims = serde_json::json!({"iss": issuer, "sub": "alice", "aud": "orders", "exp": exp});
    let signed = format!("{}.{}", encode(br#"{"alg":"ES256"}"#), encode(claims.to_string().as_bytes()));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    let jwks = serde_json::json!({ "keys": [jwk] });
    (format!("{signed}.{}", encode(signature.as_ref())), jwks.to_string())
}

/// What a service that publishes keys answers, and how often it was asked.
#[derive(Clone, Default)]
struct Login {
    body: std::sync::Arc<std::sync::Mutex<String>>,
    asked: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl Login {
    fn says(&self, body: impl Into<String>) {
        *self.body.lock().unwrap() = body.into();
    }

    fn asked(&self) -> usize {
        self.asked.load(std::sync::atomic::Ordering::SeqCst)
    }

    async fn serve(&self) -> SocketAddr {
        let login = self.clone();
        let script = move |mut stream: tokio::net::TcpStream, _| {
            let login = login.clone();
            async move {
                let Some(head) = read_head(&mut stream).await else { return };
                assert!(head.starts_with("GET /jwks.json HTTP/1.1\r\n"), "{head}");
                assert!(head.contains("host: login\r\n"), "{head}");
                login.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let body = login.body.lock().unwrap().clone();
                let status = if body.is_empty() { "503 Service Unavailable" } else { "200 OK" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await;
            }
        };
        raw_upstream(script).await.0
    }
}

async fn ask_with(addr: SocketAddr, token: Option<&str>) -> Reply {
    let mut client = Client::http1(addr).await;
    let mut request = client.request(Method::GET, "orders", "/text", empty());
    if let Some(token) = token {
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    client.call(request).await.unwrap()
}

async fn until_challenge(addr: SocketAddr, token: &str, challenge: &str) {
    until(challenge, || async {
        let seen = ask_with(addr, Some(token)).await;
        let seen = format!("{} {}", seen.status, seen.header("www-authenticate"));
        if seen.contains(challenge) { Ok(()) } else { Err(seen) }
    })
    .await;
}

async fn until_certs(admin: SocketAddr, part: &str) {
    until(part, || async {
        let seen = get(admin, "admin", "/certs").await.body;
        if seen.contains(part) { Ok(()) } else { Err(seen) }
    })
    .await;
}

/// Over TLS, from the first failure to a new key, and what came last stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_fetched_from_a_service_of_the_mesh_and_renewed() {
    let (app_itself, ca, login) = (Upstream::start("a").await, Ca::new("mesh"), Login::default());
    let issued = ca.issue("login", "login.example");
    let unasked = &weft_core::tls::ClientCerts::Unasked;
    let (addr, _tls) = crate::pki::tls_in_front(login.serve().await, &issued, unasked, &[b"http/1.1"]).await;
    let documents = format!(
        "clusters: [{{name: login, endpoints: [\"{addr}\"], tls: {{hostname: login.example, ca-file: {}}}}}]\n\
         ---\napiVersion: weft.dev/v1\nkind: RequestAuthentication\nmetadata: {{name: login}}\nspec:\n  {FOR_ORDERS}\n  \
         jwtRules: [{{issuer: login, jwksUri: \"https://login/jwks.json\", jwksRefresh: 1s}}]\n",
        ca.file().display()
    );
    let (server, addr) = server_side(app_itself.addr, &ca, &documents).await;
    let admin = server.addrs().admin;
    let ((old, old_keys), (new, new_keys)) = (token("login"), token("login"));

    until_challenge(addr, &old, "401 Unauthorized").await;
    until_challenge(addr, &old, "the keys of its issuer are not known yet").await;
    assert_eq!(ask_with(addr, None).await.status, StatusCode::OK, "who shows no token needs no keys");
    until_certs(admin, "status 503, wanted is 200").await;
    login.says(old_keys);
    until_challenge(addr, &old, "200 OK").await;
    until_challenge(addr, &new, "its signature does not hold").await;
    login.says(new_keys);
    until_challenge(addr, &new, "200 OK").await;
    until_challenge(addr, &old, "its signature does not hold").await;

    for (bad, why) in [
        ("{}".to_owned(), "no JWKS"),
        (" ".repeat(300 * 1024), "more than 262144 bytes"),
        (String::new(), "status 503"),
    ] {
        login.says(bad);
        until_certs(admin, why).await;
        assert_eq!(ask_with(addr, Some(&new)).await.status, StatusCode::OK, "the last keys stay");
    }
    let metrics = get(admin, "admin", "/metrics").await.body;
    let value = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or_else(|| panic!("{name}: {metrics}"))
    };
    assert!(value("weft_proxy_jwks_fetches_total{uri=\"https://login/jwks.json\",result=\"success\"}") >= 2);
    assert!(value("weft_proxy_jwks_fetches_total{uri=\"https://login/jwks.json\",result=\"failure\"}") >= 4);
    let last = value("weft_proxy_jwks_last_success_timestamp_seconds{uri=\"https://login/jwks.json\"}");
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(now - last < 600, "{last} of {now}");
}

/// Those who only call the service decide nothing by its tokens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_fetched_where_tokens_are_looked_at_and_over_tls_where_that_is_wanted() {
    let (app_itself, login) = (Upstream::start("a").await, Login::default());
    let (good, keys) = token("login");
    login.says(keys);
    let addr = login.serve().await;
    let file = |listeners: &str, scheme: &str| {
        format!(
            "{listeners}clusters: [{{name: login, endpoints: [\"{addr}\"]}}, {{name: orders, endpoints: [\"{}\"]}}]\n\
             ---\napiVersion: weft.dev/v1\nkind: RequestAuthentication\nmetadata: {{name: login}}\nspec:\n  {FOR_ORDERS}\n  \
             jwtRules: [{{issuer: login, jwksUri: \"{scheme}://login/jwks.json\"}}]\n",
            app_itself.addr
        )
    };
    let caller = start(config(&file("", "http"))).await;
    assert_eq!(ask_with(caller.outbound, Some("x.y.z")).await.status, StatusCode::OK);
    assert!(!get(caller.admin, "admin", "/certs").await.body.contains("jwks.json"));
    assert_eq!(login.asked(), 0);

    let listeners = "listeners: [{name: web, address: \"127.0.0.1:0\"}]\n";
    let edge = start(config(&file(listeners, "http"))).await;
    until_challenge(edge.running.addrs().listeners[0].1, &good, "200 OK").await;
    assert_eq!(login.asked(), 1, "not for each request");
    let secured = start(config(&file(listeners, "https"))).await;
    until_certs(secured.admin, "https is wanted, and service login has no TLS").await;
    assert_eq!(login.asked(), 1);
}

#[test]
fn mistakes_in_sources_of_keys_are_named_with_what_is_allowed() {
    for (rule, why) in [
        ("issuer: a", "allowed is one of jwks, jwksFile and jwksUri"),
        ("issuer: a, jwksUri: \"http://a/\", jwksFile: /a", "allowed is one of jwks, jwksFile and jwksUri"),
        ("issuer: a, jwksUri: \"http://10.0.0.1/keys\"", "http://SERVICE/PATH"),
        ("issuer: a, jwksUri: \"https://login:443/keys\"", "without port"),
        ("issuer: a, jwksUri: \"http://a/\", jwksRefresh: 0s", "a time from 1s to 24h"),
        ("issuer: a, jwksFile: /a, jwksRefresh: 5m", "jwksRefresh is given without jwksUri"),
    ] {
        let document = format!(
            "---\napiVersion: weft.dev/v1\nkind: RequestAuthentication\nmetadata: {{name: a}}\nspec: {{jwtRules: [{{{rule}}}]}}\n"
        );
        let (_, file) = weft_meshconfig::document::divide(&document);
        let problems: Vec<_> = file.problems.iter().map(ToString::to_string).collect();
        assert!(problems.join("\n").contains(why), "{rule}: {problems:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_show_tokens_that_hold_and_the_app_does_not_see_them() {
    let (app_itself, ca) = (Upstream::start("a").await, Ca::new("mesh"));
    let (good, jwks) = token("https://login.example");
    let (foreign, _) = token("https://login.example");
    std::fs::write(ca.at("jwks.json"), jwks).unwrap();
    let documents = [
        format!(
            "---\napiVersion: weft.dev/v1\nkind: RequestAuthentication\nmetadata: {{name: login}}\nspec:\n  {FOR_ORDERS}\n  \
             jwtRules: [{{issuer: \"https://login.example\", audiences: [orders], jwksFile: {}}}]\n",
            ca.at("jwks.json").display()
        ),
        policy("users", &format!("{{{FOR_ORDERS}, rules: [{{from: [{{requestPrincipals: [\"https://login.example/*\"]}}]}}, {{to: [{{paths: [/text]}}]}}]}}")),
    ]
    .concat();
    let (_server, addr) = server_side(app_itself.addr, &ca, &documents).await;
    let ask = async |path: &str, token: Option<&str>| {
        let mut client = Client::http1(addr).await;
        let mut request = client.request(Method::GET, "orders", path, empty());
        if let Some(token) = token {
            request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        client.call(request).await.unwrap()
    };
    let seen = ask("/request", Some(&good)).await;
    assert_eq!(seen.status, StatusCode::OK, "{}", seen.body);
    assert!(!seen.body.contains("authorization"), "{}", seen.body);
    let none = ask("/request", None).await;
    assert_eq!((none.status, none.header("www-authenticate")), (StatusCode::UNAUTHORIZED, "Bearer"));
    assert_eq!(
        ask("/text", None).await.status,
        StatusCode::OK,
        "a token is wanted only where a policy wants one"
    );
    let bad = ask("/text", Some(&foreign)).await;
    assert_eq!((bad.status, bad.header("x-weft-error")), (StatusCode::UNAUTHORIZED, "bad-token"));
    let challenge = "Bearer error=\"invalid_token\", error_description=\"its signature does not hold\"";
    assert_eq!(bad.header("www-authenticate"), challenge);
}
