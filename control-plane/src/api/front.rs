//! The door of the gRPC port: gRPC on one side, etcd's JSON gateway on the other.
//!
//! etcd serves both on one port and tells them apart by protocol and content type; clients of either find them where
//! they look. The choice is made here and not by a router, since every gRPC call would pay for the router's look-up.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use axum::routing::future::RouteFuture;
use http::{HeaderMap, Request, Uri, Version, header};
use hyper::body::Incoming;
use tokio::time::Instant;
use tower::Service;

use super::etcd::{Calling, Hot, HotService};
use crate::telemetry::Telemetry;

/// Both sides. Clones share them.
#[derive(Clone)]
pub struct Front {
    /// The gRPC services that are called most, which are found without the router.
    pub hot: Hot,
    /// All of gRPC.
    pub grpc: Router,
    /// For everything else.
    pub gateway: Router,
    /// Counts what goes to `hot`; the routers count for themselves.
    pub telemetry: Telemetry,
}

impl Service<Request<Incoming>> for Front {
    type Response = Response;
    type Error = Infallible;
    type Future = Answering;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Answering {
        // gRPC exists over HTTP/2 only (its statuses are trailers); whoever tries it over HTTP/1.1 is told so there.
        if request.version() != Version::HTTP_2 || !says_grpc(request.headers()) {
            return Answering::Routed(self.gateway.call(request));
        }
        let Some(service) = HotService::of(request.uri().path()) else {
            return Answering::Routed(self.grpc.call(request));
        };
        let (uri, begun) = (request.uri().clone(), Instant::now());
        let answer = self.hot.call(service, request);
        Answering::Hot(Counted { answer, uri, begun, telemetry: self.telemetry.clone() })
    }
}

/// An answer on its way.
pub enum Answering {
    /// Through a router.
    Routed(RouteFuture<Infallible>),
    /// Past it.
    Hot(Counted),
}

/// A call that is counted when its answer begins.
pub struct Counted {
    answer: Calling,
    uri: Uri,
    begun: Instant,
    telemetry: Telemetry,
}

impl Future for Answering {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Routed(answer) => Pin::new(answer).poll(cx),
            Self::Hot(call) => {
                let answer = ready!(call.answer.as_mut().poll(cx))?;
                call.telemetry.grpc_answer(&call.uri, answer.headers(), call.begun.elapsed());
                Poll::Ready(Ok(answer.map(Body::new)))
            }
        }
    }
}

/// Whether the content is said to be gRPC's, in any encoding.
pub(super) fn says_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}
