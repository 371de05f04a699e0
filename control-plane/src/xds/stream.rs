//! The driver of one xDS stream: moves requests and snapshots into [`Subscriptions`], and responses out. It decides
//! nothing.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};

use super::config_snapshot::ConfigSnapshot;
use super::subscription::Subscriptions;

/// Responses that wait for a slow client. When they fill up, the stream waits, and the snapshots of the meantime
/// fold into one push.
pub(super) const RESPONSES_WAITING_MAX: usize = 8;

/// One connected client.
pub(super) struct StreamState {
    pub(super) peer: Option<SocketAddr>,
    /// Held for one request or push, never over a wait.
    pub(super) subscriptions: Mutex<Subscriptions>,
}

/// How a dialect of the protocol uses the state.
pub(super) trait Dialect: Send + 'static {
    type Request: Send + 'static;
    type Response: Send + 'static;
    fn handle(
        s: &mut Subscriptions,
        request: Self::Request,
        snapshot: &ConfigSnapshot,
    ) -> Vec<Self::Response>;
    fn push(s: &mut Subscriptions, snapshot: &ConfigSnapshot) -> Vec<Self::Response>;
}

pub(super) struct Delta;

impl Dialect for Delta {
    type Request = DeltaDiscoveryRequest;
    type Response = DeltaDiscoveryResponse;
    fn handle(s: &mut Subscriptions, r: DeltaDiscoveryRequest, c: &ConfigSnapshot) -> Vec<Self::Response> {
        s.handle_delta(r, c)
    }
    fn push(s: &mut Subscriptions, c: &ConfigSnapshot) -> Vec<DeltaDiscoveryResponse> {
        s.push_delta(c)
    }
}

pub(super) struct Sotw;

impl Dialect for Sotw {
    type Request = DiscoveryRequest;
    type Response = DiscoveryResponse;
    fn handle(s: &mut Subscriptions, r: DiscoveryRequest, c: &ConfigSnapshot) -> Vec<DiscoveryResponse> {
        s.handle_sotw(r, c).into_iter().collect()
    }
    fn push(s: &mut Subscriptions, c: &ConfigSnapshot) -> Vec<DiscoveryResponse> {
        s.push_sotw(c)
    }
}

pub(super) type Responses<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

/// Runs one stream until the client ends it, fails, or the server stops. `snapshots` holds one.
pub(super) async fn run<D: Dialect>(
    state: Arc<StreamState>,
    mut requests: impl Stream<Item = Result<D::Request, Status>> + Unpin + Send,
    responses: mpsc::Sender<Result<D::Response, Status>>,
    mut snapshots: watch::Receiver<Option<Arc<ConfigSnapshot>>>,
    stop: CancellationToken,
) {
    loop {
        let out = tokio::select! {
            biased;
            () = stop.cancelled() => {
                // Best effort: a client that hears it goes to another server at once.
                let _ = responses.try_send(Err(Status::unavailable("server is stopping; use another one")));
                return;
            }
            // Before requests, so that a request is never answered from a newer snapshot than was pushed.
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return;
                }
                let Some(snapshot) = snapshots.borrow_and_update().clone() else { return };
                D::push(&mut state.subscriptions.lock(), &snapshot)
            }
            request = requests.next() => {
                let Some(Ok(request)) = request else { return };
                let Some(snapshot) = snapshots.borrow().clone() else { return };
                D::handle(&mut state.subscriptions.lock(), request, &snapshot)
            }
        };
        for response in out {
            tokio::select! {
                sent = responses.send(Ok(response)) => if sent.is_err() { return },
                () = stop.cancelled() => return,
            }
        }
    }
}
