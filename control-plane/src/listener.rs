//! Accepting and serving HTTP connections, so that every connection has an owner that can end it.
//!
//! Stopping has two steps: *drain* (no new connections; HTTP/2 clients are told to go away, HTTP/1
//! connections close after their answer; what is under way goes on) and *kill* (the rest is dropped).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::TcpConnectInfo;
use tower::Service;
use weft_core::metrics::{Counter, Gauge};
use weft_core::net::{Accepted, Listener};

use crate::gate::{Gate, LetIn};

mod streams;
mod tls;

use streams::{Inbox, WithStreams};
pub use tls::{PortTls, ShownCertificate, TlsFiles};

/// Most connections of one port; more are closed at once, so that one port cannot take all descriptors.
const CONNECTIONS_MAX: usize = 16_384;

/// A client that has not sent a whole request head, or HTTP/2's opening words, for this long is closed.
const HEAD_MAX: Duration = Duration::from_secs(10);

/// HTTP/2 connections on which nothing happens are pinged after this time ...
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// ... and closed without an answer within this one: a client that vanished holds its places in queues
/// no longer than the sum.
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Most requests at a time on one HTTP/2 connection. A client may hold a watch, a lease and many waits on
/// one connection, as etcd clients do.
const STREAMS_MAX: u32 = 8_192;

/// What a client of HTTP/2 says first (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Pause before the rest of the opening words is looked for. Nearly always they come in one piece.
const PREFACE_PAUSE: Duration = Duration::from_millis(10);

/// Pause after the system refused a connection: it is out of descriptors, or the client is gone already.
const REFUSED_PAUSE: Duration = Duration::from_millis(50);

/// Such refusals are logged once in this time, not twenty times a second.
const REFUSED_LOGGED_EVERY: Duration = Duration::from_secs(10);

/// Largest request head.
const HEAD_BYTES_MAX: u32 = 64 * 1024;

/// Receive windows of HTTP/2: enough for a large put without a pause, little enough for thousands of
/// connections.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// The same between servers: few connections, and entries and snapshots to carry.
const PEER_STREAM_WINDOW: u32 = 4 * 1024 * 1024;
const PEER_CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/2 with prior knowledge, and HTTP/1.1 for etcd's JSON gateway.
    Grpc,
    /// HTTP/2 with prior knowledge only, between servers.
    Peer,
    /// HTTP/1.1 and HTTP/2 with prior knowledge.
    Http,
}

/// What a connection passes before anything is read of it.
#[derive(Debug, Clone)]
pub enum Door {
    /// Nothing.
    Open,
    /// TLS.
    Tls(Arc<PortTls>),
    /// The proof that it is a server's.
    Gate(Arc<Gate>),
}

/// What is special about a port.
#[derive(Debug, Clone)]
pub struct Kind {
    speaks: Speaks,
    door: Door,
}

impl From<Speaks> for Kind {
    fn from(speaks: Speaks) -> Self {
        Kind { speaks, door: Door::Open }
    }
}

impl From<(Speaks, Door)> for Kind {
    fn from((speaks, door): (Speaks, Door)) -> Self {
        Kind { speaks, door }
    }
}

/// What answers the requests of a port: a router, or several behind one door.
pub trait Answers:
    Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Answers for S where
    S: Service<Request<Incoming>, Response = Response, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// What one port counts.
#[derive(Debug, Clone, Default)]
pub struct ListenerMetrics {
    /// Connections so far.
    pub accepted: Counter,
    /// Closed at once, as there were too many.
    pub shed: Counter,
    /// Open now.
    pub open: Gauge,
}

/// How a port is told to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// No new connections; what is under way finishes.
    pub drain: CancellationToken,
    /// What is left ends.
    pub kill: CancellationToken,
}

/// Serves until drained. Every task is in `tasks`.
pub fn serve(
    listener: impl Into<Listener>,
    answers: impl Answers,
    kind: impl Into<Kind>,
    metrics: ListenerMetrics,
    stop: Stop,
    tasks: &TaskTracker,
) {
    let port = Arc::new(Port { answers, kind: kind.into(), metrics, stop: stop.clone() });
    let (listener, connections) = (listener.into(), tasks.clone());
    tasks.spawn(async move {
        // Dropping the listener is what stops accepting.
        stop.drain.run_until_cancelled(port.accept(listener, &connections)).await;
    });
}

struct Port<A> {
    answers: A,
    kind: Kind,
    metrics: ListenerMetrics,
    stop: Stop,
}

fn builder(speaks: Speaks, inbox: Inbox) -> auto::Builder<Inbox> {
    let mut builder = auto::Builder::new(inbox);
    if speaks == Speaks::Peer {
        builder = builder.http2_only();
    }
    let (stream_window, connection_window) = match speaks {
        Speaks::Peer => (PEER_STREAM_WINDOW, PEER_CONNECTION_WINDOW),
        Speaks::Grpc | Speaks::Http => (STREAM_WINDOW, CONNECTION_WINDOW),
    };
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
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window);
    builder
}

impl<A: Answers> Port<A> {
    async fn accept(self: Arc<Self>, mut listener: Listener, tasks: &TaskTracker) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut logged: Option<Instant> = None;
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    if logged.is_none_or(|at| at.elapsed() >= REFUSED_LOGGED_EVERY) {
                        tracing::warn!(%error, port = ?listener.local_addr().ok(), "cannot accept a connection");
                        logged = Some(Instant::now());
                    }
                    tokio::time::sleep(REFUSED_PAUSE).await;
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

