//! The door of the gRPC port: gRPC on one side, etcd's JSON gateway on the other.
//!
//! etcd serves both on one port and tells them apart by protocol and content type; clients of either find them where
//! they look. The choice is made here and not by a router, since every gRPC call would pay for the router's look-up.

use std::convert::Infallible;
use std::task::{Context, Poll};

use axum::Router;
use axum::routing::future::RouteFuture;
use http::{HeaderMap, Request, Version, header};
use hyper::body::Incoming;
use tower::Service;

/// Both sides. Clones share them.
#[derive(Debug, Clone)]
pub struct Front {
    /// For gRPC.
    pub grpc: Router,
    /// For everything else.
    pub gateway: Router,
}

impl Service<Request<Incoming>> for Front {
    type Response = axum::response::Response;
    type Error = Infallible;
    type Future = RouteFuture<Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        // gRPC exists over HTTP/2 only (its statuses are trailers); whoever tries it over HTTP/1.1 is told so there.
        let grpc = request.version() == Version::HTTP_2 && says_grpc(request.headers());
        if grpc { self.grpc.call(request) } else { self.gateway.call(request) }
    }
}

/// Whether the content is said to be gRPC's, in any encoding.
pub(super) fn says_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}
