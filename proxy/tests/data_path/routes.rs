//! Routes in the words of the Gateway API, over real sockets.

use std::time::{Duration, Instant};

use http::{Method, Request, StatusCode};

use crate::support::*;

/// A proxy with the services a and b, and one route for the service `orders`.
async fn routed(a: &Upstream, b: &Upstream, rules: &str) -> Proxy {
    with_documents(a, b, &orders_route(rules)).await
}

async fn with_documents(a: &Upstream, b: &Upstream, documents: &str) -> Proxy {
    let (a, b) = (a.addr, b.addr);
    let no_ejection = "outlier-detection: {consecutive-failures: 0}";
    proxy(&format!(
        "clusters:\n  - {{name: a, endpoints: ['{a}'], {no_ejection}}}\n  - {{name: b, endpoints: ['{b}'], {no_ejection}}}\n{documents}"
    ))
    .await
}

fn orders_route(rules: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: orders}}\nspec:\n  parentRefs: [{{kind: Service, group: '', name: orders}}]\n  rules:\n{rules}"
    )
}

async fn call(proxy: &Proxy, request: http::request::Builder) -> Reply {
    let mut client = Client::http1(proxy.outbound).await;
    let request = request.header("host", "orders:8080").body(empty()).unwrap();
    client.call(request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_routed_by_path_header_query_and_method() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let proxy = routed(
        &a,
        &b,
        "
    - matches: [{path: {value: /v2}}, {headers: [{name: x-canary, value: 'yes'}]}]
      backendRefs: [{name: b, port: 80}]
    - matches: [{queryParams: [{name: to, value: b}]}, {method: DELETE}]
      backendRefs: [{name: b}]
    - matches: [{path: {value: /}}, {path: {type: Exact, value: /v2/old}}]
      backendRefs: [{name: a}]
",
    )
    .await;
    for (request, expected) in [
        (Request::get("/"), "a"),
        (Request::get("/v2"), "b"),
        (Request::get("/v2/x"), "b"),
        (Request::get("/v2x"), "a"),
        (Request::get("/v2/old"), "a"),
        (Request::get("/").header("x-canary", "yes"), "b"),
        (Request::get("/").header("x-canary", "no"), "a"),
        (Request::get("/?x&to=b"), "b"),
        (Request::delete("/"), "b"),
    ] {
        let text = format!("{request:?}");
        assert_eq!(call(&proxy, request).await.body, expected, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_no_rule_matches_is_answered_404_by_the_proxy() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let proxy = routed(&a, &b, "    - {matches: [{path: {value: /a}}], backendRefs: [{name: a}]}\n").await;
    let reply = call(&proxy, Request::get("/b")).await;
    assert_eq!((reply.status, reply.header("x-weft-error")), (StatusCode::NOT_FOUND, "no-route"));
    assert!(reply.body.contains("GET /b") && reply.body.contains("orders"), "{}", reply.body);
    assert_eq!(a.served() + b.served(), 0);
}

/// The data path's half of D07; the draw itself is tested over 100,000 requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_is_split_by_weight() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let rules = "    - backendRefs: [{name: a, weight: 3}, {name: b, weight: 1}, {name: c, weight: 0}]\n";
    let proxy = routed(&a, &b, rules).await;
    let mut client = Client::http1(proxy.outbound).await;
    let mut to_b = 0;
    for _ in 0..400 {
        let reply = client.get("orders", "/").await;
        assert_eq!(reply.status, StatusCode::OK);
        to_b += usize::from(reply.body == "b");
    }
    // Five standard deviations.
    assert!((57..=143).contains(&to_b), "{to_b} of 400");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn path_host_and_fields_are_changed_on_the_way() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let proxy = routed(
        &a,
        &b,
        "
    - matches: [{path: {value: /old}}]
      filters:
        - type: URLRewrite
          urlRewrite: {hostname: new.test, path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}
        - type: RequestHeaderModifier
          requestHeaderModifier: {set: [{name: X-Set, value: '50%'}], add: [{name: X-Add, value: two}], remove: [X-Secret]}
        - type: ResponseHeaderModifier
          responseHeaderModifier: {set: [{name: X-Answer, value: 'yes'}], remove: [X-Upstream]}
      backendRefs:
        - name: a
          filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-backend, value: a}]}}]
