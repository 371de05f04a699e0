//! Starts, drains and stops a proxy.
//!
//! Tasks on the control runtime: discovery's own, `feed` (config snapshots into the mesh view), active health checks,
//! expiry of ejections, checks of local services, the admin port, gossip's own. Traffic runs on worker threads.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::watch;
use tokio::task::JoinSet;
use weft_core::fsio::DataDir;
use weft_core::id::NodeId;
use weft_core::metrics::Registry;
use weft_core::tls::Dialling;
use weft_gossip::{BoundGossip, GossipConfig, GossipHandle, GossipTiming, Role};
use weft_xds_proto::resource::cluster::{Cluster, OutlierDetection};
use weft_xds_proto::resource::labels;

use crate::admin::{self, AdminState};
use crate::cluster::{expiry, health_check};
use crate::config::static_config::static_endpoint;
use crate::config::{ConfigProblems, LocalService, ProxyConfig};
use crate::config_snapshot::{ClusterConfig, ConfigSnapshot};
use crate::discovery::{Discovery, DiscoveryConfig};
use crate::error::StartError;
use crate::health::{self, LocalServices};
use crate::http::context::{Side, Want};
use crate::limits::{CONNECTIONS_MAX, DRAIN_PROPAGATION};
use crate::listener::connection::Timeouts;
use crate::listener::socket;
use crate::mesh_view::MeshState;
use crate::static_routes::StaticRoutes;
use crate::telemetry::access_log::{AccessLog, Writer};
use crate::telemetry::metrics::{Direction, Metrics};
use crate::worker::{DoorConfig, Phase, Worker, WorkerConfig};

/// Where a running proxy listens; ports are the real ones.
#[derive(Debug, Clone)]
pub struct ProxyAddrs {
    /// For the local app: the configured outbound listener, or the first of the static ones.
    pub outbound: Option<SocketAddr>,
    /// For peers.
    pub inbound: Option<SocketAddr>,
    /// Admin port.
    pub admin: SocketAddr,
    /// Gossip.
    pub gossip: Option<SocketAddr>,
    /// Static listeners by name.
    pub listeners: Vec<(String, SocketAddr)>,
}

/// A proxy that runs. Dropping it stops it without a drain.
pub struct RunningProxy {
    addrs: ProxyAddrs,
    config: ProxyConfig,
    phase: watch::Sender<Phase>,
    workers: Vec<Worker>,
    /// Ends with its holder.
    control: JoinSet<()>,
    /// Ended apart, before services are withdrawn: it would announce them again.
    local_checks: JoinSet<()>,
    admin: JoinSet<()>,
    state: Arc<AdminState>,
    discovery: Discovery,
    gossip: Option<GossipHandle>,
    draining: Arc<AtomicBool>,
    /// Ends with the workers.
    log_writer: Option<Writer>,
    /// Holds the lock on the folder.
    _data_dir: Option<DataDir>,
}

