//! Policies for the traffic to a service, from a file on the command line to what a proxy does that is another process.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::Value;
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::load::Load;
use weft_tests::mesh::Mesh;
use weft_tests::process::{WeftProcess, run};
use weft_tests::wait::until;

fn policy(says: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1\nkind: TrafficPolicy\nmetadata: {{name: shop}}\nspec:\n  targetRef: {{kind: Service, name: shop}}\n{says}"
    )
}

async fn apply(mesh: &Mesh, text: &str) -> weft_tests::process::Finished {
    let path = mesh.folder("policy.yaml");
    std::fs::write(&path, text).expect("the folder is ours");
    mesh.cli(&mesh.servers[0], &["apply", "-f", &path.display().to_string()]).await
}

async fn cluster(proxy: &WeftProcess, name: &str) -> Result<Value, String> {
    let answer = http_client::get(proxy.addr("admin"), "admin", "/clusters?format=json").await?;
    let all = answer.json();
    let found = all["outbound"].as_array().and_then(|all| all.iter().find(|c| c["name"] == name).cloned());
    found.ok_or_else(|| answer.body.clone())
}

/// Which of the instances answer so many requests.
async fn answering(outbound: SocketAddr, requests: usize) -> Result<BTreeSet<String>, String> {
    let mut seen = BTreeSet::new();
    for _ in 0..requests {
        seen.insert(http_client::get(outbound, "shop", "/x").await?.body);
    }
    Ok(seen)
}

