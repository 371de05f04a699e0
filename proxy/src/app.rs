//! Starts, drains and stops a proxy.
//!
//! Tasks on the control runtime: discovery's own, `feed` (config snapshots into the mesh view), active health checks,
//! expiry of ejections, checks of local services, keys of tokens, the export of spans, the admin port, gossip's own. Traffic runs on worker threads.

mod running;
mod workers;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use weft_core::fsio::DataDir;
use weft_core::metrics::Registry;
use weft_core::tls::Dialling;
use weft_gossip::{BoundGossip, Continuation, GossipConfig, GossipHandle, GossipTiming, Role};

use crate::admin::{self, AdminState};
use crate::cluster::security::ProxyTls;
use crate::cluster::{expiry, health_check};
use crate::config::{BoundListener, ConfigProblems, ProxyConfig};
use crate::config_snapshot::ConfigSnapshot;
use crate::discovery::{Discovery, DiscoveryConfig};
use crate::error::StartError;
use crate::handover::HandoverError;
use crate::handover::offer::{self, Carried, Descriptors, Offer};
use crate::handover::take::{self, Inherited, Taken};
use crate::handover::wire::{Order, What};
use crate::health::{self, LocalServices};
use crate::http::context::{Find, Want};
use crate::http::seen::Observers;
use crate::identity::Identity;
use crate::jwks;
use crate::limits::MEMORY_LOOK_INTERVAL;
use crate::listener::unix::SocketFile;
use crate::local::Guards;
use crate::mesh_view::MeshState;
use crate::policy::overload;
use crate::sockets::Sockets;
use crate::static_routes::StaticRoutes;
use crate::telemetry::access_log::{AccessLog, Writer};
use crate::telemetry::jwks_metrics::JwksMetrics;
use crate::telemetry::metrics::{Direction, Metrics};
use crate::telemetry::tap::Taps;
use crate::telemetry::trace::Tracer;
use crate::telemetry::trace::export::Exporter;
use crate::tls::door::DoorTls;
use crate::tls::live::{self, Certificates};
use crate::tls::mesh::MeshTls;
use crate::tls::ports::PortsTls;
use crate::worker::{Phase, Worker};