    async fn connection(&self, accepted: Accepted, peer: SocketAddr) {
        let stream = match &self.kind.door {
            Door::Open => match accepted {
                Accepted::Tcp(stream) => LetIn::Tcp(stream),
                Accepted::Given(stream) => LetIn::Other(stream),
            },
            Door::Tls(tls) => {
                let Accepted::Tcp(stream) = accepted else { return };
                let _ = stream.set_nodelay(true);
                let info = TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: Some(peer) };
                match self.stop.drain.run_until_cancelled(tls.accept(stream)).await {
                    Some(Ok((stream, shown))) => return self.http(stream, info, peer, Some(shown)).await,
                    Some(Err(error)) => tracing::debug!(%peer, %error, "TLS was not agreed on"),
                    None => {}
                }
                return;
            }
            Door::Gate(gate) => {
                match self.stop.drain.run_until_cancelled(gate.let_in(accepted, peer)).await {
                    Some(Some(stream)) => stream,
                    _ => return,
                }
            }
        };
        let stream = match stream {
            LetIn::Tcp(stream) => stream,
            // Neither a server nor whoever gives connections stops in the middle of its first words.
            LetIn::Other(stream) => {
                let info = TcpConnectInfo { local_addr: None, remote_addr: Some(peer) };
                return self.http(stream, info, peer, None).await;
            }
        };
        let _ = stream.set_nodelay(true);
        let info = TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: Some(peer) };
        // hyper waits for ever for the first byte, and for the rest of HTTP/2's opening words.
        let opened = tokio::time::timeout(HEAD_MAX, opened(&stream));
        match self.stop.drain.run_until_cancelled(opened).await {
            Some(Ok(Ok(()))) => {}
            _ => return,
        }
        self.http(stream, info, peer, None).await;
    }

    async fn http<S>(
        &self,
        stream: S,
        info: TcpConnectInfo,
        peer: SocketAddr,
        shown: Option<ShownCertificate>,
    ) where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let answers = self.answers.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(info.clone());
            if let Some(shown) = shown {
                request.extensions_mut().insert(shown);
            }
            answers.clone().call(request)
        });
        let inbox = Inbox::default();
        let builder = builder(self.kind.speaks, inbox.clone());
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let mut connection = WithStreams::new(connection, inbox);
        let served = tokio::select! {
            served = &mut connection => served,
            () = self.stop.drain.cancelled() => {
                connection.connection().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            // Clients that break off are everyday life.
            tracing::trace!(%peer, %error, "connection ended");
        }
    }
}

/// Completes when the client has said all of HTTP/2's opening words, or anything else: that is for hyper to
/// judge, which has a time limit for it.
async fn opened(stream: &TcpStream) -> io::Result<()> {
    let mut seen = [0; PREFACE.len()];
    loop {
        stream.readable().await?;
        let length = stream.peek(&mut seen).await?;
        if length == 0 || length == seen.len() || !PREFACE.starts_with(&seen[..length]) {
            return Ok(());
        }
        tokio::time::sleep(PREFACE_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, routing::get};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn port(speaks: Speaks) -> (SocketAddr, ListenerMetrics, Stop) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("is bound");
        let (metrics, stop) = (ListenerMetrics::default(), Stop::default());
        let router = Router::new().route("/", get(|| async { "hello" }));
        serve(listener, router, speaks, metrics.clone(), stop.clone(), &TaskTracker::new());
        (addr, metrics, stop)
    }

    /// A client that stops in the middle of a word must not keep its place.
    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_go_on_is_closed() {
        let settings = [PREFACE, &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
        let cut_off: [&[u8]; 7] = [
            b"",
            b"P",
            b"PRI * HTTP/2.0\r\n\r\nSM",
            PREFACE,
            &settings,
            &[PREFACE, &[0, 0, 40, 1, 5]].concat(),
            b"GET / HTTP/1.1\r\nHost",
        ];
        for speaks in [Speaks::Grpc, Speaks::Peer, Speaks::Http] {
            let (addr, metrics, _stop) = port(speaks).await;
            for (place, bytes) in (1..).zip(cut_off) {
                let mut client = TcpStream::connect(addr).await.expect("connects");
                client.write_all(bytes).await.expect("written");
                // The clock stands still for as long as something is done.
                while metrics.accepted.get() < place {
                    tokio::task::yield_now().await;
                }
                let mut answer = Vec::new();
                let ends =
                    tokio::time::timeout(2 * (HEAD_MAX + KEEP_ALIVE_INTERVAL + KEEP_ALIVE_TIMEOUT), async {
                        // What it says before it closes, and whether it resets, is its own affair.
                        let _ = client.read_to_end(&mut answer).await;
                    });
                ends.await
                    .unwrap_or_else(|_| panic!("{speaks:?}: {:?} stays", String::from_utf8_lossy(bytes)));
            }
            assert_eq!(metrics.accepted.get(), cut_off.len() as u64);
        }
    }

    #[tokio::test]
    async fn opening_words_in_pieces_are_understood() {
        let (addr, _, _stop) = port(Speaks::Grpc).await;
        let mut client = TcpStream::connect(addr).await.expect("connects");
        client.set_nodelay(true).expect("set");
        for piece in PREFACE.chunks(7) {
            client.write_all(piece).await.expect("written");
            tokio::task::yield_now().await;
        }
        client.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.expect("written");
        let mut frame = [0; 9];
        client.read_exact(&mut frame).await.expect("it answers");
        assert_eq!(frame[3], 4, "with its settings");
    }
}