/// Starts a proxy: when it returns, all ports listen. Call it on a multi-thread runtime, which becomes its control
/// runtime; traffic runs on threads of its own.
///
/// # Errors
/// If the configuration, a port, the data folder or a certificate is unusable; then nothing is left running.
pub async fn start(config: ProxyConfig) -> Result<RunningProxy, StartError> {
    config.validate()?;
    let routes = config.static_config.as_ref().map(StaticRoutes::new).transpose();
    let routes = routes.map_err(|why| ConfigProblems(vec![why]))?.unwrap_or_default();
    let identity = Identity::of(config.data_dir.as_deref())?;
    let sockets = Sockets::bind(&config)?;
    let tls = match &config.inbound_tls {
        Some(files) => Some(weft_core::tls::server_config(&files.cert, &files.key, &[b"h2", b"http/1.1"])?),
        None => None,
    };
    let server_tls = match config.server_trust.clone() {
        Some(trust) => Some(Arc::new(Dialling::load(trust).map_err(StartError::ServerTls)?)),
        None => None,
    };
    let advertised = match sockets.inbound_addr() {
        Some(addr) => Some(advertised("inbound", addr, config.advertise)?),
        None => None,
    };
    let gossip = start_gossip(&config, &identity).await?;
    let addrs = sockets.addrs(gossip.as_ref().map(|(addr, _)| *addr));
    let gossip = gossip.map(|(_, handle)| handle);

    let metrics = Metrics::new(Registry::new());
    let discovery = Discovery::start(DiscoveryConfig {
        node_id: identity.node_id,
        name: config.name.clone(),
        servers: config.servers.clone(),
        server_tls,
        gossip: gossip.clone(),
        cache_dir: config.data_dir.clone(),
        preset: config.static_config.as_ref().map(|s| s.cluster_configs()).unwrap_or_default(),
        policies: config.static_config.as_ref().map(|s| s.policies()).unwrap_or_default(),
    });
    let outbound = Arc::new(MeshState::new(Direction::Outbound, routes, metrics.clone()));
    let inbound = Arc::new(MeshState::new(Direction::Inbound, StaticRoutes::default(), metrics.clone()));
    inbound.apply(&local_clusters(&config.services));
    let mut snapshots = discovery.snapshots();
    outbound.apply(&snapshots.borrow_and_update().clone());

    let (phase, phases) = watch::channel(Phase::Serving);
    let want: Option<Want> = config.discovers().then(|| {
        let discovery = discovery.clone();
        Arc::new(move |service: &str| discovery.want(service)) as Want
    });
    let only = match config.services.as_slice() {
        [service] => Some(service.name.clone()),
        _ => None,
    };
    let sides = Sides { outbound: Side::Outbound { want }, inbound: Side::Inbound { only } };
    let (log, log_writer) = match &config.access_log {
        None => (None, None),
        Some(wanted) => {
            let started = AccessLog::start(wanted, metrics.log_lines_dropped.clone());
            let (log, writer) = started.map_err(|source| StartError::AccessLog { source })?;
            (Some(log), Some(writer))
        }
    };
    let shared = (&metrics, log);
    let (workers, admin_socket) =
        start_workers(&config, sockets, &sides, (&outbound, &inbound), tls, shared, &phases)?;

    let local = LocalServices::new(&config.name, identity.node_id, advertised, &config.services);
    let draining = Arc::new(AtomicBool::new(false));
    let mut control = JoinSet::new();
    control.spawn(feed(snapshots, outbound.clone()));
    control.spawn(health_check::run(outbound.clone(), metrics.clone()));
    control.spawn(expiry::run(outbound.clone()));
    let mut local_checks = JoinSet::new();
    if !config.services.is_empty() {
        local_checks.spawn(health::run(local.clone(), gossip.clone()));
    }
    let state = Arc::new(AdminState {
        config: config.clone(),
        addrs: addrs.clone(),
        node_id: identity.node_id,
        outbound,
        inbound,
        local,
        gossip: gossip.clone(),
        metrics,
        draining: draining.clone(),
    });
    let mut admin = JoinSet::new();
    admin.spawn(admin::run(admin_socket, state.clone()));
    Ok(RunningProxy {
        addrs,
        config,
        phase,
        workers,
        control,
        local_checks,
        admin,
        state,
        discovery,
        gossip,
        draining,
        log_writer,
        _data_dir: identity.data_dir,
    })
}

impl RunningProxy {
    /// Where it listens.
    pub fn addrs(&self) -> &ProxyAddrs {
        &self.addrs
    }

    /// Why it should not get traffic yet, or any more: what `/ready` says. `None` if it should.
    pub fn why_not_ready(&self) -> Option<String> {
        self.state.why_not_ready()
    }

