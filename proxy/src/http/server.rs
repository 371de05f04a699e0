//! One request, from the parsed head to the answer.

use std::rc::Rc;
use std::time::Instant;

use http::header::{CONNECTION, EXPECT, HeaderValue};
use http::{Method, Request, Response, Version};
use http_body::Body;

use super::body::ResponseBody;
use super::context::{Context, Side};
use super::error::RequestError;
use super::forward::{Outgoing, forward};
use super::plan::Plan;
use super::present::Present;
use super::resolve::Resolved;
use super::routed::Call;
use super::seen::{SERVER_TIMING, Seen};
use super::target::Target;
use super::{
    connect, downgrade, extended, grpc_status, guarded, headers, rescue, resolve, routed, target, upgrade,
};
use crate::limits::HOPS_MAX;
use crate::listener::connection::{Connection, Downstream};
use crate::listener::guard;
use crate::listener::http1::body::ClientBody;
use crate::policy::deadline;
use crate::policy::forwarding::Shown;
use crate::telemetry::flag::Flag;

/// Never fails: every error is an answer.
pub(crate) async fn handle(
    ctx: Rc<Context>,
    connection: Rc<Connection>,
    downstream: &dyn Downstream,
    mut request: Request<ClientBody>,
) -> Response<ResponseBody> {
    let version = request.version();
    let connects = version == Version::HTTP_2 && extended::begin(&mut request);
    let grpc = version == Version::HTTP_2 && grpc_status::is_grpc(request.headers());
    let mut in_flight = connection.begin();
    let observers = ctx.observers.as_ref();
    let seen = observers.and_then(|o| Seen::new(o, ctx.direction(), connection.peer, &mut request));
    let mut response = match respond(&ctx, &connection, downstream, (request, grpc), seen.as_ref()).await {
        Ok(response) => response,
        Err(error) => {
            let flag = count(&ctx, &error);
            if let Some(seen) = &seen {
                seen.flag(flag);
            }
            if grpc { rescue::grpc_answer(&error) } else { rescue::answer(&error) }
        }
    };
    in_flight.answered();
    response.body_mut().hold(in_flight);
    let far_end = response.body_mut().take_far_end();
    if version == Version::HTTP_2 {
        response.headers_mut().remove(CONNECTION);
        if far_end.is_some() {
            extended::accept(&mut response);
        } else if connects && response.status().is_success() {
            // The client would take it for a tunnel.
            let error = RequestError::NotSwitched;
            let flag = count(&ctx, &error);
            if let Some(seen) = &seen {
                seen.flag(flag);
            }
            response = rescue::answer(&error);
        }
    } else if ctx.closing.get() && far_end.is_none() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    downstream.answered(far_end);
    match seen {
        None => response,
        Some(seen) => {
            seen.answered(response.status());
            if let Some(timing) = seen.timing() {
                response.headers_mut().append(SERVER_TIMING, timing);
            }
            response.map(|body| body.observed(seen))
        }
    }
}

