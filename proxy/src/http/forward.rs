//! One request to one endpoint, and to another if the first cannot be reached.
//!
//! What is tried again, and why that is safe (D08: no non-idempotent request is sent twice):
//! - no connection: another endpoint, up to [`CONNECT_RETRIES_MAX`]; nothing was sent.
//! - the connection closed before it took the request: a fresh one; nothing was sent.
//! - a *reused* connection closed before any byte of an answer (P42): once more on a fresh one, if the method is
//!   idempotent and there is no body; the server closed it as idle while the request was on its way.
//! - a sidecar says that its app is down: another endpoint, under the same conditions.
//! - what the route says: an answer of some status, a broken exchange or a try that takes too long, under the same
//!   conditions, and as long as the cluster's retry budget lasts (P41). The others are outside it: they reach no
//!   endpoint that has work to do, and are few.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, HOST, HeaderValue, SET_COOKIE, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version, request};
use hyper::body::Incoming;
use weft_xds_proto::resource::cluster::Protocol;
use weft_xds_proto::resource::endpoint::EndpointSource;

use super::body::ResponseBody;
use super::context::{Context, Side};
use super::error::RequestError;
use super::plan::{Late, Plan, with_limit};
use super::rescue::{LOCAL_APP_DOWN, X_WEFT_ERROR};
use super::seen::Seen;
use super::target::Target;
use super::{extended, grpc_status, headers, upgrade};
use crate::cluster::breaker::{Admitted, ConnectionPermit, RetryPermit};
use crate::cluster::endpoint::{ActiveRequest, EndpointState};
use crate::cluster::outlier::Outcome;
use crate::cluster::picker::{Ask, Tried};
use crate::cluster::state::Cluster;
use crate::limits::CONNECT_RETRIES_MAX;
use crate::listener::connection::InFlight;
use crate::policy::deadline;
use crate::policy::sticky::Sticky;
use crate::tcp::far_end::Counted;
use crate::telemetry::flag::Flag;
use crate::upstream::connect::ConnectError;
use crate::upstream::pool::Lease;
use crate::upstream::request_body::{Progress, RequestBody};

/// A request that an endpoint is answering. It ends by [`Exchange::complete`], by [`Exchange::broke_off`], or by
/// being dropped when the client is gone; its connection is kept only in the first case. What it says of its endpoint
/// is told once: a head below 500 is no success before the body has followed.
pub(crate) struct Exchange {
    ctx: Rc<Context>,
    admitted: Admitted,
    active: ActiveRequest,
    /// `None` on HTTP/2, whose connection is shared.
    lease: Option<Lease>,
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
        let request_done = self.progress.as_ref().is_none_or(|p| p.is_finished());
        if let (Some(lease), true) = (self.lease.take(), request_done) {
            lease.give_back();
        }
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
    pub head: request::Parts,
    pub target: Target,
    pub takes_trailers: bool,
    pub body: RequestBody,
    pub progress: Option<Rc<Progress>>,
    /// What it asks to switch to.
    pub upgrade: Option<HeaderValue>,
    /// Who asks, if it is known.
    pub client: Option<IpAddr>,
    /// Where it is noted what becomes of it, if it is.
    pub seen: Option<Rc<Seen>>,
}

impl Outgoing {
    pub fn new(head: request::Parts, target: Target, takes_trailers: bool, incoming: Incoming) -> Self {
        let (body, progress) = RequestBody::new(incoming, headers::strip_trailers);
        Self { head, target, takes_trailers, body, progress, upgrade: None, client: None, seen: None }
    }
}

