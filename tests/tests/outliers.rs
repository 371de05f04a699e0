//! Endpoints that do worse than the others of their service, as a sidecar that is another process treats them.

use std::collections::BTreeMap;
use std::time::Duration;

use http::StatusCode;
use serde_json::Value;
use tokio::task::JoinSet;
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::mesh::strings;
use weft_tests::process::WeftProcess;
use weft_tests::wait::until;

/// The machine may be busy.
const SOON: Duration = Duration::from_secs(40);

/// Requests at one time.
const CLIENTS: usize = 12;
/// Of each of them, in a row.
const REQUESTS: usize = 10;

/// A sidecar, and the endpoints that all of its services have.
struct Scene {
    proxy: WeftProcess,
    endpoints: Vec<FakeUpstream>,
}

impl Scene {
    /// Each service is given with its `outlier-detection`.
    async fn new(endpoints: &[&str], services: &[(&str, &str)]) -> Self {
        let mut upstreams = Vec::new();
        for name in endpoints {
            upstreams.push(FakeUpstream::start(name).await);
        }
        let addrs: Vec<_> = upstreams.iter().map(|e| format!("'{}'", e.addr())).collect();
        let mut text = "name: edge\nadmin: 127.0.0.1:0\noutbound: 127.0.0.1:0\nclusters:\n".to_owned();
        for (name, rule) in services {
            text += &format!("  - name: {name}\n    endpoints: [{}]\n", addrs.join(", "));
            text += &format!("    outlier-detection: {{{rule}}}\n");
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("edge.yaml");
        std::fs::write(&file, text).expect("the folder is ours");
        let args = strings(&["proxy", "--config", &file.display().to_string()]);
        Self { proxy: WeftProcess::start("edge", &args).await, endpoints: upstreams }
    }

    /// Many requests, whatever is answered. Tells how many of them came to each endpoint.
    async fn ask(&self, service: &'static str) -> Vec<u64> {
        let before: Vec<_> = self.endpoints.iter().map(FakeUpstream::served).collect();
        let (addr, mut clients) = (self.proxy.addr("outbound"), JoinSet::new());
        for _ in 0..CLIENTS {
            clients.spawn(async move {
                for _ in 0..REQUESTS {
                    http_client::get(addr, service, "/x").await.expect("an answer");
                }
            });
        }
        while let Some(client) = clients.join_next().await {
            client.expect("each request is answered");
        }
        self.endpoints.iter().zip(before).map(|(e, before)| e.served() - before).collect()
    }

    /// Who is ejected, and why.
    async fn ejected(&self, service: &str) -> BTreeMap<&str, String> {
        let answer = http_client::get(self.proxy.addr("admin"), "admin", "/clusters?format=json").await;
        let all = answer.expect("the admin port answers").json();
        let rows = |v: &Value| v["endpoints"].as_array().cloned();
        let cluster = all["outbound"].as_array().and_then(|all| all.iter().find(|c| c["name"] == service));
        let rows = cluster.and_then(rows).unwrap_or_else(|| panic!("{service} is not in {all}"));
        let name = |row: &Value| {
            let found = self.endpoints.iter().find(|e| row["address"] == e.addr().to_string().as_str());
            found.expect("one of ours").name()
        };
        let cause = |row: &Value| Some((name(row), row["ejected"]["cause"].as_str()?.to_owned()));
        rows.iter().filter_map(cause).collect()
    }

    async fn metric(&self, line: &str) -> bool {
        let metrics = http_client::get(self.proxy.addr("admin"), "admin", "/metrics").await;
        metrics.expect("the admin port answers").body.lines().any(|l| l == line)
    }

    /// The first endpoint is ejected while it is worse than the others, and back when it no longer is; no other ever is.
    async fn first_is_out_and_back(
        &self,
        service: &'static str,
        cause: &str,
        heal: impl FnOnce(&FakeUpstream),
    ) {
        let first = &self.endpoints[0];
        let out = BTreeMap::from([(first.name(), cause.to_owned())]);
        until("the worst one is ejected", SOON, || async {
            self.ask(service).await;
            let seen = self.ejected(service).await;
            assert!(seen.is_empty() || seen == out, "of {service} are ejected: {seen:?}");
            if seen == out { Ok(()) } else { Err("none is".to_owned()) }
        })
        .await;
        let came = self.ask(service).await;
        // Its time may have been over before the last one.
        if self.ejected(service).await == out {
            assert_eq!(came[0], 0, "none is sent there: {came:?}");
        }
        heal(first);
        until("it is back", SOON, || async {
            self.ask(service).await;
            let seen = self.ejected(service).await;
            assert!(seen.is_empty() || seen == out, "of {service} are ejected: {seen:?}");
            if seen.is_empty() { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        let came = self.ask(service).await;
        let fair = (CLIENTS * REQUESTS / self.endpoints.len()) as u64;
        assert!(came.iter().all(|n| n.abs_diff(fair) <= 1), "all have their share again: {came:?}");
        assert_eq!(self.ejected(service).await, BTreeMap::new());
    }
}

/// Every third answer of it is bad: it never fails five times in a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_whose_share_of_good_answers_is_far_below_the_others_is_ejected_and_comes_back() {
    let rule = "success-rate: {min-requests: 20}, interval: 1s, base-ejection-time: 2s";
    let scene = Scene::new(&["bad", "a", "b", "c", "d"], &[("shop", rule)]).await;
    scene.endpoints[0].answer_each_with(3, StatusCode::INTERNAL_SERVER_ERROR);
    let heal = |bad: &FakeUpstream| bad.answer_with(StatusCode::OK);
    scene.first_is_out_and_back("shop", "success-rate", heal).await;
}

/// All take their time, so that a machine that is busy for a moment makes none of the others look slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_takes_many_times_as_long_as_the_others_is_ejected_and_comes_back() {
    const USUAL: Duration = Duration::from_millis(20);
    let rule = "latency: {threshold: 4, min-requests: 10}, interval: 1s, base-ejection-time: 2s";
    let scene = Scene::new(&["slow", "a", "b"], &[("shop", rule)]).await;
    for endpoint in &scene.endpoints {
        endpoint.answer_after(USUAL);
    }
    scene.endpoints[0].answer_after(USUAL * 10);
    scene.first_is_out_and_back("shop", "latency", |slow| slow.answer_after(USUAL)).await;
}

/// P40: all of three fail as often, and 67 % of three are two; the share is that after the ejection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_are_ejected_than_the_greatest_share_of_them() {
    let rule = |percent: u32| {
        format!(
            "failure-percentage: {{threshold: 40, min-hosts: 1, min-requests: 10}}, interval: 1s, \
             consecutive-failures: 100, base-ejection-time: 1h, max-ejection-percent: {percent}"
        )
    };
    let (at_66, at_67, at_100) = (rule(66), rule(67), rule(100));
    let services = [("at-66", at_66.as_str(), 1), ("at-67", &at_67, 2), ("at-100", &at_100, 2)];
    let scene = Scene::new(&["a", "b", "c"], &services.map(|(name, rule, _)| (name, rule))).await;
    for endpoint in &scene.endpoints {
        endpoint.answer_each_with(2, StatusCode::INTERNAL_SERVER_ERROR);
    }
    for (service, _, most) in services {
        until(&format!("{most} of {service} are ejected"), SOON, || async {
            scene.ask(service).await;
            let seen = scene.ejected(service).await;
            if seen.len() == most { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        // Those that are left go on failing, in further intervals.
        let go_on = async {
            loop {
                let came = scene.ask(service).await;
                let seen = scene.ejected(service).await;
                assert_eq!(seen.len(), most, "of {service}: {seen:?}");
                assert_eq!(came.iter().filter(|n| **n > 0).count(), 3 - most, "the others answer: {came:?}");
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(2500), go_on).await;
        let line =
            format!("weft_proxy_ejections_total{{direction=\"outbound\",service=\"{service}\"}} {most}");
        assert!(scene.metric(&line).await, "{line}");
    }
}
