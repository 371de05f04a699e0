//! Endpoints of one cluster of another control plane that are connected to in different ways, by what each says of itself.

use std::net::SocketAddr;

use http::StatusCode;
use weft_core::tls::ClientCerts;
use weft_proxy::config::ProxyConfig;
use weft_xds_proto::envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use weft_xds_proto::envoy_types::pb::envoy::config::core::v3::Metadata;
use weft_xds_proto::envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment as AssignmentProto;
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::Resource;
use weft_xds_proto::envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use weft_xds_proto::envoy_types::util::pack_any;
use weft_xds_proto::resource::cluster::tls::{
    DataSource, Identity, SocketMatch, TlsVersion, Trust, UpstreamTls,
};
use weft_xds_proto::resource::cluster::{Cluster, ClusterTls, HealthCheck};
use weft_xds_proto::resource::endpoint::ClusterLoadAssignment;
use weft_xds_proto::resource::labels;
use weft_xds_proto::resource::route::RouteConfiguration;
use weft_xds_proto::type_url::ResourceType;

use crate::ads::{FakeServer, endpoint, resource};
use crate::pki::{Ca, tls_in_front};
use crate::support::*;

/// As Istio says it: who has `tlsMode: istio` is spoken to over TLS with certificates at both ends.
fn cluster(ca: &Ca) -> Resource {
    let client = ca.issue("client", "client.example");
    let tls = UpstreamTls {
        server_name: Some("api.example".to_owned()),
        trust: Trust::Ca(DataSource::File(ca.file())),
        crl: None,
        names: Vec::new(),
        identity: Some(Identity::Pair {
            certificate: DataSource::File(client.cert),
            key: DataSource::File(client.key),
        }),
        min_version: TlsVersion::default(),
        cipher_suites: Vec::new(),
    };
    let sidecars = SocketMatch {
        name: "tlsMode-istio".to_owned(),
        labels: [(labels::socket_match("tlsMode"), "istio".to_owned())].into(),
        tls: Some(tls),
    };
    let others = SocketMatch { name: "tlsMode-disabled".to_owned(), labels: Default::default(), tls: None };
    let tls = Some(ClusterTls::ByLabels { matches: vec![sidecars, others], otherwise: None });
    let cluster =
        Cluster { tls, health_check: Some(HealthCheck::default()), ..Cluster::with_defaults("orders") };
    resource("orders", "1", pack_any(ClusterProto::from(&cluster)))
}

/// Those that say `tlsMode: istio`, and those that say nothing, with Envoy's own metadata alone.
fn endpoints(version: &str, istio: &[SocketAddr], others: &[SocketAddr]) -> Resource {
    let all = istio.iter().chain(others).map(|addr| endpoint(addr.port())).collect();
    let assignment = ClusterLoadAssignment { cluster_name: "orders".to_owned(), endpoints: all };
    let mut wire = AssignmentProto::from(&assignment);
    let mode = Value { kind: Some(Kind::StringValue("istio".to_owned())) };
    let says = Struct { fields: [("tlsMode".to_owned(), mode)].into() };
    for (i, endpoint) in wire.endpoints.iter_mut().flat_map(|group| &mut group.lb_endpoints).enumerate() {
        let metadata = [("envoy.transport_socket_match".to_owned(), says.clone())];
        endpoint.metadata =
            (i < istio.len()).then(|| Metadata { filter_metadata: metadata.into(), ..Metadata::default() });
    }
    resource("orders", version, pack_any(wire))
}

/// Waits until each of these, and nobody else, has answered one of some requests in a row.
async fn until_all_answer(proxy: &Proxy, names: &[&str]) {
    until(&format!("{names:?} answer"), || async {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..8 {
            let answer = get(proxy.outbound, "orders", "/").await;
            if answer.status != StatusCode::OK {
                return Err(format!("{} {}", answer.status, answer.body));
            }
            seen.insert(answer.body);
        }
        if seen.iter().eq(names) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

/// Requests and checks alike, and connections in the pool are not used for what the endpoint has become.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_over_mutual_tls_and_one_in_plaintext_stand_in_one_cluster() {
    let ca = Ca::new("one");
    let (secret, open) = (Upstream::start("tls").await, Upstream::start("plain").await);
    let wanted = ClientCerts::Required(ca.file());
    let served = ca.issue("server", "api.example");
    let (secure, _task) = tls_in_front(secret.addr, &served, &wanted, &[b"http/1.1"]).await;
    let mut server = FakeServer::start(([127, 0, 0, 1], 0).into()).await;
    let mut config = ProxyConfig::new("test");
    config.outbound = Some(([127, 0, 0, 1], 0).into());
    config.servers = vec![server.addr];
    let proxy = start(config).await;
    let first = tokio::spawn(get(proxy.outbound, "orders", "/"));
    let mut stream = server.stream().await;
    stream.request_of(ResourceType::Cluster).await;
    let nonce = stream.send(ResourceType::Cluster, vec![cluster(&ca)], &[]).await;
    assert_eq!(stream.answer(&nonce).await.error_detail, None);
    let both = endpoints("1", &[secure], &[open.addr]);
    stream.send(ResourceType::Endpoint, vec![both], &[]).await;
    stream.send_routes(&RouteConfiguration::plain("orders"), "1").await;
    assert_eq!(first.await.unwrap().status, StatusCode::OK);
    until_all_answer(&proxy, &["plain", "tls"]).await;

    let clusters = get(proxy.admin, "admin", "/clusters?format=json").await.body;
    assert!(clusters.contains("envoy.transport_socket_match.tlsMode"), "{clusters}");

    // The one in plaintext is said to be a sidecar, which it is not: nothing is sent to it.
    stream.send(ResourceType::Endpoint, vec![endpoints("2", &[secure, open.addr], &[])], &[]).await;
    until_all_answer(&proxy, &["tls"]).await;
    stream.send(ResourceType::Endpoint, vec![endpoints("3", &[secure], &[open.addr])], &[]).await;
    until_all_answer(&proxy, &["plain", "tls"]).await;
}
