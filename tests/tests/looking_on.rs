//! `weft tap` and `weft explain`, at a sidecar that is another process.

use std::time::Duration;

use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::mesh::Mesh;
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

/// Two instances, each with a sidecar of its own, and a caller: whoever looks on names the service alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_looked_at_through_the_sidecars_of_all_its_instances() {
    let mesh = Mesh::with_servers(1).await;
    let server = &mesh.servers[0];
    let apps = [FakeUpstream::start("one").await, FakeUpstream::start("two").await];
    let join = [server.gossip()];
    let mut sidecars = Vec::new();
    for app in &apps {
        let service = format!("orders={}", app.addr());
        sidecars.push(mesh.proxy(app.name(), &join, &["--service", &service]).await);
    }
    let web = FakeUpstream::start("web").await;
    let service = format!("web={}", web.addr());
    let caller = mesh.proxy("web", &join, &["--service", &service]).await;
    let outbound = caller.addr("outbound");
    until("both instances are asked", Duration::from_secs(30), || async {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..6 {
            seen.insert(http_client::get(outbound, "orders", "/x").await?.body);
        }
        if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;

    let endpoint = server.grpc().to_string();
    let look = |args: &[&str]| {
        let mut all = vec!["tap".to_owned()];
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        all.extend(["--endpoints".to_owned(), endpoint.clone()]);
        tokio::spawn(async move { run(&all.iter().map(String::as_str).collect::<Vec<_>>()).await })
    };
    let called = look(&["orders", "--path", "/seen", "--limit", "12"]);
    let calls = look(&["web", "--direction", "outbound", "--path", "/seen", "--limit", "2", "-o", "json"]);
    until("the requests were seen", Duration::from_secs(20), || async {
        http_client::get(outbound, "orders", "/seen").await?;
        if called.is_finished() && calls.is_finished() { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    let called = called.await.expect("it runs to its end");
    assert_eq!((called.code, called.stdout.lines().count()), (0, 12), "{called:?}");
    for part in ["one-", "two-", " inbound GET orders /seen → 200 in "] {
        assert!(called.stdout.contains(part), "{part} not in {called:?}");
    }
    let calls = calls.await.expect("it runs to its end");
    let line: serde_json::Value =
        serde_json::from_str(calls.stdout.lines().next().unwrap_or_default()).expect("JSON");
    assert_eq!((&line["direction"], &line["service"]), (&"outbound".into(), &"orders".into()), "{calls:?}");
    assert!(line["instance"].as_str().is_some_and(|id| id.starts_with("web-")), "{line}");

    // Where instances have no sidecar, callers' sidecars are where requests pass.
    let legacy =
        mesh.register(server, "legacy", "l-1", "127.0.0.1:9".parse().expect("an address"), "60s").await;
    assert_eq!(legacy.status, http::StatusCode::OK);
    let told = mesh.cli(server, &["tap", "legacy", "--status", "9xx"]).await;
    assert!(told.stderr.contains("not seen: l-1 has no sidecar"), "{told:?}");
    assert!(told.stderr.contains("at the sidecar of this machine alone"), "{told:?}");
}