/// Sends the request on and answers the head of the answer, with its body streaming behind.
///
/// # Errors
/// If no endpoint answered.
pub(crate) async fn forward(
    ctx: &Rc<Context>,
    cluster: Arc<Cluster>,
    outgoing: Outgoing,
    mut plan: Option<&mut Plan>,
) -> Result<Response<ResponseBody>, RequestError> {
    // HTTP/2 is also used for streams in which the client waits for its turn.
    let http2 = outgoing.head.version == Version::HTTP_2;
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
    let sticky = match cluster.config.cluster.lb_policy.hash_on() {
        None => Sticky::default(),
        Some(on) => Sticky::of(on, &outgoing.head.headers, outgoing.client, ctx.rng.borrow_mut().u64(..)),
    };
    let upgrade = outgoing.upgrade.clone().filter(|_| cluster.config.cluster.protocol == Protocol::Http1);
    let extended = http2 && outgoing.upgrade.is_some();
    if extended && upgrade.is_none() {
        return Err(RequestError::NoExtendedConnect { cluster: cluster.name().to_owned() });
    }
    let mut request = request_to(cluster, outgoing)?;
    if let Some(protocol) = &upgrade {
        upgrade::announce(request.headers_mut(), protocol.clone());
        if extended {
            extended::complete(request.headers_mut(), protocol, &mut ctx.rng.borrow_mut());
        }
    }
    let mut course = Course {
        ctx,
        admitted: &admitted,
        cluster,
        key: sticky.key,
        seen: seen.as_deref(),
        tried: Tried::new(),
        replayed: false,
        permit: None,
    };
    let http2_endpoint = cluster.config.cluster.protocol == Protocol::Http2;
    let permit = match cluster.config.cluster.protocol {
        Protocol::Http1 => course.connection(plan.as_deref()).await?,
        Protocol::Http2 => None,
    };
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
        let active = endpoint.start();
        if let Some(seen) = &seen {
            seen.tried(endpoint.addr());
        }
        let (mut link, reused) = match course.link(&endpoint, fresh).await {
            Ok(link) => link,
            Err(why) if why.is_shortage() => return Err(RequestError::Shortage(why.to_string())),
            Err(why) => {
                course.not_connected(&endpoint, why.to_string())?;
                continue;
            }
        };
        let behind_sidecar = course.is_behind_sidecar(&endpoint);
        let planned = plan.as_ref().is_some_and(|p| p.may_retry());
        let spare = (reused || behind_sidecar || planned).then(|| copy(&request)).flatten();
        let sent_at = course.time();
        let sent = link.send(request);
        let mut for_caller = false;
        let waited = match plan.as_ref() {
            None => with_limit(sent, progress.as_deref(), stall, ctx.timeouts.request).await,
            Some(plan) => {
                let waited = with_limit(sent, progress.as_deref(), stall, plan.head);
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
                if matches!(link, Link::Http2(_)) {
                    // It may be dead without a word; others should not find out one after the other.
                    ctx.pool.discard(endpoint.addr());
                }
                if let Some(spare) = spare
                    && course.again(&mut plan, &endpoint).await
                {
                    request = spare;
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
            Ok(Err((error, unsent))) => {
                let kept = planned.then(|| spare.as_ref().and_then(copy)).flatten();
                let failed = course.failed(&endpoint, reused, error, unsent, spare, progress.as_deref());
                let retry = match (failed, kept) {
                    (Err(error @ RequestError::Broken { .. }), Some(kept)) => {
                        if !course.again(&mut plan, &endpoint).await {
                            return Err(error);
                        }
                        Retry::OtherEndpoint(kept)
                    }
                    (failed, _) => failed?,
                };
                match retry {
                    Retry::SameEndpoint(same) => {
                        request = same;
                        again = Some(endpoint);
                    }
                    Retry::OtherEndpoint(same) => request = same,
                }
                continue;
            }
        };
        let mut spare = spare;
        if behind_sidecar
            && says_app_is_down(&answer)
            && spare.is_some()
            && course.not_connected(&endpoint, "its sidecar says that the app is down".to_owned()).is_ok()
            && let Some(same) = spare.take()
        {
            request = same;
            continue;
        }
        if plan.as_ref().is_some_and(|p| p.codes.contains(&answer.status().as_u16()))
            && let Some(same) = spare.take()
            && course.again(&mut plan, &endpoint).await
        {
            if answer.status().is_server_error() {
                report(ctx, cluster, &endpoint, Outcome::of_status(answer.status()));
            }
            request = same;
            continue;
        }
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(protocol) = upgrade.and_then(|asked| upgrade::agreed(&asked, answer.headers())) else {
                report(ctx, cluster, &endpoint, Outcome::Failure);
                return Err(course.bad_answer(&endpoint, "it switches protocols unasked"));
            };
            report(ctx, cluster, &endpoint, Outcome::Success);
            let ended = |why: hyper::Error| course.bad_answer(&endpoint, &why.to_string());
            let switched = upgrade::far_end(answer).await.map_err(ended)?;
            drop(link);
            let mut answer = switched.into_answer(protocol, Counted::new(admitted, active, permit));
            if let Some(cookie) = sticky.set_cookie {
                answer.headers_mut().append(SET_COOKIE, cookie);
            }
            return Ok(answer);
        }
        if let Some(why) = headers::doubtful_framing(answer.headers()) {
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
            lease: link.into_lease(),
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
        return Ok(answer);
    }
}

/// The tries of one request.
struct Course<'a> {
    ctx: &'a Context,
    admitted: &'a Admitted,
    cluster: &'a Arc<Cluster>,
    /// By which the request sticks to an endpoint.
    key: Option<u64>,
    seen: Option<&'a Seen>,
    tried: Tried,
    replayed: bool,
    /// Of the present try, if the route gave it.
    permit: Option<RetryPermit>,
}

