//! Routes, from a file on the command line to the traffic of a proxy that is another process.

use std::path::PathBuf;
use std::time::Duration;

use http::StatusCode;
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::load::Load;
use weft_tests::mesh::Mesh;
use weft_tests::process::run;
use weft_tests::wait::until;

fn split(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: shop}}\nspec:\n  parentRefs: [{{kind: Service, group: '', name: shop}}]\n  rules:\n{rules}"
    )
}

fn write(mesh: &Mesh, name: &str, text: &str) -> PathBuf {
    let path = mesh.folder(name);
    std::fs::write(&path, text).expect("the folder is ours");
    path
}

/// Apply, split, change, delete, under load: no request fails, and none goes where no route ever sent it (D01).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traffic_follows_applied_routes_and_no_request_fails_over_changes() {
    let mesh = Mesh::with_servers(1).await;
    let server = &mesh.servers[0];
    let (old, new) = (FakeUpstream::start("old").await, FakeUpstream::start("new").await);
    for (service, upstream) in [("shop", &old), ("shop-next", &new)] {
        let answer = mesh.register(server, service, "one", upstream.addr(), "60s").await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    }
    let grpc = server.grpc().to_string();
    let proxy = mesh.proxy("p", &[], &["--server", &grpc]).await;
    let outbound = proxy.addr("outbound");
    until("the service answers", Duration::from_secs(20), || async {
        let answer = http_client::get(outbound, "shop", "/").await?;
        if answer.body == "old\n" { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;

    let load = Load::start(outbound, "shop");

    let apply = async |rules: &str| {
        let file = write(&mesh, "shop.yaml", &split(rules));
        let applied = mesh.cli(server, &["apply", "-f", &file.display().to_string()]).await;
        assert_eq!(applied.code, 0, "{applied:?}");
        applied.stdout
    };
    let goes = async |expected: &str| {
        until(&format!("all goes to {expected}"), Duration::from_secs(20), || async {
            for _ in 0..20 {
                let answer = http_client::get(outbound, "shop", "/x").await?;
                if answer.body != format!("{expected}\n") {
                    return Err(format!("{answer:?}"));
                }
            }
            Ok(())
        })
        .await;
    };
    // A service that nobody called yet, and all of it at once.
    assert!(apply("    - {backendRefs: [{name: shop-next}]}\n").await.contains("created"));
    goes("new").await;
    assert!(
        apply("    - {backendRefs: [{name: shop, weight: 1}, {name: shop-next, weight: 1}]}\n")
            .await
            .contains("changed")
    );
    until("both are called", Duration::from_secs(20), || async {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..40 {
            seen.insert(http_client::get(outbound, "shop", "/x").await?.body);
        }
        if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    let listed = mesh.cli(server, &["get", "routes"]).await;
    assert!(listed.stdout.contains("shop") && listed.stdout.contains("HTTPRoute"), "{listed:?}");
    let deleted = mesh.cli(server, &["delete", "route", "shop"]).await;
    assert_eq!(deleted.code, 0, "{deleted:?}");
    goes("old").await;
    load.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_no_service_has_its_routes_from_the_first_request_on() {
    let mesh = Mesh::with_servers(1).await;
    let server = &mesh.servers[0];
    let upstream = FakeUpstream::start("site").await;
    mesh.register(server, "site", "one", upstream.addr(), "60s").await;
    let file = write(
        &mesh,
        "host.yaml",
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: host}\nspec:\n  hostnames: ['*.shop.test']\n  rules:\n    - {matches: [{path: {value: /in}}], backendRefs: [{name: site}]}\n",
    );
    let applied = mesh.cli(server, &["apply", "-f", &file.display().to_string()]).await;
    assert_eq!(applied.code, 0, "{applied:?}");
    let grpc = server.grpc().to_string();
    let proxy = mesh.proxy("p", &[], &["--server", &grpc]).await;
    let outbound = proxy.addr("outbound");
    // Without waiting for anything: the request waits for what the proxy does not know yet.
    let answer = http_client::get(outbound, "www.shop.test", "/in/x").await.expect("an answer");
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "site\n"));
    let answer = http_client::get(outbound, "www.shop.test", "/out").await.expect("an answer");
    assert_eq!(answer.status, StatusCode::NOT_FOUND, "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_are_all_told_with_their_places_and_change_nothing() {
    let mesh = Mesh::with_servers(1).await;
    let server = &mesh.servers[0];
    let bad =
        split("    - matches: [{path: {value: a}}]\n      backendRefs: [{name: X}]\n      tiemouts: {}\n");
    let file = write(&mesh, "bad.yaml", &bad).display().to_string();
    for args in
        [&["check", "-f", &file][..], &["apply", "-f", &file, "--endpoints", &server.grpc().to_string()]]
    {
        let refused = run(args).await;
        assert_eq!(refused.code, 1, "{refused:?}");
        for part in ["bad.yaml:7:32: ", "bad.yaml:8:28: ", "bad.yaml:9:7: ", "did you mean timeouts?"] {
            assert!(refused.stderr.contains(part), "{part:?} not in {}", refused.stderr);
        }
    }
    // Right in itself, and not together with what is stored.
    let dangling = split(
        "    - filters: [{type: ExtensionRef, extensionRef: {group: weft.dev, kind: HTTPRouteFilter, name: none}}]\n      backendRefs: [{name: x}]\n",
    );
    let file = write(&mesh, "dangling.yaml", &dangling).display().to_string();
    assert_eq!(run(&["check", "-f", &file]).await.code, 0);
    let refused = mesh.cli(server, &["apply", "-f", &file]).await;
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("dangling.yaml:7:99: HTTPRoute shop: "), "{}", refused.stderr);
    assert!(refused.stderr.contains("no HTTPRouteFilter \"none\""), "{}", refused.stderr);
    let listed = mesh.cli(server, &["get", "routes", "--output", "json"]).await;
    assert!(listed.stdout.contains("\"documents\": []"), "{listed:?}");
    let schema = run(&["schema"]).await;
    assert!(schema.stdout.contains("backendRefs") && schema.stdout.contains("json-schema.org"), "{schema:?}");
}

/// A proxy with a file and nothing else: the same documents, no server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_takes_the_same_documents_from_its_file() {
    let (a, b) = (FakeUpstream::start("a").await, FakeUpstream::start("b").await);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("edge.yaml");
    let text = format!(
        "name: edge\nadmin: 127.0.0.1:0\noutbound: 127.0.0.1:0\nclusters:\n  - {{name: a, endpoints: ['{}']}}\n  - {{name: b, endpoints: ['{}']}}\n---\n{}",
        a.addr(),
        b.addr(),
        split(
            "    - {matches: [{headers: [{name: x-to, value: b}]}], backendRefs: [{name: b}]}\n    - {backendRefs: [{name: a}]}\n"
        )
    );
    std::fs::write(&file, &text).expect("the folder is ours");
    let args = ["proxy", "--config", &file.display().to_string()].map(str::to_owned);
    let proxy = weft_tests::process::WeftProcess::start("edge", &args).await;
    let answer = http_client::get(proxy.addr("outbound"), "shop", "/").await.expect("an answer");
    assert_eq!(answer.body, "a\n", "{answer:?}");

    std::fs::write(&file, text.replace("backendRefs: [{name: a}]", "backendRefs: [{nam: a}]")).expect("ours");
    let refused = run(&["proxy", "--config", &file.display().to_string()]).await;
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("edge.yaml:15:") && refused.stderr.contains("did you mean name?"),
        "{refused:?}"
    );
}
