//! A connection of its own to an endpoint of a service, for bytes that are passed on as they are.
//!
//! Only connecting is tried again, on another endpoint: nothing was sent yet. From the first byte on nobody knows what a
//! repetition would do.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;

use super::far_end::{Counted, FarEnd};
use crate::cluster::breaker::Admitted;
use crate::cluster::endpoint::EndpointState;
use crate::cluster::outlier::Outcome;
use crate::cluster::picker::{Ask, Tried};
use crate::cluster::state::Cluster;
use crate::http::context::{Context, Side};
use crate::http::error::RequestError;
use crate::limits::CONNECT_RETRIES_MAX;
use crate::policy::sticky::Sticky;
use crate::proxy_protocol::Client;
use crate::tls::secure::Speaks;
use crate::upstream::connect::{self, ConnectError};
use crate::upstream::stream::FarStream;

/// Picks an endpoint and connects to it, or to another if it takes no connection.
///
/// # Errors
/// If the circuit breaker is open, or no endpoint takes a connection.
pub(crate) async fn open(
    ctx: &Rc<Context>,
    cluster: Arc<Cluster>,
    client: Client,
) -> Result<FarEnd, RequestError> {
    let admitted = Admitted::new(cluster).map_err(|(cluster, why)| RequestError::overflow(&cluster, why))?;
    let cluster = admitted.cluster();
    let limit = cluster.config.cluster.connect_timeout;
    let permit = admitted
        .connection(tokio::time::Instant::now() + limit)
        .await
        .map_err(|why| RequestError::overflow(cluster, why))?;
    // There is no header to hash, but the client's address may be wanted.
    let key = cluster.config.cluster.lb_policy.hash_on().and_then(|on| {
        Sticky::of(on, &HeaderMap::new(), Some(client.source.ip()), ctx.rng.borrow_mut().u64(..)).key
    });
    let mut tried = Tried::new();
    loop {
        let endpoint = pick(ctx, cluster, key, &tried)?;
        let active = endpoint.start();
        let started = ctx.epoch.elapsed();
        let opened = match cluster.place(endpoint.addr(), Some(client)) {
            Ok(to) => connect::open(&to, Speaks::Raw, limit).await,
            Err(why) => Err(ConnectError::NoCertificates(why)),
        };
        let why = match opened {
            Ok(stream) => {
                cluster.shared.metrics.connects.inc();
                let took = ctx.epoch.elapsed().saturating_sub(started);
                let nanos = |d: std::time::Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
                endpoint.latency.observe(nanos(ctx.epoch.elapsed()), nanos(took));
                report(ctx, cluster, &endpoint, Outcome::Success);
                let counted = Counted::new(admitted, active, permit);
                return Ok(FarEnd { stream: FarStream::Left(stream), seen: Bytes::new(), counted });
            }
            Err(why) => why,
        };
        cluster.shared.metrics.connect_failures.inc();
        if why.is_shortage() {
            return Err(RequestError::Shortage(why.to_string()));
        }
        if cluster.security().is_usable() {
            report(ctx, cluster, &endpoint, Outcome::ConnectFailure);
        }
        let (addr, why) = (endpoint.addr(), why.to_string());
        if matches!(ctx.side, Side::Inbound { .. }) {
            return Err(RequestError::LocalAppDown { service: cluster.name().to_owned(), addr, why });
        }
        tried.push(addr);
        let left = cluster.endpoints.counts().pickable() > tried.len();
        if tried.len() > CONNECT_RETRIES_MAX || !left {
            return Err(RequestError::CannotConnect {
                cluster: cluster.name().to_owned(),
                tried: tried.len(),
                addr,
                why,
                counts: Box::new(cluster.endpoints.counts()),
            });
        }
        cluster.shared.metrics.retries.inc();
    }
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