/// Apply, change and delete under load: no request fails, each change is obeyed, and `weft lb` says who rules.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_changed_under_load_and_no_request_fails() {
    let mesh = Mesh::with_servers(1).await;
    let server = &mesh.servers[0];
    let upstreams = [FakeUpstream::start("one").await, FakeUpstream::start("two").await];
    for upstream in &upstreams {
        let answer = mesh.register(server, "shop", upstream.name(), upstream.addr(), "60s").await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    }
    let grpc = server.grpc().to_string();
    let proxy = mesh.proxy("p", &[], &["--server", &grpc]).await;
    let outbound = proxy.addr("outbound");
    until("both answer", Duration::from_secs(20), || async {
        let seen = answering(outbound, 20).await?;
        if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;

    let load = Load::start(outbound, "shop");

    let lb = mesh.cli(server, &["lb", "shop", "random"]).await;
    assert_eq!((lb.code, lb.stdout.as_str()), (0, "shop: random\n"), "{lb:?}");
    let applied =
        apply(&mesh, &policy("  loadBalancing: ring-hash:source\n  panic: {policy: fail, below: 20}\n"))
            .await;
    assert!(applied.code == 0 && applied.stdout.contains("created"), "{applied:?}");
    until("all requests of one client go to one instance", Duration::from_secs(20), || async {
        let seen = answering(outbound, 20).await?;
        if seen.len() == 1 { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    let held = cluster(&proxy, "shop").await.expect("it is in use");
    assert_eq!(
        (&held["load_balancing"], &held["panic_policy"]),
        (&"ring-hash:source".into(), &"fail below 20 %".into())
    );

    // The document wins over what was set, says so, and what is set cannot be meant to hold.
    let lb = mesh.cli(server, &["lb", "shop"]).await;
    assert_eq!(lb.stdout, "shop: ring-hash:source (by TrafficPolicy shop)\n", "{lb:?}");
    let refused = mesh.cli(server, &["lb", "shop", "random"]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("TrafficPolicy shop says how shop is balanced"), "{refused:?}");
    let services = http_client::get(server.http(), "server", "/services").await.expect("an answer").json();
    assert_eq!(services["services"][0]["load_balancing"], "ring-hash:source", "{services}");

    let listed = mesh.cli(server, &["get", "policies"]).await;
    assert!(listed.stdout.contains("TrafficPolicy  shop  shop  loadBalancing,panic"), "{listed:?}");
    let changed = apply(&mesh, &policy("  circuitBreaker: {maxRequests: 1000}\n")).await;
    assert!(changed.code == 0 && changed.stdout.contains("changed"), "{changed:?}");
    until("what was set with `weft lb` holds again", Duration::from_secs(20), || async {
        let held = cluster(&proxy, "shop").await?;
        if held["load_balancing"] == "random" { Ok(()) } else { Err(held.to_string()) }
    })
    .await;
    assert_eq!(mesh.cli(server, &["lb", "shop", "least-request"]).await.code, 0);
    let deleted = mesh.cli(server, &["delete", "policy", "shop"]).await;
    assert_eq!((deleted.code, deleted.stdout.as_str()), (0, "TrafficPolicy shop: deleted\n"), "{deleted:?}");
    until("all is as without a policy", Duration::from_secs(20), || async {
        let held = cluster(&proxy, "shop").await?;
        if held["load_balancing"] == "least-request" { Ok(()) } else { Err(held.to_string()) }
    })
    .await;
    load.finish().await;
}

/// What a policy limits is limited, in a proxy with nothing but a file, by a document as by a key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_takes_policies_from_its_file_and_names_all_mistakes_in_them() {
    let upstream = FakeUpstream::start("a").await;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("edge.yaml");
    let text = |keys: &str, says: &str| {
        format!(
            "name: edge\nadmin: 127.0.0.1:0\noutbound: 127.0.0.1:0\nclusters:\n  - name: shop\n    endpoints: ['{}']\n{keys}---\n{}",
            upstream.addr(),
            policy(says)
        )
    };
    std::fs::write(&file, text("", "  panic: {policy: spread, below: 9}\n")).expect("the folder is ours");
    let args = ["proxy", "--config", &file.display().to_string()].map(str::to_owned);
    let proxy = WeftProcess::start("edge", &args).await;
    assert_eq!(cluster(&proxy, "shop").await.expect("it is there")["panic_policy"], "spread below 9 %");
    let answer = http_client::request(proxy.addr("outbound"), "shop", Method::GET, "/", "").await;
    assert_eq!(answer.expect("an answer").body, "a\n");

    let bad =
        text("    circuit-breaker: {max-requests: 0}\n    slow-strat: {}\n", "  panic: {policy: scream}\n");
    std::fs::write(&file, bad).expect("the folder is ours");
    let refused = run(&["proxy", "--config", &file.display().to_string()]).await;
    assert_eq!(refused.code, 1);
    for part in [
        "edge.yaml:7:37: cluster shop: clusters[0].circuit-breaker.max-requests: 0; allowed is a whole number from 1",
        "edge.yaml:8:5: cluster shop: clusters[0].slow-strat: unknown key",
        "did you mean slow-start?",
        "edge.yaml:15:19: TrafficPolicy shop: spec.panic.policy: \"scream\"",
    ] {
        assert!(refused.stderr.contains(part), "{part:?} not in {}", refused.stderr);
    }
    let check = ["check", "-f", &file.display().to_string()];
    let checked = run(&check).await;
    assert_eq!((checked.code, &checked.stderr), (1, &refused.stderr));
    assert_eq!(
        checked.stderr.lines().count(),
        4,
        "the three, and that a document is for the same: {checked:?}"
    );
    std::fs::write(&file, text("", "  panic: {policy: fail}\n")).expect("ours");
    assert_eq!(run(&check).await.stdout, "1 proxy's file, 1 document: no mistakes\n");
    let applied = run(&["apply", "-f", &file.display().to_string()]).await;
    assert!(
        applied.stderr.contains("edge.yaml:1:1: kind is missing"),
        "a proxy's file is none of a mesh: {applied:?}"
    );

    std::fs::write(&file, text("    load-balancing: random\n", "  panic: {policy: fail}\n")).expect("ours");
    let refused = run(&["proxy", "--config", &file.display().to_string()]).await;
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains(
            "edge.yaml:7:5: cluster shop: clusters[0].load-balancing: given here, and TrafficPolicy shop"
        ),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_has_one_policy_and_mistakes_change_nothing() {
    let mesh = Mesh::with_servers(1).await;
    let applied = apply(&mesh, &policy("  retryBudget: {percent: 10}\n")).await;
    assert_eq!(applied.code, 0, "{applied:?}");
    let second = policy("  retryBudget: {percent: 20}\n").replace("name: shop}\nspec", "name: other}\nspec");
    let refused = apply(&mesh, &second).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("policy.yaml:5:36: TrafficPolicy other: ")
            && refused.stderr.contains("shop has TrafficPolicy shop already"),
        "{refused:?}"
    );
    let bad = policy("  retryBudget: {percent: 101}\n  circuitbreaker: {}\n");
    let refused = apply(&mesh, &bad).await;
    for part in ["policy.yaml:6:26: ", "policy.yaml:7:3: ", "did you mean circuitBreaker?"] {
        assert!(refused.stderr.contains(part), "{part:?} not in {}", refused.stderr);
    }
    let listed = mesh.cli(&mesh.servers[0], &["get", "policies", "--output", "json"]).await;
    let listed: Value = serde_json::from_str(&listed.stdout).expect("JSON");
    assert_eq!(listed["documents"].as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed["documents"][0]["document"]["spec"]["retryBudget"]["percent"], 10, "{listed}");
    let schema = run(&["schema", "trafficpolicy"]).await;
    assert!(schema.stdout.contains("outlierDetection"), "{schema:?}");
}
