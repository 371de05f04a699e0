use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_core::metrics::Registry;
use weft_xds_proto::resource::cluster::{Cluster, LbPolicy};

use super::*;
use crate::cluster::security::ProxyTls;
use crate::config::static_config::static_endpoint;
use crate::config_snapshot::{ClusterConfig, ConfigSnapshot};
use crate::listener::socket;
use crate::policy::forwarding::Forwarding;
use crate::static_routes::StaticRoutes;
use crate::telemetry::metrics::Direction;

mod slow;

/// Answers every request on every connection with a letter.
async fn upstream(letter: u8) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let answer = [b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n".as_slice(), &[letter]].concat();
                let mut seen = [0; 4096];
                while matches!(stream.read(&mut seen).await, Ok(n) if n > 0) {
                    if stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    addr
}

fn snapshot(version: u64, policy: LbPolicy, endpoints: &[SocketAddr]) -> ConfigSnapshot {
    let mut cluster = Cluster::with_defaults("orders");
    cluster.lb_policy = policy;
    let mut endpoints: Vec<_> = endpoints.iter().map(|a| static_endpoint(*a, 1)).collect();
    endpoints.sort_by_key(|e| e.address);
    let config = Arc::new(ClusterConfig { cluster, endpoints, version: version.to_string() });
    ConfigSnapshot { clusters: [("orders".to_owned(), config)].into(), version, ..ConfigSnapshot::default() }
}

/// A worker with one cluster, `orders`.
struct Served {
    addr: SocketAddr,
    mesh: Arc<MeshState>,
    worker: Worker,
    phase: watch::Sender<Phase>,
}

fn serve(endpoints: &[SocketAddr], timeouts: Timeouts) -> Served {
    let metrics = Metrics::new(Registry::new());
    let mesh = Arc::new(MeshState::new(
        Direction::Outbound,
        StaticRoutes::default(),
        metrics.clone(),
        ProxyTls::default(),
    ));
    mesh.apply(&snapshot(1, LbPolicy::RoundRobin, endpoints));
    let (addr, mut listeners) = socket::bind("test", "127.0.0.1:0".parse().unwrap(), 1).unwrap();
    let (phase, phases) = watch::channel(Phase::Serving);
    let worker = Worker::spawn(WorkerConfig {
        index: 0,
        doors: vec![DoorConfig {
            socket: Socket::Tcp(listeners.pop().unwrap()),
            entry: Entry::http(),
            side: Side::Outbound { want: None, find: None, to: None },
            forwarding: Forwarding::App,
            mesh: mesh.clone(),
            tls: None,
        }],
        metrics,
        observers: None,
        epoch: Instant::now(),
        cached_changes: Default::default(),
        connections_max: 100,
        timeouts,
        phase: phases,
        overload: Default::default(),
    })
    .unwrap();
    Served { addr, mesh, worker, phase }
}

/// SD-37, D01: the policy and the endpoints change all the time, and no request fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_and_endpoints_switch_under_load_without_a_failed_request() {
    let addrs = [upstream(b'a').await, upstream(b'b').await, upstream(b'c').await];
    let Served { addr, mesh, worker, phase } = serve(&addrs, Timeouts::default());
    let (stop, served) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, served) = (stop.clone(), served.clone());
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(addr).await.unwrap();
                while stop.load(Ordering::Relaxed) == 0 {
                    stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
                    let mut answer = [0; 4096];
                    let n = stream.read(&mut answer).await.unwrap();
                    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..n]));
                    served.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut version = 2;
    while served.load(Ordering::Relaxed) < 3000 {
        let policy = LbPolicy::PLAIN[version % LbPolicy::PLAIN.len()].clone();
        let endpoints = if version % 2 == 0 { &addrs[..2] } else { &addrs[..] };
        mesh.apply(&snapshot(version as u64, policy, endpoints));
        version += 1;
        tokio::task::yield_now().await;
    }
    stop.store(1, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let cluster = mesh.view().clusters["orders"].clone();
    assert!(
        cluster.endpoints.endpoints().iter().all(|e| e.state.active() == 0),
        "every request is counted out"
    );
    phase.send_replace(Phase::Stopping);
    assert_eq!(worker.join().await, 0);
    assert!(version > 20, "{version} versions");
}
