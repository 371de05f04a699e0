//! What documents say, done by a real Envoy that has it from a Weft server over ADS: nothing is refused (NACK), nothing is
//! passed over. Run by `tests/envoy/run`, which gets an Envoy; `./test` leaves these out.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, StatusCode};
use http_body_util::Empty;
use serde_json::{Value, json};
use weft_tests::envoy::Envoy;
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::mesh::Mesh;
use weft_tests::wait::until;

const PATIENCE: Duration = Duration::from_secs(30);

async fn register(mesh: &Mesh, id: &str, at: SocketAddr, labels: Value) {
    let server = mesh.servers[0].http();
    let body = json!({
        "service": "shop", "instance_id": id, "host": at.ip().to_string(), "port": at.port(), "ttl": "60s",
        "metadata": labels,
    });
    let answer = http_client::request(server, "server", Method::POST, "/register", &body.to_string()).await;
    assert_eq!(answer.expect("the server answers").status, StatusCode::OK);
}

async fn apply(mesh: &Mesh, documents: &[String]) {
    let path = mesh.folder("mesh.yaml");
    std::fs::write(&path, documents.join("---\n")).expect("our folder");
    let applied = mesh.cli(&mesh.servers[0], &["apply", "-f", &path.display().to_string()]).await;
    assert_eq!(applied.code, 0, "{applied:?}");
}

fn policy(says: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1\nkind: TrafficPolicy\nmetadata: {{name: shop}}\nspec: {{targetRef: {{kind: Service, name: shop}}, {says}}}\n"
    )
}

fn route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: shop}}\nspec:\n  parentRefs: [{{kind: Service, group: '', name: shop}}]\n  rules: [{rules}]\n"
    )
}

/// A route with a filter of ours, and the filter.
fn filtered(says: &str) -> [String; 2] {
    let filter = format!(
        "apiVersion: weft.dev/v1\nkind: HTTPRouteFilter\nmetadata: {{name: shop}}\nspec: {{{says}}}\n"
    );
    let refers = "type: ExtensionRef, extensionRef: {group: weft.dev, kind: HTTPRouteFilter, name: shop}";
    [filter, route(&format!("{{filters: [{{{refers}}}], backendRefs: [{{name: shop}}]}}"))]
}

/// One server, and two instances that say who they are.
async fn shop(labels: [Value; 2]) -> (Mesh, [FakeUpstream; 2]) {
    let mesh = Mesh::with_servers(1).await;
    let upstreams = [FakeUpstream::start("one").await, FakeUpstream::start("two").await];
    for (upstream, labels) in upstreams.iter().zip(labels) {
        register(&mesh, upstream.name(), upstream.addr(), labels).await;
    }
    (mesh, upstreams)
}

/// The version of `shop` that Envoy was sent and has taken.
async fn taken(mesh: &Mesh, kind: &str) -> Result<String, String> {
    let status = mesh.cli(&mesh.servers[0], &["status", "--proxies", "-o", "json"]).await;
    let status: Value = serde_json::from_str(&status.stdout).map_err(|e| format!("{e}: {status:?}"))?;
    let resources =
        status["proxies"].as_array().into_iter().flatten().flat_map(|p| p["resources"].as_array());
    let of_shop = resources.flatten().find(|r| r["kind"] == kind && r["name"] == "shop");
    let resource = of_shop.ok_or_else(|| status.to_string())?;
    assert_eq!(resource["error"], "", "Envoy refuses it");
    let text = |key: &str| resource[key].as_str().unwrap_or_default().to_owned();
    if text("version_acked") == text("version_sent") {
        Ok(text("version_sent"))
    } else {
        Err(resource.to_string())
    }
}

/// Applies documents that change `shop`, and waits until Envoy has taken them.
async fn takes(mesh: &Mesh, kind: &str, documents: &[String]) {
    let before = until("Envoy has what was said before", PATIENCE, || taken(mesh, kind)).await;
    apply(mesh, documents).await;
    until(&format!("Envoy takes {documents:?}"), PATIENCE, || async {
        let now = taken(mesh, kind).await?;
        if now == before { Err("nothing new".to_owned()) } else { Ok(()) }
    })
    .await;
}

