//! What `/admission` says of a request must be what becomes of it.

use std::net::SocketAddr;

use http::{Method, StatusCode};
use serde_json::Value;
use weft_proxy::app::{self, RunningProxy};
use weft_proxy::tls::mesh::MeshMode;

use crate::authz::{caller, signed};
use crate::inbound::inbound;
use crate::pki::Ca;
use crate::support::*;

const ORDERS: &str = "spiffe://mesh.example/ns/shop/sa/orders";
const WEB: &str = "spiffe://mesh.example/ns/shop/sa/web";
const BANK: &str = "spiffe://mesh.example/ns/bank/sa/batch";
const STRANGER: &str = "spiffe://other.example/ns/shop/sa/web";
const LATER: u64 = 4_000_000_000;

async fn sidecar(app: SocketAddr, mesh: Option<(&Ca, MeshMode)>, documents: &str) -> RunningProxy {
    let mut config = inbound(&[("orders", app)]);
    config.static_config = crate::support::config(documents).static_config;
    config.mesh = mesh.map(|(ca, mode)| ca.mesh("orders", ORDERS, mode));
    app::start(config).await.unwrap()
}

fn query(text: &str) -> String {
    text.replace(':', "%3A").replace(' ', "%20")
}

async fn asked(sidecar: &RunningProxy, query: &str) -> Value {
    let answer = get(sidecar.addrs().admin, "admin", &format!("/admission?host=orders&{query}")).await;
    assert_eq!(answer.status, StatusCode::OK, "{query}: {}", answer.body);
    serde_json::from_str(&answer.body).unwrap()
}

