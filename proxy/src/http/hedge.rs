//! A second try beside a first one that has no answer yet. The first good answer is taken, and the other try is dropped,
//! which ends its exchange.
//!
//! Only what is safe (RFC 9110 §9.2.1) and has no body is sent twice, to another endpoint, and as long as the cluster's
//! retry budget lasts: a service that has become slow as a whole is not sent twice as much.

use std::cell::Cell;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use futures::future::{Either, select};
use http::{Method, Response};
use weft_xds_proto::resource::route::Hedge;

use super::body::ResponseBody;
use super::context::Context;
use super::error::RequestError;
use super::forward::{Outgoing, forward};
use super::plan::Plan;
use crate::cluster::breaker::RetryPermit;
use crate::cluster::state::Cluster;
use crate::listener::connection::Downstream;
use crate::telemetry::flag::Flag;
use crate::upstream::request_body::RequestBody;

/// What a try and whoever watches it share.
pub(crate) type At = Rc<Cell<Option<SocketAddr>>>;

/// Whether sending it twice does no harm.
pub(crate) fn is_safe(outgoing: &Outgoing) -> bool {
    matches!(*outgoing.request.method(), Method::GET | Method::HEAD | Method::OPTIONS)
        && matches!(outgoing.request.body(), RequestBody::Empty)
        && outgoing.upgrade.is_none()
}

/// See the module. The request [`is_safe`].
///
/// # Errors
/// Those of the first try, if the second is no better.
pub(crate) async fn race(
    ctx: &Rc<Context>,
    cluster: Arc<Cluster>,
    outgoing: &mut Outgoing,
    plan: &mut Plan,
    (hedge, client): (Hedge, &dyn Downstream),
) -> Result<Response<ResponseBody>, RequestError> {
    let at = At::default();
    outgoing.at = Some(at.clone());
    let mut second = outgoing.again();
    let mut second_plan = plan.alone();
    let mut first = pin!(forward(ctx, cluster.clone(), outgoing, Some(plan), Some(client)));
    if let Ok(answered) = tokio::time::timeout(hedge.after, &mut first).await {
        return answered;
    }
    let metrics = &cluster.shared.metrics;
    // With one endpoint there is no other to ask.
    if cluster.endpoints.picker().len() < 2 {
        return first.await;
    }
    let Some(_permit) = RetryPermit::take(&cluster) else {
        metrics.overflows.retries.inc();
        metrics.flagged(Flag::RetryBudget);
        return first.await;
    };
    metrics.hedges.inc();
    second.avoid = at.get();
    let second = pin!(forward(ctx, cluster.clone(), &mut second, Some(&mut second_plan), None));
    match select(first, second).await {
        Either::Left((answered, other)) => better(answered, other).await,
        Either::Right((answered, other)) => better(answered, other).await,
    }
}

/// The answer that came first, unless it is a failure and the other one is none.
async fn better(
    first: Result<Response<ResponseBody>, RequestError>,
    other: impl Future<Output = Result<Response<ResponseBody>, RequestError>>,
) -> Result<Response<ResponseBody>, RequestError> {
    let good =
        |r: &Result<Response<ResponseBody>, _>| r.as_ref().is_ok_and(|r| !r.status().is_server_error());
    if good(&first) {
        return first;
    }
    let other = other.await;
    if good(&other) || first.is_err() && other.is_ok() { other } else { first }
}
