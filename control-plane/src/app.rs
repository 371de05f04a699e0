//! Starts and stops a server, in order.
//!
//! *Start:* check the configuration → bind every port → open the data folder → gossip → raft (recovers the
//! state) → catalogue → APIs → join loop. A failure at any step leaves nothing running.
//!
//! *Stop* ([`RunningServer::shutdown`]), in less than two seconds: take no more connections and let what is
//! under way finish, and leave gossip meanwhile, so that others stop sending → hand leadership over and stop raft. What
//! would never end by itself (watches, waits, xDS streams) is told to end at the first step.
//!
//! Every task is in one of two trackers: `serving` for what clients wait for, `upkeep` for the rest.

mod join;
mod metrics;
mod ports;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic_health::server::HealthReporter;
use weft_core::drain::{DrainSignal, DrainWatch};
use weft_core::fsio::DataDir;
use weft_core::tls::{ClientCerts, TlsError};
use weft_gossip::driver::{GossipConfig, GossipHandle};
use weft_gossip::member::Role;

use crate::api::about;
use crate::api::etcd::{self, EtcdOptions, Hot};
use crate::api::front::Front;
use crate::api::probes::{self, ProbesApi};
use crate::api::profile::ProfileApi;
use crate::api::read::Reader;
use crate::api::registry::RegistryApi;
use crate::api::weft::{WeftApi, WeftParts};
use crate::api::{gateway, http};
use crate::backup::{self, BackupStats};
use crate::catalog::{Catalog, RegistryChanges};
use crate::config::ServerConfig;
use crate::dns;
pub use crate::error::StartError;
use crate::gate::{Gate, PeerTls, Tokens};
use crate::listener::{self, Door, PortTls, Speaks, Stop, TlsFiles};
use crate::meshconfig::{MeshConfigChanges, Routes};
use crate::profile::Profiler;
use crate::raft::{ApplyObserver, Coordinator, RaftConfig};
use crate::telemetry::Telemetry;
use crate::watch_driver::Watches;
use crate::xds::{MeshSource, XdsServer};
use ports::Ports;
pub use ports::ServerAddrs;

/// How long requests under way may take after the stop was asked for.
const DRAIN_MAX: Duration = Duration::from_millis(500);
/// How long raft may take to hand over leadership and close its log.
const RAFT_STOP_MAX: Duration = Duration::from_millis(700);
/// How long the remaining tasks may take to notice.
const UPKEEP_STOP_MAX: Duration = Duration::from_millis(200);

/// File in the data folder that remembers members, to find the pool again.
const PEERS_FILE: &str = "gossip-peers";

/// A server that runs until it is shut down. Dropping it without that leaves its tasks to the runtime.
pub struct RunningServer {
    addrs: ServerAddrs,
    gate: Arc<Gate>,
    coordinator: Coordinator,
    gossip: GossipHandle,
    catalog: Catalog,
    xds: Arc<XdsServer>,
    telemetry: Telemetry,
    /// Ends etcd's watches and keep-alive streams.
    drain: DrainSignal,
    stop: Stop,
    serving: TaskTracker,
    upkeep: TaskTracker,
    /// Keeps other processes out of the data folder until everything is closed.
    _data_dir: DataDir,
}

