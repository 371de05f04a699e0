//! One request to one endpoint, and to another if the first cannot be reached.
//!
//! What is tried again, and why that is safe (D08: no non-idempotent request is sent twice):
//! - no connection: another endpoint, up to [`CONNECT_RETRIES_MAX`]; nothing was sent.
//! - the connection closed before it took the request: a fresh one; nothing was sent.
//! - a *reused* connection closed before any byte of an answer (P42): once more on a fresh one, if the method is
//!   idempotent and there is no body; the server closed it as idle while the request was on its way.
//! - a sidecar says that its app is down: another endpoint, under the same conditions.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, HOST, HeaderValue, TRANSFER_ENCODING};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, Response, StatusCode, Uri, Version, request};
use hyper::body::Incoming;
use weft_xds_proto::resource::cluster::Protocol;
use weft_xds_proto::resource::endpoint::EndpointSource;

use super::body::ResponseBody;
use super::context::{Context, Side};
use super::error::RequestError;
use super::headers;
use super::rescue::{LOCAL_APP_DOWN, X_WEFT_ERROR};
use super::target::Target;
use crate::cluster::endpoint::{ActiveRequest, EndpointState};
use crate::cluster::outlier::Outcome;
use crate::cluster::picker::Tried;
use crate::cluster::state::Cluster;
use crate::limits::CONNECT_RETRIES_MAX;
use crate::listener::connection::{InFlight, Timeouts};
use crate::upstream::connect::ConnectError;
use crate::upstream::pool::Lease;
use crate::upstream::request_body::{Progress, RequestBody};

/// A request that an endpoint is answering. It ends by [`Exchange::complete`], by [`Exchange::broke_off`], or by
/// being dropped when the client is gone; its connection is kept only in the first case. What it says of its endpoint
/// is told once: a head below 500 is no success before the body has followed.
pub(crate) struct Exchange {
    ctx: Rc<Context>,
    cluster: Arc<Cluster>,
    active: ActiveRequest,
    /// `None` on HTTP/2, whose connection is shared.
    lease: Option<Lease>,
    progress: Option<Rc<Progress>>,
    /// Not told yet.
    outcome: Option<Outcome>,
    /// Counts at the client's connection.
    in_flight: Option<InFlight>,
}

impl Exchange {
    /// Dropped with the exchange.
    pub fn hold(&mut self, in_flight: InFlight) {
        self.in_flight = Some(in_flight);
    }

    /// The answer has been read to its end.
    pub fn complete(mut self) {
        let request_done = self.progress.as_ref().is_none_or(|p| p.is_finished());
        if let (Some(lease), true) = (self.lease.take(), request_done) {
            lease.give_back();
        }
    }

