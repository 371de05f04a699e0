//! What requests say of earlier hops, and who is believed.

use http::Request;
use weft_proxy::app;
use weft_proxy::tls::mesh::MeshMode;

use crate::inbound::inbound;
use crate::pki::Ca;
use crate::support::*;

const LIES: [(&str, &str); 4] = [
    ("x-forwarded-for", "10.9.9.9"),
    ("x-forwarded-host", "admin.example"),
    ("forwarded", "for=10.9.9.9"),
    ("x-forwarded-client-cert", "URI=spiffe://mesh.example/admin"),
];

/// What the app sees of a request with [`LIES`].
async fn seen(addr: std::net::SocketAddr) -> String {
    let mut request = Request::builder().uri("/request").header("host", "orders");
    for (name, value) in LIES {
        request = request.header(name, value);
    }
    Client::http1(addr).await.call(request.body(empty()).unwrap()).await.unwrap().body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_believes_only_proxies_of_trusted_networks() {
    let upstream = Upstream::start("a").await;
    for (trusted, believed) in [("", false), (", trusted-proxies: [127.0.0.0/8]", true)] {
        let yaml = format!(
            "listeners: [{{name: web, address: \"127.0.0.1:0\"{trusted}}}]\n{}",
            orders(&[upstream.addr], "")
        );
        let mut config = config(&yaml);
        config.outbound = None;
        let proxy = start(config).await;
        let seen = seen(proxy.running.addrs().listeners[0].1).await;
        for (name, value) in LIES {
            assert_eq!(seen.contains(value), believed, "{name} in {seen}");
        }
        let continued = "forwarded: for=10.9.9.9, for=127.0.0.1;host=\"orders\";proto=http\n";
        assert_eq!(seen.contains(continued), believed, "{seen}");
        assert_eq!(seen.contains("\nforwarded: "), believed, "never begun: {seen}");
        assert!(seen.contains("127.0.0.1\n"), "this hop is appended: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_app_hears_from_its_sidecar_who_calls_and_from_nobody_else() {
    const ORDERS: &str = "spiffe://mesh.example/ns/shop/sa/orders";
    const WEB: &str = "spiffe://mesh.example/ns/shop/sa/web";
    let (app_itself, ca) = (Upstream::start("a").await, Ca::new("mesh"));
    let mut config = inbound(&[("orders", app_itself.addr)]);
    config.mesh = Some(ca.mesh("orders", ORDERS, MeshMode::Permissive));
    let server = app::start(config).await.unwrap();
    let addr = server.addrs().inbound.unwrap();
    let plain = seen(addr).await;
    assert!(LIES.iter().all(|(_, value)| !plain.contains(value)), "{plain}");
    let mut client = crate::support::config(&orders(&[addr], "    tls: {mode: mesh}\n"));
    client.mesh = Some(ca.mesh("web", WEB, MeshMode::Strict));
    let client = start(client).await;
    let verified = seen(client.outbound).await;
    let by = format!("x-forwarded-client-cert: By={ORDERS};Hash=");
    assert!(verified.contains(&by) && verified.contains(&format!(";URI={WEB}\n")), "{verified}");
    assert!(verified.contains("x-forwarded-for: 10.9.9.9, 127.0.0.1"), "{verified}");
    assert!(!verified.contains("mesh.example/admin"), "{verified}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_identity_peers_are_believed_but_not_who_they_say_they_are() {
    let upstream = Upstream::start("a").await;
    let server = app::start(inbound(&[("orders", upstream.addr)])).await.unwrap();
    let seen = seen(server.addrs().inbound.unwrap()).await;
    assert!(seen.contains("10.9.9.9, 127.0.0.1") && !seen.contains("client-cert"), "{seen}");
}
