//! `Watch`: one stream in both directions, many watchers on it.
//!
//! There is no task and no queue of events per stream. The answer's [`body`] is polled by the HTTP/2 connection
//! when the client has room; each poll takes requests and asks the hub for the next events of the watchers that
//! were woken, until a piece is full. A client that does not read is not polled for: it holds the pieces in
//! flight and what the hub holds for its watchers, which is bounded. When it reads again, each watcher
//! goes on in history where it stopped, or is canceled as compacted. Dropping the stream, which is what a
//! lost connection does, closes its watchers.
//!
//! ```text
//! create ─► created ─► (events | progress)* ─► canceled      by request, by compaction, by a permission revoked
//!        └► created+canceled, watch_id -1                    refused
//! ```
//!
//! The service is written by hand and not generated, for the sake of its answers: an event is encoded once for
//! all watchers, and a generated service would encode each answer anew ([`frames`]).

mod answer;
mod body;
mod fragment;
mod frames;
mod guard;
mod session;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Request, Response};
use tonic::body::Body;
use tonic::codec::Codec;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Status, Streaming};
use tonic_prost::ProstCodec;
use tower::Service;
use weft_xds_proto::etcdserverpb as pb;

use self::body::WatchBody;
use self::session::Session;
use super::limits::MESSAGE_BYTES_MAX;
use super::stream_end::stream_end;
use super::{Api, requires_leader};
use crate::api::caller::Asking;

/// The one method of the service.
const METHOD: &str = "/etcdserverpb.Watch/Watch";

/// Names the compression of a request's messages.
const ENCODING: &str = "grpc-encoding";

/// `etcdserverpb.Watch`.
#[derive(Clone)]
pub(super) struct WatchServer(pub(super) Arc<Api>);

impl NamedService for WatchServer {
    const NAME: &'static str = "etcdserverpb.Watch";
}

impl Service<Request<Body>> for WatchServer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let api = self.0.clone();
        Box::pin(async move { Ok(watch(&api, request).await.unwrap_or_else(Status::into_http)) })
    }
}

async fn watch(api: &Api, request: Request<Body>) -> Result<Response<Body>, Status> {
    let (head, input) = request.into_parts();
    if head.uri.path() != METHOD {
        return Err(Status::unimplemented(format!(
            "unknown method {:?}: this service has {METHOD:?}",
            head.uri.path()
        )));
    }
    check_encoding(&head.headers)?;
    let metadata = MetadataMap::from_headers(head.headers);
    api.admit(&metadata)?;
    let Asking { caller, .. } = api.asking(&metadata).await?;
    let end = stream_end(api, requires_leader(&metadata));
    let decoder = ProstCodec::<pb::WatchResponse, pb::WatchRequest>::default().decoder();
    let input = Streaming::new_request(decoder, input, None, Some(MESSAGE_BYTES_MAX));
    let body = WatchBody::new(Session::new(api.clone(), caller, input, end));
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
    Ok(response)
}

/// As everywhere in the API, messages are not compressed.
fn check_encoding(headers: &HeaderMap) -> Result<(), Status> {
    match headers.get(ENCODING) {
        Some(encoding) if encoding != "identity" => {
            let mut status = Status::unimplemented(format!(
                "messages compressed by {encoding:?} are not understood: send them as they are (identity)"
            ));
            status.metadata_mut().insert("grpc-accept-encoding", "identity".parse().expect("is ASCII"));
            Err(status)
        }
        _ => Ok(()),
    }
}
