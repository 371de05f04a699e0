//! One request to one endpoint, and to another if the first cannot be reached.
//!
//! What is tried again, and why that is safe (D08: no non-idempotent request is sent twice):
//! - no connection: another endpoint, up to [`crate::limits::CONNECT_RETRIES_MAX`]; nothing was sent.
//! - the connection closed before it took the request: a fresh one; nothing was sent.
//! - a *reused* connection closed before any byte of an answer (P42): once more on a fresh one, if the method is
//!   idempotent and there is no body, or one that is kept ([`replay`]); the server closed it as idle while the request was on
//!   its way.
//! - a sidecar says that its app is down: another endpoint, under the same conditions.
//! - what the route says: an answer of some status, a broken exchange or a try that takes too long, as long as the cluster's retry
//!   budget lasts (P41). The method is idempotent, or a call of gRPC of which the route says that it may be repeated; of a body
//!   what was read is kept for that. The others are outside the budget: they reach no endpoint that has work
//!   to do, and are few.

use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, HOST, HeaderValue, SET_COOKIE, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri, Version, request};
use weft_xds_proto::resource::cluster::Protocol;
use weft_xds_proto::resource::route::RouteHash;
use weft_xds_proto::resource::subset::Subset;

use super::body::ResponseBody;
use super::context::Context;
use super::course::{Course, Retry, is_idempotent, report};
use super::error::RequestError;
use super::plan::{Late, Plan, with_limit};
use super::rescue::{LOCAL_APP_DOWN, X_WEFT_ERROR};
use super::seen::Seen;
use super::target::Target;
use super::{extended, grpc_status, headers, hedge, upgrade};
use crate::cluster::breaker::{Admitted, ConnectionPermit};
use crate::cluster::endpoint::{ActiveRequest, EndpointState};
use crate::cluster::outlier::Outcome;
use crate::cluster::state::Cluster;
use crate::listener::connection::{Downstream, InFlight};
use crate::listener::http1::body::ClientBody;
use crate::policy::deadline;
use crate::policy::sticky::Sticky;
use crate::proxy_protocol::Client;
use crate::tcp::far_end::Counted;
use crate::telemetry::flag::Flag;
use crate::upstream::answer::AnswerBody;
use crate::upstream::connect::ConnectError;
use crate::upstream::replay::{self, Replay};
use crate::upstream::request_body::{Progress, RequestBody};

/// A request that an endpoint is answering. It ends by [`Exchange::complete`], by [`Exchange::broke_off`], or by
/// being dropped when the client is gone. What it says of its endpoint is told once: a head below 500 is no success
/// before the body has followed.
pub(crate) struct Exchange {
    ctx: Rc<Context>,
    admitted: Admitted,
    active: ActiveRequest,
    /// Given up after the connection is.
    _permit: Option<ConnectionPermit>,
    progress: Option<Rc<Progress>>,
    /// Not told yet.
    outcome: Option<Outcome>,
    /// Counts at the client's connection.
    in_flight: Option<InFlight>,
    /// The answer came to an end, good or bad; else the client is gone.
    ended: bool,
}

impl Exchange {
    /// Dropped with the exchange.
    pub fn hold(&mut self, in_flight: InFlight) {
        self.in_flight = Some(in_flight);
    }

    /// The answer has been read to its end.
    pub fn complete(mut self) {
        self.ended = true;
    }

