//! People who look on: requests as they end, what would become of one, and where its time went.

use std::path::Path;
use std::time::Duration;

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_proxy::telemetry::access_log::{AccessLogConfig, Format, Target};

use crate::support::*;

/// The body of `/tap`, as it comes.
async fn tap(proxy: &Proxy, query: &str) -> http::Response<hyper::body::Incoming> {
    let mut client = Client::http1(proxy.admin).await;
    let request = client.request(http::Method::GET, "admin", &format!("/tap?{query}"), empty());
    let answer = client.send(request).await.unwrap();
    // It ends with its connection, which the client holds.
    std::mem::forget(client);
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_seen_as_they_end_by_those_who_want_them() {
    let upstream = Upstream::start("a").await;
    let proxy = proxy(&orders(&[upstream.addr], "")).await;
    assert_eq!(get(proxy.outbound, "orders", "/before").await.status, StatusCode::OK);
    let mut looks = tap(&proxy, "service=orders&path=/seen&limit=2").await;
    assert_eq!(looks.status(), StatusCode::OK);
    for path in ["/seen/1", "/other", "/status/500", "/seen/2?a=b", "/seen/3"] {
        get(proxy.outbound, "orders", path).await;
    }
    let body = tokio::time::timeout(Duration::from_secs(10), looks.body_mut().collect()).await;
    let body = body.expect("it ends after two").unwrap().to_bytes();
    let lines: Vec<Value> =
        String::from_utf8_lossy(&body).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let paths: Vec<_> = lines.iter().map(|line| line["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/seen/1", "/seen/2?a=b"]);
    assert_eq!(lines[0]["endpoint"], upstream.addr.to_string());
    let refused = tap(&proxy, "status=9xx").await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    let why = refused.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&why).contains("status: \"9xx\"; allowed is"), "{why:?}");
}