enum Retry {
    SameEndpoint(Request<RequestBody>),
    OtherEndpoint(Request<RequestBody>),
}

impl Course<'_> {
    /// Whether the route gives the request another try; at another endpoint, if there is one.
    async fn again(&mut self, plan: &mut Option<&mut Plan>, endpoint: &EndpointState) -> bool {
        let Some(plan) = plan else { return false };
        if !plan.may_retry() {
            return false;
        }
        // That of the try that has just failed.
        self.permit = None;
        self.permit = self.admitted.retry();
        if self.permit.is_none() {
            self.cluster.shared.metrics.overflows.retries.inc();
            self.cluster.shared.metrics.flagged(Flag::RetryBudget);
            if let Some(seen) = self.seen {
                seen.flag(Flag::RetryBudget);
            }
            return false;
        }
        let rng = self.ctx.rng.borrow_mut().f64();
        if !plan.next_try(rng).await {
            return false;
        }
        if self.cluster.endpoints.counts().pickable() > self.tried.len() + 1 {
            self.tried.push(endpoint.addr());
        }
        self.cluster.shared.metrics.retries.inc();
        true
    }

    /// In nanoseconds of the process clock, if balancing or outlier detection look at it.
    fn time(&self) -> Option<u64> {
        let nanos = || u64::try_from(self.ctx.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let compared = self.cluster.config.cluster.outlier_detection.latency.is_some();
        let adaptive = self.cluster.config.cluster.adaptive.is_some();
        (compared || adaptive || self.cluster.endpoints.picker().needs_time()).then(nanos)
    }

    /// A try without an answer says as well how long the service takes.
    fn waited_in_vain(&self, sent_at: Option<u64>) {
        if let (Some(sent), Some(now)) = (sent_at, self.time()) {
            self.admitted.observe(Duration::from_nanos(now), Duration::from_nanos(now.saturating_sub(sent)));
        }
    }

    fn pick(&self) -> Result<Arc<EndpointState>, RequestError> {
        let picker = self.cluster.endpoints.picker();
        let ask = Ask { key: self.key, tried: &self.tried, now: self.time().unwrap_or(0) };
        let picked = picker.pick_for(ask, &mut self.ctx.rng.borrow_mut()).cloned();
        picked.ok_or_else(|| RequestError::NoReadyEndpoint {
            cluster: self.cluster.name().to_owned(),
            counts: Box::new(self.cluster.endpoints.counts()),
        })
    }

    /// The place of a connection, if their number is limited. It is waited for as long as a connection itself would be.
    async fn connection(&self, plan: Option<&Plan>) -> Result<Option<ConnectionPermit>, RequestError> {
        let limit = self.cluster.config.cluster.connect_timeout;
        let until = plan.and_then(|p| p.until).map(|(at, _)| at).into_iter();
        let until = until.fold(tokio::time::Instant::now() + limit, |a, b| a.min(b));
        self.admitted.connection(until).await.map_err(|why| RequestError::overflow(self.cluster, why))
    }

    async fn link(&self, endpoint: &EndpointState, fresh: bool) -> Result<(Link, bool), Arc<ConnectError>> {
        let (addr, limit) = (endpoint.addr(), self.cluster.config.cluster.connect_timeout);
        let metrics = &self.cluster.shared.metrics;
        let linked = match self.cluster.config.cluster.protocol {
            Protocol::Http1 => {
                if let Some(lease) = (!fresh).then(|| self.ctx.pool.take(addr)).flatten() {
                    return Ok((Link::Http1(lease), true));
                }
                self.ctx.pool.connect(addr, limit).await.map(|lease| (Link::Http1(lease), false))
            }
            Protocol::Http2 => {
                let linked = self.ctx.pool.multiplexed(addr, limit, fresh).await;
                linked.map(|(sender, reused)| (Link::Http2(sender), reused))
            }
        };
        match &linked {
            Ok((_, false)) => metrics.connects.inc(),
            Ok(_) => {}
            Err(_) => metrics.connect_failures.inc(),
        }
        linked
    }

    /// Another endpoint may be tried if this answers `Ok`.
    fn not_connected(&mut self, endpoint: &Arc<EndpointState>, why: String) -> Result<(), RequestError> {
        let addr = endpoint.addr();
        report(self.ctx, self.cluster, endpoint, Outcome::ConnectFailure);
        if matches!(self.ctx.side, Side::Inbound { .. }) {
            return Err(RequestError::LocalAppDown { service: self.cluster.name().to_owned(), addr, why });
        }
        self.tried.push(addr);
        let left = self.cluster.endpoints.counts().pickable() > self.tried.len();
        if self.tried.len() > CONNECT_RETRIES_MAX || !left {
            return Err(RequestError::CannotConnect {
                cluster: self.cluster.name().to_owned(),
                tried: self.tried.len(),
                addr,
                why,
                counts: Box::new(self.cluster.endpoints.counts()),
            });
        }
        self.cluster.shared.metrics.retries.inc();
        Ok(())
    }

    /// What to do after the exchange failed before an answer.
    fn failed(
        &mut self,
        endpoint: &Arc<EndpointState>,
        reused: bool,
        error: hyper::Error,
        unsent: Option<Request<RequestBody>>,
        spare: Option<Request<RequestBody>>,
        progress: Option<&Progress>,
    ) -> Result<Retry, RequestError> {
        if progress.is_some_and(Progress::has_failed) {
            return Err(RequestError::ClientBody(cause(&error)));
        }
        let unsent = unsent.filter(|_| !progress.is_some_and(Progress::is_touched));
        if reused {
            if let Some(same) = unsent.or(spare.filter(|_| !self.replayed)) {
                self.replayed = true;
                self.cluster.shared.metrics.retries.inc();
                return Ok(Retry::SameEndpoint(same));
            }
        } else if let Some(same) = unsent {
            // It took the connection and closed it at once: nobody serves there.
            self.not_connected(endpoint, cause(&error))?;
            return Ok(Retry::OtherEndpoint(same));
        }
        let outcome = if error.is_parse() { Outcome::Failure } else { Outcome::GatewayFailure };
        report(self.ctx, self.cluster, endpoint, outcome);
        let (cluster, addr) = (self.cluster.name().to_owned(), endpoint.addr());
        if error.is_parse() {
            return Err(RequestError::BadAnswer { cluster, addr, why: error.to_string() });
        }
        Err(RequestError::Broken { cluster, addr, why: cause(&error) })
    }
}