    /// The answer ended in its middle: because the endpoint went away, or because the client's body did, which takes
    /// the connection with it.
    pub fn broke_off(mut self, flag: Flag) {
        self.ended = true;
        self.admitted.cluster().shared.metrics.flagged(flag);
        let by_client = self.progress.as_ref().is_some_and(|p| p.has_failed());
        if self.outcome.is_some() && !by_client {
            self.outcome = Some(Outcome::GatewayFailure);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.ended {
            self.admitted.cluster().shared.metrics.flagged(Flag::ClientGone);
        }
        if let Some(outcome) = self.outcome.take() {
            report(&self.ctx, self.admitted.cluster(), self.active.endpoint(), outcome);
        }
    }
}

/// A request that is ready to go on.
pub(crate) struct Outgoing {
    pub request: Request<RequestBody>,
    pub target: Target,
    pub takes_trailers: bool,
    pub progress: Option<Rc<Progress>>,
    /// What it asks to switch to.
    pub upgrade: Option<HeaderValue>,
    /// Who asks, if it is known.
    pub client: Option<Client>,
    /// Where it is noted what becomes of it, if it is.
    pub seen: Option<Rc<Seen>>,
    /// Which part of the service it is for.
    pub subset: Option<Arc<Subset>>,
    /// By what it sticks to an endpoint, as its route says.
    pub hash: Option<Arc<[RouteHash]>>,
    /// An endpoint that another try has asked.
    pub avoid: Option<SocketAddr>,
    /// Where it is noted which endpoint was asked last.
    pub at: Option<hedge::At>,
}

impl Outgoing {
    pub fn new(head: request::Parts, target: Target, takes_trailers: bool, incoming: ClientBody) -> Self {
        let (body, progress) = RequestBody::new(incoming, headers::strip_trailers);
        Self {
            request: Request::from_parts(head, body),
            target,
            takes_trailers,
            progress,
            upgrade: None,
            client: None,
            seen: None,
            subset: None,
            hash: None,
            avoid: None,
            at: None,
        }
    }

    /// The same once more, for one without a body.
    pub fn again(&self) -> Self {
        Self {
            request: self.request_with(RequestBody::Empty),
            target: Target { authority: self.target.authority.clone(), host: self.target.host.clone() },
            takes_trailers: self.takes_trailers,
            progress: None,
            upgrade: None,
            client: self.client,
            seen: self.seen.clone(),
            subset: self.subset.clone(),
            hash: self.hash.clone(),
            avoid: None,
            at: None,
        }
    }