",
    )
    .await;
    let request = Request::get("/old/request?q=1")
        .header("x-set", "before")
        .header("x-add", "one")
        .header("x-secret", "1");
    let reply = call(&proxy, request).await;
    assert!(reply.body.starts_with("GET /request?q=1\n"), "{}", reply.body);
    for part in ["host: new.test\n", "x-set: 50%\n", "x-add: one\nx-add: two\n", "x-backend: a\n"] {
        assert!(reply.body.contains(part), "{part:?} not in {}", reply.body);
    }
    assert!(!reply.body.contains("x-secret") && !reply.body.contains("before"), "{}", reply.body);
    assert_eq!(reply.header("x-answer"), "yes");
    assert!(!reply.headers.contains_key("x-upstream"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_and_own_answers_reach_no_service() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let documents = "---\napiVersion: weft.dev/v1\nkind: HTTPRouteFilter\nmetadata: {name: gone}\nspec: {directResponse: {statusCode: 410, body: it moved}}\n".to_owned()
        + &orders_route(
            "
    - matches: [{path: {value: /go}}]
      filters: [{type: RequestRedirect, requestRedirect: {scheme: https, hostname: new.test, statusCode: 308, path: {type: ReplacePrefixMatch, replacePrefixMatch: /went}}}]
    - filters: [{type: ExtensionRef, extensionRef: {group: weft.dev, kind: HTTPRouteFilter, name: gone}}]
",
        );
    let proxy = with_documents(&a, &b, &documents).await;
    let reply = call(&proxy, Request::get("/go/x?q=1")).await;
    assert_eq!((reply.status.as_u16(), reply.header("location")), (308, "https://new.test/went/x?q=1"));
    let reply = call(&proxy, Request::get("/other")).await;
    assert_eq!((reply.status, reply.body.as_str()), (StatusCode::GONE, "it moved"));
    assert_eq!(a.served() + b.served(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_that_walk_around_a_route_do_not() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let proxy = routed(
        &a,
        &b,
        "
    - {matches: [{path: {value: /admin}}], backendRefs: [{name: b}]}
    - {backendRefs: [{name: a}]}
",
    )
    .await;
    for path in
        ["/admin", "//admin", "/x/../admin", "/./admin", "/%61dmin", "/x/%2e%2e/admin", "/x%2f/../admin"]
    {
        let answer = raw(
            proxy.outbound,
            format!("GET {path} HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await;
        assert!(answer.ends_with('b'), "{path}: {answer}");
    }
    for path in ["/x/..%2fadmin", "/x%5c..%5cadmin", "/x/..;/admin", "/a%00", "/%zz", "/a\\..\\admin"] {
        let answer = raw(
            proxy.outbound,
            format!("GET {path} HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n\r\n").as_bytes(),
        )
        .await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{path}: {answer}");
    }
    let reply = call(&proxy, Request::get("/x/../y//request")).await;
    assert_eq!(reply.body, "a");
    let forwarded = call(&proxy, Request::get("/x/..//request?a=/../b")).await;
    assert!(forwarded.body.starts_with("GET /request?a=/../b\n"), "as it was matched: {}", forwarded.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_ends_with_its_route_s_time() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let proxy = routed(&a, &b, "    - {timeouts: {request: 200ms}, backendRefs: [{name: a}]}\n").await;
    let started = Instant::now();
    let reply = call(&proxy, Request::get("/slow/5000")).await;
    assert_eq!(
        (reply.status, reply.header("x-weft-error")),
        (StatusCode::GATEWAY_TIMEOUT, "upstream-timeout")
    );
    assert!(reply.body.contains("200ms"), "{}", reply.body);
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    assert_eq!(call(&proxy, Request::get("/slow/1")).await.status, StatusCode::OK);
}

/// D08: what is not safe to repeat is not repeated, whatever the route says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_s_retries_repeat_what_is_safe_and_nothing_else() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let proxy = routed(
        &a,
        &b,
        "    - {retry: {codes: [503], attempts: 2, backoff: 1ms}, backendRefs: [{name: a}]}\n",
    )
    .await;
    assert_eq!(call(&proxy, Request::get("/status/503")).await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(a.served(), 3, "one try and two more");
    call(&proxy, Request::get("/status/502")).await;
    assert_eq!(a.served(), 4, "another status is an answer");
    call(&proxy, Request::post("/status/503")).await;
    assert_eq!(a.served(), 5, "a POST goes out once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_that_takes_too_long_is_repeated() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let proxy = routed(
        &a,
        &b,
        "    - {timeouts: {backendRequest: 100ms}, retry: {attempts: 1, backoff: 1ms}, backendRefs: [{name: a}]}\n",
    )
    .await;
    assert_eq!(call(&proxy, Request::get("/slow/3000")).await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(a.served(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_gets_a_copy_with_its_body_and_changes_nothing() {
    let a = Upstream::start("a").await;
    let (mirror, mut copies) = {
        let (sender, copies) = tokio::sync::mpsc::channel::<String>(4);
        let (addr, _task) = raw_upstream(move |mut stream, _| {
            let sender = sender.clone();
            async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let mut seen = Vec::new();
                let mut buffer = [0; 4096];
                while !String::from_utf8_lossy(&seen).contains("the end") {
                    match stream.read(&mut buffer).await {
                        Ok(n @ 1..) => seen.extend_from_slice(&buffer[..n]),
                        _ => break,
                    }
                }
                let _ = stream.write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n").await;
                let _ = sender.send(String::from_utf8_lossy(&seen).into_owned()).await;
            }
        })
        .await;
        (addr, copies)
    };
    let yaml = format!(
        "clusters:\n  - {{name: a, endpoints: ['{}']}}\n  - {{name: m, endpoints: ['{mirror}']}}\n{}",
        a.addr,
        orders_route(
            "    - {filters: [{type: RequestMirror, requestMirror: {backendRef: {name: m}}}], backendRefs: [{name: a}]}\n"
        )
    );
    let proxy = proxy(&yaml).await;
    let mut client = Client::http1(proxy.outbound).await;
    let request = client.request(Method::POST, "orders", "/echo", full("a body, and the end"));
    let reply = client.call(request).await.unwrap();
    assert_eq!((reply.status, reply.body.as_str()), (StatusCode::OK, "a body, and the end"));
    let copy = tokio::time::timeout(Duration::from_secs(5), copies.recv()).await.unwrap().unwrap();
    assert!(copy.starts_with("POST /echo HTTP/1.1\r\n") && copy.contains("a body, and the end"), "{copy}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_that_takes_nothing_does_not_hold_the_request_up() {
    let a = Upstream::start("a").await;
    let (mirror, _task) = raw_upstream(|stream, _| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    })
    .await;
    let yaml = format!(
        "clusters:\n  - {{name: a, endpoints: ['{}']}}\n  - {{name: m, endpoints: ['{mirror}']}}\n{}",
        a.addr,
        orders_route(
            "    - {filters: [{type: RequestMirror, requestMirror: {backendRef: {name: m}}}], backendRefs: [{name: a}]}\n"
        )
    );
    let proxy = proxy(&yaml).await;
    let mut client = Client::http1(proxy.outbound).await;
    // More than the sockets between hold.
    let body = vec![b'x'; 32 * 1024 * 1024];
    let request = client.request(Method::POST, "orders", "/echo", full(body.clone()));
    let reply = tokio::time::timeout(Duration::from_secs(30), client.call(request)).await.unwrap().unwrap();
    assert_eq!((reply.status, reply.body.len()), (StatusCode::OK, body.len()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_are_made_as_asked() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let documents = "---\napiVersion: weft.dev/v1\nkind: HTTPRouteFilter\nmetadata: {name: bad}\nspec: {fault: {delay: {duration: 150ms}, abort: {httpStatus: 418}}}\n".to_owned()
        + &orders_route("    - {filters: [{type: ExtensionRef, extensionRef: {group: weft.dev, kind: HTTPRouteFilter, name: bad}}], backendRefs: [{name: a}]}\n");
    let proxy = with_documents(&a, &b, &documents).await;
    let started = Instant::now();
    let reply = call(&proxy, Request::get("/")).await;
    assert_eq!((reply.status.as_u16(), reply.header("x-weft-error")), (418, "fault"));
    assert!(started.elapsed() >= Duration::from_millis(150));
    assert_eq!(a.served(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_of_grpc_is_a_status_of_grpc() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let proxy = filtered(&a, &b, "{fault: {abort: {grpcStatus: 14}}}").await;
    let mut client = Client::http2(proxy.outbound).await;
    let mut request = client.request(Method::POST, "orders", "/shop.Orders/Get", empty());
    request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    let answer = client.call(request).await.unwrap();
    assert_eq!((answer.status, answer.header("grpc-status")), (StatusCode::OK, "14"));
    assert_eq!(a.served() + b.served(), 0);
}

/// Of 400, within four standard deviations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_gets_the_share_of_the_requests_that_it_is_said_to() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let proxy = routed(
        &a,
        &b,
        "    - {filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b}, percent: 25}}], backendRefs: [{name: a}]}\n",
    )
    .await;
    let mut client = Client::http1(proxy.outbound).await;
    for _ in 0..400 {
        assert_eq!(client.get("orders", "/").await.body, "a");
    }
    let expected = 65..=135;
    until("the mirror has had its share", || async {
        if expected.contains(&b.served()) { Ok(()) } else { Err(b.served().to_string()) }
    })
    .await;
    assert!(a.served() == 400 && expected.contains(&b.served()), "{} of {}", b.served(), a.served());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_of_browsers_are_answered_and_answers_are_shown_to_their_pages() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let proxy = routed(
        &a,
        &b,
        "    - {filters: [{type: CORS, cors: {allowOrigins: ['https://*.page.test'], allowMethods: [PUT]}}], backendRefs: [{name: a}]}\n",
    )
    .await;
    let origin = "https://a.page.test";
    let question =
        Request::options("/").header("origin", origin).header("access-control-request-method", "PUT");
    let reply = call(&proxy, question).await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (StatusCode::NO_CONTENT, origin));
    assert_eq!(a.served(), 0, "the service is not asked");
    let reply = call(&proxy, Request::get("/").header("origin", origin)).await;
    assert_eq!((reply.body.as_str(), reply.header("access-control-allow-origin")), ("a", origin));
    let reply = call(&proxy, Request::get("/").header("origin", "https://evil.test")).await;
    assert!(!reply.headers.contains_key("access-control-allow-origin"), "{:?}", reply.headers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_routed_by_service_and_method_over_http2() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let documents = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: g}\nspec:\n  hostnames: ['*.calls.test']\n  rules:\n    - {matches: [{method: {service: shop.Orders, method: Get}}], backendRefs: [{name: b}]}\n    - {matches: [{method: {service: shop.Orders}}], backendRefs: [{name: a}]}\n";
    let proxy = with_documents(&a, &b, documents).await;
    let mut client = Client::http2(proxy.outbound).await;
    for (path, expected) in [("/shop.Orders/Get", "b"), ("/shop.Orders/List", "a")] {
        let mut request = client.request(Method::POST, "x.calls.test", path, empty());
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        assert_eq!(client.call(request).await.unwrap().body, expected, "{path}");
    }
    let request = client.request(Method::POST, "x.calls.test", "/shop.Orders/Get", empty());
    assert_eq!(client.call(request).await.unwrap().status, StatusCode::NOT_FOUND, "that is no call");
}

/// What a filter document does, on a route to `a`.
async fn filtered(a: &Upstream, b: &Upstream, spec: &str) -> Proxy {
    let documents = format!(
        "---\napiVersion: weft.dev/v1\nkind: HTTPRouteFilter\nmetadata: {{name: f}}\nspec: {spec}\n{}",
        orders_route(
            "    - {filters: [{type: ExtensionRef, extensionRef: {group: weft.dev, kind: HTTPRouteFilter, name: f}}], backendRefs: [{name: a}]}\n"
        )
    );
    with_documents(a, b, &documents).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_compressed_for_clients_that_take_it() {
    use std::io::Read;
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let proxy = filtered(&a, &b, "{compression: {minBytes: 10}}").await;
    let mut client = Client::http1(proxy.outbound).await;
    let text = "to be or not to be, ".repeat(5_000);
    let mut send = async |accept: &str| {
        let mut request = client.request(Method::POST, "orders", "/text", full(text.clone()));
        request.headers_mut().insert("accept-encoding", accept.parse().unwrap());
        client.send(request).await.unwrap()
    };
    let response = send("gzip").await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    assert_eq!(response.headers()["vary"], "accept-encoding");
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    assert!(body.len() < text.len() / 10, "{} bytes", body.len());
    let mut back = String::new();
    flate2::read::GzDecoder::new(&body[..]).read_to_string(&mut back).unwrap();
    assert_eq!(back, text);
    let response = send("br").await;
    assert!(!response.headers().contains_key("content-encoding"));
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    assert_eq!(body, text.as_bytes());
}

/// Keeps what `upstream` answers for a minute.
fn caching(upstream: &Upstream) -> weft_proxy::config::ProxyConfig {
    let documents = format!(
        "---\napiVersion: weft.dev/v1\nkind: HTTPRouteFilter\nmetadata: {{name: f}}\nspec: {{cache: {{defaultTtl: 1m}}}}\n{}",
        orders_route(
            "    - {filters: [{type: ExtensionRef, extensionRef: {group: weft.dev, kind: HTTPRouteFilter, name: f}}], backendRefs: [{name: a}]}\n"
        )
    );
    config(&format!("clusters:\n  - {{name: a, endpoints: ['{}']}}\n{documents}", upstream.addr))
}

/// RFC 9111 §4.4, on each worker: their connections come to one or another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_through_one_worker_takes_out_what_the_others_have_stored() {
    let a = Upstream::start("a").await;
    let mut config = caching(&a);
    config.workers = 4;
    let proxy = start(config).await;
    let hits = async || {
        let mut hits = 0;
        for _ in 0..40 {
            hits += usize::from(call(&proxy, Request::get("/x")).await.header("cache-status") == "weft; hit");
        }
        hits
    };
    assert!(hits().await >= 36, "each worker has fetched it once");
    let before = a.served();
    call(&proxy, Request::post("/x")).await;
    let (again, fetched) = (hits().await, a.served() - before - 1);
    assert_eq!(again + fetched, 40);
    assert!(fetched >= 2, "not that worker alone: {fetched}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_kept_and_used_again_until_their_target_changes() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let mut config = caching(&a);
    // Each worker has a cache of its own.
    config.workers = 1;
    let proxy = start(config).await;
    let first = call(&proxy, Request::get("/x?q=1")).await;
    assert_eq!((first.body.as_str(), a.served()), ("a", 1));
    let second = call(&proxy, Request::get("/x?q=1")).await;
    assert_eq!((second.body.as_str(), second.header("cache-status"), a.served()), ("a", "weft; hit", 1));
    assert!(second.headers.contains_key("age"));
    call(&proxy, Request::get("/x?q=2")).await;
    call(&proxy, Request::get("/x?q=1").header("cache-control", "no-cache")).await;
    call(&proxy, Request::get("/x?q=1").header("range", "bytes=0-0")).await;
    assert_eq!(a.served(), 4, "another target, and what asks past the cache");
    call(&proxy, Request::post("/x?q=1")).await;
    call(&proxy, Request::get("/x?q=1")).await;
    assert_eq!(a.served(), 6, "a POST takes out what is stored");
    let mut client = Client::http1(proxy.outbound).await;
    for body in ["first", "second"] {
        let mut search = client.request(http::Method::GET, "orders", "/x?q=1", full(body));
        search.headers_mut().insert("content-type", "text/plain".parse().unwrap());
        assert_eq!(
            client.call(search).await.unwrap().header("cache-status"),
            "",
            "a body asks for something else"
        );
    }
    assert_eq!(a.served(), 8);
    assert_eq!(b.served(), 0);
}