impl Course<'_> {
    fn bad_answer(&self, endpoint: &EndpointState, why: &str) -> RequestError {
        let (cluster, addr) = (self.cluster.name().to_owned(), endpoint.addr());
        RequestError::BadAnswer { cluster, addr, why: why.to_owned() }
    }

    /// Whether a sidecar stands there, whose word on its app can be taken.
    fn is_behind_sidecar(&self, endpoint: &EndpointState) -> bool {
        let all = self.cluster.endpoints.endpoints();
        let found = all.binary_search_by_key(&endpoint.addr(), |v| v.endpoint.address);
        found.is_ok_and(|i| all[i].endpoint.source == EndpointSource::Gossip)
    }
}

/// A connection that can take this request.
enum Link {
    Http1(Lease),
    Http2(hyper::client::conn::http2::SendRequest<RequestBody>),
}

/// An error with the request, if nothing of it was sent.
type SendError = (hyper::Error, Option<Request<RequestBody>>);

impl Link {
    async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, SendError> {
        let sent = match self {
            Self::Http1(lease) => lease.sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let unsent = error.take_message();
            (error.into_error(), unsent)
        })
    }

    fn into_lease(self) -> Option<Lease> {
        match self {
            Self::Http1(lease) => Some(lease),
            Self::Http2(_) => None,
        }
    }
}

