//! What a running sidecar logs, changed from outside.

use std::time::Duration;

use http::{Method, StatusCode};
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::process::WeftProcess;
use weft_tests::wait::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_level_is_changed_while_a_proxy_runs_and_a_level_that_is_none_is_refused() {
    let upstream = FakeUpstream::start("a").await;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("edge.yaml");
    let text = format!(
        "name: edge\nadmin: 127.0.0.1:0\noutbound: 127.0.0.1:0\nlog-level: warn\nclusters: [{{name: a, endpoints: ['{}']}}]\n",
        upstream.addr()
    );
    std::fs::write(&file, text).expect("the folder is ours");
    let args = ["proxy", "--config", &file.display().to_string()].map(str::to_owned);
    let proxy = WeftProcess::start("edge", &args).await;
    let admin = proxy.addr("admin");
    let level = async |method: Method, body: &str| {
        http_client::request(admin, "admin", method, "/log-level", body).await.expect("an answer")
    };
    assert_eq!(level(Method::GET, "").await.body, "warn\n");
    let changed = level(Method::PUT, "info,weft_proxy=debug\n").await;
    assert_eq!((changed.status, changed.body.as_str()), (StatusCode::OK, "info,weft_proxy=debug\n"));
    until("it logs at the new level", Duration::from_secs(10), || async {
        let log = proxy.log();
        if log.contains("the log level was changed") { Ok(()) } else { Err(log) }
    })
    .await;
    for bad in ["loud", ""] {
        let refused = level(Method::PUT, bad).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused:?}");
        assert!(refused.body.contains("is not a log level"), "{refused:?}");
    }
    assert_eq!(level(Method::POST, "info").await.status, StatusCode::METHOD_NOT_ALLOWED);
    let runtime = http_client::get(admin, "admin", "/runtime").await.expect("an answer").json();
    assert_eq!(runtime["log_level"], "info,weft_proxy=debug", "{runtime}");
    assert_eq!(runtime["not_ready"], serde_json::Value::Null, "{runtime}");
    assert!(runtime["memory_bytes"].as_u64() > Some(1 << 20), "{runtime}");
}