pub use running::{Event, WhenDone};

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
    /// For connections that the kernel redirects.
    pub captures: Vec<SocketAddr>,
    /// For connections of others that the kernel redirects.
    pub inbound_captures: Vec<SocketAddr>,
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
            captures: Vec::new(),
            inbound_captures: Vec::new(),
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
    /// What another process may take over.
    offer: Option<Arc<Offer>>,
    /// What a supervisor in another process wants.
    orders: Option<mpsc::Receiver<(Order, Carried)>>,
    /// Removed with it.
    socket_files: Vec<SocketFile>,
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
    let routes = config.static_config.as_deref().map(StaticRoutes::new).transpose();
    let routes = routes.map_err(|why| ConfigProblems(vec![why]))?.unwrap_or_default();
    let (taken, mut inherited) = take_over(&config).await?;
    let identity = Identity::of(config.data_dir.as_deref(), inherited.lock.take())?;
    let handover = config.data_dir.as_deref().and_then(|dir| offer::listen(dir, &mut inherited));
    let bound_gossip = match config.gossip {
        None => None,
        Some(addr) => Some(match inherited.gossip(addr) {
            Some((udp, tcp)) => BoundGossip::inherit(udp, tcp).map_err(HandoverError::Io)?,
            None => BoundGossip::bind(addr).await?,
        }),
    };
    let mut sockets = Sockets::bind(&config, &mut inherited)?;
    let certificates = Arc::new(Certificates::default());
    let mut tls = PortsTls::load(&config, &certificates)?;
    let mesh = config.mesh.as_ref().map(|files| MeshTls::load(files, &certificates));
    let mesh = mesh.transpose().map_err(|why| StartError::Tls { what: "mesh", why })?.map(Arc::new);
    let proxy_tls = ProxyTls { certificates, mesh, ..ProxyTls::default() };
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
    let mut addrs = sockets.addrs().clone();
    addrs.gossip = bound_gossip.as_ref().map(BoundGossip::local_addr);
    let metrics = Metrics::new(Registry::new());
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
    let taps = Arc::new(Taps::default());
    let observers = Observers { log, tracer, taps: taps.clone(), timing: config.server_timing };
    let observers = Some(Arc::new(observers));
    let mut descriptors = if handover.is_some() {
        descriptors(&sockets, &identity, bound_gossip.as_ref())?
    } else {
        Vec::new()
    };

    let mut before = match &taken {
        Some(taken) => Some(taken.prepared().await?),
        None => None,
    };
    let continuation = before.as_mut().and_then(|before| before.continuation.take());
    let advertised_before = continuation.as_ref().map(|c| c.instances().to_vec()).unwrap_or_default();
    let gossip =
        bound_gossip.map(|bound| start_gossip(bound, &config, &identity, continuation)).transpose()?;
    if let Some(gossip) = &gossip {
        gossip.register_metrics(metrics.registry());
    }
    let discovery = Discovery::start(DiscoveryConfig {
        node_id: identity.node_id,
        name: config.name.clone(),
        place: config.place.clone(),
        servers: config.servers.clone(),
        server_tls,
        gossip: gossip.clone(),
        cache_dir: config.data_dir.clone(),
        preset: config.static_config.as_ref().map(|s| s.cluster_configs()).unwrap_or_default(),
        policies: config.static_config.as_ref().map(|s| s.policies()).unwrap_or_default(),
    });
    let beside: Vec<_> = config.services.iter().map(|service| service.name.clone()).collect();
    let outbound = MeshState::new(Direction::Outbound, routes, metrics.clone(), proxy_tls.clone());
    // Of what the local app calls, the other sidecar decides.
    let decides = config.static_config.as_ref().is_some_and(|file| !file.listeners.is_empty());
    let outbound = Arc::new(outbound.at(config.place.clone(), beside.clone()).deciding(decides));
    // What is beside this sidecar stands in no file and in no gossip, so it is reached in plaintext.
    let inbound =
        MeshState::new(Direction::Inbound, StaticRoutes::default(), metrics.clone(), proxy_tls.clone());
    let inbound = Arc::new(inbound);
    let guards = Guards::new(&config);
    inbound.apply(&guards.clusters());
    let mut snapshots = discovery.snapshots();
    outbound.apply(&snapshots.borrow_and_update().clone());

    if let Some(before) = &before {
        before.taken_up_by(&discovery).await?;
        outbound.apply(&snapshots.borrow_and_update().clone());
        outbound.take_up(&before.learnt, Instant::now());
    }

    let epoch = Instant::now();
    let (phase, phases) = watch::channel(Phase::Serving);
    let want: Option<Want> = config.discovers().then(|| {
        let discovery = discovery.clone();
        Arc::new(move |service: &str| discovery.want(service)) as Want
    });
    let find: Option<Find> = gossip.is_some().then(|| {
        let discovery = discovery.clone();
        Arc::new(move |to| discovery.service_at(to)) as Find
    });
    let memory = Arc::new(AtomicU32::new(0));
    let (meshes, shared) = ((&outbound, &inbound), (&metrics, observers, &memory));
    tls.inbound = proxy_tls.mesh.as_deref().map(DoorTls::peers).or(tls.inbound);
    let workers = workers::start(
        &config,
        &mut sockets,
        (want.as_ref(), find.as_ref()),
        meshes,
        &tls,
        shared,
        (&phases, epoch),
    )?;
    let (admin_socket, socket_files) = sockets.finish();

    let local = LocalServices::new(&config.name, identity.node_id, advertised, own, &config.services)
        .asked_at(told_admin(addrs.admin, config.advertise.or(advertised.map(|addr| addr.ip()))))
        .with_identity(proxy_tls.mesh.as_deref());
    local.inherit(&advertised_before);
    if let Some(taken) = taken {
        taken.serving().await?;
        identity.take_folder();
        inherited.remove_left_files();
        if let Some(gossip) = &gossip {
            gossip.resume();
        }
    }
    let draining = Arc::new(AtomicBool::new(false));
    let mut control = JoinSet::new();
    let (offer, orders, handover_file) = match handover {
        None => (None, None, None),
        Some((listener, file)) => {
            if let Ok(again) = listener.as_fd().try_clone_to_owned() {
                descriptors.push((What::Handover, again));
            }
            let mesh = (outbound.clone(), epoch);
            let (offer, orders) =
                Offer::new(descriptors, discovery.clone(), mesh, gossip.clone(), draining.clone());
            control.spawn(offer.clone().run(listener));
            (Some(offer), Some(orders), Some(file))
        }
    };
    let mut socket_files: Vec<_> = socket_files.into_iter().chain(handover_file).collect();
    socket_files.iter_mut().for_each(SocketFile::take);
    control.spawn(guards.follow(discovery.clone(), inbound.clone()));
    control.spawn(feed(snapshots, outbound.clone()));
    control.spawn(health_check::run(outbound.clone(), metrics.clone(), beside));
    control.spawn(expiry::run(outbound.clone()));
    control.spawn(live::watch(proxy_tls.certificates.clone()));
    let fetches = JwksMetrics::new(metrics.registry());
    control.spawn(jwks::run(proxy_tls.keys.clone(), outbound.clone(), want.clone(), fetches));
    if let Some(limit) = config.overload.memory {
        control.spawn(watch_memory(limit, memory.clone()));
    }
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
        tls: proxy_tls,
        taps,
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
        offer,
        orders,
        socket_files,
        exports,
        _data_dir: identity.data_dir,
    })
}

