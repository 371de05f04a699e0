//! A connection of its own to an endpoint of a service, for bytes that are passed on as they are.
//!
//! Only connecting is tried again, on another endpoint: nothing was sent yet. From the first byte on nobody knows what a
//! repetition would do.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use tokio::net::TcpStream;

use super::far_end::{Counted, FarEnd};
use crate::cluster::breaker::{Admitted, ConnectionPermit};
use crate::cluster::endpoint::{ActiveRequest, EndpointState};
use crate::cluster::outlier::Outcome;
use crate::cluster::picker::{Ask, Tried};
use crate::cluster::state::Cluster;
use crate::http::context::{Context, Side};
use crate::http::error::RequestError;
use crate::limits::CONNECT_RETRIES_MAX;
use crate::policy::sticky::Sticky;
use crate::proxy_protocol::Client;
use crate::tls::secure::Speaks;
use crate::upstream::connect::{self, ConnectError, Place};
use crate::upstream::stream::{FarStream, UpstreamStream};

/// Picks an endpoint and connects to it, or to another if it takes no connection.
///
/// # Errors
/// If the circuit breaker is open, or no endpoint takes a connection.
pub(crate) async fn open(
    ctx: &Rc<Context>,
    cluster: Arc<Cluster>,
    client: Client,
) -> Result<FarEnd, RequestError> {
    let (admitted, permit) = admit(cluster).await?;
    let cluster = admitted.cluster();
    // There is no header to hash, but the client's address may be wanted.
    let key = cluster.config.cluster.lb_policy.hash_on().and_then(|on| {
        Sticky::of(on, &HeaderMap::new(), Some(client.source.ip()), ctx.rng.borrow_mut().u64(..)).key
    });
    let mut tried = Tried::new();
    loop {
        let endpoint = pick(ctx, cluster, key, &tried)?;
        let limit = cluster.config.cluster.connect_timeout;
        let opened = attempt(ctx, cluster, &endpoint, client, async |to: &Place| {
            connect::open(to, Speaks::Raw, limit).await
        });
        let (addr, why) = match opened.await? {
            Ok((stream, active)) => {
                let counted = Counted::new(admitted, active, permit);
                return Ok(FarEnd { stream: FarStream::Left(stream), seen: Bytes::new(), counted });
            }
            Err(why) => (endpoint.addr(), why.to_string()),
        };
        if matches!(ctx.side, Side::Inbound { .. }) {
            return Err(RequestError::LocalAppDown { service: cluster.name().to_owned(), addr, why });
        }
        tried.push(addr);
        let left = cluster.endpoints.counts().pickable() > tried.len();
        if tried.len() > CONNECT_RETRIES_MAX || !left {
            return Err(cannot_connect(cluster, tried.len(), addr, why));
        }
        cluster.shared.metrics.retries.inc();
    }
}

/// Connects to this endpoint and to no other, whatever is thought of its health: the client has chosen it. `dial` makes the
/// connection that stands under all else.
///
/// # Errors
/// If the circuit breaker is open, or the endpoint takes no connection.
pub(crate) async fn open_to(
    ctx: &Rc<Context>,
    cluster: Arc<Cluster>,
    endpoint: &Arc<EndpointState>,
    client: Client,
    dial: impl AsyncFn(SocketAddr) -> io::Result<TcpStream>,
) -> Result<FarEnd, RequestError> {
    let (admitted, permit) = admit(cluster).await?;
    let cluster = admitted.cluster();
    let limit = cluster.config.cluster.connect_timeout;
    let opened = attempt(ctx, cluster, endpoint, client, async |to: &Place| {
        let connecting = async { connect::begin(dial(to.addr).await?, to, Speaks::Raw).await };
        Ok(tokio::time::timeout(limit, connecting).await.map_err(|_| ConnectError::Timeout(limit))??)
    });
    match opened.await? {
        Ok((stream, active)) => {
            let counted = Counted::new(admitted, active, permit);
            Ok(FarEnd { stream: FarStream::Left(stream), seen: Bytes::new(), counted })
        }
        Err(why) => Err(cannot_connect(cluster, 1, endpoint.addr(), why.to_string())),
    }
}

async fn admit(cluster: Arc<Cluster>) -> Result<(Admitted, Option<ConnectionPermit>), RequestError> {
    let admitted = Admitted::new(cluster).map_err(|(cluster, why)| RequestError::overflow(&cluster, why))?;
    let limit = admitted.cluster().config.cluster.connect_timeout;
    let permit = admitted.connection(tokio::time::Instant::now() + limit).await;
    let permit = permit.map_err(|why| RequestError::overflow(admitted.cluster(), why))?;
    Ok((admitted, permit))
}

/// One connection, and what is learnt of its endpoint.
///
/// # Errors
/// If this process lacks what a connection needs: no other endpoint would be reached either.
async fn attempt(
    ctx: &Context,
    cluster: &Cluster,
    endpoint: &Arc<EndpointState>,
    client: Client,
    connect: impl AsyncFnOnce(&Place) -> Result<UpstreamStream, ConnectError>,
) -> Result<Result<(UpstreamStream, ActiveRequest), ConnectError>, RequestError> {
    let active = endpoint.start();
    let started = ctx.epoch.elapsed();
    let opened = match cluster.place(endpoint.addr(), Some(client)) {
        Ok(to) => connect(&to).await,
        Err(why) => Err(ConnectError::NoCertificates(why)),
    };
    match opened {
        Ok(stream) => {
            cluster.shared.metrics.connects.inc();
            let now = ctx.epoch.elapsed();
            let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
            endpoint.latency.observe(nanos(now), nanos(now.saturating_sub(started)));
            report(ctx, cluster, endpoint, Outcome::Success);
            Ok(Ok((stream, active)))
        }
        Err(why) => {
            cluster.shared.metrics.connect_failures.inc();
            if why.is_shortage() {
                return Err(RequestError::Shortage(why.to_string()));
            }
            if cluster.security().is_usable() {
                report(ctx, cluster, endpoint, Outcome::ConnectFailure);
            }
            Ok(Err(why))
        }
    }
}

fn cannot_connect(cluster: &Cluster, tried: usize, addr: SocketAddr, why: String) -> RequestError {
    let counts = Box::new(cluster.endpoints.counts());
    RequestError::CannotConnect { cluster: cluster.name().to_owned(), tried, addr, why, counts }
}

fn pick(
    ctx: &Context,
    cluster: &Cluster,
    key: Option<u64>,
    tried: &Tried,
) -> Result<Arc<EndpointState>, RequestError> {
    let picker = cluster.endpoints.picker();
    let now = u64::try_from(ctx.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
    let picked = picker.pick_for(Ask { key, tried, now }, &mut ctx.rng.borrow_mut()).cloned();
    picked.ok_or_else(|| RequestError::NoReadyEndpoint {
        cluster: cluster.name().to_owned(),
        part: None,
        counts: Box::new(cluster.endpoints.counts()),
    })
}

fn report(ctx: &Context, cluster: &Cluster, endpoint: &EndpointState, outcome: Outcome) {
    if let Some(cause) = cluster.record(endpoint, outcome) {
        ctx.mesh.eject(cluster.name(), endpoint.addr(), cause, Instant::now());
    }
}
