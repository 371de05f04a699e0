//! From host and path to where a request goes: routes for its host first, then the routes of the service of that name,
//! then that service itself. A service that nobody asked for yet is asked for now, and the request waits, for
//! [`RESOLVE_TIMEOUT`] at most.

use std::sync::Arc;

use http::request;
use tokio::time::{Instant, timeout_at};

use super::context::{Context, Side, Want};
use super::error::RequestError;
use super::target::Target;
use crate::cluster::state::Cluster;
use crate::limits::RESOLVE_TIMEOUT;
use crate::mesh_view::MeshView;
use crate::route::compiled::Route;
use crate::route::host::service;
use crate::route::matcher::Seen;
use crate::route::path;
use crate::route::table::HostRoutes;

/// Names in an error text; more are counted.
const NAMES_MAX: usize = 20;

/// Where a request goes.
pub(crate) enum Resolved {
    /// To a service, and nothing else happens to it.
    Cluster(Arc<Cluster>),
    /// Where its route says.
    Route(Routed),
}

/// A request's route.
pub(crate) struct Routed {
    pub route: Arc<Route>,
    /// Its path in normal form, if it was in another.
    pub path: Option<String>,
}

/// See the module.
///
/// # Errors
/// If there is no such service or route, or nobody to ask.
pub(crate) async fn resolve(
    ctx: &Context,
    target: &Target,
    head: &request::Parts,
) -> Result<Resolved, RequestError> {
    let want = match &ctx.side {
        Side::Inbound { only } => {
            let cluster = ctx.with_view(|view| local(view, only.as_deref(), target));
            return cluster.map(Resolved::Cluster);
        }
        Side::Outbound { want, .. } => want.as_ref(),
    };
    let name = match ctx.with_view(|view| lookup(ctx, view, target, head))? {
        Lookup::Found(found) => return Ok(noted(ctx, want, found)),
        Lookup::Unknown(name) => name,
    };
    let Some(want) = want else { return Err(ctx.with_view(|view| unknown(view, target))) };
    // Hosts that are no services may have routes that have not come yet.
    match &name {
        Some(name) => {
            want(name);
            wait(ctx, name).await?;
        }
        None => wait_for_hosts(ctx).await,
    }
    match ctx.with_view(|view| lookup(ctx, view, target, head))? {
        Lookup::Found(found) => Ok(noted(ctx, Some(want), found)),
        Lookup::Unknown(_) => Err(ctx.with_view(|view| unknown(view, target))),
    }
}

/// The service of a host, whatever routes it has, for bytes that no route can look at.
///
/// # Errors
/// If there is no such service, or nobody to ask.
pub(crate) async fn named(ctx: &Context, target: &Target) -> Result<Arc<Cluster>, RequestError> {
    let want = match &ctx.side {
        Side::Inbound { only } => return ctx.with_view(|view| local(view, only.as_deref(), target)),
        Side::Outbound { want, .. } => want.as_ref(),
    };
    let none = || ctx.with_view(|view| unknown(view, target));
    let name = service(&target.host).ok_or_else(none)?;
    let find = || ctx.with_view(|view| view.clusters.get(name).cloned());
    if find().is_none()
        && let Some(want) = want
    {
        want(name);
        wait(ctx, name).await?;
    }
    let cluster = find().ok_or_else(none)?;
    touch(ctx, want, &cluster);
    Ok(cluster)
}

/// The cluster that a route leads to.
///
/// # Errors
/// If it is not known, or nobody is there to ask.
pub(crate) async fn cluster(
    ctx: &Context,
    target: &Target,
    name: &str,
) -> Result<Arc<Cluster>, RequestError> {
    let want = match &ctx.side {
        Side::Outbound { want, .. } => want.as_ref(),
        Side::Inbound { .. } => None,
    };
    let find = || ctx.with_view(|view| view.clusters.get(name).cloned());
    let none = || RequestError::NoCluster { host: target.host.clone(), cluster: name.to_owned() };
    if let Some(cluster) = find() {
        touch(ctx, want, &cluster);
        return Ok(cluster);
    }
    let want = want.ok_or_else(none)?;
    want(name);
    wait(ctx, name).await?;
    find().ok_or_else(none)
}

fn noted(ctx: &Context, want: Option<&Want>, found: Resolved) -> Resolved {
    if let Resolved::Cluster(cluster) = &found {
        touch(ctx, want, cluster);
    }
    found
}

