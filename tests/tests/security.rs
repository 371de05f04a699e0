//! Sidecars with identities, and policies on who may call whom, from the command line to processes that obey.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::mesh::Mesh;
use weft_tests::process::WeftProcess;
use weft_tests::wait::until;

const SOON: Duration = Duration::from_secs(30);

fn ca() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).expect("names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "mesh");
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed")
}

/// Flags of a sidecar with this SPIFFE ID.
fn identity(folder: &Path, ca: &CertifiedIssuer<'static, KeyPair>, id: &str) -> Vec<String> {
    std::fs::create_dir_all(folder).expect("a folder");
    let mut params = CertificateParams::new(Vec::new()).expect("names");
    params.subject_alt_names.push(SanType::URI(id.try_into().expect("ASCII")));
    let key = KeyPair::generate().expect("a key");
    let cert = params.signed_by(&key, ca).expect("signed");
    let file = |name: &str, pem: String| {
        std::fs::write(folder.join(name), pem).expect("written");
        folder.join(name).display().to_string()
    };
    let (cert, key) = (file("cert.pem", cert.pem()), file("key.pem", key.serialize_pem()));
    let ca = file("ca.pem", ca.pem());
    [("--mesh-cert", cert), ("--mesh-key", key), ("--mesh-ca", ca), ("--mesh-mode", "strict".to_owned())]
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect()
}

async fn sidecar(
    mesh: &Mesh,
    ca: &CertifiedIssuer<'static, KeyPair>,
    name: &str,
    app: SocketAddr,
) -> WeftProcess {
    let id = format!("spiffe://mesh.example/ns/shop/sa/{name}");
    let mut args = identity(&mesh.folder(&format!("{name}-pem")), ca, &id);
    args.extend(["--service".to_owned(), format!("{name}={app}")]);
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