    /// Its head with another body.
    pub fn request_with(&self, body: RequestBody) -> Request<RequestBody> {
        let mut request = Request::new(body);
        *request.method_mut() = self.request.method().clone();
        *request.uri_mut() = self.request.uri().clone();
        *request.version_mut() = self.request.version();
        *request.headers_mut() = self.request.headers().clone();
        request
    }
}

/// Sends the request on and answers the head of the answer, with its body streaming behind. `client` gets interim answers.
/// What is left of `outgoing` is of no use to anybody; it stays with the caller, as a future has room for it only once then.
///
/// # Errors
/// If no endpoint answered.
pub(crate) async fn forward(
    ctx: &Rc<Context>,
    cluster: Arc<Cluster>,
    outgoing: &mut Outgoing,
    mut plan: Option<&mut Plan>,
    client: Option<&dyn Downstream>,
) -> Result<Response<ResponseBody>, RequestError> {
    let version = outgoing.request.version();
    // HTTP/2 is also used for streams in which the client waits for its turn.
    let http2 = version == Version::HTTP_2;
    // Before HTTP/1.1 clients know of none.
    let client = client.filter(|_| version != Version::HTTP_10);
    let inform = |head| {
        if let Some(client) = client {
            client.inform(head);
        }
    };
    let seen = outgoing.seen.clone();
    if let Some(seen) = &seen {
        seen.service(cluster.name());
    }
    if let Some(limit) = cluster.config.cluster.rate_limit {
        let taken = cluster.shared.bucket.take(limit, ctx.epoch.elapsed());
        taken.map_err(|why| RequestError::RateLimited { cluster: cluster.name().to_owned(), limit, why })?;
    }
    let admitted = Admitted::new(cluster).map_err(|(cluster, why)| RequestError::overflow(&cluster, why))?;
    let cluster = admitted.cluster();
    let stall = if http2 { ctx.timeouts.idle } else { ctx.timeouts.stall };
    let progress = outgoing.progress.clone();
    let (avoid, at) = (outgoing.avoid, outgoing.at.clone());
    let (asks, fresh) = (outgoing.client, || ctx.rng.borrow_mut().u64(..));
    let source = asks.map(|client| client.source.ip());
    let sticky = match (cluster.config.cluster.lb_policy.hash_on(), &outgoing.hash) {
        (None, None) => Sticky::default(),
        (Some(on), _) => Sticky::of(on, outgoing.request.headers(), source, fresh()),
        (None, Some(_)) if !cluster.config.cluster.lb_policy.hashes() => Sticky::default(),
        (None, Some(parts)) => Sticky::of_route(parts, outgoing.request.headers(), source, fresh()),
    };
    let subset = outgoing.subset.take().and_then(|subset| cluster.subset_or_fallback(subset));
    let protocol = cluster.hop(outgoing.upgrade.is_some());
    let http2_endpoint = protocol == Protocol::Http2;
    let upgrade = outgoing.upgrade.take();
    address(cluster, protocol, outgoing)?;
    let request = &mut outgoing.request;
    let upgrade = upgrade.filter(|asked| !http2_endpoint || extended::can_ask(request, asked, http2));
    let mut accept = None;
    match &upgrade {
        Some(asked) if http2_endpoint => accept = extended::ask(request, asked),
        Some(asked) => {
            upgrade::announce(request.headers_mut(), asked.clone());
            if http2 {
                extended::complete(request.headers_mut(), asked, &mut ctx.rng.borrow_mut());
            }
        }
        None => {}
    }
    let mut course = Course {
        ctx,
        admitted: &admitted,
        cluster,
        subset,
        protocol,
        extended: http2_endpoint && upgrade.is_some(),
        key: sticky.key,
        client: asks,
        seen: seen.as_deref(),
        tried: avoid.into_iter().collect(),
        replayed: false,
        permit: None,
    };
    let permit = match protocol {
        Protocol::Http2 if !course.extended => None,
        _ => course.connection(plan.as_deref()).await?,
    };
    let may_retry = plan.as_ref().is_some_and(|p| p.may_retry());
    let allowed = may_retry && plan.as_ref().is_some_and(|p| p.allows_twice(request.headers()));
    let repeatable = allowed || is_idempotent(request.method());
    let streams = request.body().streams();
    // Only where a route wants it: others are not kept.
    let body = (streams && may_retry && repeatable)
        .then(|| replay::keep(std::mem::replace(request.body_mut(), RequestBody::Empty)));
    let repeatable = || repeatable && body.as_ref().map_or(!streams, |body| body.borrow().is_whole());
    let mut attempts: u32 = 0;
    // An endpoint whose reused connection turned out to be closed gets the request on a fresh one.
    let mut again: Option<Arc<EndpointState>> = None;
    loop {
        let fresh = again.is_some();
        let endpoint = match again.take() {
            Some(endpoint) => endpoint,
            None => course.pick()?,
        };
        if let Some((until, _)) = plan.as_ref().and_then(|p| p.until) {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            if left.is_zero() {
                return Err(RequestError::DeadlineSpent);
            }
            deadline::tell(request.headers_mut(), left);
        }
        if let Some(at) = &at {
            at.set(Some(endpoint.addr()));
        }
        let active = endpoint.start();
        if let Some(seen) = &seen {
            seen.tried(endpoint.addr());
        }
        let (link, reused) = match course.link(&endpoint, fresh).await {
            Ok(link) => link,
            Err(why) if matches!(*why, ConnectError::NoExtendedConnect) => {
                return Err(RequestError::NoExtendedConnect { cluster: cluster.name().to_owned() });
            }
            Err(why) if why.is_shortage() => return Err(RequestError::Shortage(why.to_string())),
            Err(why) => {
                course.not_connected(&endpoint, why.to_string())?;
                continue;
            }
        };
        let behind_sidecar = course.is_behind_sidecar(&endpoint);
        let planned = plan.as_ref().is_some_and(|p| p.may_retry());
        if let Some(body) = &body {
            *request.body_mut() = RequestBody::Replay(Replay::new(body));
        }
        if allowed && attempts > 0 {
            request.headers_mut().insert(grpc_status::PREVIOUS_ATTEMPTS, attempts.into());
        }
        attempts += 1;
        if let Some(seen) = &seen {
            seen.sending();
        }
        let sent_at = course.time();
        let shared = link.shared();
        let sent = pin!(link.send(request, &inform));
        let kept = || (reused || behind_sidecar || planned) && repeatable();
        let mut for_caller = false;
        let waited = match plan.as_ref() {
            None => with_limit(&ctx.timer, sent, progress.as_deref(), stall, ctx.timeouts.request).await,
            Some(plan) => {
                let waited = with_limit(&ctx.timer, sent, progress.as_deref(), stall, plan.head);
                match plan.try_until() {
                    None => waited.await,
                    Some((at, limit)) => match tokio::time::timeout_at(at, waited).await {
                        Ok(waited) => waited,
                        Err(_) => {
                            for_caller = plan.is_callers(at);
                            Err(Late::Endpoint(limit))
                        }
                    },
                }
            }
        };
        let answer = match waited {
            Err(Late::Client) => return Err(RequestError::SlowBody(stall)),
            Err(Late::Endpoint(limit)) if for_caller => {
                course.waited_in_vain(sent_at);
                let (cluster, addr) = (cluster.name().to_owned(), endpoint.addr());
                return Err(RequestError::DeadlineExceeded { cluster, addr, limit });
            }
            Err(Late::Endpoint(limit)) => {
                course.waited_in_vain(sent_at);
                report(ctx, cluster, &endpoint, Outcome::GatewayFailure);
                if let Some(key) = shared {
                    // It may be dead without a word; others should not find out one after the other.
                    ctx.pool.discard(key);
                }
                if kept() && course.again(&mut plan, &endpoint, None).await {
                    continue;
                }
                let (cluster, addr) = (cluster.name().to_owned(), endpoint.addr());
                return Err(RequestError::Timeout { cluster, addr, limit });
            }
            Ok(Ok(answer)) => {
                if let (Some(sent), Some(now)) = (sent_at, course.time()) {
                    let took = now.saturating_sub(sent);
                    endpoint.latency.observe(now, took);
                    endpoint.window.took(took);
                    course.admitted.observe(Duration::from_nanos(now), Duration::from_nanos(took));
                }
                answer
            }
            Ok(Err(error)) => {
                match course.failed(&endpoint, reused, error, kept(), progress.as_deref()) {
                    Ok(Retry::SameEndpoint) => again = Some(endpoint),
                    Ok(Retry::OtherEndpoint) => {}
                    Err(error @ RequestError::Broken { .. }) if planned && kept() => {
                        if !course.again(&mut plan, &endpoint, None).await {
                            return Err(error);
                        }
                    }
                    Err(error) => return Err(error),
                }
                continue;
            }
        };
        if behind_sidecar
            && kept()
            && says_app_is_down(&answer)
            && course.not_connected(&endpoint, "its sidecar says that the app is down".to_owned()).is_ok()
        {
            continue;
        }
        if planned
            && kept()
            && plan.as_ref().is_some_and(|p| p.wants_another(answer.status(), answer.headers()))
            && course.again(&mut plan, &endpoint, grpc_status::pushback(answer.headers())).await
        {
            let outcome = Outcome::of_status(grpc_status::meant(&answer));
            if outcome != Outcome::Success {
                report(ctx, cluster, &endpoint, outcome);
            }
            continue;
        }
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS
            || course.extended && answer.status() == StatusCode::OK
        {
            let agreed = match upgrade {
                // Its status says it all.
                asked if course.extended => asked,
                asked => asked.and_then(|asked| upgrade::agreed(&asked, answer.headers())),
            };
            let Some(protocol) = agreed else {
                report(ctx, cluster, &endpoint, Outcome::Failure);
                return Err(course.bad_answer(&endpoint, "it switches protocols unasked"));
            };
            report(ctx, cluster, &endpoint, Outcome::Success);
            let Some(switched) = upgrade::far_end(answer) else {
                return Err(
                    course.bad_answer(&endpoint, "it switches protocols before it has the whole request")
                );
            };
            let mut answer = switched.into_answer(protocol, Counted::new(admitted, active, permit));
            if let Some(accept) = accept {
                answer.headers_mut().insert(extended::SEC_WEBSOCKET_ACCEPT, accept);
            }
            if let Some(cookie) = sticky.set_cookie {
                answer.headers_mut().append(SET_COOKIE, cookie);
            }
            return Ok(answer);
        }
        // Of HTTP/1, it was looked at where the end of the body is found.
        if http2_endpoint && let Some(why) = headers::doubtful_framing(answer.headers()) {
            report(ctx, cluster, &endpoint, Outcome::Failure);
            return Err(course.bad_answer(&endpoint, why));
        }
        let status = if http2_endpoint { grpc_status::meant(&answer) } else { answer.status() };
        let outcome = match Outcome::of_status(status) {
            Outcome::Success => Some(Outcome::Success),
            failure => {
                report(ctx, cluster, &endpoint, failure);
                None
            }
        };
        let exchange = Exchange {
            ctx: ctx.clone(),
            admitted,
            active,
            _permit: permit,
            progress,
            outcome,
            in_flight: None,
            ended: false,
        };
        let mut answer = incoming_answer(answer, exchange);
        if let Some(cookie) = sticky.set_cookie {
            answer.headers_mut().append(SET_COOKIE, cookie);
        }
        if let Some(seen) = &seen
            && at.is_some()
        {
            // Of two tries, the one whose answer is taken.
            seen.taken(endpoint.addr());
        }
        return Ok(answer);
    }
}

/// Makes it what goes to the endpoint: target and `Host` by the protocol spoken there.
fn address(cluster: &Cluster, protocol: Protocol, outgoing: &mut Outgoing) -> Result<(), RequestError> {
    let Outgoing { request, target, takes_trailers, .. } = outgoing;
    let http1 = protocol == Protocol::Http1;
    let bad_host = || RequestError::BadHost {
        host: target.authority.clone(),
        why: crate::route::host::HostError::Character,
    };
    let streams = request.body().streams();
    let headers = request.headers_mut();
    if !http1 {
        headers.remove(HOST);
    } else if headers.get(HOST).is_none_or(|host| host != target.authority.as_str()) {
        let host = HeaderValue::try_from(target.authority.as_str()).map_err(|_| bad_host())?;
        headers.insert(HOST, host);
    }
    if *takes_trailers {
        headers::announce_trailers(headers, http1);
    }
    if http1 && streams && !headers.contains_key(CONTENT_LENGTH) {
        // Said aloud, so that whoever looks at the request sees how it goes on.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    // A target with nothing but a path stays as it is.
    if !http1 || request.uri().authority().is_some() || request.uri().path().is_empty() {
        let mut uri = http::uri::Parts::default();
        uri.path_and_query = Some(match request.uri().path_and_query() {
            Some(path) if !path.as_str().is_empty() => path.clone(),
            _ => PathAndQuery::from_static("/"),
        });
        if !http1 {
            uri.scheme = Some(if cluster.originates_tls() { Scheme::HTTPS } else { Scheme::HTTP });
            uri.authority = Some(Authority::try_from(target.authority.as_str()).map_err(|_| bad_host())?);
        }
        *request.uri_mut() = Uri::from_parts(uri).map_err(|_| bad_host())?;
    }
    *request.version_mut() = if http1 { Version::HTTP_11 } else { Version::HTTP_2 };
    request.extensions_mut().clear();
    Ok(())
}

fn says_app_is_down(answer: &Response<AnswerBody>) -> bool {
    answer.status() == StatusCode::SERVICE_UNAVAILABLE
        && answer.headers().get(X_WEFT_ERROR).is_some_and(|v| v == LOCAL_APP_DOWN)
}

fn incoming_answer(answer: Response<AnswerBody>, exchange: Exchange) -> Response<ResponseBody> {
    let (mut head, body) = answer.into_parts();
    headers::strip_hop_by_hop(&mut head.headers);
    if head.status == StatusCode::NO_CONTENT {
        head.headers.remove(CONTENT_LENGTH);
    }
    head.version = Version::HTTP_11;
    head.extensions.clear();
    Response::from_parts(head, ResponseBody::upstream(body, Box::new(exchange)))
}