/// Starts a server. Returns as soon as it serves; a server that joins a group may not be ready yet, see
/// [`RunningServer::why_not_ready`].
///
/// # Errors
/// One line that names the flag, the file or the address, and what to do.
pub async fn start(config: ServerConfig) -> Result<RunningServer, StartError> {
    config.check()?;
    let advertised = config.advertised()?;
    let ports = Ports::bind(&config).await?;
    let addrs = ports.addrs;
    let data_dir = DataDir::open(&config.data_dir)?;
    let id = data_dir.node_id()?;
    let tokens = Tokens::find(&config.join_token, data_dir.path(), config.join.is_empty())?;
    let gate = Arc::new(Gate::new(tokens, config.peer_tls.map(PeerTls::load).transpose()?));
    let (grpc_door, http_door) = doors(config.tls.as_ref())?;
    let schemes = Schemes { client: scheme(config.tls.is_some()), peer: scheme(gate.has_tls()) };
    let seen_as = |addr: SocketAddr| SocketAddr::new(advertised, addr.port());

    let gossip = ports.gossip.start(GossipConfig {
        id,
        name: config.name.clone(),
        incarnation: data_dir.next_incarnation()?,
        role: Role::Server {
            grpc_addr: seen_as(addrs.grpc),
            http_addr: seen_as(addrs.http),
            peer_addr: seen_as(addrs.peer),
        },
        bind: addrs.gossip,
        advertise: Some(advertised),
        seeds: config.join.clone(),
        peers_file: Some(peers_file(&data_dir)),
        timing: config.gossip.clone(),
    })?;

    let watches = Watches::new();
    let registry_changes = Arc::new(RegistryChanges::default());
    let config_changes = Arc::new(MeshConfigChanges::default());
    let raft = RaftConfig {
        id,
        name: config.name.clone(),
        data_dir: data_dir.path().to_path_buf(),
        peer_listener: ports.peer.into(),
        gate: gate.clone(),
        peer_advertise: seen_as(addrs.peer),
        bootstrap: config.join.is_empty(),
        learner: config.learner,
        timing: config.raft.clone(),
        snapshot_every: config.snapshot_every,
        history: config.history,
    };
    let observers: Vec<Arc<dyn ApplyObserver>> =
        vec![watches.clone(), registry_changes.clone(), config_changes.clone()];
    let coordinator = match Coordinator::start(raft, observers).await {
        Ok(coordinator) => coordinator,
        Err(error) => {
            gossip.leave().await;
            return Err(error.into());
        }
    };

    let catalog = Catalog::new(coordinator.clone(), Some(gossip.clone()), registry_changes);
    let mesh_routes = Arc::new(Routes::new(coordinator.clone(), config_changes));
    let xds = XdsServer::new(MeshSource::new(catalog.clone(), mesh_routes.clone()));
    let telemetry = Telemetry::new();
    let stop = Stop { drain: CancellationToken::new(), kill: CancellationToken::new() };
    let (serving, upkeep) = (TaskTracker::new(), TaskTracker::new());
    let reader = Reader::new(coordinator.clone());
    let weft = WeftApi::new(WeftParts {
        coordinator: coordinator.clone(),
        reader: reader.clone(),
        watches: watches.clone(),
        catalog: catalog.clone(),
        routes: mesh_routes.clone(),
        gossip: Some(gossip.clone()),
        xds: xds.clone(),
        tasks: serving.clone(),
        stop: stop.drain.clone(),
    });

    metrics::process(&telemetry);
    metrics::raft(&telemetry, coordinator.clone());
    metrics::wal(&telemetry, &coordinator);
    metrics::store(&telemetry, coordinator.clone());
    metrics::clients(&telemetry, watches.clone(), weft.clone(), xds.clone());
    metrics::mesh(&telemetry, gossip.clone(), catalog.clone());

    let (drain, draining) = weft_core::drain::channel();
    let (hot, grpc, health) = grpc_router(&coordinator, watches, &gossip, &weft, &xds, (draining, schemes));
    let grpc = grpc.layer(axum::middleware::from_fn_with_state(telemetry.clone(), observe_grpc));
    let probes = ProbesApi { coordinator: coordinator.clone(), telemetry: telemetry.clone() };
    let http = http::router(
        RegistryApi {
            coordinator: coordinator.clone(),
            reader,
            catalog: catalog.clone(),
            routes: mesh_routes,
        },
        probes.clone(),
        ProfileApi { coordinator: coordinator.clone(), profiler: config.profile.then(Profiler::default) },
        config.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()),
    );
    let gateway = gateway::router(grpc.clone(), probes);
    let front = Front { hot, grpc, gateway, telemetry: telemetry.clone() };
    let counted = |port: &str| metrics::listener(&telemetry, port);
    listener::serve(ports.grpc, front, (Speaks::Grpc, grpc_door), counted("grpc"), stop.clone(), &serving);
    listener::serve(ports.http, http, (Speaks::Http, http_door), counted("http"), stop.clone(), &serving);
    ports.dns.serve(
        dns::source(catalog.clone(), coordinator.clone()),
        metrics::dns(&telemetry),
        &stop.drain,
        &serving,
    );

    upkeep.spawn(about::report(health, coordinator.clone(), stop.drain.clone()));
    let feed = join::feed_addresses(coordinator.clone(), gossip.clone());
    let stopped = stop.drain.clone();
    upkeep.spawn(async move {
        stopped.run_until_cancelled(feed).await;
    });
    if let Some(options) = config.backup {
        let stats = BackupStats::default();
        metrics::backups(&telemetry, stats.clone());
        let (backups, stopped) =
            (backup::schedule::run(coordinator.clone(), options, stats), stop.drain.clone());
        upkeep.spawn(async move {
            stopped.run_until_cancelled(backups).await;
        });
    }
    if !config.join.is_empty() {
        upkeep.spawn(join::join(coordinator.clone(), gossip.clone(), stop.drain.clone()));
    }
    tracing::info!(
        name = config.name, %id, grpc = %addrs.grpc, http = %addrs.http, dns = %addrs.dns,
        peer = %addrs.peer, gossip = %addrs.gossip, "server started"
    );
    Ok(RunningServer {
        addrs,
        gate,
        coordinator,
        gossip,
        catalog,
        xds,
        telemetry,
        drain,
        stop,
        serving,
        upkeep,
        _data_dir: data_dir,
    })
}