async fn explained(proxy: &Proxy, query: &str) -> Value {
    let answer = get(proxy.admin, "admin", &format!("/explain?{query}")).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    serde_json::from_str(&answer.body).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_becomes_of_a_request_is_told_without_sending_it() {
    let (upstream, dead) = (Upstream::start("a").await, closed_port());
    let yaml = format!(
        "{}---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: shop}}
spec:
  parentRefs: [{{kind: Service, group: '', name: shop}}]
  rules:
    - name: new
      matches: [{{path: {{value: /new}}, headers: [{{name: x-canary, value: '1'}}]}}]
      backendRefs: [{{name: orders, weight: 3}}, {{name: orders, weight: 1, subset: {{version: '9'}}}}]
      timeouts: {{request: 2s}}
    - name: old
      matches: [{{path: {{value: /old}}}}]
      filters: [{{type: RequestRedirect, requestRedirect: {{hostname: elsewhere}}}}]
",
        orders(&[upstream.addr, dead], "    health-check: {interval: 100ms, unhealthy-threshold: 1}\n")
    );
    let proxy = proxy(&yaml).await;
    until("the dead one is known to be so", async || {
        let told = explained(&proxy, "host=orders").await;
        let statuses: Vec<_> = told["backends"][0]["cluster"]["endpoints"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| &e["status"])
            .collect();
        if statuses.iter().any(|s| **s == "failing-checks") { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
    let plain = explained(&proxy, "host=orders&path=/x").await;
    assert_eq!((&plain["verdict"], &plain["route"]), (&"forwarded".into(), &Value::Null), "{plain}");
    assert!(
        plain["why"].as_str().unwrap().contains("to one of 1 endpoints of orders, by round-robin"),
        "{plain}"
    );

    let routed = explained(&proxy, "host=shop&path=%2Fnew%2Fa&header=x-canary:1").await;
    assert_eq!((&routed["route"], &routed["timeout_ms"]), (&"shop/new".into(), &2000.into()), "{routed}");
    let shares: Vec<_> = routed["backends"].as_array().unwrap().iter().map(|b| &b["share_percent"]).collect();
    assert_eq!(shares, [&Value::from(75.0), &25.0.into()]);
    assert_eq!(routed["verdict"], "refused", "one way in four leads nowhere: {routed}");
    assert!(routed["why"].as_str().unwrap().contains("orders with version=9"), "{routed}");

    assert_eq!(explained(&proxy, "host=shop&path=/old").await["verdict"], "redirected");
    assert_eq!(explained(&proxy, "host=shop&path=/new").await["verdict"], "not found", "without its header");
    let nobody = explained(&proxy, "host=nobody").await;
    assert_eq!(nobody["verdict"], "unknown", "{nobody}");
    assert_eq!(upstream.served(), 0, "nothing but connections of checks came there");
    for (query, why) in
        [("path=/", "host is missing"), ("host=a&path=x", "with its slash"), ("host=a&colour=red", "unknown")]
    {
        let refused = get(proxy.admin, "admin", &format!("/explain?{query}")).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST);
        assert!(refused.body.contains(why), "{}", refused.body);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_this_sidecar_may_not_speak_to_are_told_to_refuse_the_request() {
    let upstream = Upstream::start("a").await;
    let proxy = proxy(&orders(&[upstream.addr], "    tls: {mode: mesh}\n")).await;
    let told = explained(&proxy, "host=orders").await;
    assert_eq!(told["verdict"], "refused", "{told}");
    assert!(told["why"].as_str().unwrap().contains("and this one has no certificate"), "{told}");
    assert_eq!(get(proxy.outbound, "orders", "/").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(upstream.served(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_asks_is_told_where_its_time_went() {
    let upstream = Upstream::start("a").await;
    let mut config = config(&orders(&[upstream.addr], ""));
    config.server_timing = true;
    let proxy = start(config).await;
    let mut client = Client::http1(proxy.outbound).await;
    let ask = Request::get("/slow/30").header("host", "orders").header("weft-timing", "1");
    let told = client.call(ask.body(empty()).unwrap()).await.unwrap();
    let timing = told.header("server-timing").to_owned();
    let millis = |name: &str| -> f64 {
        let part = timing.split(", ").find(|part| part.starts_with(&format!("{name};dur="))).expect(&timing);
        part.split_once('=').unwrap().1.parse().unwrap()
    };
    assert!(millis("endpoint") >= 30.0 && millis("weft-outbound") >= millis("endpoint"), "{timing}");
    assert!(millis("wait") + millis("connect") < millis("weft-outbound"), "{timing}");
    assert!(timing.ends_with("tries;desc=1"), "{timing}");
    assert_eq!(client.get("orders", "/").await.header("server-timing"), "", "only who asks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_have_golden_signals_of_their_own() {
    let upstream = Upstream::start("a").await;
    let yaml = format!(
        "{}---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec:\n  parentRefs: [{{kind: Service, group: '', name: orders}}]\n  rules:\n    - {{name: all, backendRefs: [{{name: orders}}]}}\n",
        orders(&[upstream.addr], "")
    );
    let proxy = proxy(&yaml).await;
    for path in ["/", "/status/404", "/status/503", "/"] {
        get(proxy.outbound, "orders", path).await;
    }
    let metrics = get(proxy.admin, "admin", "/metrics").await.body;
    for (class, n) in [("2xx", 2), ("4xx", 1), ("5xx", 1)] {
        let line = format!("weft_proxy_route_requests_total{{route=\"r/all\",class=\"{class}\"}} {n}");
        assert!(metrics.contains(&line), "{line} not in {metrics}");
    }
    assert!(
        metrics.contains("weft_proxy_route_request_duration_seconds_count{route=\"r/all\"} 4"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_of_bytes_is_a_line_of_the_log_when_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("access.log");
    let (addr, _task) = raw_upstream(|mut stream, _| async move {
        let mut seen = [0; 4];
        if stream.read_exact(&mut seen).await.is_ok() {
            let _ = stream.write_all(b"pong pong").await;
        }
    })
    .await;
    let mut config = config(&orders(&[addr], ""));
    config.upstreams = vec!["127.0.0.1:0=orders,protocol=tcp".parse().unwrap()];
    config.access_log = Some(AccessLogConfig { target: Target::File(file.clone()), format: Format::Json });
    let proxy = start(config).await;
    let at = proxy.running.addrs().upstreams[0].address.clone();
    let mut stream = TcpStream::connect(&at).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "pong pong");
    drop(stream);
    until("the line is written", async || {
        let text = std::fs::read_to_string(Path::new(&file)).unwrap();
        let line: Value = serde_json::from_str(text.lines().next().unwrap_or("null")).unwrap();
        let seen = (&line["protocol"], &line["service"], &line["bytes"], &line["endpoint"], &line["flags"]);
        let addr = Value::from(addr.to_string());
        if seen == (&"TCP".into(), &"orders".into(), &9.into(), &addr, &Value::Array(vec![])) {
            Ok(())
        } else {
            Err(text)
        }
    })
    .await;
}
