//! Discovery against a scripted ADS server over TCP: what goes over the wire, and what survives the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weft_core::id::NodeId;
use weft_proxy::config_snapshot::{ClusterConfig, ConfigSnapshot};
use weft_proxy::discovery::{Discovery, DiscoveryConfig};
use weft_xds_proto::envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::Resource;
use weft_xds_proto::envoy_types::util::pack_any;
use weft_xds_proto::nack;
use weft_xds_proto::resource::cluster::Cluster;
use weft_xds_proto::resource::endpoint::{Endpoint, EndpointSource};
use weft_xds_proto::resource::route::{OUTBOUND, RouteConfiguration};
use weft_xds_proto::type_url::ResourceType;

#[path = "shared/ads.rs"]
mod ads;

use ads::*;

fn unusable_cluster(name: &str, version: &str) -> Resource {
    let mut proto = ClusterProto::from(&Cluster::with_defaults(name));
    proto.lb_policy = 6;
    resource(name, version, pack_any(proto))
}

fn config(servers: &[SocketAddr], cache_dir: Option<&std::path::Path>) -> DiscoveryConfig {
    DiscoveryConfig {
        place: Default::default(),
        node_id: NodeId(7),
        name: "west-1".to_owned(),
        servers: servers.to_vec(),
        server_tls: None,
        gossip: None,
        cache_dir: cache_dir.map(Into::into),
        preset: Vec::new(),
        policies: Default::default(),
    }
}

async fn until(
    snapshots: &mut watch::Receiver<Arc<ConfigSnapshot>>,
    what: impl Fn(&ConfigSnapshot) -> bool,
) -> Arc<ConfigSnapshot> {
    tokio::time::timeout(PATIENCE, snapshots.wait_for(|s| what(s))).await.expect("in time").unwrap().clone()
}

fn ports(snapshot: &ConfigSnapshot, name: &str) -> Option<Vec<u16>> {
    snapshot.clusters.get(name).map(|c| c.endpoints.iter().map(|e| e.address.port()).collect())
}

fn any_port() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// D02, P33: rejecting one resource neither loses the others nor counts as applied, and says what and why.
#[tokio::test]
async fn a_bad_resource_beside_a_good_one_is_rejected_by_name_and_the_good_one_is_used() {
    let mut server = FakeServer::start(any_port()).await;
    let discovery = Discovery::start(config(&[server.addr], None));
    let snapshots = discovery.snapshots();
    discovery.want("good");
    discovery.want("bad");
    let mut stream = server.stream().await;
    assert_eq!(stream.request().await.node.unwrap().id, NodeId(7).to_string());

    for name in ["good", "bad"] {
        stream.send_routes(&RouteConfiguration::plain(name), "1").await;
    }
    let eds = vec![endpoints("good", "1", &[1001]), endpoints("bad", "1", &[1002])];
    stream.send(ResourceType::Endpoint, eds, &[]).await;
    let cds = vec![unusable_cluster("bad", "1"), cluster("good", "1")];
    let nonce = stream.send(ResourceType::Cluster, cds, &[]).await;
    let error = stream.answer(&nonce).await.error_detail.unwrap();
    let reason = r#"Cluster "bad": lb_policy: seen CLUSTER_PROVIDED, allowed ROUND_ROBIN, RANDOM, LEAST_REQUEST, RING_HASH or MAGLEV"#;
    assert_eq!(nack::rejected(&error), [("bad".to_owned(), reason.to_owned())]);
    // The answer goes out after the good one is in use.
    assert_eq!(ports(&snapshots.borrow(), "good"), Some(vec![1001]));
    assert_eq!(ports(&snapshots.borrow(), "bad"), None);

    let nonce = stream.send(ResourceType::Cluster, vec![cluster("bad", "2")], &[]).await;
    assert_eq!(stream.answer(&nonce).await.error_detail, None);
    assert_eq!(ports(&snapshots.borrow(), "bad"), Some(vec![1002]));

    // Bad again: the last good version stays in use.
    let nonce = stream.send(ResourceType::Cluster, vec![unusable_cluster("bad", "3")], &[]).await;
    assert!(stream.answer(&nonce).await.error_detail.is_some());
    assert_eq!(ports(&snapshots.borrow(), "bad"), Some(vec![1002]));
    discovery.shutdown().await;
}