/// Says how much of the requests is to be refused for memory, until it is aborted.
async fn watch_memory(limit: u64, refused: Arc<AtomicU32>) {
    let mut tick = tokio::time::interval(MEMORY_LOOK_INTERVAL);
    loop {
        tick.tick().await;
        if let Some(used) = weft_core::process::resident_bytes() {
            refused.store(overload::for_memory(used, limit), Ordering::Relaxed);
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

/// What is taken over, if that is wanted and there is a process to take over.
async fn take_over(config: &ProxyConfig) -> Result<(Option<Taken>, Inherited), HandoverError> {
    let begun = match (&config.data_dir, config.take_over) {
        (_, false) => None,
        (None, true) => return Err(HandoverError::NoDataDir),
        (Some(dir), true) => take::begin(dir).await?,
    };
    Ok(begun.map_or_else(Default::default, |(taken, inherited)| (Some(taken), inherited)))
}

/// What another process can take over.
fn descriptors(
    sockets: &Sockets<'_>,
    identity: &Identity,
    gossip: Option<&BoundGossip>,
) -> Result<Descriptors, HandoverError> {
    let mut all = sockets.offer()?;
    if let Some(dir) = &identity.data_dir {
        all.push((What::Lock, dir.share_lock()?.into()));
    }
    if let Some(gossip) = gossip {
        let (udp, tcp) = gossip.handles()?;
        all.extend([(What::GossipUdp, udp), (What::GossipTcp, tcp)]);
    }
    Ok(all)
}

/// With what a process that is taken over was in the pool, in its place, and silent until that has ended.
fn start_gossip(
    bound: BoundGossip,
    config: &ProxyConfig,
    identity: &Identity,
    continuation: Option<Continuation>,
) -> Result<GossipHandle, StartError> {
    // Another id is another member, such as one whose folder was replaced.
    let continuation = continuation.filter(|continuation| continuation.id() == identity.node_id);
    let incarnation = match &continuation {
        Some(continuation) => continuation.incarnation(),
        None => identity.incarnation()?,
    };
    let gossip = GossipConfig {
        id: identity.node_id,
        name: config.name.clone(),
        incarnation,
        role: Role::Proxy,
        bind: bound.local_addr(),
        advertise: config.advertise,
        seeds: config.join.clone(),
        peers_file: config.data_dir.as_ref().map(|dir| dir.join("peers")),
        timing: GossipTiming::default(),
    };
    Ok(match continuation {
        Some(continuation) => bound.go_on(gossip, continuation)?,
        None => bound.start(gossip)?,
    })
}

/// Where people are told to ask. One on all addresses is asked at the address that peers use.
fn told_admin(addr: SocketAddr, instead: Option<IpAddr>) -> Option<SocketAddr> {
    match addr.ip().is_unspecified() {
        true => instead.map(|ip| SocketAddr::new(ip, addr.port())),
        false => Some(addr),
    }
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
