//! Sidecars with identities, and policies on who may call whom, from the command line to processes that obey.

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::mesh::Mesh;
use weft_tests::pki::{Ca, ca, identity};
use weft_tests::process::{Finished, WeftProcess};
use weft_tests::wait::until;

const SOON: Duration = Duration::from_secs(30);

async fn sidecar(mesh: &Mesh, ca: &Ca, name: &str, app: SocketAddr) -> WeftProcess {
    sidecar_in(mesh, ca, name, app, "strict").await
}

async fn sidecar_in(mesh: &Mesh, ca: &Ca, name: &str, app: SocketAddr, mode: &str) -> WeftProcess {
    let id = format!("spiffe://mesh.example/ns/shop/sa/{name}");
    let mut args = identity(&mesh.folder(&format!("{name}-pem")), ca, &id);
    // The last of them.
    args.pop();
    args.extend([mode.to_owned(), "--service".to_owned(), format!("{name}={app}")]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    mesh.proxy(name, &[mesh.servers[0].gossip()], &args).await
}

async fn answers(outbound: SocketAddr, path: &str, wanted: StatusCode) {
    until(&format!("{path} is answered {wanted}"), SOON, || async {
        let answer = http_client::get(outbound, "orders", path).await?;
        if answer.status == wanted { Ok(()) } else { Err(format!("{}: {}", answer.status, answer.body)) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_applied_and_deleted_while_sidecars_run_and_holds_without_a_server() {
    let mut mesh = Mesh::with_servers(1).await;
    let (orders, web) = (FakeUpstream::start("orders").await, FakeUpstream::start("web").await);
    let ca = ca();
    let _orders = sidecar(&mesh, &ca, "orders", orders.addr()).await;
    let caller = sidecar(&mesh, &ca, "web", web.addr()).await;
    let outbound = caller.addr("outbound");
    answers(outbound, "/x", StatusCode::OK).await;

    let path = mesh.folder("authz.yaml");
    let spec = "apiVersion: weft.dev/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  targetRef: {kind: Service, name: orders}\n  action: DENY\n  rules: [{from: [{principals: [\"*/sa/web\"]}], to: [{paths: [\"/admin*\"]}]}]\n";
    std::fs::write(&path, spec).expect("the folder is ours");
    let file = path.display().to_string();
    let applied = mesh.cli(&mesh.servers[0], &["apply", "-f", &file]).await;
    assert!(applied.code == 0 && applied.stdout.contains("created"), "{applied:?}");
    answers(outbound, "/admin", StatusCode::FORBIDDEN).await;
    answers(outbound, "/x", StatusCode::OK).await;
    let listed = mesh.cli(&mesh.servers[0], &["get", "authz"]).await;
    assert!(listed.code == 0 && listed.stdout.contains("orders"), "{listed:?}");
    let deleted = mesh.cli(&mesh.servers[0], &["delete", "authz", "p"]).await;
    assert_eq!(
        (deleted.code, deleted.stdout.as_str()),
        (0, "AuthorizationPolicy p: deleted\n"),
        "{deleted:?}"
    );
    answers(outbound, "/admin", StatusCode::OK).await;

    let again = mesh.cli(&mesh.servers[0], &["apply", "-f", &file]).await;
    assert_eq!(again.code, 0, "{again:?}");
    answers(outbound, "/admin", StatusCode::FORBIDDEN).await;
    mesh.servers[0].kill().await;
    for _ in 0..20 {
        let answer = http_client::get(outbound, "orders", "/admin").await.expect("it is answered");
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "what was said last holds: {}", answer.body);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What is told of a request must be what becomes of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn explain_finds_the_callers_sidecar_and_tells_what_the_called_ones_decide() {
    let mesh = Mesh::with_servers(1).await;
    let server = &mesh.servers[0];
    let (orders, web) = (FakeUpstream::start("orders").await, FakeUpstream::start("web").await);
    let ca = ca();
    let strict = sidecar(&mesh, &ca, "orders", orders.addr()).await;
    let caller = sidecar(&mesh, &ca, "web", web.addr()).await;
    let path = mesh.folder("mesh.yaml");
    let documents = "apiVersion: weft.dev/v1
kind: AuthorizationPolicy
metadata: {name: no-admin}
spec:
  targetRef: {kind: Service, name: orders}
  action: DENY
  rules:
    - {from: [{namespaces: [batch]}]}
    - {from: [{principals: ['*/sa/web']}], to: [{paths: ['/admin*']}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: hidden}
spec:
  parentRefs: [{kind: Service, group: '', name: orders}]
  rules:
    - matches: [{path: {value: /hidden}}]
      filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /admin}}}]
      backendRefs: [{name: orders}]
    - backendRefs: [{name: orders}]
";
    std::fs::write(&path, documents).expect("the folder is ours");
    let applied = mesh.cli(server, &["apply", "-f", &path.display().to_string()]).await;
    assert_eq!(applied.code, 0, "{applied:?}");
    let explain = async |args: &[&str]| mesh.cli(server, &[&["explain"], args].concat()).await;
    let has = |told: &Finished, code: i32, parts: &[&str]| {
        assert_eq!(told.code, code, "{told:?}");
        for part in parts {
            assert!(told.stdout.contains(part), "{part} not in {told:?}");
        }
    };

    until("both are known to be well", SOON, || async {
        for service in ["web", "orders"] {
            let told = mesh.cli(server, &["endpoints", service]).await;
            if !told.stdout.contains("passing") {
                return Err(format!("{told:?}"));
            }
        }
        Ok(())
    })
    .await;
    let denied = "caller: DENY 403, AuthorizationPolicy no-admin denies it by spec.rules[1]";
    let before = explain(&["web", "orders", "--path", "/hidden/x"]).await;
    has(
        &before,
        2,
        &["the servers alone: for the sidecar of web-", "nobody has asked", "sa/web, from 127.0.0.1", denied],
    );
    answers(caller.addr("outbound"), "/hidden/x", StatusCode::FORBIDDEN).await;
    answers(caller.addr("outbound"), "/x", StatusCode::OK).await;

    let sidecar = "the sidecar of web-";
    let admin = format!(" at {}", caller.addr("admin"));
    let told = explain(&["web", "orders", "--path", "/hidden/x"]).await;
    has(&told, 2, &[sidecar, &admin, "hidden", "gossip", denied]);
    let told = explain(&["web", "orders", "--path", "/x"]).await;
    has(
        &told,
        0,
        &[sidecar, "caller: ALLOW, no AuthorizationPolicy denies it", "no-admin  DENY    Enforce  none"],
    );

    let id = "spiffe://mesh.example/ns/shop/sa/web";
    let told = explain(&[id, "orders", "--path", "/admin", "-o", "json"]).await;
    assert_eq!(told.code, 2, "{told:?}");
    let json: serde_json::Value = serde_json::from_str(&told.stdout).expect("JSON");
    assert_eq!((&json["caller"]["identity"], &json["caller"]["address"]), (&id.into(), &"127.0.0.1".into()));
    let admission = &json["backends"][0]["admission"];
    assert_eq!(
        (&admission["verdict"], &admission["policies"][0]["rule"]),
        (&"DENY".into(), &"spec.rules[1]".into())
    );
    // Nobody is advertised with it: by what is known of the mesh alone.
    let told = explain(&["spiffe://mesh.example/ns/batch/sa/b", "orders"]).await;
    has(&told, 2, &["the servers alone: no instance of spiffe://", "denies it by spec.rules[0]"]);

    mesh.register(server, "legacy", "l-1", "127.0.0.1:9".parse().expect("an address"), "60s").await;
    let told = explain(&["legacy", "orders", "--path", "/admin"]).await;
    let denied = "caller: DENY, mesh-mode strict: a caller without a certificate gets no connection\n        by the \
                  sidecar of orders-";
    has(&told, 2, &["the servers alone: l-1 has no sidecar", "legacy, without a certificate", denied]);
    let refused = http_client::get(strict.addr("inbound"), "orders", "/x").await;
    assert!(refused.is_err(), "nor does it get in: {refused:?}");
    let shop = FakeUpstream::start("shop").await;
    let _shop = sidecar_in(&mesh, &ca, "shop", shop.addr(), "permissive").await;
    until("it is known", SOON, || async {
        let told = mesh.cli(server, &["endpoints", "shop"]).await;
        if told.stdout.contains("passing") { Ok(()) } else { Err(format!("{told:?}")) }
    })
    .await;
    has(&explain(&["legacy", "shop"]).await, 0, &["caller: ALLOW"]);
    let told = explain(&["web", "orders", "--header", "authorization:Bearer secret", "-o", "json"]).await;
    assert!(told.stdout.contains("authorization") && !told.stdout.contains("secret"), "{told:?}");
    let told = explain(&["web", "legacy"]).await;
    has(&told, 0, &["no instance of legacy is behind a sidecar that could refuse it"]);
    let nobody = explain(&["nobody", "orders"]).await;
    assert!(nobody.code == 1 && nobody.stderr.contains("nobody"), "{nobody:?}");
    let no_id = explain(&["spiffe:x", "orders"]).await;
    assert!(no_id.code == 1 && no_id.stderr.contains("is no SPIFFE ID"), "{no_id:?}");

    strict.kill().await;
    let told = explain(&["web", "orders", "--path", "/admin"]).await;
    has(
        &told,
        2,
        &["DENY 403, AuthorizationPolicy no-admin", "by the documents alone: no sidecar answers at"],
    );
}