#[tokio::test]
async fn a_server_that_dies_is_left_for_another_which_is_told_what_is_held() {
    let mut first = FakeServer::start(any_port()).await;
    let mut second = FakeServer::start(any_port()).await;
    let discovery = Discovery::start(config(&[first.addr, second.addr], None));
    let mut snapshots = discovery.snapshots();
    discovery.want("a");
    let (mut stream, used) = tokio::select! {
        s = first.stream() => (s, first.addr),
        s = second.stream() => (s, second.addr),
    };
    stream.send_service("a", "1", &[1001]).await;
    let snapshot = until(&mut snapshots, |s| ports(s, "a").is_some()).await;
    assert_eq!(snapshot.control_plane.server, Some(used));

    let (dying, other) = if used == first.addr { (&first, &mut second) } else { (&second, &mut first) };
    dying.stop.cancel();
    drop(stream);
    let mut stream = other.stream().await;
    let cds = stream.request_of(ResourceType::Cluster).await;
    assert_eq!(cds.initial_resource_versions, [("a".to_owned(), "1".to_owned())].into());
    // Nothing was lost in between.
    assert_eq!(ports(&snapshots.borrow_and_update(), "a"), Some(vec![1001]));

    // The new server knows other endpoints; then it deletes the service.
    stream.send(ResourceType::Endpoint, vec![endpoints("a", "2", &[1001, 1002])], &[]).await;
    until(&mut snapshots, |s| ports(s, "a") == Some(vec![1001, 1002])).await;
    stream.send(ResourceType::Endpoint, vec![], &["a"]).await;
    stream.send(ResourceType::Cluster, vec![], &["a"]).await;
    let snapshot = until(&mut snapshots, |s| s.absent.contains_key("a")).await;
    assert_eq!(ports(&snapshot, "a"), None);
    assert_eq!(snapshot.absent["a"], "no service a; known: z (1 of 1)");
    discovery.shutdown().await;
}

/// With all servers gone, also a restarted proxy serves what it knew; a server that comes back is found again.
#[tokio::test]
async fn the_last_good_state_serves_after_a_restart_without_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = FakeServer::start(any_port()).await;
    let addr = server.addr;
    let discovery = Discovery::start(config(&[addr], Some(dir.path())));
    let mut snapshots = discovery.snapshots();
    discovery.want("a");
    let mut stream = server.stream().await;
    stream.send_service("a", "1", &[1001]).await;
    until(&mut snapshots, |s| ports(s, "a").is_some()).await;
    discovery.shutdown().await;
    server.stop.cancel();
    drop((stream, server));

    let restarted = Discovery::start(config(&[addr], Some(dir.path())));
    let mut snapshots = restarted.snapshots();
    assert_eq!(ports(&snapshots.borrow_and_update(), "a"), Some(vec![1001]));
    let snapshot = until(&mut snapshots, |s| s.control_plane.last_error.is_some()).await;
    assert_eq!(ports(&snapshot, "a"), Some(vec![1001]));
    assert!(snapshot.control_plane.last_error.as_ref().unwrap().contains(&addr.to_string()));

    let mut server = FakeServer::start(addr).await;
    let mut stream = server.stream().await;
    let eds = stream.request_of(ResourceType::Endpoint).await;
    assert_eq!(eds.initial_resource_versions, [("a".to_owned(), "1".to_owned())].into());
    stream.send(ResourceType::Endpoint, vec![endpoints("a", "2", &[1002])], &[]).await;
    until(&mut snapshots, |s| ports(s, "a") == Some(vec![1002])).await;
    restarted.shutdown().await;
}

#[tokio::test]
async fn a_corrupt_cache_means_an_empty_start_and_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("xds-cache"), b"weftxds\0 and then nonsense, long enough").unwrap();
    let mut server = FakeServer::start(any_port()).await;
    let discovery = Discovery::start(config(&[server.addr], Some(dir.path())));
    let mut snapshots = discovery.snapshots();
    assert!(snapshots.borrow_and_update().clusters.is_empty());
    discovery.want("a");
    let mut stream = server.stream().await;
    stream.send_service("a", "1", &[1001]).await;
    until(&mut snapshots, |s| ports(s, "a").is_some()).await;
    discovery.shutdown().await;
    let restarted = Discovery::start(config(&[], Some(dir.path())));
    assert_eq!(ports(&restarted.snapshots().borrow(), "a"), Some(vec![1001]));
    restarted.shutdown().await;
}

