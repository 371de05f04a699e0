//! The tries of one request: which endpoint is next, a connection to it, and what to do after one that failed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use weft_xds_proto::resource::cluster::Protocol;
use weft_xds_proto::resource::endpoint::EndpointSource;
use weft_xds_proto::resource::subset::Subset;

use super::context::{Context, Side};
use super::error::RequestError;
use super::plan::Plan;
use super::seen::Seen;
use crate::cluster::breaker::{Admitted, ConnectionPermit, RetryPermit};
use crate::cluster::endpoint::EndpointState;
use crate::cluster::levels::Levels;
use crate::cluster::outlier::Outcome;
use crate::cluster::picker::{Ask, Tried};
use crate::cluster::state::Cluster;
use crate::limits::CONNECT_RETRIES_MAX;
use crate::telemetry::flag::Flag;
use crate::upstream::connect::{ConnectError, Key};
use crate::upstream::pool::Lease;
use crate::upstream::request_body::{Progress, RequestBody};

/// The tries of one request.
pub(super) struct Course<'a> {
    pub ctx: &'a Context,
    pub admitted: &'a Admitted,
    pub cluster: &'a Arc<Cluster>,
    /// What endpoints are spoken to in.
    pub protocol: Protocol,
    /// Of a part of the cluster, if the route leads to one.
    pub subset: Option<(Arc<Subset>, Arc<Levels>)>,
    /// By which the request sticks to an endpoint.
    pub key: Option<u64>,
    pub seen: Option<&'a Seen>,
    pub tried: Tried,
    pub replayed: bool,
    /// Of the present try, if the route gave it.
    pub permit: Option<RetryPermit>,
}

pub(super) enum Retry {
    SameEndpoint(Request<RequestBody>),
    OtherEndpoint(Request<RequestBody>),
}

impl Course<'_> {
    /// What it chooses from.
    fn levels(&self) -> &Levels {
        self.subset.as_ref().map_or_else(|| self.cluster.endpoints.picker(), |(_, levels)| levels)
    }

    /// Whether the route gives the request another try; at another endpoint, if there is one.
    pub async fn again(&mut self, plan: &mut Option<&mut Plan>, endpoint: &EndpointState) -> bool {
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
        if self.levels().len() > self.tried.len() + 1 {
            self.tried.push(endpoint.addr());
        }
        self.cluster.shared.metrics.retries.inc();
        true
    }

    /// In nanoseconds of the process clock, if balancing or outlier detection look at it.
    pub fn time(&self) -> Option<u64> {
        let nanos = || u64::try_from(self.ctx.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let compared = self.cluster.config.cluster.outlier_detection.latency.is_some();
        let adaptive = self.cluster.config.cluster.adaptive.is_some();
        (compared || adaptive || self.levels().needs_time()).then(nanos)
    }

    /// A try without an answer says as well how long the service takes.
    pub fn waited_in_vain(&self, sent_at: Option<u64>) {
        if let (Some(sent), Some(now)) = (sent_at, self.time()) {
            self.admitted.observe(Duration::from_nanos(now), Duration::from_nanos(now.saturating_sub(sent)));
        }
    }

    pub fn pick(&self) -> Result<Arc<EndpointState>, RequestError> {
        let picker = self.levels();
        let ask = Ask { key: self.key, tried: &self.tried, now: self.time().unwrap_or(0) };
        let picked = picker.pick_for(ask, &mut self.ctx.rng.borrow_mut()).cloned();
        picked.ok_or_else(|| RequestError::NoReadyEndpoint {
            cluster: self.cluster.name().to_owned(),
            part: self.subset.as_ref().map(|(subset, _)| subset.clone()),
            counts: Box::new(self.cluster.endpoints.counts()),
        })
    }

    /// The place of a connection, if their number is limited. It is waited for as long as a connection itself would be.
    pub async fn connection(&self, plan: Option<&Plan>) -> Result<Option<ConnectionPermit>, RequestError> {
        let limit = self.cluster.config.cluster.connect_timeout;
        let until = plan.and_then(|p| p.until).map(|(at, _)| at).into_iter();
        let until = until.fold(tokio::time::Instant::now() + limit, |a, b| a.min(b));
        self.admitted.connection(until).await.map_err(|why| RequestError::overflow(self.cluster, why))
    }

    pub async fn link(
        &self,
        endpoint: &EndpointState,
        fresh: bool,
    ) -> Result<(Link, bool), Arc<ConnectError>> {
        let limit = self.cluster.config.cluster.connect_timeout;
        let to =
            self.cluster.place(endpoint.addr()).map_err(|why| Arc::new(ConnectError::NoCertificates(why)))?;
        let metrics = &self.cluster.shared.metrics;
        let linked = match self.protocol {
            Protocol::Http1 => {
                if let Some(lease) = (!fresh).then(|| self.ctx.pool.take(to.key())).flatten() {
                    return Ok((Link::Http1(lease), true));
                }
                self.ctx.pool.connect(&to, limit).await.map(|lease| (Link::Http1(lease), false))
            }
            Protocol::Http2 => {
                let linked = self.ctx.pool.multiplexed(&to, limit, fresh).await;
                linked.map(|(sender, reused)| (Link::Http2(sender, to.key()), reused))
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
    pub fn not_connected(&mut self, endpoint: &Arc<EndpointState>, why: String) -> Result<(), RequestError> {
        let addr = endpoint.addr();
        report(self.ctx, self.cluster, endpoint, Outcome::ConnectFailure);
        if matches!(self.ctx.side, Side::Inbound { .. }) {
            return Err(RequestError::LocalAppDown { service: self.cluster.name().to_owned(), addr, why });
        }
        self.tried.push(addr);
        let left = self.levels().len() > self.tried.len();
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
    pub fn failed(
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

    pub fn bad_answer(&self, endpoint: &EndpointState, why: &str) -> RequestError {
        let (cluster, addr) = (self.cluster.name().to_owned(), endpoint.addr());
        RequestError::BadAnswer { cluster, addr, why: why.to_owned() }
    }

    /// Whether a sidecar stands there, whose word on its app can be taken.
    pub fn is_behind_sidecar(&self, endpoint: &EndpointState) -> bool {
        let all = self.cluster.endpoints.endpoints();
        let found = all.binary_search_by_key(&endpoint.addr(), |v| v.endpoint.address);
        found.is_ok_and(|i| all[i].endpoint.source == EndpointSource::Gossip)
    }
}

/// A connection that can take this request.
pub(super) enum Link {
    Http1(Lease),
    /// With its place in the pool.
    Http2(hyper::client::conn::http2::SendRequest<RequestBody>, Key),
}

/// An error with the request, if nothing of it was sent.
pub(super) type SendError = (hyper::Error, Option<Request<RequestBody>>);

impl Link {
    pub async fn send(&mut self, request: Request<RequestBody>) -> Result<Response<Incoming>, SendError> {
        let sent = match self {
            Self::Http1(lease) => lease.sender.try_send_request(request).await,
            Self::Http2(sender, _) => sender.try_send_request(request).await,
        };
        sent.map_err(|mut error| {
            let unsent = error.take_message();
            (error.into_error(), unsent)
        })
    }

    pub fn into_lease(self) -> Option<Lease> {
        match self {
            Self::Http1(lease) => Some(lease),
            Self::Http2(..) => None,
        }
    }
}

pub(super) fn report(ctx: &Context, cluster: &Cluster, endpoint: &EndpointState, outcome: Outcome) {
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