    /// Step 1 of [`crate::drain`]: not ready, and its services are taken out of the mesh. When it returns, peers have
    /// had the time to hear of it; everything is still served. Only the first call does something.
    pub async fn withdraw(&mut self) {
        if self.draining.swap(true, Ordering::AcqRel) {
            return;
        }
        self.local_checks.shutdown().await;
        if let Some(gossip) = &self.gossip
            && !self.config.services.is_empty()
        {
            gossip.advertise(Vec::new());
            tokio::time::sleep(DRAIN_PROPAGATION.min(self.config.drain_timeout)).await;
        }
    }

    /// Stops in the order that [`crate::drain`] tells. Takes the drain timeout and about two seconds at most.
    pub async fn drain_and_shutdown(mut self) {
        self.withdraw().await;
        crate::drain::drain(&self.phase, self.workers, self.config.drain_timeout).await;
        if let Some(gossip) = &self.gossip {
            gossip.leave().await;
        }
        self.control.shutdown().await;
        self.discovery.shutdown().await;
        self.admin.shutdown().await;
        if let Some(writer) = self.log_writer.take() {
            // It writes what the workers have left behind; a panic there is told by the thread.
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }
}

/// Takes each config snapshot over into the view, until discovery ends.
async fn feed(mut snapshots: watch::Receiver<Arc<ConfigSnapshot>>, mesh: Arc<MeshState>) {
    while snapshots.changed().await.is_ok() {
        let snapshot = snapshots.borrow_and_update().clone();
        mesh.apply(&snapshot);
    }
}

/// Who this process is.
struct Identity {
    node_id: NodeId,
    incarnation: u64,
    data_dir: Option<DataDir>,
}

impl Identity {
    fn of(dir: Option<&Path>) -> Result<Self, StartError> {
        let Some(dir) = dir else {
            return Ok(Self {
                node_id: NodeId(fastrand::u64(1..)),
                incarnation: unix_seconds(),
                data_dir: None,
            });
        };
        let data_dir = DataDir::open(dir)?;
        let (node_id, incarnation) = (data_dir.node_id()?, data_dir.next_incarnation()?);
        Ok(Self { node_id, incarnation, data_dir: Some(data_dir) })
    }
}

/// A process without a data folder has a new identity at each start, so its incarnation need not grow over restarts.
#[allow(clippy::disallowed_methods)]
fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_secs())
}

/// All listening sockets, a set for each worker.
struct Sockets {
    outbound: Option<(SocketAddr, Vec<TcpListener>)>,
    inbound: Option<(SocketAddr, Vec<TcpListener>)>,
    listeners: Vec<(String, SocketAddr, Vec<TcpListener>)>,
    admin: (SocketAddr, TcpListener),
}

impl Sockets {
    fn bind(config: &ProxyConfig) -> Result<Self, StartError> {
        let bind = |what: &str, addr| socket::bind(what, addr, config.workers);
        let (admin, mut sockets) = socket::bind("admin", config.admin, 1)?;
        let outbound = config.outbound.map(|addr| bind("outbound", addr)).transpose()?;
        let inbound = config.inbound.map(|addr| bind("inbound", addr)).transpose()?;
        let mut listeners = Vec::new();
        for (name, addr) in config.static_config.iter().flat_map(|s| s.listener_addresses()) {
            let (addr, sockets) = bind(&format!("listener {name}"), addr)?;
            listeners.push((name, addr, sockets));
        }
        let admin = (admin, sockets.pop().expect("bind gives as many sockets as asked for"));
        Ok(Self { outbound, inbound, listeners, admin })
    }

    fn inbound_addr(&self) -> Option<SocketAddr> {
        self.inbound.as_ref().map(|(addr, _)| *addr)
    }

    fn addrs(&self, gossip: Option<SocketAddr>) -> ProxyAddrs {
        let first = || self.listeners.first().map(|(_, addr, _)| *addr);
        ProxyAddrs {
            outbound: self.outbound.as_ref().map(|(addr, _)| *addr).or_else(first),
            inbound: self.inbound_addr(),
            admin: self.admin.0,
            gossip,
            listeners: self.listeners.iter().map(|(name, addr, _)| (name.clone(), *addr)).collect(),
        }
    }
}

