//! `weft tap` and `weft explain`, at a sidecar that is another process.

use std::time::Duration;

use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::process::{WeftProcess, run};
use weft_tests::wait::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_see_requests_as_they_end_and_what_would_become_of_one() {
    let upstream = FakeUpstream::start("a").await;
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("edge.yaml");
    let text = format!(
        "name: edge\nadmin: 127.0.0.1:0\noutbound: 127.0.0.1:0\nclusters: [{{name: shop, endpoints: ['{}']}}]\n",
        upstream.addr()
    );
    std::fs::write(&file, text).expect("the folder is ours");
    let args = ["proxy", "--config", &file.display().to_string()].map(str::to_owned);
    let proxy = WeftProcess::start("edge", &args).await;
    let (admin, outbound) = (proxy.addr("admin").to_string(), proxy.addr("outbound"));

    let told = run(&["explain", "shop", "--path", "/x", "--admin", &admin]).await;
    assert_eq!(told.code, 0, "{told:?}");
    for part in
        ["GET /x of shop", "forwarded: to one of 1 endpoints of shop", "static", &upstream.addr().to_string()]
    {
        assert!(told.stdout.contains(part), "{part} not in {told:?}");
    }
    let told = run(&["explain", "no.such.host", "--admin", &admin]).await;
    assert_eq!(told.code, 2, "a script can tell: {told:?}");

    let looks = tokio::spawn({
        let admin = admin.clone();
        async move { run(&["tap", "shop", "--path", "/seen", "--limit", "1", "--admin", &admin]).await }
    });
    until("the request was seen", Duration::from_secs(20), || async {
        http_client::get(outbound, "shop", "/seen/1").await?;
        http_client::get(outbound, "shop", "/other").await?;
        if looks.is_finished() { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    let seen = looks.await.expect("it runs to its end");
    assert_eq!(seen.code, 0, "{seen:?}");
    assert!(seen.stdout.contains("outbound GET shop /seen/1 → 200 in "), "{seen:?}");
    assert_eq!(seen.stdout.lines().count(), 1, "{seen:?}");

    let refused = run(&["tap", "--status", "9xx", "--admin", &admin]).await;
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("allowed is a status from 100 to 599"), "{refused:?}");
    let nobody = run(&["tap", "--admin", "127.0.0.1:1"]).await;
    assert!(nobody.stderr.contains("no sidecar answers at 127.0.0.1:1"), "{nobody:?}");
}