/// With policies and keys that stand in the sidecar's own file, which nobody else knows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_of_a_request_is_what_becomes_of_it() {
    let (app_itself, ca, folder) =
        (Upstream::start("a").await, Ca::new("mesh"), tempfile::tempdir().unwrap());
    let ((good, keys), (foreign, _)) = (signed("login", LATER), signed("login", LATER));
    let ((expired, old), (stranger, _)) = (signed("login", 1_000_000_000), signed("elsewhere", LATER));
    let one = |keys: &str| serde_json::from_str::<Value>(keys).unwrap()["keys"][0].clone();
    let file = folder.path().join("keys.json");
    std::fs::write(&file, serde_json::json!({ "keys": [one(&keys), one(&old)] }).to_string()).unwrap();
    let documents = format!(
        "---
apiVersion: weft.dev/v1
kind: AuthorizationPolicy
metadata: {{name: callers}}
spec:
  targetRef: {{kind: Service, name: orders}}
  rules:
    - {{from: [{{namespaces: [shop]}}], to: [{{paths: ['/request*']}}]}}
    - {{from: [{{requestPrincipals: [login/alice]}}]}}
---
apiVersion: weft.dev/v1
kind: RequestAuthentication
metadata: {{name: login}}
spec:
  targetRef: {{kind: Service, name: orders}}
  jwtRules: [{{issuer: login, jwksFile: {}}}]
",
        file.display()
    );
    let server = sidecar(app_itself.addr, Some((&ca, MeshMode::Permissive)), &documents).await;
    let addr = server.addrs().inbound.unwrap();
    let (web, bank) = (caller(addr, &ca, WEB).await, caller(addr, &ca, BANK).await);
    let several = format!("{good}\r\nauthorization: Bearer {good}");
    for (from, identity, path, token, status, why) in [
        (web.outbound, WEB, "/request", None, 200, "AuthorizationPolicy callers allows it by spec.rules[0]"),
        (web.outbound, WEB, "//request", None, 200, "callers allows it by spec.rules[0]"),
        (web.outbound, WEB, "/text", None, 401, "lets it in without a token"),
        (web.outbound, WEB, "/a/..%2ftext", None, 400, "path"),
        (bank.outbound, BANK, "/request", None, 401, "lets it in without a token"),
        (bank.outbound, BANK, "/text", Some(&good), 200, "callers allows it by spec.rules[1]"),
        (bank.outbound, BANK, "/text", Some(&expired), 401, "the token does not hold: it has ended: "),
        (bank.outbound, BANK, "/text", Some(&foreign), 401, "its signature does not hold"),
        (bank.outbound, BANK, "/text", Some(&stranger), 401, "\"elsewhere\"; taken are those of login"),
        (bank.outbound, BANK, "/text", Some(&several), 401, "several tokens are given"),
        (addr, "", "/request", None, 401, "lets it in without a token"),
    ] {
        let mut client = Client::http1(from).await;
        let mut request = client.request(Method::GET, "orders", path, empty());
        let mut asking = format!("path={path}&address=127.0.0.1");
        if !identity.is_empty() {
            asking.push_str(&format!("&identity={identity}"));
        }
        for token in token.into_iter().flat_map(|token| token.split("\r\nauthorization: Bearer ")) {
            let field = format!("Bearer {token}");
            asking.push_str(&format!("&header=authorization:{field}"));
            request.headers_mut().append("authorization", field.parse().unwrap());
        }
        let answer = client.call(request).await.unwrap();
        let told = asked(&server, &query(&asking.replace('%', "%25"))).await;
        assert_eq!(answer.status.as_u16(), status, "{path} of {identity}: {} {told}", answer.body);
        assert_eq!(told["verdict"], if status == 200 { "ALLOW" } else { "DENY" }, "{told}");
        assert_eq!(told["status"].as_u64().unwrap_or(200), u64::from(status), "{told}");
        assert!(told["why"].as_str().unwrap().contains(why), "{why:?} not in {told}");
        assert!(!told.to_string().contains(&good[..20]), "a token is not shown: {told}");
    }
    let served = app_itself.served();
    asked(&server, "path=/request").await;
    assert_eq!(app_itself.served(), served, "nothing is sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_without_a_certificate_of_the_mesh_get_no_connection_of_a_strict_sidecar_and_are_nobody_else()
{
    let (app_itself, ca) = (Upstream::start("a").await, Ca::new("mesh"));
    let nobody = "---\napiVersion: weft.dev/v1\nkind: AuthorizationPolicy\nmetadata: {name: shop}\nspec:\n  \
                  targetRef: {kind: Service, name: orders}\n  rules: [{from: [{namespaces: [shop]}]}]\n";
    let strict = sidecar(app_itself.addr, Some((&ca, MeshMode::Strict)), nobody).await;
    let permissive = sidecar(app_itself.addr, Some((&ca, MeshMode::Permissive)), nobody).await;
    let plain = sidecar(app_itself.addr, None, nobody).await;
    let (stranger, web) = (format!("identity={STRANGER}"), format!("identity={WEB}"));
    for (sidecar, caller, verdict, status, part) in [
        (&strict, "", "DENY", None, "strict: a caller without a certificate gets no connection"),
        (&strict, &*stranger, "DENY", None, "is not of the trust domain mesh.example gets no connection"),
        (&strict, &*web, "ALLOW", None, "shop allows it"),
        (&permissive, "", "DENY", Some(403), "no AuthorizationPolicy allows it"),
        (&permissive, &*stranger, "DENY", Some(403), "in plaintext, the caller is nobody here"),
        (&permissive, &*web, "ALLOW", None, "shop allows it"),
        (&plain, &*web, "DENY", Some(403), "does not know who calls"),
    ] {
        let told = asked(sidecar, caller).await;
        assert_eq!((told["verdict"].as_str(), told["status"].as_u64()), (Some(verdict), status), "{told}");
        assert!(told.to_string().contains(part), "{part:?} not in {told}");
        assert_eq!(told["mesh_mode"].is_null(), std::ptr::eq(sidecar, &raw const plain), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_is_none_is_refused_with_what_is_allowed() {
    let app_itself = Upstream::start("a").await;
    let server = sidecar(app_itself.addr, None, "").await;
    let admin = server.addrs().admin;
    for (query, why) in [
        ("path=/", "host is missing"),
        ("host=orders&path=x", "path: \"x\"; allowed is a path"),
        ("host=orders&identity=web", "identity: "),
        ("host=orders&address=here", "address: \"here\"; allowed is an IP address"),
        (
            "host=orders&caller=web",
            "caller: unknown; allowed are host, path, method, header, identity, address",
        ),
        ("host=orders&header=a", "header: \"a\"; allowed is NAME:VALUE"),
        ("host", "\"host\" has no ="),
    ] {
        let refused = get(admin, "admin", &format!("/admission?{query}")).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{query}: {}", refused.body);
        assert!(refused.body.contains(why), "{query}: {}", refused.body);
    }
    let told = asked(&server, "path=/").await;
    assert_eq!(
        (told["verdict"].as_str(), told["service"].as_str()),
        (Some("ALLOW"), Some("orders")),
        "{told}"
    );

    let mut client = Client::http1(admin).await;
    let post = client.request(Method::POST, "admin", "/admission?host=orders", empty());
    assert_eq!(client.call(post).await.unwrap().status, StatusCode::METHOD_NOT_ALLOWED);

    // The longest token and one more; `authz` says that it is too long.
    let long = format!("/admission?host=orders&header=authorization:Bearer%20{}", "a".repeat(16 * 1024 + 1));
    assert_eq!(get(admin, "admin", &long).await.status, StatusCode::OK);

    let outbound_alone = start(config("")).await;
    let refused = get(outbound_alone.admin, "admin", "/admission?host=orders").await;
    assert_eq!(refused.status, StatusCode::NOT_FOUND);
    assert!(refused.body.contains("no --inbound"), "{}", refused.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_services_the_host_says_which_is_meant() {
    let (a, b) = (Upstream::start("a").await, Upstream::start("b").await);
    let server = app::start(inbound(&[("orders", a.addr), ("billing", b.addr)])).await.unwrap();
    let told = asked(&server, "").await;
    assert_eq!(told["service"], "orders");
    let answer = get(server.addrs().admin, "admin", "/admission?host=shipping").await;
    let told: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((told["verdict"].as_str(), told["status"].as_u64()), (Some("DENY"), Some(404)), "{told}");
    assert_eq!(get(server.addrs().inbound.unwrap(), "shipping", "/").await.status, StatusCode::NOT_FOUND);
}