/// Notes that a cluster is in use that was found otherwise.
pub(crate) fn used(ctx: &Context, cluster: &Cluster) {
    if let Side::Outbound { want, .. } = &ctx.side {
        touch(ctx, want.as_ref(), cluster);
    }
}

fn touch(ctx: &Context, want: Option<&Want>, cluster: &Cluster) {
    if let Some(want) = want
        && cluster.shared.touch(millis(ctx.epoch.elapsed()))
    {
        want(cluster.name());
    }
}

enum Lookup {
    Found(Resolved),
    /// With the service name, if the host can be one.
    Unknown(Option<String>),
}

fn lookup(
    ctx: &Context,
    view: &MeshView,
    target: &Target,
    head: &request::Parts,
) -> Result<Lookup, RequestError> {
    for table in [&*view.routes, &view.hosts.table] {
        if !table.is_empty()
            && let Some(host) = table.host(&target.host)
            && let Some(routed) = select(host, head)?
        {
            return Ok(Lookup::Found(Resolved::Route(routed)));
        }
    }
    let Some(name) = service(&target.host) else { return Ok(Lookup::Unknown(None)) };
    if !view.services.is_empty()
        && let Some(routes) = view.services.get(name)
    {
        if let Side::Outbound { want: Some(want), .. } = &ctx.side
            && routes.touch(millis(ctx.epoch.elapsed()))
        {
            want(name);
        }
        let routed = match routes.table.host(&target.host) {
            Some(host) => select(host, head)?,
            None => None,
        };
        let no_route = || RequestError::NoRoute {
            host: target.host.clone(),
            method: head.method.to_string(),
            path: head.uri.path().chars().take(200).collect(),
        };
        return Ok(Lookup::Found(Resolved::Route(routed.ok_or_else(no_route)?)));
    }
    Ok(match view.clusters.get(name) {
        Some(cluster) => Lookup::Found(Resolved::Cluster(cluster.clone())),
        None => Lookup::Unknown(Some(name.to_owned())),
    })
}

fn select(host: &HostRoutes, head: &request::Parts) -> Result<Option<Routed>, RequestError> {
    let path = path::normalise(head.uri.path()).map_err(RequestError::BadPath)?;
    let found = host.select(&Seen::of(head, &path)).cloned();
    let changed = |path: std::borrow::Cow<'_, str>| match path {
        std::borrow::Cow::Borrowed(_) => None,
        std::borrow::Cow::Owned(path) => Some(path),
    };
    Ok(found.map(|route| Routed { route, path: changed(path) }))
}

/// Waits until a service can be called, or has routes.
async fn wait(ctx: &Context, name: &str) -> Result<(), RequestError> {
    let deadline = Instant::now() + RESOLVE_TIMEOUT;
    let mut changes = ctx.mesh.changes();
    loop {
        changes.mark_unchanged();
        let found = ctx.with_view(|view| match (view.clusters.get(name), view.absent.get(name)) {
            _ if view.services.contains_key(name) => Some(Ok(())),
            // A cluster comes before its endpoints; they are on their way.
            (Some(cluster), _) if cluster.endpoints.counts().total > 0 => Some(Ok(())),
            (None, Some(message)) => Some(Err(absent(name, message))),
            _ => None,
        });
        if let Some(found) = found {
            return found;
        }
        if !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(()))) {
            return ctx.with_view(|view| match view.clusters.get(name) {
                Some(_) => Ok(()),
                None => Err(nobody_answered(view, name)),
            });
        }
    }
}

/// Waits until it is known which hosts have routes.
async fn wait_for_hosts(ctx: &Context) {
    let deadline = Instant::now() + RESOLVE_TIMEOUT;
    let mut changes = ctx.mesh.changes();
    loop {
        changes.mark_unchanged();
        if ctx.with_view(|view| view.hosts_known)
            || !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(())))
        {
            return;
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
    names.extend(view.hosts.table.hosts());
    names.extend(view.services.keys().map(String::as_str));
    RequestError::UnknownHost { host: target.host.clone(), known: known(names) }
}

/// The service beside this sidecar that others mean; `only`: there is no other, whatever their host.
///
/// # Errors
/// If it is not beside this one.
pub(crate) fn local(
    view: &MeshView,
    only: Option<&str>,
    target: &Target,
) -> Result<Arc<Cluster>, RequestError> {
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
