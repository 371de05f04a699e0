//! A request that has a route: what the route says happens to it, in this order.
//!
//! rate limit → faults → questions of browsers (CORS) → redirect or own answer, or: the cache, or: backend by weight → header edits, path, host →
//! copies for mirrors → [`super::forward`] → header edits of the answer, CORS, compression.

use std::rc::Rc;
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, UPGRADE};
use http::uri::PathAndQuery;
use http::{Response, StatusCode, Uri, request};
use http_body::Body;

use super::body::ResponseBody;
use super::cached::{self, Lookup};
use super::compress::Compressing;
use super::context::Context;
use super::error::RequestError;
use super::forward::{Outgoing, forward};
use super::plan::Plan;
use super::present::Present;
use super::resolve::{self, Routed};
use super::seen::Seen;
use super::target::Target;
use super::{grpc_status, guarded, hedge, mirror, rescue, server, upgrade};
use crate::listener::connection::{Connection, Downstream};
use crate::listener::http1::body::ClientBody;
use crate::policy::compression::{self, Wish};
use crate::policy::cors::Asked;
use crate::policy::fault::{Aborted, Drawn};
use crate::route::compiled::{Action, Backend, Forward, Route};
use crate::telemetry::flag::Flag;

/// Of an answer that a fault made.
const FAULT: HeaderValue = HeaderValue::from_static(Flag::Fault.word());

/// How a request came.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    pub connection: &'a Connection,
    pub downstream: &'a dyn Downstream,
    pub started: Instant,
    /// For how long its caller waits.
    pub deadline: Option<Duration>,
    pub seen: Option<&'a Rc<Seen>>,
    pub grpc: bool,
}

/// See the module.
///
/// # Errors
/// Those of forwarding, and if the route makes nothing usable of the request.
pub(crate) async fn respond(
    ctx: &Rc<Context>,
    call: Call<'_>,
    head: request::Parts,
    target: Target,
    incoming: ClientBody,
    routed: Routed,
) -> Result<Response<ResponseBody>, RequestError> {
    let route = routed.route.clone();
    let answered = carry_out(ctx, call, head, target, incoming, routed).await;
    let status = match &answered {
        Ok(response) => response.status(),
        Err(error) => rescue::status(error).0,
    };
    let metrics = route.metrics.get_or_init(|| ctx.metrics.route(&route.name));
    metrics.answered(status, call.started.elapsed());
    answered
}

async fn carry_out(
    ctx: &Rc<Context>,
    call: Call<'_>,
    mut head: request::Parts,
    target: Target,
    incoming: ClientBody,
    routed: Routed,
) -> Result<Response<ResponseBody>, RequestError> {
    let Routed { route, path } = routed;
    if let Some(seen) = call.seen {
        seen.route(&route.name);
    }
    if let Some((limit, bucket)) = &route.rate_limit
        && let Err(why) = bucket.take(*limit, ctx.epoch.elapsed())
    {
        return Err(RequestError::RouteLimited { route: route.name.clone(), limit: *limit, why });
    }
    if let Some(fault) = &route.fault {
        let Drawn { delay, abort } = fault.draw(&mut ctx.rng.borrow_mut());
        if let Some(delay) = delay {
            happened(ctx, call.seen, Flag::FaultDelay);
            tokio::time::sleep(delay).await;
        }
        if let Some(abort) = abort {
            happened(ctx, call.seen, Flag::Fault);
            return Ok(aborted(abort));
        }
    }
    let wish = Wish::of(&head);
    let asked = route.cors.as_ref().map_or(Asked::Nothing, |cors| cors.ask(&head));
    let mut response = match (&asked, &route.action) {
        (Asked::Preflight(headers), _) => {
            let mut response = own(StatusCode::NO_CONTENT, bytes::Bytes::new());
            response.headers_mut().extend(headers.clone());
            return Ok(response);
        }
        (_, Action::Redirect(redirect)) => {
            let path = path.as_deref().unwrap_or_else(|| head.uri.path());
            let scheme = if call.connection.is_tls() { "https" } else { "http" };
            let matched = route.matcher.matched_len(path);
            let location = redirect.location(scheme, &target.authority, path, matched, head.uri.query());
            let mut response = own(redirect.status, bytes::Bytes::new());
            let bad = || RequestError::BadRewrite { route: route.name.clone() };
            response.headers_mut().insert(LOCATION, location.ok_or_else(bad)?);
            response
        }
        (_, Action::Respond { status, body }) => own(*status, body.clone()),
        (_, Action::Forward(to)) => {
            let backend = to.draw(&mut ctx.rng.borrow_mut());
            let authorized = route.cache.is_some() && head.headers.contains_key(AUTHORIZATION);
            if guarded::is_boundary(ctx) {
                // Before what is stored is looked at.
                let cluster = resolve::cluster(ctx, &target, &backend.cluster).await?;
                if let Some(gate) = guarded::gate(ctx, &cluster) {
                    // It is in its one form already if it has been changed into none.
                    let known = path.clone().unwrap_or_else(|| head.uri.path().to_owned());
                    let (connection, seen) = (call.connection, call.seen);
                    let asked = guarded::Asked {
                        connection,
                        target: &target,
                        path: Some(&known),
                        seen,
                        started: call.started,
                    };
                    guarded::admit(ctx, &cluster, gate, &mut head, asked)?;
                }
            }
            let cache = route.cache.as_ref().filter(|_| !head.headers.contains_key(UPGRADE));
            let asked = cached::Asked {
                route: &route.name,
                target: &target,
                path: path.as_deref(),
                authorized,
                has_body: !incoming.is_end_stream(),
            };
            let stored = cache.map(|policy| (policy, cached::lookup(ctx, &head, asked)));
            match stored {
                Some((_, Lookup::Answer(response))) => response,
                stored => {
                    let parts = (head, target, incoming);
                    let response = send(ctx, call, (&route, to, backend), path, parts).await?;
                    match stored {
                        Some((policy, lookup)) => cached::keep(ctx, policy, lookup, response),
                        None => response,
                    }
                }
            }
        }
    };
    route.response_headers.apply(response.headers_mut());
    if let (Asked::Actual(origin), Some(cors)) = (&asked, &route.cors) {
        cors.answer(origin, response.headers_mut());
    }
    if let Some(policy) = &route.compression {
        let (mut head, mut body) = response.into_parts();
        if !body.is_end_stream() && compression::prepare(policy, wish, &mut head) {
            body = ResponseBody::Compressed(Box::new(Compressing::new(body)));
        }
        response = Response::from_parts(head, body);
    }
    Ok(response)
}

