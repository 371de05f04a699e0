//! Accepting and serving HTTP connections, so that every connection has an owner that can end it.
//!
//! Stopping has two steps: *drain* (no new connections; HTTP/2 clients are told to go away, HTTP/1
//! connections close after their answer; what is under way goes on) and *kill* (the rest is dropped).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpConnectInfo;
use tower::Service;
use weft_core::metrics::{Counter, Gauge};

/// Most connections of one port; more are closed at once, so that one port cannot take all descriptors.
const CONNECTIONS_MAX: usize = 16_384;

/// A client that has not sent a whole request head for this long is closed.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// HTTP/2 connections on which nothing happens are pinged after this time ...
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// ... and closed without an answer within this one: a client that vanished holds its places in queues
/// no longer than the sum.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Most requests at a time on one HTTP/2 connection. A client may hold a watch, a lease and many waits on
/// one connection, as etcd clients do.
const STREAMS_MAX: u32 = 8_192;

/// Largest request head.
const HEAD_BYTES_MAX: u32 = 64 * 1024;

/// Receive windows of HTTP/2: enough for a large put without a pause, little enough for thousands of
/// connections.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speaks {
    /// HTTP/2 with prior knowledge only.
    Grpc,
    /// HTTP/1.1 and HTTP/2 with prior knowledge.
    Http,
}

/// What one port counts.
#[derive(Debug, Clone)]
pub(super) struct ListenerMetrics {
    pub(super) accepted: Counter,
    pub(super) shed: Counter,
    pub(super) open: Gauge,
}

/// How a port is told to stop.
#[derive(Debug, Clone)]
pub(super) struct Stop {
    pub(super) drain: CancellationToken,
    pub(super) kill: CancellationToken,
}

/// Serves until drained. Every task is in `tasks`.
pub(super) fn serve(
    listener: TcpListener,
    router: Router,
    speaks: Speaks,
    metrics: ListenerMetrics,
    stop: Stop,
    tasks: &TaskTracker,
) {
    let port = Arc::new(Port { router, builder: builder(speaks), metrics, stop: stop.clone() });
    let connections = tasks.clone();
    tasks.spawn(async move {
        // Dropping the listener is what stops accepting.
        stop.drain.run_until_cancelled(port.accept(listener, &connections)).await;
    });
}

struct Port {
    router: Router,
    builder: auto::Builder<TokioExecutor>,
    metrics: ListenerMetrics,
    stop: Stop,
}

fn builder(speaks: Speaks) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if speaks == Speaks::Grpc {
        builder = builder.http2_only();
    }
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX as usize)
        .half_close(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    builder
}

impl Port {
    async fn accept(self: Arc<Self>, listener: TcpListener, tasks: &TaskTracker) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                // Out of descriptors, or the client is gone already: a pause lets others finish.
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Ok(place) = places.clone().try_acquire_owned() else {
                self.metrics.shed.inc();
                continue;
            };
            self.metrics.accepted.inc();
            let port = self.clone();
            tasks.spawn(async move {
                port.metrics.open.inc();
                port.stop.kill.run_until_cancelled(port.connection(stream, peer)).await;
                port.metrics.open.dec();
                drop(place);
            });
        }
    }

    async fn connection(&self, stream: TcpStream, peer: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let info = TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: Some(peer) };
        // hyper's own timeout starts with the first byte; this one is for clients that never send it.
        let first = tokio::time::timeout(HEAD_MAX, stream.readable());
        match self.stop.drain.run_until_cancelled(first).await {
            Some(Ok(Ok(()))) => {}
            _ => return,
        }
        let router = self.router.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(info.clone());
            router.clone().call(request)
        });
        let connection = self.builder.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = self.stop.drain.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            // Clients that break off are everyday life.
            tracing::trace!(%peer, %error, "connection ended");
        }
    }
}
