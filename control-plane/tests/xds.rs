//! The server's and the proxy's halves of xDS over TCP: what happens in the catalogue reaches the proxy's snapshot.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use weft_control_plane::xds::builder::{InstanceView, ServiceView};
use weft_control_plane::xds::{ServiceSource, XdsServer};
use weft_core::id::NodeId;
use weft_gossip::InstanceHealth;
use weft_proxy::config_snapshot::ConfigSnapshot;
use weft_proxy::discovery::{Discovery, DiscoveryConfig};
use weft_xds_proto::resource::cluster::{CheckBy, LbPolicy};
use weft_xds_proto::resource::endpoint::EndpointSource;
use weft_xds_proto::type_url::ResourceType;

const PATIENCE: Duration = Duration::from_secs(10);

/// A catalogue that knows what the test says.
#[derive(Clone)]
struct Services {
    all: Arc<Mutex<Vec<ServiceView>>>,
    version: watch::Sender<u64>,
    caught_up: watch::Sender<bool>,
}

impl Services {
    fn new(all: Vec<ServiceView>) -> Self {
        Self {
            all: Arc::new(Mutex::new(all)),
            version: watch::Sender::new(0),
            caught_up: watch::Sender::new(true),
        }
    }

    fn set(&self, all: Vec<ServiceView>) {
        *self.all.lock() = all;
        self.version.send_modify(|v| *v += 1);
    }
}

impl ServiceSource for Services {
    fn services(&self) -> Vec<ServiceView> {
        self.all.lock().clone()
    }
    fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
    async fn caught_up(&self) {
        self.caught_up.subscribe().wait_for(|c| *c).await.expect("the test holds it");
    }
}

fn service(name: &str, ports: &[u16], lb_policy: LbPolicy) -> ServiceView {
    let instance = |port: &u16| InstanceView {
        instance_id: format!("{name}-{port}"),
        address: ([127, 0, 0, 1], *port).into(),
        health: InstanceHealth::Passing,
        source: EndpointSource::Registry,
        owner: "1f".to_owned(),
        metadata: Default::default(),
        health_path: Some("/health".to_owned()),
    };
    ServiceView { name: name.to_owned(), lb_policy, instances: ports.iter().map(instance).collect() }
}

fn hello(ports: &[u16]) -> ServiceView {
    service("hello", ports, LbPolicy::RoundRobin)
}

struct Server {
    xds: Arc<XdsServer>,
    addr: SocketAddr,
    stop: CancellationToken,
}

impl Server {
    async fn start(services: &Services) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let xds = XdsServer::new(services.clone());
        let stop = CancellationToken::new();
        let serve = tonic::transport::Server::builder()
            .add_service(xds.service())
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
        tokio::spawn(serve);
        Self { xds, addr, stop }
    }

    async fn stop(&self) {
        self.xds.shutdown().await;
        self.stop.cancel();
    }
}

fn proxy(servers: &[SocketAddr]) -> Discovery {
    Discovery::start(DiscoveryConfig {
        place: Default::default(),
        node_id: NodeId(7),
        name: "west-1".to_owned(),
        servers: servers.to_vec(),
        server_tls: None,
        gossip: None,
        cache_dir: None,
        preset: Vec::new(),
        policies: Default::default(),
    })
}

async fn until(discovery: &Discovery, what: impl Fn(&ConfigSnapshot) -> bool) -> Arc<ConfigSnapshot> {
    let mut snapshots = discovery.snapshots();
    tokio::time::timeout(PATIENCE, snapshots.wait_for(|s| what(s))).await.expect("in time").unwrap().clone()
}

fn ports(snapshot: &ConfigSnapshot, name: &str) -> Vec<u16> {
    let endpoints = snapshot.clusters.get(name).map(|c| &c.endpoints);
    endpoints.into_iter().flatten().map(|e| e.address.port()).collect()
}

