//! Asks about a request on ports where others than the local app come in: whether its token holds, and what the policies of
//! the service say.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Instant;

use http::request;

use super::context::Context;
use super::error::RequestError;
use super::rescue;
use super::routed::replace_path;
use super::seen::Seen;
use super::target::Target;
use crate::cluster::state::Cluster;
use crate::listener::connection::Connection;
use crate::policy::authz::{Call, Decision, Http};
use crate::policy::forwarding::Forwarding;
use crate::policy::gate::Gate;
use crate::policy::jwt::Verified;
use crate::route::path;
use crate::telemetry::flag::Flag;

/// Whether others than the local app come in here.
pub(crate) fn is_boundary(ctx: &Context) -> bool {
    !matches!(ctx.forwarding, Forwarding::App)
}

/// What is to be asked, if anything is.
pub(crate) fn gate<'a>(ctx: &Context, cluster: &'a Cluster) -> Option<&'a Gate> {
    cluster.gate.as_deref().filter(|_| is_boundary(ctx))
}

/// What is asked about beside the head.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub connection: &'a Connection,
    pub target: &'a Target,
    /// The path in its one form (`route::path`), if it is known; else it is brought into it where somebody looks at it, so
    /// that the app is asked for no other.
    pub path: Option<&'a str>,
    pub seen: Option<&'a Rc<Seen>>,
    pub started: Instant,
}

/// Asks about a request. One that is refused counts among those of the service.
///
/// # Errors
/// If it is refused, or its path has no one form.
pub(super) fn admit(
    ctx: &Context,
    cluster: &Cluster,
    gate: &Gate,
    head: &mut request::Parts,
    asked: Asked<'_>,
) -> Result<(), RequestError> {
    judge(ctx, cluster, gate, head, asked).inspect_err(|error| {
        let (status, _) = rescue::status(error);
        cluster.shared.metrics.answered(status, asked.started.elapsed());
    })
}

fn judge(
    ctx: &Context,
    cluster: &Cluster,
    gate: &Gate,
    head: &mut request::Parts,
    asked: Asked<'_>,
) -> Result<(), RequestError> {
    let service = || cluster.name().to_owned();
    if asked.path.is_none() && gate.policies.looks_at_paths() {
        let path = path::normalise(head.uri.path()).map_err(RequestError::BadPath)?;
        if let Cow::Owned(path) = path {
            let bad = || RequestError::BadRewrite { route: format!("of service {}", cluster.name()) };
            replace_path(head, &path).ok_or_else(bad)?;
        }
    }
    let token = gate
        .token(&mut head.headers, unix_seconds)
        .map_err(|why| RequestError::BadToken { service: service(), why: Some(why) })?;
    let path = asked.path.unwrap_or_else(|| head.uri.path());
    let http = Http { method: head.method.as_str(), path, host: &asked.target.host, headers: &head.headers };
    let noted = match decide(asked.connection, cluster, gate, token.as_ref(), Some(http)) {
        Err(_) if gate.asks_for_token(token.as_ref()) => {
            return Err(RequestError::BadToken { service: service(), why: None });
        }
        decided => decided?,
    };
    if let Some(flag) = noted {
        ctx.metrics.flagged(ctx.direction(), cluster.name(), flag);
        if let Some(seen) = asked.seen {
            seen.flag(flag);
        }
    }
    Ok(())
}

/// Asks about a connection whose bytes are no HTTP of ours.
///
/// # Errors
/// If it is refused.
pub(crate) fn admit_bytes(
    ctx: &Context,
    connection: &Connection,
    cluster: &Cluster,
    gate: &Gate,
) -> Result<(), RequestError> {
    if let Some(flag) = decide(connection, cluster, gate, None, None)? {
        ctx.metrics.flagged(ctx.direction(), cluster.name(), flag);
    }
    Ok(())
}

/// What is to be noted of one that is let in.
fn decide(
    connection: &Connection,
    cluster: &Cluster,
    gate: &Gate,
    token: Option<&Verified>,
    http: Option<Http<'_>>,
) -> Result<Option<Flag>, RequestError> {
    let principal = connection.sidecar();
    let request_principal = token.map(|token| token.principal.as_str());
    let call = Call { principal, request_principal, client: connection.peer.ip(), http };
    let told = |why: &dyn std::fmt::Display, refused: bool| {
        let (service, caller) = (cluster.name(), principal.map_or("nobody known", |id| id.as_str()));
        tracing::debug!(service, caller, peer = %connection.peer, %why, refused, "a policy refuses a caller");
    };
    match gate.policies.decide(&call) {
        Decision::LetIn => Ok(None),
        Decision::LetInWouldRefuse(why) => {
            told(&why, false);
            Ok(Some(Flag::ForbiddenAudit))
        }
        Decision::Refused(why) => {
            told(&why, true);
            Err(RequestError::Forbidden { service: cluster.name().to_owned() })
        }
    }
}

/// Tokens say by the wall clock how long they hold.
#[allow(clippy::disallowed_methods)]
pub(crate) fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
