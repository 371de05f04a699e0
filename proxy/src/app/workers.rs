//! The threads that traffic runs on: what they serve, and by which rules.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Instant;

use tokio::sync::watch;

use crate::config::ProxyConfig;
use crate::error::StartError;
use crate::http::context::{Find, Side, Want};
use crate::http::seen::Observers;
use crate::mesh_view::MeshState;
use crate::policy::cache::Changes;
use crate::policy::forwarding::Forwarding;
use crate::sockets::{Handle, Origin, Sockets};
use crate::telemetry::metrics::Metrics;
use crate::tls::door::DoorTls;
use crate::tls::ports::PortsTls;
use crate::worker::{DoorConfig, Phase, Worker, WorkerConfig};

/// Starts them, each with its own handle on every socket.
///
/// # Errors
/// If a thread cannot be had.
pub(super) fn start(
    config: &ProxyConfig,
    sockets: &mut Sockets<'_>,
    (want, find): (Option<&Want>, Option<&Find>),
    (outbound, inbound): (&Arc<MeshState>, &Arc<MeshState>),
    tls: &PortsTls,
    (metrics, observers, memory): (&Metrics, Option<Arc<Observers>>, &Arc<AtomicU32>),
    (phase, epoch): (&watch::Receiver<Phase>, Instant),
) -> Result<Vec<Worker>, StartError> {
    let only = config.only_service().map(str::to_owned);
    let trusted: Arc<[_]> = config.trusted_proxies.clone().into();
    let forwarding = match &config.mesh {
        Some(_) => Forwarding::Boundary(trusted),
        None => Forwarding::Peers(trusted),
    };
    let door = |Handle { socket, entry, from }: Handle| match from {
        Origin::App { to, upstream } => DoorConfig {
            socket,
            entry,
            forwarding: Forwarding::App,
            side: Side::Outbound { want: want.cloned(), find: find.cloned(), to },
            mesh: outbound.clone(),
            tls: upstream.and_then(|number| tls.upstreams[number].clone()),
        },
        Origin::Listener { name, trusted } => DoorConfig {
            socket,
            entry,
            forwarding: Forwarding::Boundary(trusted),
            side: Side::Outbound { want: want.cloned(), find: find.cloned(), to: None },
            mesh: outbound.clone(),
            tls: tls.listeners.get(&name).cloned(),
        },
        Origin::Peers { to: Some(service) } => DoorConfig {
            socket,
            entry,
            forwarding: forwarding.clone(),
            side: Side::Inbound { only: Some(service) },
            mesh: inbound.clone(),
            tls: tls.inbound.as_ref().and_then(DoorTls::for_bytes),
        },
        Origin::Peers { to: None } => DoorConfig {
            socket,
            entry,
            forwarding: forwarding.clone(),
            side: Side::Inbound { only: only.clone() },
            mesh: inbound.clone(),
            tls: tls.inbound.clone(),
        },
    };
    let cached_changes = Arc::<Changes>::default();
    let mut workers = Vec::with_capacity(config.workers);
    for index in 0..config.workers {
        let worker = Worker::spawn(WorkerConfig {
            index,
            doors: sockets.take().into_iter().map(door).collect(),
            metrics: metrics.clone(),
            observers: observers.clone(),
            epoch,
            cached_changes: cached_changes.clone(),
            connections_max: config.connections_max.div_ceil(config.workers),
            timeouts: config.client_timeouts.into(),
            phase: phase.clone(),
            overload: (config.overload, memory.clone()),
        });
        workers.push(worker.map_err(|source| StartError::Worker { worker: index, source })?);
    }
    Ok(workers)
}
