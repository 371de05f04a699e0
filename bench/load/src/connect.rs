//! Connections, shared by the clients of one run.
//!
//! Straight on hyper's connections and not through tonic's `Channel`, whose queue and task for each connection
//! would cost the generator more than they cost the servers that it measures.

use std::task::{Context, Poll};

use anyhow::Context as _;
use http::{Request, Response, Uri, uri::Authority};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tonic::body::Body;

use crate::Target;

/// HTTP/2 connections shared by the clients of one run; more would measure connections, not operations.
pub const CONNECTIONS_MAX: usize = 16;

const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;

/// An HTTP/2 connection to one server. Clones share it.
#[derive(Clone)]
pub struct Connection {
    requests: http2::SendRequest<Body>,
    authority: Authority,
}

impl tower::Service<Request<Body>> for Connection {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.requests.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let mut uri = std::mem::take(request.uri_mut()).into_parts();
        uri.scheme = Some(http::uri::Scheme::HTTP);
        uri.authority = Some(self.authority.clone());
        *request.uri_mut() = Uri::from_parts(uri).expect("a path under a known authority is a URI");
        Box::pin(self.requests.send_request(request))
    }
}

/// `count` connections at most, spread over all endpoints.
pub async fn connect(target: &Target, count: usize) -> anyhow::Result<Vec<Connection>> {
    let mut connections = Vec::new();
    for i in 0..count.clamp(1, CONNECTIONS_MAX) {
        connections.push(one(&target.endpoints[i % target.endpoints.len()]).await?);
    }
    Ok(connections)
}

/// A connection to one endpoint.
pub async fn one(endpoint: &str) -> anyhow::Result<Connection> {
    let context = || format!("cannot connect to {endpoint}");
    let stream = TcpStream::connect(endpoint).await.with_context(context)?;
    stream.set_nodelay(true)?;
    let (requests, connection) = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(TokioIo::new(stream))
        .await
        .with_context(context)?;
    // Ends when the last handle is dropped, or with the server: the requests then say so.
    tokio::spawn(connection);
    Ok(Connection { requests, authority: endpoint.parse().with_context(context)? })
}
