//! Drives the active checks of the clusters in use, on the control runtime.
//!
//! One task per endpoint: check at once when it appears, then at each interval with jitter, so that many proxies do
//! not check in step. Endpoints that were ejected because nobody listened are tried in clusters without checks too,
//! so that they are back as soon as they listen again and not only when their time is over.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio::task::{AbortHandle, JoinSet};
use weft_xds_proto::resource::cluster::CheckBy;
use weft_xds_proto::resource::labels::ReportedLoad;

use super::endpoint_set::{EndpointView, Status};
use super::outlier::Cause;
use super::probe::{Link, Probe, ProbeError};
use super::state::Cluster;
use crate::courtesy;
use crate::limits::{HEALTH_CHECKS_AT_ONCE, RECOVERY_PROBE_INTERVAL};
use crate::mesh_view::MeshState;
use crate::telemetry::metrics::Metrics;

/// Share of the interval by which each wait is longer or shorter, at most.
const JITTER: f64 = 0.1;

/// What is checked, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Plan {
    probe: Probe,
    interval: Duration,
}

/// The checks of one cluster.
struct Checked {
    /// As it was when they were planned.
    cluster: Arc<Cluster>,
    wanted: bool,
    running: Box<[(Arc<Plan>, Running)]>,
}

/// What all checks share.
struct Checks {
    mesh: Arc<MeshState>,
    metrics: Metrics,
    at_once: Semaphore,
}

/// A task that ends when this is dropped.
struct Running(AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Runs until it is aborted; its tasks end with it.
///
/// `beside` are services of this sidecar itself, which it asks the control plane about also if nobody calls them through it:
/// their instances would otherwise all check each other.
pub(crate) async fn run(mesh: Arc<MeshState>, metrics: Metrics, beside: Vec<String>) {
    let mut changes = mesh.changes();
    let checks = Arc::new(Checks { mesh, metrics, at_once: Semaphore::new(HEALTH_CHECKS_AT_ONCE) });
    let mut tasks = JoinSet::new();
    let mut all = HashMap::<String, Checked>::new();
    loop {
        let view = checks.mesh.view();
        all.retain(|name, _| view.clusters.contains_key(name));
        for (name, cluster) in &view.clusters {
            let wanted = cluster.shared.is_used() || !beside.contains(name);
            let known = all.get(name);
            // Of thousands of clusters, one change concerns one.
            if known.is_some_and(|c| c.wanted == wanted && Arc::ptr_eq(&c.cluster, cluster)) {
                continue;
            }
            courtesy::make_way();
            let before = all.remove(name).map(|c| c.running).unwrap_or_default();
            let mut before: HashMap<SocketAddr, _> =
                before.into_iter().map(|(plan, task)| (plan.probe.addr, (plan, task))).collect();
            let views = cluster.endpoints.endpoints().iter().filter(|_| wanted);
            let running = views.filter_map(|view| plan(cluster, view)).map(|plan| {
                let same = before.remove(&plan.probe.addr).filter(|(last, _)| **last == plan);
                let start = || {
                    let plan = Arc::new(plan);
                    let check = checks.clone().check(plan.clone());
                    (plan, Running(tasks.spawn(check)))
                };
                same.unwrap_or_else(start)
            });
            let running = running.collect();
            all.insert(name.clone(), Checked { cluster: cluster.clone(), wanted, running });
        }
        drop(view);
        // Those that were aborted.
        while tasks.try_join_next().is_some() {}
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn plan(cluster: &Cluster, endpoint: &EndpointView) -> Option<Plan> {
    let config = &cluster.config.cluster;
    let addr = endpoint.endpoint.address;
    let probe = |by, timeout, handshake| Probe {
        addr,
        by,
        host: config.name.clone(),
        protocol: cluster.hop(false),
        link: Link::new(cluster.security().clone(), addr, handshake),
        send_proxy: config.send_proxy,
        timeout,
    };
    match &config.health_check {
        Some(check) => {
            Some(Plan { probe: probe(check.by.clone(), check.timeout, false), interval: check.interval })
        }
        None if endpoint.status == Status::Ejected => {
            let cause = endpoint.state.health.lock().ejection.current()?.0;
            let plan = Plan {
                probe: probe(CheckBy::Connect, config.connect_timeout, true),
                interval: RECOVERY_PROBE_INTERVAL,
            };
            (cause == Cause::Connect).then_some(plan)
        }
        None => None,
    }
}

impl Checks {
    /// One endpoint, again and again.
    async fn check(self: Arc<Self>, plan: Arc<Plan>) {
        loop {
            {
                let Ok(_turn) = self.at_once.acquire().await else { return };
                courtesy::make_way();
                // Thousands of checks wait and few are under way: what those few need is not kept for all.
                let result = Box::pin(plan.probe.run()).await;
                self.done(&plan.probe, result);
            }
            let factor = 1.0 + JITTER * (2.0 * fastrand::f64() - 1.0);
            tokio::time::sleep(plan.interval.mul_f64(factor)).await;
        }
    }

    fn done(&self, probe: &Probe, result: Result<Option<ReportedLoad>, ProbeError>) {
        let (cluster, addr) = (&probe.host, probe.addr);
        self.metrics.checks.inc();
        if result.is_err() {
            self.metrics.checks_failed.inc();
        }
        let result = match result {
            Err(ProbeError::Shortage(why)) => {
                tracing::warn!(cluster, endpoint = %addr, why, "an endpoint is not checked");
                return;
            }
            Err(ProbeError::Failed(why)) => Err(why),
            Ok(load) => {
                if let Some(load) = load {
                    self.mesh.reported(cluster, addr, load);
                }
                Ok(())
            }
        };
        self.mesh.checked(cluster, addr, result, Instant::now());
    }
}
