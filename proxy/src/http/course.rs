//! The tries of one request: which endpoint is next, a connection to it, and what to do after one that failed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Request, Response, response};
use weft_xds_proto::resource::cluster::Protocol;
use weft_xds_proto::resource::endpoint::EndpointSource;
use weft_xds_proto::resource::subset::Subset;

use super::context::{Context, Side};
use super::error::RequestError;
use super::grpc_status::Pushback;
use super::plan::Plan;
use super::seen::Seen;
use crate::cluster::breaker::{Admitted, ConnectionPermit, RetryPermit};
use crate::cluster::endpoint::EndpointState;
use crate::cluster::levels::Levels;
use crate::cluster::outlier::Outcome;
use crate::cluster::picker::{Ask, Tried};
use crate::cluster::state::Cluster;
use crate::limits::CONNECT_RETRIES_MAX;
use crate::proxy_protocol::Client;
use crate::telemetry::flag::Flag;
use crate::upstream::answer::{AnswerBody, UpstreamError};
use crate::upstream::connect::{self, ConnectError, Key};
use crate::upstream::pool::Lease;
use crate::upstream::request_body::{Progress, RequestBody};
use crate::upstream::{http1, http2};

/// The tries of one request.
pub(super) struct Course<'a> {
    pub ctx: &'a Context,
    pub admitted: &'a Admitted,
    pub cluster: &'a Arc<Cluster>,
    /// What endpoints are spoken to in.
    pub protocol: Protocol,
    /// It asks for an extended CONNECT, on a connection of its own.
    pub extended: bool,
    /// Of a part of the cluster, if the route leads to one.
    pub subset: Option<(Arc<Subset>, Arc<Levels>)>,
    /// By which the request sticks to an endpoint.
    pub key: Option<u64>,
    /// Who asks.
    pub client: Option<Client>,
    pub seen: Option<&'a Seen>,
    pub tried: Tried,
    pub replayed: bool,
    /// Of the present try, if the route gave it.
    pub permit: Option<RetryPermit>,
}

pub(super) enum Retry {
    SameEndpoint,
    OtherEndpoint,
}

impl Course<'_> {
    /// What it chooses from.
    fn levels(&self) -> &Levels {
        self.subset.as_ref().map_or_else(|| self.cluster.endpoints.picker(), |(_, levels)| levels)
    }

    /// Whether the route gives the request another try; at another endpoint, if there is one. `said`: what the endpoint has to
    /// say of that.
    pub async fn again(
        &mut self,
        plan: &mut Option<&mut Plan>,
        endpoint: &EndpointState,
        said: Option<Pushback>,
    ) -> bool {
        let Some(plan) = plan else { return false };
        let wait = match said {
            None => None,
            Some(Pushback::Wait(wait)) => Some(wait),
            Some(Pushback::Never) => return false,
        };
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
        if !plan.next_try(rng, wait).await {
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
        if self.cluster.config.cluster.breaker.max_connections == u32::MAX {
            return Ok(None);
        }
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
        let to = self.cluster.place(endpoint.addr(), self.client);
        let to = to.map_err(|why| Arc::new(ConnectError::NoCertificates(why)))?;
        let (pool, key) = (&self.ctx.pool, to.key());
        let open = match self.protocol {
            _ if fresh || self.extended => None,
            Protocol::Http1 => pool.take(key).map(Link::Http1),
            Protocol::Http2 => pool.open(key).map(|sender| Link::Http2(sender, key)),
        };
        if let Some(link) = open {
            return Ok((link, true));
        }
        // On the heap: a request that finds a connection has no room for making one.
        let linked = Box::pin(async {
            match self.protocol {
                Protocol::Http1 => pool.connect(&to, limit).await.map(|lease| (Link::Http1(lease), false)),
                Protocol::Http2 if self.extended => {
                    let sender = connect::extended(&to, limit).await.map_err(Arc::new)?;
                    Ok((Link::Http2(sender, key), false))
                }
                Protocol::Http2 => {
                    let linked = pool.multiplexed(&to, limit, fresh).await;
                    linked.map(|(sender, reused)| (Link::Http2(sender, key), reused))
                }
            }
        })
        .await;
        let metrics = &self.cluster.shared.metrics;
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
        if self.cluster.security().is_usable() {
            report(self.ctx, self.cluster, endpoint, Outcome::ConnectFailure);
        }
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
        SendError { why, unsent }: SendError,
        kept: bool,
        progress: Option<&Progress>,
    ) -> Result<Retry, RequestError> {
        if progress.is_some_and(Progress::has_failed) {
            return Err(RequestError::ClientBody(why.to_string()));
        }
        let unsent = unsent && !progress.is_some_and(Progress::is_touched);
        if reused {
            if unsent || kept && !self.replayed {
                self.replayed = true;
                self.cluster.shared.metrics.retries.inc();
                return Ok(Retry::SameEndpoint);
            }
        } else if unsent {
            // It took the connection and closed it at once: nobody serves there.
            self.not_connected(endpoint, why.to_string())?;
            return Ok(Retry::OtherEndpoint);
        }
        let outcome = if why.is_malformed() { Outcome::Failure } else { Outcome::GatewayFailure };
        report(self.ctx, self.cluster, endpoint, outcome);
        let (cluster, addr, malformed) =
            (self.cluster.name().to_owned(), endpoint.addr(), why.is_malformed());
        let why = why.to_string();
        Err(if malformed {
            RequestError::BadAnswer { cluster, addr, why }
        } else {
            RequestError::Broken { cluster, addr, why }
        })
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
    Http2(http2::Conn, Key),
}

/// Why there is no answer, and whether nothing of the request was sent.
pub(super) struct SendError {
    pub why: UpstreamError,
    pub unsent: bool,
}

impl Link {
    /// Its place in the pool, if others use it at the same time.
    pub fn shared(&self) -> Option<Key> {
        match self {
            Self::Http1(_) => None,
            Self::Http2(_, key) => Some(*key),
        }
    }

    /// Sends a request and waits for the head of its answer; interim ones are told. One without a body, or with one that is
    /// kept, is there to be sent again afterwards, and so is one of which nothing was sent.
    pub async fn send(
        self,
        request: &mut Request<RequestBody>,
        inform: &dyn Fn(response::Parts),
    ) -> Result<Response<AnswerBody>, SendError> {
        match self {
            Self::Http1(lease) => {
                let sent = http1::send(lease, request, inform).await;
                sent.map(|a| a.map(AnswerBody::Http1))
                    .map_err(|error| SendError { why: error.into(), unsent: false })
            }
            Self::Http2(conn, _) => {
                let sent = http2::send(conn, request, inform).await;
                sent.map(|a| a.map(AnswerBody::Http2)).map_err(|http2::Failed { why, unsent }| {
                    let why = why.into();
                    SendError { why, unsent }
                })
            }
        }
    }
}

/// Whether sending it twice does no harm (RFC 9110 §9.2.2).
pub(super) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

pub(super) fn report(ctx: &Context, cluster: &Cluster, endpoint: &EndpointState, outcome: Outcome) {
    if let Some(cause) = cluster.record(endpoint, outcome) {
        ctx.mesh.eject(cluster.name(), endpoint.addr(), cause, Instant::now());
    }
}
