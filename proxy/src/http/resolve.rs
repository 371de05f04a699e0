//! From host and path to a cluster: static routes first, then the service of that name. A service that nobody asked
//! for yet is asked for now, and the request waits, for [`RESOLVE_TIMEOUT`] at most.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};

use super::context::{Context, Side};
use super::error::RequestError;
use super::target::Target;
use crate::cluster::state::Cluster;
use crate::limits::RESOLVE_TIMEOUT;
use crate::mesh_view::MeshView;
use crate::route::host::service;

/// Names in an error text; more are counted.
const NAMES_MAX: usize = 20;

/// See the module.
///
/// # Errors
/// If there is no such cluster, or nobody to ask.
pub(crate) async fn resolve(
    ctx: &Context,
    target: &Target,
    path: &str,
) -> Result<Arc<Cluster>, RequestError> {
    let want = match &ctx.side {
        Side::Inbound { only } => return ctx.with_view(|view| local(view, only.as_deref(), target)),
        Side::Outbound { want } => want.as_ref(),
    };
    let name = match ctx.with_view(|view| lookup(view, target, path))? {
        Lookup::Found(cluster) => {
            if let Some(want) = want
                && cluster.shared.touch(millis(ctx.epoch.elapsed()))
            {
                want(cluster.name());
            }
            return Ok(cluster);
        }
        Lookup::Unknown(name) => name,
    };
    let (Some(want), Some(name)) = (want, name) else {
        return Err(ctx.with_view(|view| unknown(view, target)));
    };
    want(&name);
    wait(ctx, &name).await
}

enum Lookup {
    Found(Arc<Cluster>),
    /// With the service name, if the host can be one.
    Unknown(Option<String>),
}

fn lookup(view: &MeshView, target: &Target, path: &str) -> Result<Lookup, RequestError> {
    if !view.routes.is_empty()
        && let Some(name) = view.routes.select(&target.host, path)
    {
        let no_cluster = || RequestError::NoCluster { host: target.host.clone(), cluster: name.to_owned() };
        return view.clusters.get(name).cloned().map(Lookup::Found).ok_or_else(no_cluster);
    }
    let Some(name) = service(&target.host) else { return Ok(Lookup::Unknown(None)) };
    Ok(match view.clusters.get(name) {
        Some(cluster) => Lookup::Found(cluster.clone()),
        None => Lookup::Unknown(Some(name.to_owned())),
    })
}

async fn wait(ctx: &Context, name: &str) -> Result<Arc<Cluster>, RequestError> {
    let deadline = Instant::now() + RESOLVE_TIMEOUT;
    let mut changes = ctx.mesh.changes();
    loop {
        changes.mark_unchanged();
        let found = ctx.with_view(|view| match (view.clusters.get(name), view.absent.get(name)) {
            // A cluster comes before its endpoints; they are on their way.
            (Some(cluster), _) if cluster.endpoints.counts().total > 0 => Some(Ok(cluster.clone())),
            (None, Some(message)) => Some(Err(absent(name, message))),
            _ => None,
        });
        if let Some(found) = found {
            return found;
        }
        if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
            return ctx.with_view(|view| match view.clusters.get(name) {
                Some(cluster) => Ok(cluster.clone()),
                None => Err(nobody_answered(view, name)),
            });
        }
    }
}

fn nobody_answered(view: &MeshView, name: &str) -> RequestError {
    let state = &view.control_plane;
    match state.server {
        Some(server) => {
            RequestError::NotResolved { service: name.to_owned(), server, waited: RESOLVE_TIMEOUT }
        }
        None => {
            let reason = match &state.last_error {
                Some(error) => error.clone(),
                None if state.servers_known => "not connected yet".to_owned(),
                None => "no server is known: give --server, or --join a pool that has one".to_owned(),
            };
            RequestError::NoControlPlane { service: name.to_owned(), waited: RESOLVE_TIMEOUT, reason }
        }
    }
}

fn absent(name: &str, message: &str) -> RequestError {
    let message =
        if message.contains(name) { message.to_owned() } else { format!("no service {name:?}: {message}") };
    RequestError::Absent { message }
}

fn unknown(view: &MeshView, target: &Target) -> RequestError {
    let mut names: Vec<&str> = view.clusters.keys().map(String::as_str).collect();
    names.extend(view.routes.hosts());
    RequestError::UnknownHost { host: target.host.clone(), known: known(names) }
}

fn local(view: &MeshView, only: Option<&str>, target: &Target) -> Result<Arc<Cluster>, RequestError> {
    let name = only.or_else(|| service(&target.host));
    name.and_then(|name| view.clusters.get(name)).cloned().ok_or_else(|| unknown(view, target))
}

fn known(mut names: Vec<&str>) -> String {
    names.sort_unstable();
    names.dedup();
    match names.len() {
        0 => "no service is known here".to_owned(),
        n if n > NAMES_MAX => {
            format!("known here are {} and {} more", names[..NAMES_MAX].join(", "), n - NAMES_MAX)
        }
        _ => format!("known here are {}", names.join(", ")),
    }
}

fn millis(d: std::time::Duration) -> u64 {
    // Half a billion years fit.
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