#[tokio::test]
async fn clusters_from_a_file_are_neither_asked_for_nor_overridden() {
    let mut server = FakeServer::start(any_port()).await;
    let mut config = config(&[server.addr], None);
    config.preset = vec![ClusterConfig {
        cluster: Cluster::with_defaults("fixed"),
        endpoints: vec![Endpoint { source: EndpointSource::Static, ..endpoint(9) }],
        version: "file".to_owned(),
    }];
    let discovery = Discovery::start(config);
    let mut snapshots = discovery.snapshots();
    assert_eq!(ports(&snapshots.borrow_and_update(), "fixed"), Some(vec![9]));
    discovery.want("fixed");
    discovery.want("a");
    let mut stream = server.stream().await;
    assert_eq!(stream.request_of(ResourceType::Cluster).await.resource_names_subscribe, ["a"]);
    stream.send_service("fixed", "1", &[2]).await;
    stream.send_service("a", "1", &[1]).await;
    let snapshot = until(&mut snapshots, |s| ports(s, "a").is_some()).await;
    assert_eq!(ports(&snapshot, "fixed"), Some(vec![9]));
    discovery.shutdown().await;
}

/// Without any server a name stays open: the request's own deadline answers it, with what is known of the servers.
#[tokio::test]
async fn without_a_server_a_name_is_neither_there_nor_absent() {
    let discovery = Discovery::start(config(&[], None));
    let mut snapshots = discovery.snapshots();
    discovery.want("a");
    discovery.want("not a name");
    tokio::time::timeout(Duration::from_millis(50), snapshots.wait_for(|s| s.absent.contains_key("a")))
        .await
        .expect_err("nobody can say that it does not exist");
    let snapshot = snapshots.borrow().clone();
    assert!(snapshot.clusters.is_empty() && snapshot.absent.is_empty());
    assert!(!snapshot.control_plane.servers_known && !snapshot.control_plane.is_connected());
    discovery.shutdown().await;
}

/// All to `to`.
fn routes(name: &str, to: &str) -> RouteConfiguration {
    RouteConfiguration { name: name.to_owned(), ..RouteConfiguration::plain(to) }
}

/// D01, make before break: no moment in which a service is used without its routes, or routes without their services.
#[tokio::test]
async fn a_service_comes_into_use_with_its_routes_and_routes_with_their_services() {
    let mut server = FakeServer::start(any_port()).await;
    let discovery = Discovery::start(config(&[server.addr], None));
    let mut snapshots = discovery.snapshots();
    discovery.want("a");
    let mut stream = server.stream().await;
    stream.send(ResourceType::Cluster, vec![cluster("a", "1")], &[]).await;
    let nonce = stream.send(ResourceType::Endpoint, vec![endpoints("a", "1", &[1001])], &[]).await;
    stream.answer(&nonce).await;
    assert_eq!(ports(&snapshots.borrow(), "a"), None, "its routes are not known yet");

    let nonce = stream.send_routes(&routes("a", "b"), "1").await;
    let asked = stream.request_of(ResourceType::Cluster).await;
    assert_eq!(asked.resource_names_subscribe, ["b"], "what the routes lead to is asked for");
    stream.answer(&nonce).await;
    assert!(!snapshots.borrow().routes.contains_key("a"), "b is not known yet");
    stream.send_service("b", "1", &[1002]).await;
    let snapshot = until(&mut snapshots, |s| s.routes.contains_key("a")).await;
    assert_eq!(ports(&snapshot, "b"), Some(vec![1002]));
    until(&mut snapshots, |s| ports(s, "a").is_some()).await;

    // Routes that go leave the service as it is.
    stream.send_routes(&RouteConfiguration::plain("a"), "2").await;
    let snapshot = until(&mut snapshots, |s| s.routes.is_empty()).await;
    assert_eq!(ports(&snapshot, "a"), Some(vec![1001]));
    discovery.shutdown().await;
}

#[tokio::test]
async fn routes_of_hosts_are_asked_for_at_once_and_survive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = FakeServer::start(any_port()).await;
    let discovery = Discovery::start(config(&[server.addr], Some(dir.path())));
    let mut snapshots = discovery.snapshots();
    let mut stream = server.stream().await;
    assert_eq!(stream.request_of(ResourceType::Route).await.resource_names_subscribe, [OUTBOUND]);
    assert!(!snapshots.borrow_and_update().hosts_known);
    stream.send_routes(&routes(OUTBOUND, "b"), "1").await;
    assert_eq!(stream.request_of(ResourceType::Cluster).await.resource_names_subscribe, ["b"]);
    stream.send_service("b", "1", &[1002]).await;
    let snapshot = until(&mut snapshots, |s| s.hosts.is_some()).await;
    assert!(snapshot.hosts_known);
    discovery.shutdown().await;

    let restarted = Discovery::start(config(&[], Some(dir.path())));
    let snapshot = restarted.snapshots().borrow().clone();
    assert!(snapshot.hosts.is_some() && snapshot.hosts_known);
    restarted.shutdown().await;
}