/// One after another, so that what is refused is known by name.
async fn takes_all_that_can_be_said(dialect: &str) {
    let (mesh, _upstreams) = shop([json!({"version": "1"}), json!({"version": "2", "priority": "7"})]).await;
    let envoy = Envoy::start(&mesh, dialect).await;
    envoy.until_only(&["one"], None).await;
    let policies = [
        "loadBalancing: round-robin, slowStart: {window: 3s, minWeightPercent: 20}",
        "loadBalancing: random",
        "loadBalancing: least-connections",
        "loadBalancing: least-request, slowStart: {window: 3s}",
        "loadBalancing: peak-ewma",
        "loadBalancing: lowest-load",
        "loadBalancing: 'ring-hash:header=x-user'",
        "loadBalancing: 'maglev:cookie=session'",
        "loadBalancing: 'ring-hash:source'",
        "healthCheck: {path: /health, interval: 500ms, timeout: 300ms}",
        "healthCheck: {grpc: shop}",
        "outlierDetection: {consecutiveFailures: 3, consecutiveGatewayFailures: 2, latency: {threshold: 3}}",
        "outlierDetection: {successRate: {threshold: 1500}, failurePercentage: {threshold: 60}, maxEjectionPercent: 30}",
        "panic: {policy: spread, below: 30}",
        "panic: {policy: fail, below: 30}",
        "circuitBreaker: {maxRequests: 1000, maxConnections: 100, maxPending: 50}, retryBudget: {percent: 30, min: 5}",
        "rateLimit: {requests: 1000}, adaptiveConcurrency: {maxRequests: 500}, timeouts: {request: 10s}",
        "zoneAware: {minEndpoints: 2, spillAbove: 100}",
        "zoneAware: {}, panic: {policy: fail, below: 30}",
        "subsets: {fallback: any}",
        "subsets: {fallback: default, default: {version: '1'}}",
        "tls: {hostname: shop.example}",
        "tls: {hostname: shop.example, subjectAltNames: ['spiffe://a.example/*'], minVersion: '1.3'}",
        "tls: {hostname: shop.example, cipherSuites: [TLS_AES_256_GCM_SHA384, ECDHE-RSA-AES256-GCM-SHA384]}",
    ];
    for (i, says) in policies.iter().enumerate() {
        // What is said may be the default.
        let says = format!("{says}, connectTimeout: {}ms", 2000 + i);
        takes(&mesh, "Cluster", &[policy(&says)]).await;
    }
    apply(&mesh, &[policy("connectTimeout: 1s")]).await;
    let rules = [
        "{matches: [{path: {type: RegularExpression, value: '/a.*'}, headers: [{name: x-a, value: b}], queryParams: [{name: q, value: '1'}]}], backendRefs: [{name: shop, weight: 3, subset: {version: '1'}}, {name: shop, weight: 1, subset: {version: ^2}}]}",
        "{filters: [{type: URLRewrite, urlRewrite: {hostname: a.example, path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}, {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-b, value: '100%'}], remove: [x-c]}}], backendRefs: [{name: shop}], timeouts: {request: 3s, backendRequest: 1s}, retry: {codes: [503], attempts: 2, backoff: 20ms}}",
        "{filters: [{type: RequestRedirect, requestRedirect: {scheme: https, statusCode: 301}}]}",
        "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: shop}, percent: 10}}], backendRefs: [{name: shop}]}",
        "{filters: [{type: CORS, cors: {allowOrigins: ['https://a.example'], maxAge: 60}}], backendRefs: [{name: shop}]}",
    ];
    for rule in rules {
        takes(&mesh, "RouteConfiguration", &[route(rule)]).await;
    }
    let filters = [
        "fault: {delay: {duration: 10ms, percent: 12.5}, abort: {httpStatus: 503, percent: 1}}",
        "rateLimit: {requests: 100, per: 1s, burst: 20}",
        "rateLimit: {requests: 1, per: 20ms}",
        "hedge: {after: 50ms}",
        "compression: {}, cache: {defaultTtl: 1m}",
    ];
    for says in filters {
        takes(&mesh, "RouteConfiguration", &filtered(says)).await;
    }
    // What it has taken it still goes by.
    envoy.until_only(&["one"], None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy: tests/envoy/run"]
async fn envoy_takes_all_that_can_be_said_over_delta() {
    takes_all_that_can_be_said("DELTA_GRPC").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy: tests/envoy/run"]
async fn envoy_takes_all_that_can_be_said_over_state_of_the_world() {
    takes_all_that_can_be_said("GRPC").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy: tests/envoy/run"]
async fn envoy_sends_requests_to_the_subset_and_falls_back_as_the_policy_says() {
    let (mesh, _upstreams) = shop([json!({"version": "1"}), json!({"version": "2"})]).await;
    let envoy = Envoy::start(&mesh, "DELTA_GRPC").await;
    envoy.until_only(&["one", "two"], None).await;
    let by_header = |version: &str| {
        format!(
            "{{matches: [{{headers: [{{name: x-version, value: '{version}'}}]}}], backendRefs: [{{name: shop, subset: {{version: '{version}'}}}}]}}"
        )
    };
    let rules = ["1", "2", "3"].map(by_header).join(", ");
    let rules = format!("{rules}, {{backendRefs: [{{name: shop}}]}}");
    apply(&mesh, &[route(&rules)]).await;
    let version = |version| Some(("x-version", version));
    envoy.until_only(&["one"], version("1")).await;
    envoy.until_only(&["two"], version("2")).await;
    // Nobody has version 3.
    until("none is asked", PATIENCE, || async {
        let (status, body) = envoy.get(version("3")).await?;
        if status == StatusCode::SERVICE_UNAVAILABLE { Ok(()) } else { Err(body) }
    })
    .await;
    apply(&mesh, &[policy("subsets: {fallback: any}")]).await;
    envoy.until_only(&["one", "two"], version("3")).await;
    apply(&mesh, &[policy("subsets: {fallback: default, default: {version: '1'}}")]).await;
    envoy.until_only(&["one"], version("3")).await;
    envoy.until_only(&["one", "two"], None).await;
}

/// One instance takes requests and answers none; the other answers each that was sent to the first for too long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy: tests/envoy/run"]
async fn envoy_hedges_as_the_route_says() {
    let mesh = Mesh::with_servers(1).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let (at, answers) = (silent.local_addr().expect("it is bound"), FakeUpstream::start("two").await);
    let taken = tokio::spawn(async move {
        let mut connections = Vec::new();
        loop {
            connections.extend(silent.accept().await);
        }
    });
    register(&mesh, "silent", at, json!({})).await;
    register(&mesh, "two", answers.addr(), json!({})).await;
    let envoy = Envoy::start(&mesh, "DELTA_GRPC").await;
    apply(&mesh, &filtered("hedge: {after: 50ms}")).await;
    until("requests in a row are answered in time", PATIENCE, || async {
        for _ in 0..10 {
            let answer = tokio::time::timeout(Duration::from_secs(3), envoy.get(None)).await;
            let (status, body) = answer.map_err(|e| e.to_string())??;
            if (status, body.as_str()) != (StatusCode::OK, "two") {
                return Err(format!("{status} {body}"));
            }
        }
        Ok(())
    })
    .await;
    taken.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy: tests/envoy/run"]
async fn envoy_limits_the_rate_of_a_route() {
    let (mesh, _upstreams) = shop([json!({}), json!({})]).await;
    let envoy = Envoy::start(&mesh, "DELTA_GRPC").await;
    envoy.until_only(&["one", "two"], None).await;
    takes(&mesh, "RouteConfiguration", &filtered("rateLimit: {requests: 1, per: 1h, burst: 3}")).await;
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(envoy.get(None).await.expect("an answer").0.as_u16());
    }
    assert_eq!(seen, [200, 200, 200, 429, 429]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy: tests/envoy/run"]
async fn envoy_ejects_an_endpoint_that_fails() {
    let (mesh, upstreams) = shop([json!({}), json!({})]).await;
    apply(&mesh, &[policy("outlierDetection: {consecutiveFailures: 3, baseEjectionTime: 5m}")]).await;
    let envoy = Envoy::start(&mesh, "DELTA_GRPC").await;
    envoy.until_only(&["one", "two"], None).await;
    upstreams[0].answer_with(StatusCode::INTERNAL_SERVER_ERROR);
    envoy.until_only(&["two"], None).await;
    upstreams[0].answer_with(StatusCode::OK);
    assert_eq!(envoy.answers(20, None).await, Ok(["two".to_owned()].into()), "its time is not over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy: tests/envoy/run"]
async fn envoy_goes_to_the_next_priority_when_checks_fail() {
    let (mesh, mut upstreams) = shop([json!({}), json!({"priority": "9"})]).await;
    apply(&mesh, &[policy("healthCheck: {path: /health, interval: 200ms, timeout: 200ms}")]).await;
    let envoy = Envoy::start(&mesh, "DELTA_GRPC").await;
    envoy.until_only(&["one"], None).await;
    upstreams[0].crash().await;
    envoy.until_only(&["two"], None).await;
    upstreams[0].restart().await;
    envoy.until_only(&["one"], None).await;
}

/// A service that speaks nothing but HTTP/2; an endpoint that passes no check gets no request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Envoy: tests/envoy/run"]
async fn envoy_checks_a_service_of_http_2_over_http_2() {
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let at = listener.local_addr().expect("it is bound");
    let served = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = hyper::service::service_fn(async |_| {
                Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<bytes::Bytes>::new()))
            });
            let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(http2.serve_connection(TokioIo::new(stream), answer));
        }
    });
    let mesh = Mesh::with_servers(1).await;
    register(&mesh, "one", at, json!({"protocol": "grpc"})).await;
    apply(&mesh, &[policy("healthCheck: {path: /health, interval: 200ms, timeout: 1s}")]).await;
    let envoy = Envoy::start(&mesh, "DELTA_GRPC").await;
    until("the check passes", PATIENCE, || async {
        let (status, body) = envoy.get(None).await?;
        if status == StatusCode::OK { Ok(()) } else { Err(body) }
    })
    .await;
    served.abort();
}