/// What connections to the gRPC and the HTTP port pass. Probes of the HTTP port come without a certificate, so there
/// it is asked for, and the paths that need it look whether it was shown.
fn doors(files: Option<&TlsFiles>) -> Result<(Door, Door), TlsError> {
    let Some(TlsFiles { identity, client_ca }) = files else { return Ok((Door::Open, Door::Open)) };
    let port = |clients| PortTls::load(identity.clone(), clients).map(|tls| Door::Tls(Arc::new(tls)));
    match client_ca.clone() {
        None => Ok((port(ClientCerts::Unasked)?, port(ClientCerts::Unasked)?)),
        Some(ca) => Ok((port(ClientCerts::Required(ca.clone()))?, port(ClientCerts::Asked(ca))?)),
    }
}

/// What others are told to use. All servers of a group are taken to be set up alike.
#[derive(Clone, Copy)]
struct Schemes {
    client: &'static str,
    peer: &'static str,
}

fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}

fn peers_file(data_dir: &DataDir) -> PathBuf {
    data_dir.path().join(PEERS_FILE)
}

/// Everything that is gRPC on the gRPC port: what is called most, all of it, and what keeps its health true.
fn grpc_router(
    coordinator: &Coordinator,
    watches: Arc<Watches>,
    gossip: &GossipHandle,
    weft: &Arc<WeftApi>,
    xds: &Arc<XdsServer>,
    (draining, schemes): (DrainWatch, Schemes),
) -> (Hot, axum::Router, HealthReporter) {
    let members = gossip.clone();
    let options = EtcdOptions {
        client_urls: Arc::new(move |id| {
            let all = members.members();
            let role = all.iter().find(|m| m.member.id == id).map(|m| m.member.role.clone());
            match role {
                Some(Role::Server { grpc_addr, .. }) => vec![format!("{}://{grpc_addr}", schemes.client)],
                _ => Vec::new(),
            }
        }),
        peer_scheme: schemes.peer,
        drain: Some(draining),
        ..EtcdOptions::default()
    };
    let mut routes = tonic::service::Routes::builder();
    let hot = etcd::add_services(&mut routes, coordinator.clone(), watches, options);
    weft.add_services(&mut routes);
    routes.add_service(xds.service());
    let health = about::add_services(&mut routes);
    (hot, routes.routes().prepare().into_axum_router(), health)
}

/// Counts a request once its answer has begun.
async fn observe_grpc(State(telemetry): State<Telemetry>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let uri = request.uri().clone();
    let response = next.run(request).await;
    telemetry.grpc_answer(&uri, response.headers(), begun.elapsed());
    response
}

impl RunningServer {
    /// Where it listens.
    pub fn addrs(&self) -> &ServerAddrs {
        &self.addrs
    }

    /// Where the join token is that this start has made, if it has made one.
    pub fn made_token(&self) -> Option<&Path> {
        self.gate.made_token()
    }

    /// The way into the replicated state.
    pub fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// The gossip pool as this server sees it.
    pub fn gossip(&self) -> &GossipHandle {
        &self.gossip
    }

    /// The merged catalogue.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Its metrics.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Why it cannot serve reads and writes yet; empty if it can.
    pub async fn why_not_ready(&self) -> Vec<String> {
        probes::why_not_ready(&self.coordinator).await
    }

    /// Waits until it can serve reads and writes.
    pub async fn ready(&self) {
        let mut changes = self.coordinator.changes();
        let mut leader = self.coordinator.leader_changes();
        while !self.why_not_ready().await.is_empty() {
            // Becoming a voter and finding a leader show as one of these; the timer is for the rest.
            tokio::select! {
                _ = changes.changed() => {}
                _ = leader.changed() => {}
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
    }

    /// Stops everything, in order, in less than two seconds.
    pub async fn shutdown(self) {
        tracing::info!("server stops");
        self.stop.drain.cancel();
        self.drain.begin();
        self.serving.close();
        self.upkeep.close();
        let served = async {
            self.xds.shutdown().await;
            self.serving.wait().await;
        };
        // Leaving the pool takes up to a second of its own, and nobody needs to wait for it twice.
        let (served, ()) = tokio::join!(timeout(DRAIN_MAX, served), self.gossip.leave());
        if served.is_err() {
            tracing::debug!(left = self.serving.len(), "requests cut off");
        }
        self.stop.kill.cancel();
        if timeout(RAFT_STOP_MAX, self.coordinator.shutdown()).await.is_err() {
            tracing::warn!("raft did not stop in time");
        }
        self.catalog.shutdown().await;
        // Probes hold what they read, and with it everything above.
        self.telemetry.clear_probes();
        let rest = async {
            self.serving.wait().await;
            self.upkeep.wait().await;
        };
        if timeout(UPKEEP_STOP_MAX, rest).await.is_err() {
            tracing::warn!(
                serving = self.serving.len(),
                upkeep = self.upkeep.len(),
                "tasks did not end in time"
            );
        }
    }
}
