//! A server, and just enough of a client for each of its ports.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tonic::transport::Channel;
use weft_control_plane::app::{self, RunningServer};
use weft_control_plane::config::ServerConfig;
use weft_control_plane::gate::{Secret, TokenSource};
use weft_core::id::NodeId;
use weft_gossip::driver::{BoundGossip, GossipConfig, GossipHandle};
use weft_gossip::instance::{InstanceHealth, InstanceRecord};
use weft_gossip::member::Role;
use weft_gossip::timing::GossipTiming;
use weft_xds_proto::etcdserverpb::lease_client::LeaseClient;
use weft_xds_proto::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest};
use weft_xds_proto::weft::election_client::ElectionClient;
use weft_xds_proto::weft::mesh_client::MeshClient;
use weft_xds_proto::weft::semaphore_client::SemaphoreClient;

/// What any step may take on a loaded machine before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A server with its folder.
pub struct TestServer {
    running: Option<RunningServer>,
    dir: TempDir,
}

/// A configuration on free ports.
pub fn config(dir: &Path) -> ServerConfig {
    let join_token = TokenSource::Given(Secret("t".repeat(32)));
    ServerConfig { join_token, ..ServerConfig::new("s1", dir.join("data")).with_any_ports() }
}

impl TestServer {
    /// A server alone, started and ready.
    pub async fn start() -> Self {
        Self::named("s1", &[]).await
    }

    /// A server that joins those, started and ready.
    pub async fn named(name: &str, join: &[&TestServer]) -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mut config = config(dir.path());
        config.name = name.to_owned();
        config.join = join.iter().map(|s| s.server().addrs().gossip.to_string()).collect();
        let running = app::start(config).await.expect("the server starts");
        tokio::time::timeout(PATIENCE, running.ready()).await.expect("the server becomes ready");
        Self { running: Some(running), dir }
    }

    /// The server.
    pub fn server(&self) -> &RunningServer {
        self.running.as_ref().expect("it runs")
    }

    /// Stops it, and starts it again on the same folder.
    pub async fn restart(&mut self) {
        self.stop().await;
        let running = app::start(config(self.dir.path())).await.expect("the server starts again");
        tokio::time::timeout(PATIENCE, running.ready()).await.expect("the server becomes ready");
        self.running = Some(running);
    }

    /// Stops it; answers how long that took.
    pub async fn stop(&mut self) -> Duration {
        let started = std::time::Instant::now();
        self.running.take().expect("it runs").shutdown().await;
        started.elapsed()
    }

    /// Sends one HTTP request.
    pub async fn http(&self, method: Method, path: &str, body: &str) -> Answer {
        http(self.server().addrs().http, method, path, body).await
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Answer {
        self.http(Method::GET, path, "").await
    }

    /// Registers an instance on loopback.
    pub async fn register(&self, service: &str, id: &str, port: u16, ttl: &str) -> Answer {
        let body = serde_json::json!({
            "service": service, "instance_id": id, "host": "127.0.0.1", "port": port, "ttl": ttl,
        });
        self.http(Method::POST, "/register", &body.to_string()).await
    }

    /// A channel of its own: dropping it breaks the connection.
    pub async fn channel(&self) -> Channel {
        let addr = self.server().addrs().grpc;
        Channel::from_shared(format!("http://{addr}")).expect("a URI").connect().await.expect("it listens")
    }

    /// `weft.v1.Semaphore`.
    pub async fn semaphores(&self) -> SemaphoreClient<Channel> {
        SemaphoreClient::new(self.channel().await)
    }

    /// `weft.v1.Election`.
    pub async fn elections(&self) -> ElectionClient<Channel> {
        ElectionClient::new(self.channel().await)
    }

    /// `weft.v1.Mesh`.
    pub async fn mesh(&self) -> MeshClient<Channel> {
        MeshClient::new(self.channel().await)
    }

    /// A session that lives for a minute.
    pub async fn session(&self) -> i64 {
        let mut leases = LeaseClient::new(self.channel().await);
        leases.lease_grant(LeaseGrantRequest { ttl: 60, id: 0 }).await.expect("granted").into_inner().id
    }

    /// Ends a session.
    pub async fn end_session(&self, id: i64) {
        let mut leases = LeaseClient::new(self.channel().await);
        leases.lease_revoke(LeaseRevokeRequest { id }).await.expect("revoked");
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// Sends one request on a connection of its own.
pub async fn http(addr: SocketAddr, method: Method, path: &str, body: &str) -> Answer {
    http_with(addr, method, path, body, &[]).await
}

/// As [`http`], with further headers.
pub async fn http_with(
    addr: SocketAddr,
    method: Method,
    path: &str,
    body: &str,
    headers: &[(&str, &str)],
) -> Answer {
    let exchange = async {
        let stream = TcpStream::connect(addr).await.expect("it listens");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "weft");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(axum::body::Body::from(body.to_owned())).expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        let (head, body) = answer.into_parts();
        let bytes = axum::body::to_bytes(axum::body::Body::new(body), usize::MAX).await.expect("a body");
        connection.abort();
        Answer {
            status: head.status,
            headers: head.headers,
            body: String::from_utf8(bytes.to_vec()).expect("text"),
        }
    };
    tokio::time::timeout(PATIENCE, exchange).await.expect("an answer in time")
}

/// Repeats `check` until it succeeds.
pub async fn until<T>(what: &str, mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
    let mut last = String::new();
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            match check().await {
                Ok(done) => return done,
                Err(error) => last = error,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{what}: {last}"))
}

/// A member of the server's gossip pool, as a sidecar is one.
pub async fn sidecar(server: &TestServer, name: &str, id: u64) -> GossipHandle {
    let bound = BoundGossip::bind("127.0.0.1:0".parse().expect("an address")).await.expect("a free port");
    let bind = bound.local_addr();
    bound
        .start(GossipConfig {
            id: NodeId(id),
            name: name.into(),
            incarnation: 1,
            role: Role::Proxy,
            bind,
            advertise: None,
            seeds: vec![server.server().addrs().gossip.to_string()],
            peers_file: None,
            timing: GossipTiming::default(),
        })
        .expect("gossip starts")
}

/// What a sidecar says of its app.
pub fn advertised(service: &str, id: &str, port: u16, health: InstanceHealth) -> InstanceRecord {
    InstanceRecord {
        service: service.into(),
        instance_id: id.into(),
        address: SocketAddr::from(([127, 0, 0, 1], port)),
        health,
        metadata: Default::default(),
    }
}