struct Sides {
    outbound: Side,
    inbound: Side,
}

fn start_workers(
    config: &ProxyConfig,
    mut sockets: Sockets,
    sides: &Sides,
    (outbound, inbound): (&Arc<MeshState>, &Arc<MeshState>),
    tls: Option<Arc<rustls::ServerConfig>>,
    (metrics, log): (&Metrics, Option<Arc<AccessLog>>),
    phase: &watch::Receiver<Phase>,
) -> Result<(Vec<Worker>, TcpListener), StartError> {
    let epoch = Instant::now();
    let mut workers = Vec::with_capacity(config.workers);
    for index in 0..config.workers {
        let from_app = sockets.outbound.iter_mut().map(|(_, s)| s);
        let from_app = from_app.chain(sockets.listeners.iter_mut().map(|(_, _, s)| s));
        let mut doors: Vec<DoorConfig> = from_app
            .filter_map(Vec::pop)
            .map(|listener| DoorConfig {
                listener,
                side: sides.outbound.clone(),
                mesh: outbound.clone(),
                tls: None,
            })
            .collect();
        if let Some(listener) = sockets.inbound.as_mut().and_then(|(_, s)| s.pop()) {
            let (side, mesh) = (sides.inbound.clone(), inbound.clone());
            doors.push(DoorConfig { listener, side, mesh, tls: tls.clone() });
        }
        let worker = Worker::spawn(WorkerConfig {
            index,
            doors,
            metrics: metrics.clone(),
            log: log.clone(),
            epoch,
            connections_max: CONNECTIONS_MAX.div_ceil(config.workers),
            timeouts: Timeouts::default(),
            phase: phase.clone(),
        });
        workers.push(worker.map_err(|source| StartError::Worker { worker: index, source })?);
    }
    Ok((workers, sockets.admin.1))
}

async fn start_gossip(
    config: &ProxyConfig,
    identity: &Identity,
) -> Result<Option<(SocketAddr, GossipHandle)>, StartError> {
    let Some(bind) = config.gossip else { return Ok(None) };
    let bound = BoundGossip::bind(bind).await?;
    let addr = bound.local_addr();
    let handle = bound.start(GossipConfig {
        id: identity.node_id,
        name: config.name.clone(),
        incarnation: identity.incarnation,
        role: Role::Proxy,
        bind,
        advertise: config.advertise,
        seeds: config.join.clone(),
        peers_file: config.data_dir.as_ref().map(|dir| dir.join("peers")),
        timing: GossipTiming::default(),
    })?;
    Ok(Some((addr, handle)))
}

/// What peers are told of an address.
fn advertised(
    what: &'static str,
    addr: SocketAddr,
    advertise: Option<IpAddr>,
) -> Result<SocketAddr, StartError> {
    match advertise {
        Some(ip) => Ok(SocketAddr::new(ip, addr.port())),
        None if addr.ip().is_unspecified() => Err(StartError::NoAdvertise { what, addr }),
        None => Ok(addr),
    }
}

/// Local services as clusters of one endpoint each. It is never ejected: there is no other.
fn local_clusters(services: &[LocalService]) -> ConfigSnapshot {
    let cluster = |service: &LocalService| {
        let cluster = Cluster {
            health_check: None,
            outlier_detection: OutlierDetection::disabled(),
            protocol: labels::protocol([&service.labels]),
            ..Cluster::with_defaults(&service.name)
        };
        let endpoints = vec![static_endpoint(service.addr, 1)];
        (service.name.clone(), Arc::new(ClusterConfig { cluster, endpoints, version: "local".to_owned() }))
    };
    ConfigSnapshot { clusters: services.iter().map(cluster).collect(), ..ConfigSnapshot::default() }
}