    /// The answer ended in its middle: because the endpoint went away, or because the client's body did, which takes
    /// the connection with it.
    pub fn broke_off(mut self) {
        let by_client = self.progress.as_ref().is_some_and(|p| p.has_failed());
        if self.outcome.is_some() && !by_client {
            self.outcome = Some(Outcome::Failure);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome.take() {
            report(&self.ctx, &self.cluster, self.active.endpoint(), outcome);
        }
    }
}

/// Sends the request on and answers the head of the answer, with its body streaming behind.
///
/// # Errors
/// If no endpoint answered.
pub(crate) async fn forward(
    ctx: &Rc<Context>,
    cluster: Arc<Cluster>,
    head: request::Parts,
    target: Target,
    takes_trailers: bool,
    incoming: Incoming,
) -> Result<Response<ResponseBody>, RequestError> {
    // HTTP/2 is also used for streams in which the client waits for its turn.
    let stall = if head.version == Version::HTTP_2 { ctx.timeouts.idle } else { ctx.timeouts.stall };
    let (body, progress) = RequestBody::new(incoming, headers::strip_trailers);
    let mut request = outgoing(&cluster, head, target, takes_trailers, body)?;
    let mut course = Course { ctx, cluster: &cluster, tried: Tried::new(), replayed: false };
    // An endpoint whose reused connection turned out to be closed gets the request on a fresh one.
    let mut again: Option<Arc<EndpointState>> = None;
    loop {
        let fresh = again.is_some();
        let endpoint = match again.take() {
            Some(endpoint) => endpoint,
            None => course.pick()?,
        };
        let active = endpoint.start();
        let (mut link, reused) = match course.link(&endpoint, fresh).await {
            Ok(link) => link,
            Err(why) if why.is_shortage() => return Err(RequestError::Shortage(why.to_string())),
            Err(why) => {
                course.not_connected(&endpoint, why.to_string())?;
                continue;
            }
        };
        let behind_sidecar = course.is_behind_sidecar(&endpoint);
        let spare = (reused || behind_sidecar).then(|| copy(&request)).flatten();
        let sent = link.send(request);
        let answer = match with_limit(sent, progress.as_deref(), stall, &ctx.timeouts).await {
            Err(Late::Client) => return Err(RequestError::SlowBody(stall)),
            Err(Late::Endpoint(limit)) => {
                report(ctx, &cluster, &endpoint, Outcome::Failure);
                if matches!(link, Link::Http2(_)) {
                    // It may be dead without a word; others should not find out one after the other.
                    ctx.pool.discard(endpoint.addr());
                }
                let (cluster, addr) = (cluster.name().to_owned(), endpoint.addr());
                return Err(RequestError::Timeout { cluster, addr, limit });
            }
            Ok(Ok(answer)) => answer,
            Ok(Err((error, unsent))) => {
                match course.failed(&endpoint, reused, error, unsent, spare, progress.as_deref())? {
                    Retry::SameEndpoint(same) => {
                        request = same;
                        again = Some(endpoint);
                    }
                    Retry::OtherEndpoint(same) => request = same,
                }
                continue;
            }
        };
        if let Some(spare) = spare.filter(|_| behind_sidecar && says_app_is_down(&answer))
            && course.not_connected(&endpoint, "its sidecar says that the app is down".to_owned()).is_ok()
        {
            request = spare;
            continue;
        }
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            report(ctx, &cluster, &endpoint, Outcome::Failure);
            return Err(course.bad_answer(&endpoint, "it switches protocols unasked"));
        }
        if let Some(why) = headers::doubtful_framing(answer.headers()) {
            report(ctx, &cluster, &endpoint, Outcome::Failure);
            return Err(course.bad_answer(&endpoint, why));
        }
        let outcome = if answer.status().is_server_error() {
            report(ctx, &cluster, &endpoint, Outcome::Failure);
            None
        } else {
            Some(Outcome::Success)
        };
        let exchange = Exchange {
            ctx: ctx.clone(),
            cluster: cluster.clone(),
            active,
            lease: link.into_lease(),
            progress,
            outcome,
            in_flight: None,
        };
        return Ok(incoming_answer(answer, exchange));
    }
}

/// The tries of one request.
struct Course<'a> {
    ctx: &'a Context,
    cluster: &'a Arc<Cluster>,
    tried: Tried,
    replayed: bool,
}

enum Retry {
    SameEndpoint(Request<RequestBody>),
    OtherEndpoint(Request<RequestBody>),
}

impl Course<'_> {
    fn pick(&self) -> Result<Arc<EndpointState>, RequestError> {
        let picker = self.cluster.endpoints.picker();
        let picked = picker.pick(&self.tried, &mut self.ctx.rng.borrow_mut()).cloned();
        picked.ok_or_else(|| RequestError::NoReadyEndpoint {
            cluster: self.cluster.name().to_owned(),
            counts: Box::new(self.cluster.endpoints.counts()),
        })
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
        let left = self.cluster.endpoints.counts().usable > self.tried.len();
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
        report(self.ctx, self.cluster, endpoint, Outcome::Failure);
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

/// Who took too long.
enum Late {
    Client,
    Endpoint(Duration),
}

/// Waits for the head of the answer. The time runs from the end of the request's body: a long upload is no slow server.
/// An upload in which nothing moves for `stall` ends as well, by the fault of the side that is waited for.
async fn with_limit<T>(
    sent: impl Future<Output = T>,
    progress: Option<&Progress>,
    stall: Duration,
    limits: &Timeouts,
) -> Result<T, Late> {
    tokio::pin!(sent);
    loop {
        let upload = progress.filter(|p| !p.is_finished()).map(|p| (p, p.frames()));
        let limit = if upload.is_some() { stall } else { limits.request };
        if let Ok(done) = tokio::time::timeout(limit, &mut sent).await {
            return Ok(done);
        }
        match upload {
            None => return Err(Late::Endpoint(limit)),
            Some((now, before)) if now.is_finished() || now.frames() != before => {}
            Some((now, _)) if now.waits_for_client() => return Err(Late::Client),
            Some(_) => return Err(Late::Endpoint(limit)),
        }
    }
}

/// What goes to the endpoint: target and `Host` by the protocol spoken there.
fn outgoing(
    cluster: &Cluster,
    head: request::Parts,
    target: Target,
    takes_trailers: bool,
    body: RequestBody,
) -> Result<Request<RequestBody>, RequestError> {
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
    let streams = matches!(request.body(), RequestBody::Streaming(..));
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