async fn respond(
    ctx: &Rc<Context>,
    connection: &Connection,
    downstream: &dyn Downstream,
    (request, grpc): (Request<ClientBody>, bool),
    seen: Option<&Rc<Seen>>,
) -> Result<Response<ResponseBody>, RequestError> {
    if let Some(refusal) = guard::is_refused(request.method(), connection) {
        connection.tell_refusal();
        return Err(refusal.into());
    }
    let shed = ctx.shed.get();
    if shed > 0 && ctx.rng.borrow_mut().u32(..1000) < shed {
        return Err(RequestError::Overloaded);
    }
    let started = Instant::now();
    let (mut head, body) = request.into_parts();
    if head.method == Method::CONNECT {
        // On the heap, as below.
        return Box::pin(connect::respond(ctx, connection, &mut head)).await;
    }
    if head.version == Version::HTTP_2 {
        downgrade::check(&head)?;
    }
    let target = match (target::of(&head), &ctx.side) {
        // Its listener is for one service: the host, if there is one, says something to nobody.
        (Ok(_) | Err(RequestError::NoHost), Side::Outbound { to: Some(service), .. }) => {
            Target::service(service)
        }
        (target, _) => target?,
    };
    let present = Present::of(&head.headers);
    let deadline = if present.any(Present::DEADLINE) { deadline::of(&head.headers)? } else { None };
    if deadline.is_some_and(|left| left.is_zero()) {
        return Err(RequestError::DeadlineSpent);
    }
    let cluster = match resolve::resolve(ctx, &target, &head).await? {
        Resolved::Cluster(cluster) => {
            if let Some(gate) = guarded::gate(ctx, &cluster) {
                let asked = guarded::Asked { connection, target: &target, path: None, seen, started };
                guarded::admit(ctx, &cluster, gate, &mut head, asked)?;
            }
            cluster
        }
        // On the heap: requests without a route do not pay for its size.
        Resolved::Route(found) => {
            let call = Call { connection, downstream, started, deadline, seen, grpc };
            let routed = routed::respond(ctx, call, head, target, body, found);
            return Box::pin(routed).await;
        }
    };
    let upgrade = upgrade::asked(&head, !body.is_end_stream());
    let takes_trailers = prepare(ctx, connection, &mut head, present)?;
    let metrics = cluster.clone();
    let mut outgoing = Outgoing::new(head, target, takes_trailers, body);
    outgoing.upgrade = upgrade;
    outgoing.client = Some(connection.client());
    outgoing.seen = seen.cloned();
    let times = cluster.config.cluster.timeouts;
    let mut plan = Plan::of_service(times, deadline, started, ctx.timeouts.request);
    let forwarded =
        explained(connection, forward(ctx, cluster, &mut outgoing, plan.as_mut(), Some(downstream)).await);
    let status = match &forwarded {
        Ok(response) => response.status(),
        Err(error) => rescue::status(error).0,
    };
    metrics.shared.metrics.answered(status, started.elapsed());
    let mut response = forwarded?;
    response.body_mut().limit(plan.and_then(|p| p.until).map(|(at, _)| at), times.stream_idle, grpc);
    Ok(response)
}

/// The guard knows better what was wrong with the body.
pub(super) fn explained<T>(
    connection: &Connection,
    forwarded: Result<T, RequestError>,
) -> Result<T, RequestError> {
    forwarded.map_err(|error| match error {
        RequestError::ClientBody(_) => connection.tell_refusal().map_or(error, RequestError::Refused),
        error => error,
    })
}

/// Makes a head, in which these fields are present, ready for the next hop. Answers whether the client takes trailers.
///
/// # Errors
/// If it expects what there is not, or goes in a circle.
pub(super) fn prepare(
    ctx: &Context,
    connection: &Connection,
    head: &mut http::request::Parts,
    present: Present,
) -> Result<bool, RequestError> {
    if present.any(Present::EXPECT) {
        expectation(head)?;
    }
    let takes_trailers = present.any(Present::HOP_BY_HOP) && headers::strip_hop_by_hop(&mut head.headers);
    let hops = if present.any(Present::VIA) { headers::hops(&head.headers) } else { 0 };
    if hops >= HOPS_MAX {
        return Err(RequestError::Loop(hops));
    }
    headers::append_via(&mut head.headers, head.version);
    let client = connection.peer.ip();
    let shown = connection.shown();
    if present.any(Present::FORWARDED) || shown.is_some() {
        let shown =
            shown.map(|peer| Shown { sidecar: peer.id.is_some(), client_cert: peer.client_cert.as_ref() });
        ctx.forwarding.sanitise(&mut head.headers, client, shown);
    }
    if ctx.forwarding.appends(client) {
        headers::append_forwarded(&mut head.headers, connection.peer_value(), connection.is_tls());
        if present.any(Present::FORWARDED) {
            headers::append_to_forwarded(head, client, connection.is_tls());
        }
    }
    Ok(takes_trailers)
}

/// The one expectation there is was met by reading on: the server side answers 100 when the body is first read. The
/// next hop is not asked to do the same again.
fn expectation(head: &mut http::request::Parts) -> Result<(), RequestError> {
    match head.headers.remove(EXPECT) {
        Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Err(
            RequestError::Expectation(String::from_utf8_lossy(value.as_bytes()).chars().take(100).collect()),
        ),
        _ => Ok(()),
    }
}

/// Counts an error for what it is.
pub(crate) fn count(ctx: &Context, error: &RequestError) -> Flag {
    if let RequestError::Refused(refusal) = error {
        ctx.metrics.refused(refusal.label());
    }
    let flag = rescue::status(error).1;
    ctx.metrics.flagged(ctx.direction(), error.service().unwrap_or_default(), flag);
    flag
}