#[tokio::test]
async fn changes_of_the_catalogue_reach_the_proxy() {
    let services = Services::new(vec![hello(&[1, 2]), service("other", &[9], LbPolicy::RoundRobin)]);
    let server = Server::start(&services).await;
    let discovery = proxy(&[server.addr]);
    discovery.want("hello");
    let snapshot = until(&discovery, |s| ports(s, "hello") == [1, 2]).await;
    let check = snapshot.clusters["hello"].cluster.health_check.clone().unwrap();
    assert_eq!(check.by, CheckBy::Get("/health".to_owned()));
    // On demand: what nobody called is not held (P35).
    assert!(!snapshot.clusters.contains_key("other"));

    services.set(vec![hello(&[2, 3])]);
    until(&discovery, |s| ports(s, "hello") == [2, 3]).await;
    services.set(vec![service("hello", &[2, 3], LbPolicy::LeastConnections)]);
    let policy = |s: &ConfigSnapshot| s.clusters.get("hello").map(|c| c.cluster.lb_policy.clone());
    until(&discovery, |s| policy(s) == Some(LbPolicy::LeastConnections)).await;
    services.set(vec![hello(&[])]);
    let snapshot = until(&discovery, |s| ports(s, "hello").is_empty()).await;
    assert!(snapshot.clusters.contains_key("hello"), "known, without instances");
    discovery.shutdown().await;
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_service_is_absent_at_once_and_appears_when_registered() {
    let services = Services::new(vec![hello(&[1])]);
    let server = Server::start(&services).await;
    let discovery = proxy(&[server.addr]);
    discovery.want("helo");
    let snapshot = until(&discovery, |s| s.absent.contains_key("helo")).await;
    assert_eq!(snapshot.absent["helo"], "no service helo; known: hello (1 of 1)");
    services.set(vec![hello(&[1]), service("helo", &[5], LbPolicy::Random)]);
    let snapshot = until(&discovery, |s| ports(s, "helo") == [5]).await;
    assert!(snapshot.absent.is_empty());
    services.set(vec![hello(&[1])]);
    let snapshot = until(&discovery, |s| s.absent.contains_key("helo")).await;
    assert!(snapshot.clusters.is_empty());
    discovery.shutdown().await;
    server.stop().await;
}

/// P33: who has applied what can be asked.
#[tokio::test]
async fn what_each_proxy_has_acknowledged_can_be_asked() {
    let services = Services::new(vec![hello(&[1])]);
    let server = Server::start(&services).await;
    assert!(server.xds.proxies().is_empty());
    let discovery = proxy(&[server.addr]);
    discovery.want("hello");
    until(&discovery, |s| ports(s, "hello") == [1]).await;
    let acked = || {
        let proxies = server.xds.proxies();
        let done = |r: &weft_control_plane::xds::subscription::ResourceStatus| {
            !r.version_sent.is_empty() && r.version_sent == r.version_acked && r.error.is_none()
        };
        proxies.len() == 1 && proxies[0].resources.len() == 4 && proxies[0].resources.iter().all(done)
    };
    tokio::time::timeout(PATIENCE, async {
        while !acked() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("acknowledged in time");
    let status = &server.xds.proxies()[0];
    assert_eq!(status.node_id, NodeId(7).to_string());
    let held: Vec<_> = status.resources.iter().map(|r| (r.resource_type, r.name.as_str())).collect();
    // The routes of the service, and those of hosts that are no service.
    let routes = [(ResourceType::Route, "hello"), (ResourceType::Route, "outbound.weft")];
    let service = [(ResourceType::Cluster, "hello"), (ResourceType::Endpoint, "hello")];
    assert_eq!(held, [service, routes].concat());

    discovery.shutdown().await;
    tokio::time::timeout(PATIENCE, async {
        while server.xds.connected() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("gone with its stream");
    server.stop().await;
}

/// A server that stops sends its clients to another one, and nothing is lost meanwhile.
#[tokio::test]
async fn stopping_a_server_moves_its_proxies_to_another() {
    let services = Services::new(vec![hello(&[1])]);
    let (one, two) = (Server::start(&services).await, Server::start(&services).await);
    let discovery = proxy(&[one.addr, two.addr]);
    discovery.want("hello");
    let snapshot = until(&discovery, |s| ports(s, "hello") == [1]).await;
    let used = snapshot.control_plane.server.unwrap();
    let (stopping, other) = if used == one.addr { (&one, &two) } else { (&two, &one) };
    stopping.stop().await;
    let snapshot = until(&discovery, |s| s.control_plane.server == Some(other.addr)).await;
    assert_eq!(ports(&snapshot, "hello"), [1]);
    services.set(vec![hello(&[1, 2])]);
    until(&discovery, |s| ports(s, "hello") == [1, 2]).await;
    discovery.shutdown().await;
    other.stop().await;
}

/// A burst of changes folds into few pushes, and the last one always arrives.
#[tokio::test]
async fn a_burst_of_changes_ends_with_the_last_one() {
    let services = Services::new(vec![hello(&[1])]);
    let server = Server::start(&services).await;
    let discovery = proxy(&[server.addr]);
    discovery.want("hello");
    let before = until(&discovery, |s| ports(s, "hello") == [1]).await.version;
    for port in 2..1000 {
        services.set(vec![hello(&[port])]);
        tokio::task::yield_now().await;
    }
    let after = until(&discovery, |s| ports(s, "hello") == [999]).await.version;
    assert!(after - before < 100, "{} snapshots for 998 changes", after - before);
    discovery.shutdown().await;
    server.stop().await;
}

/// A restarted server that still reads its log must not tell proxies that services are gone.
#[tokio::test]
async fn a_server_that_has_not_caught_up_serves_nobody() {
    let services = Services::new(vec![]);
    services.caught_up.send_replace(false);
    let server = Server::start(&services).await;
    let discovery = proxy(&[server.addr]);
    discovery.want("hello");
    let snapshot = until(&discovery, |s| s.control_plane.last_error.is_some()).await;
    let error = snapshot.control_plane.last_error.as_ref().unwrap();
    assert!(error.contains("still catching up"), "{error}");
    assert!(snapshot.absent.is_empty());
    services.set(vec![hello(&[1])]);
    services.caught_up.send_replace(true);
    let snapshot = until(&discovery, |s| ports(s, "hello") == [1]).await;
    assert!(snapshot.absent.is_empty());
    discovery.shutdown().await;
    server.stop().await;
}
