//! Which part of a service a request goes to: priorities, zones, and subsets of a route.

use std::collections::BTreeMap;

use http::StatusCode;
use weft_xds_proto::resource::labels::Place;

use crate::support::*;

/// A cluster `orders` whose endpoints have labels.
fn labelled(endpoints: &[(&Upstream, &str)], more: &str) -> String {
    let line = |(upstream, labels): &(&Upstream, &str)| {
        format!("      - {{address: \"{}\", labels: {{{labels}}}}}\n", upstream.addr)
    };
    let endpoints: String = endpoints.iter().map(line).collect();
    format!("clusters:\n  - name: orders\n    endpoints:\n{endpoints}{more}")
}

/// How often each upstream answered.
async fn spread(proxy: &Proxy, n: usize) -> BTreeMap<String, usize> {
    let mut client = Client::http1(proxy.outbound).await;
    let mut seen = BTreeMap::new();
    for _ in 0..n {
        let reply = client.get("orders", "/").await;
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.body);
        *seen.entry(reply.body).or_default() += 1;
    }
    seen
}

fn all(name: &str, n: usize) -> BTreeMap<String, usize> {
    BTreeMap::from([(name.to_owned(), n)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_priority_takes_over_when_the_first_fails_and_gives_back_when_it_returns() {
    let (mut first, second) = (Upstream::start("first").await, Upstream::start("second").await);
    let more = "    outlier-detection: {base-ejection-time: 200ms, max-ejection-percent: 100}\n";
    let endpoints = [(&first, "zone: a"), (&second, "priority: \"1\"")];
    let proxy = proxy(&labelled(&endpoints, more)).await;
    assert_eq!(spread(&proxy, 20).await, all("first", 20));
    first.kill().await;
    assert_eq!(spread(&proxy, 20).await, all("second", 20), "and no request failed");
    first.revive().await;
    until("the first priority is back", async || match spread(&proxy, 5).await {
        seen if seen == all("first", 5) => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_of_the_own_zone_come_first_then_those_of_the_region() {
    let (mut zone, mut region) = (Upstream::start("zone").await, Upstream::start("region").await);
    let far = Upstream::start("far").await;
    let endpoints =
        [(&zone, "region: eu, zone: a"), (&region, "region: eu, zone: b"), (&far, "region: us, zone: a")];
    let yaml =
        labelled(&endpoints, "    zone-aware: {}\n    outlier-detection: {max-ejection-percent: 100}\n");
    let mut here = config(&yaml);
    here.place = Place { region: "eu".to_owned(), zone: "a".to_owned() };
    let proxy = start(here).await;
    assert_eq!(spread(&proxy, 20).await, all("zone", 20));
    zone.kill().await;
    assert_eq!(spread(&proxy, 20).await, all("region", 20));
    region.kill().await;
    assert_eq!(spread(&proxy, 20).await, all("far", 20));
    let nowhere = super::support::proxy(&yaml).await;
    let seen = get(nowhere.admin, "admin", "/clusters?format=json").await.body;
    assert!(seen.contains("\"zone_aware\""), "{seen}");
}

/// Version-aware routing: by a range of versions, by a label, and none at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_leads_to_the_instances_that_its_subset_names() {
    let (old, new, beta) =
        (Upstream::start("1.4").await, Upstream::start("2.1").await, Upstream::start("3.0-beta").await);
    let endpoints =
        [(&old, "version: \"1.4.0\""), (&new, "version: \"2.1.0\""), (&beta, "version: \"3.0.0-beta\"")];
    let yaml = format!(
        "{}---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: versions}}
spec:
  parentRefs: [{{kind: Service, group: '', name: orders}}]
  rules:
    - matches: [{{headers: [{{name: x-want, value: beta}}]}}]
      backendRefs: [{{name: orders, subset: {{version: 3.0.0-beta}}}}]
    - matches: [{{headers: [{{name: x-want, value: none}}]}}]
      backendRefs: [{{name: orders, subset: {{version: '9'}}}}]
    - backendRefs: [{{name: orders, subset: {{version: '>=1.5'}}}}]
",
        labelled(&endpoints, "")
    );
    let proxy = proxy(&yaml).await;
    assert_eq!(spread(&proxy, 10).await, all("2.1", 10), "a beta is in no range that does not name it");
    let mut client = Client::http1(proxy.outbound).await;
    let mut want = async |what: &str| {
        let request = http::Request::get("/").header("host", "orders").header("x-want", what);
        client.call(request.body(empty()).unwrap()).await.unwrap()
    };
    assert_eq!(want("beta").await.body, "3.0-beta");
    let none = want("none").await;
    assert_eq!((none.status, none.header("x-weft-error")), (StatusCode::SERVICE_UNAVAILABLE, "no-endpoint"));
    assert!(none.body.contains("version=9"), "{}", none.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_without_a_usable_instance_is_stood_in_for_as_the_service_says() {
    let upstreams = [Upstream::start("stable").await, Upstream::start("other").await];
    let endpoints = [(&upstreams[0], "version: stable"), (&upstreams[1], "version: next")];
    let route = "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r}
spec:
  parentRefs: [{kind: Service, group: '', name: orders}]
  rules: [{backendRefs: [{name: orders, subset: {version: gone}}]}]
";
    let with = async |keys: &str| proxy(&format!("{}{route}", labelled(&endpoints, keys))).await;
    let none = with("    subsets: {fallback: none}\n").await;
    assert_eq!(get(none.outbound, "orders", "/").await.status, StatusCode::SERVICE_UNAVAILABLE);
    let default = with("    subsets: {fallback: default, default: {version: stable}}\n").await;
    assert_eq!(spread(&default, 10).await, all("stable", 10));
    let any = with("    subsets: {fallback: any}\n").await;
    let seen = spread(&any, 10).await;
    assert_eq!(seen.values().copied().collect::<Vec<_>>(), [5, 5], "{seen:?}");
    let told = get(default.admin, "admin", "/explain?host=orders").await.body;
    assert!(told.contains("with version=stable, for want of one with version=gone"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoint_that_reports_less_load_gets_the_requests() {
    let (busy, idle) = (Upstream::start("busy").await, Upstream::start("idle").await);
    let endpoints = [
        (&busy, "capacity: \"100\", current_load: \"90\""),
        (&idle, "capacity: \"100\", current_load: \"10\""),
    ];
    let proxy = proxy(&labelled(&endpoints, "    load-balancing: lowest-load\n")).await;
    assert_eq!(spread(&proxy, 20).await, all("idle", 20));
}

/// Instances tell their load in what their checks are answered with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn load_that_checks_are_answered_with_decides() {
    let reporting = |name: &'static str, load: u32| {
        raw_upstream(move |mut stream, _| async move {
            while let Some(head) = read_head(&mut stream).await {
                let body = match head.starts_with("GET /health") {
                    true => format!("{{\"status\":\"UP\",\"current_load\":{load},\"capacity\":100}}"),
                    false => name.to_owned(),
                };
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                if tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        })
    };
    let ((busy, _busy), (idle, _idle)) = (reporting("busy", 80).await, reporting("idle", 5).await);
    let more = "    load-balancing: lowest-load\n    health-check: {path: /health, interval: 100ms}\n";
    let proxy = proxy(&orders(&[busy, idle], more)).await;
    until("the load of both is known", async || match spread(&proxy, 10).await {
        seen if seen == all("idle", 10) => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
}