async fn send(
    ctx: &Rc<Context>,
    call: Call<'_>,
    (route, to, backend): (&Route, &Forward, &Backend),
    path: Option<String>,
    (mut head, mut target, incoming): (request::Parts, Target, ClientBody),
) -> Result<Response<ResponseBody>, RequestError> {
    let Call { connection, downstream, started, deadline, seen, grpc } = call;
    let cluster = resolve::cluster(ctx, &target, &backend.cluster).await?;
    let upgrade = upgrade::asked(&head, !incoming.is_end_stream());
    let present = Present::of(&head.headers);
    let takes_trailers = server::prepare(ctx, connection, &mut head, present)?;
    let path = match &to.path {
        Some(rewrite) => {
            let path = path.as_deref().unwrap_or_else(|| head.uri.path());
            Some(rewrite.path(path, route.matcher.matched_len(path)))
        }
        None => path,
    };
    if let Some(path) = path {
        replace_path(&mut head, &path)
            .ok_or_else(|| RequestError::BadRewrite { route: route.name.clone() })?;
    }
    if let Some(host) = &to.host {
        target.authority.clone_from(host);
    }
    route.request_headers.apply(&mut head.headers);
    backend.request_headers.apply(&mut head.headers);
    let mut outgoing = Outgoing::new(head, target, takes_trailers, incoming);
    outgoing.client = Some(connection.client());
    outgoing.upgrade = upgrade;
    outgoing.hash.clone_from(&to.hash);
    if outgoing.upgrade.is_none() {
        // A copy of what begins another protocol would be a request that nobody meant.
        mirror::copies(ctx, to, &mut outgoing);
    }
    outgoing.seen = seen.cloned();
    outgoing.subset.clone_from(&backend.subset);
    let times = cluster.config.cluster.timeouts;
    let mut plan = Plan::new(to, times, deadline, started, ctx.timeouts.request);
    let metrics = cluster.clone();
    let forwarded = match route.hedge.filter(|_| hedge::is_safe(&outgoing)) {
        None => forward(ctx, cluster, &mut outgoing, Some(&mut plan), Some(downstream)).await,
        // On the heap: requests without one do not pay for its size.
        Some(hedge) => {
            Box::pin(hedge::race(ctx, cluster, &mut outgoing, &mut plan, (hedge, downstream))).await
        }
    };
    let forwarded = server::explained(connection, forwarded);
    let status = match &forwarded {
        Ok(response) => response.status(),
        Err(error) => rescue::status(error).0,
    };
    metrics.shared.metrics.answered(status, started.elapsed());
    let mut response = forwarded?;
    response.body_mut().limit(plan.until.map(|(at, _)| at), times.stream_idle, grpc);
    backend.response_headers.apply(response.headers_mut());
    Ok(response)
}

/// What a route did on purpose is counted and noted; it is of no service.
fn happened(ctx: &Context, seen: Option<&Rc<Seen>>, flag: Flag) {
    ctx.metrics.flagged(ctx.direction(), "", flag);
    if let Some(seen) = seen {
        seen.flag(flag);
    }
}

/// Puts another path in place; keeps the query. None if the path makes no target, such as one that has become too long.
pub(crate) fn replace_path(head: &mut request::Parts, path: &str) -> Option<()> {
    let target = match head.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    if target.len() > crate::limits::URI_BYTES_MAX {
        return None;
    }
    let mut parts = std::mem::take(&mut head.uri).into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(target).ok()?);
    head.uri = Uri::from_parts(parts).ok()?;
    Some(())
}

fn own(status: StatusCode, body: bytes::Bytes) -> Response<ResponseBody> {
    let empty = body.is_empty();
    let mut response = Response::new(ResponseBody::Own((!empty).then_some(body)));
    *response.status_mut() = status;
    if !empty {
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, text);
    }
    response
}

fn aborted(abort: Aborted) -> Response<ResponseBody> {
    let mut response = match abort {
        Aborted::Http(status) => own(status, bytes::Bytes::from_static(b"fault injected by the route\n")),
        Aborted::Grpc(status) => grpc_status::answer(status, "fault injected by the route"),
    };
    response.headers_mut().insert(rescue::X_WEFT_ERROR, FAULT);
    response
}