/// What goes to the endpoint: target and `Host` by the protocol spoken there.
fn request_to(cluster: &Cluster, outgoing: Outgoing) -> Result<Request<RequestBody>, RequestError> {
    let Outgoing { head, target, takes_trailers, body, .. } = outgoing;
    let http1 = cluster.config.cluster.protocol == Protocol::Http1;
    let bad_host = |_| RequestError::BadHost {
        host: target.authority.clone(),
        why: crate::route::host::HostError::Character,
    };
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(match head.uri.path_and_query() {
        Some(path) if !path.as_str().is_empty() => path.clone(),
        _ => PathAndQuery::from_static("/"),
    });
    let mut request = Request::new(body);
    *request.method_mut() = head.method;
    *request.headers_mut() = head.headers;
    let headers = request.headers_mut();
    if http1 {
        let host = HeaderValue::try_from(target.authority.as_str()).map_err(|_| bad_host(()))?;
        headers.insert(HOST, host);
    } else {
        headers.remove(HOST);
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(Authority::try_from(target.authority.as_str()).map_err(|_| bad_host(()))?);
    }
    if takes_trailers {
        headers::announce_trailers(headers, http1);
    }
    let streams = request.body().streams();
    let headers = request.headers_mut();
    if http1 && streams && !headers.contains_key(CONTENT_LENGTH) {
        // Said aloud, because without it the client side sends no body with GET.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    *request.version_mut() = if http1 { Version::HTTP_11 } else { Version::HTTP_2 };
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| bad_host(()))?;
    Ok(request)
}

/// A second one like it, if sending it twice does no harm and costs little.
fn copy(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    let idempotent = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    if !idempotent || !matches!(request.body(), RequestBody::Empty) {
        return None;
    }
    let mut copy = Request::new(RequestBody::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

fn says_app_is_down(answer: &Response<Incoming>) -> bool {
    answer.status() == StatusCode::SERVICE_UNAVAILABLE
        && answer.headers().get(X_WEFT_ERROR).is_some_and(|v| v == LOCAL_APP_DOWN)
}

fn incoming_answer(answer: Response<Incoming>, exchange: Exchange) -> Response<ResponseBody> {
    let (mut head, body) = answer.into_parts();
    headers::strip_hop_by_hop(&mut head.headers);
    if head.status == StatusCode::NO_CONTENT {
        head.headers.remove(CONTENT_LENGTH);
    }
    head.version = Version::HTTP_11;
    head.extensions.clear();
    Response::from_parts(head, ResponseBody::upstream(body, Box::new(exchange)))
}

fn report(ctx: &Context, cluster: &Cluster, endpoint: &EndpointState, outcome: Outcome) {
    if let Some(cause) = cluster.record(endpoint, outcome) {
        ctx.mesh.eject(cluster.name(), endpoint.addr(), cause, Instant::now());
    }
}

/// The innermost reason, which is what tells a person something.
fn cause(error: &hyper::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
