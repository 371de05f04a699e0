//! Starts, drains and stops a proxy.
//!
//! Tasks on the control runtime: discovery's own, `feed` (config snapshots into the mesh view), active health checks,
//! expiry of ejections, checks of local services, the export of spans, the admin port, gossip's own. Traffic runs on worker threads.

use std::net::{IpAddr, SocketAddr};
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
use crate::config::{BoundListener, ConfigProblems, LocalService, ProxyConfig};
use crate::config_snapshot::{ClusterConfig, ConfigSnapshot};
use crate::discovery::{Discovery, DiscoveryConfig};
use crate::error::StartError;
use crate::health::{self, LocalServices};
use crate::http::context::{Side, Want};
use crate::http::seen::Observers;
use crate::limits::{CONNECTIONS_MAX, DRAIN_PROPAGATION};
use crate::listener::connection::Timeouts;
use crate::listener::unix::SocketFile;
use crate::mesh_view::MeshState;
use crate::sockets::{Handle, Origin, Sockets};
use crate::static_routes::StaticRoutes;
use crate::telemetry::access_log::{AccessLog, Writer};
use crate::telemetry::metrics::{Direction, Metrics};
use crate::telemetry::trace::Tracer;
use crate::telemetry::trace::export::{END_TIMEOUT, Exporter};
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
    /// Ports and sockets of single services.
    pub upstreams: Vec<BoundListener>,
    /// Inbound ports of services that speak no HTTP.
    pub inbound_tcp: Vec<BoundListener>,
}

impl ProxyAddrs {
    /// With the admin port alone.
    pub(crate) fn new(admin: SocketAddr) -> Self {
        Self {
            outbound: None,
            inbound: None,
            admin,
            gossip: None,
            listeners: Vec::new(),
            upstreams: Vec::new(),
            inbound_tcp: Vec::new(),
        }
    }
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
    /// Step 1 of the drain is over.
    withdrawn: bool,
    /// Ends with the workers.
    log_writer: Option<Writer>,
    /// Removed with it.
    _socket_files: Vec<SocketFile>,
    /// Ends after the workers.
    exports: JoinSet<()>,
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
    let mut sockets = Sockets::bind(&config)?;
    let tls = match &config.inbound_tls {
        Some(files) => Some(weft_core::tls::server_config(&files.cert, &files.key, &[b"h2", b"http/1.1"])?),
        None => None,
    };
    let server_tls = match config.server_trust.clone() {
        Some(trust) => Some(Arc::new(Dialling::load(trust).map_err(StartError::ServerTls)?)),
        None => None,
    };
    let told = |what, addr| advertised(what, addr, config.advertise);
    let advertised = sockets.addrs().inbound.map(|addr| told("inbound", addr)).transpose()?;
    let mut own = std::mem::take(&mut sockets.own);
    for (_, addr) in &mut own {
        *addr = told("inbound-tcp", *addr)?;
    }
    let gossip = start_gossip(&config, &identity).await?;
    let mut addrs = sockets.addrs().clone();
    addrs.gossip = gossip.as_ref().map(|(addr, _)| *addr);
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
    let (log, log_writer) = match &config.access_log {
        None => (None, None),
        Some(wanted) => {
            let started = AccessLog::start(wanted, metrics.log_lines_dropped.clone());
            let (log, writer) = started.map_err(|source| StartError::AccessLog { source })?;
            (Some(log), Some(writer))
        }
    };
    let mut exports = JoinSet::new();
    let tracer = match &config.trace {
        None => None,
        Some(wanted) => {
            let instance = identity.node_id.to_string();
            let exporter = Exporter::new(&wanted.endpoint, &config.name, &instance, &metrics);
            let exporter = exporter.map_err(|source| StartError::Trace { source })?;
            let (tracer, queue) = Tracer::new(wanted, &metrics);
            exports.spawn(exporter.run(queue));
            Some(tracer)
        }
    };
    let observers = (log.is_some() || tracer.is_some()).then(|| Arc::new(Observers { log, tracer }));
    let (meshes, shared) = ((&outbound, &inbound), (&metrics, observers));
    let workers = start_workers(&config, &mut sockets, want.as_ref(), meshes, tls.as_ref(), shared, &phases)?;
    let (admin_socket, socket_files) = sockets.finish();

    let local = LocalServices::new(&config.name, identity.node_id, advertised, own, &config.services);
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
        started: Instant::now(),
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
        withdrawn: false,
        log_writer,
        _socket_files: socket_files,
        exports,
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
    /// had the time to hear of it; everything is still served. Done once; a call that was given up is made good by the next.
    pub async fn withdraw(&mut self) {
        self.draining.store(true, Ordering::Release);
        if self.withdrawn {
            return;
        }
        self.local_checks.shutdown().await;
        if let Some(gossip) = &self.gossip
            && !self.config.services.is_empty()
        {
            gossip.advertise(Vec::new());
            tokio::time::sleep(DRAIN_PROPAGATION.min(self.config.drain_timeout)).await;
        }
        self.withdrawn = true;
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
        // Spans that are not sent by then are lost; the task is aborted with its set.
        let sent = async { while self.exports.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(END_TIMEOUT, sent).await;
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

fn start_workers(
    config: &ProxyConfig,
    sockets: &mut Sockets,
    want: Option<&Want>,
    (outbound, inbound): (&Arc<MeshState>, &Arc<MeshState>),
    tls: Option<&Arc<rustls::ServerConfig>>,
    (metrics, observers): (&Metrics, Option<Arc<Observers>>),
    phase: &watch::Receiver<Phase>,
) -> Result<Vec<Worker>, StartError> {
    let epoch = Instant::now();
    let only = match config.services.as_slice() {
        [service] => Some(service.name.clone()),
        _ => None,
    };
    let door = |Handle { socket, entry, from }: Handle| match from {
        Origin::App { to } => DoorConfig {
            socket,
            entry,
            side: Side::Outbound { want: want.cloned(), to },
            mesh: outbound.clone(),
            tls: None,
        },
        Origin::Peers { to: Some(service) } => DoorConfig {
            socket,
            entry,
            side: Side::Inbound { only: Some(service) },
            mesh: inbound.clone(),
            tls: None,
        },
        Origin::Peers { to: None } => DoorConfig {
            socket,
            entry,
            side: Side::Inbound { only: only.clone() },
            mesh: inbound.clone(),
            tls: tls.cloned(),
        },
    };
    let mut workers = Vec::with_capacity(config.workers);
    for index in 0..config.workers {
        let worker = Worker::spawn(WorkerConfig {
            index,
            doors: sockets.take().into_iter().map(door).collect(),
            metrics: metrics.clone(),
            observers: observers.clone(),
            epoch,
            connections_max: CONNECTIONS_MAX.div_ceil(config.workers),
            timeouts: Timeouts::default(),
            phase: phase.clone(),
        });
        workers.push(worker.map_err(|source| StartError::Worker { worker: index, source })?);
    }
    Ok(workers)
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
