//! Accepts connections on one worker's socket and serves them there until they end.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use weft_core::metrics::Gauge;

use captured_inbound::Local;

use super::connection::{Connection, Connections, Room};
use super::detect::{Detected, detect};
use super::guard::Guard;
use super::http1::{self, End};
use super::http2;
use super::socket::BACKLOG;
use super::stream::{Listener, Stream};
use crate::http::context::Context;
use crate::http::server;
use crate::proxy_protocol::{self, Header, Network, ProxyHeaderError, Version};
use crate::tcp::relay::Broken;
use crate::tcp::serve::{self, Passing, TcpError};
use crate::tls::door::DoorTls;

/// After an error that is not of one connection, such as no free file descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between two lines in the log about that.
const ACCEPT_ERROR_SILENCE: Duration = Duration::from_secs(10);
/// Longest TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What comes in on a socket.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub takes: Takes,
    /// From these, only with a PROXY protocol header.
    pub accept_proxy: Arc<[Network]>,
    /// Tell endpoints who the client is.
    pub send_proxy: Option<Version>,
}

/// See [`Entry`].
#[derive(Debug, Clone)]
pub(crate) enum Takes {
    /// HTTP, by the side's rules.
    Http,
    /// Bytes for this service.
    Tcp(String),
    /// TLS for the service that its client names, under this domain if there is one.
    Tls(Option<String>),
    /// Whatever was on its way elsewhere.
    Captured(Arc<captured::Outgoing>),
    /// Whatever was on its way to the port of one of these.
    CapturedInbound(Arc<[Local]>),
}

impl Entry {
    /// Requests, from whoever connects.
    pub fn http() -> Self {
        Self { takes: Takes::Http, accept_proxy: Arc::default(), send_proxy: None }
    }

    fn expects_header(&self, peer: SocketAddr) -> bool {
        self.accept_proxy.iter().any(|network| network.contains(peer.ip()))
    }
}

/// One socket with what its connections need.
#[derive(Clone)]
pub(crate) struct Door {
    pub ctx: Rc<Context>,
    pub connections: Rc<Connections>,
    pub entry: Entry,
    pub tls: Option<DoorTls>,
    /// For connections of this worker.
    pub room: Room,
    /// No more are taken, once those that wait in the kernel are.
    pub stop: Rc<Cell<bool>>,
}

pub(crate) mod captured;
pub(crate) mod captured_inbound;

/// Accepts until [`Door::stop`]; wake it by `stopped` then. What waits in the kernel's queue at that moment is still
/// served: closing the socket resets it.
pub(crate) async fn run(listener: Listener, door: Rc<Door>, stopped: Rc<tokio::sync::Notify>) {
    let mut said: Option<Instant> = None;
    // Those that come meanwhile wait in the kernel's queue, whose length is BACKLOG.
    let mut pause = async |why: &dyn std::fmt::Display| {
        door.ctx.metrics.accept_pauses.inc();
        if said.is_none_or(|at| at.elapsed() >= ACCEPT_ERROR_SILENCE) {
            said = Some(Instant::now());
            tracing::warn!(%why, "cannot accept connections; they wait");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    };
    while !door.stop.get() {
        if !door.connections.has_room(door.ctx.direction(), door.room) {
            let Room { all, one_way } = door.room;
            let way = door.ctx.direction().as_str();
            pause(&format_args!(
                "a worker's share of --max-connections is {all}, of which {one_way} may be {way}, and that many are open"
            ))
            .await;
            continue;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopped.notified() => continue,
        };
        match accepted {
            Ok((stream, peer)) => door.enter(stream, peer),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => pause(&error).await,
        }
    }
    // Asked of the kernel and not of the runtime, which hears of new connections later.
    let Ok(socket) = listener.unregister() else { return };
    // Where another process goes on with the socket there need not be an end.
    for _ in 0..BACKLOG {
        match socket.accept_now() {
            Ok((stream, peer)) => door.enter(stream, peer),
            Err(error) if is_of_one_connection(&error) => {}
            Err(_) => return,
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

impl Door {
    fn enter(self: &Rc<Self>, stream: Stream, peer: SocketAddr) {
        // Without it small answers may wait for acknowledgements; it fails only on a dead connection.
        let _ = stream.set_nodelay();
        let door = self.clone();
        // Taken here: the next one may come before the task has begun.
        let place = self.connections.place(self.ctx.direction());
        tokio::task::spawn_local(async move {
            let _place = place;
            match &door.entry.takes {
                Takes::CapturedInbound(local) => Box::pin(door.captured_inbound(local, stream, peer)).await,
                _ => {
                    let local = stream.local_addr();
                    door.serve(stream, peer, local).await;
                }
            }
        });
    }

    /// `local`: whom the client had connected to.
    async fn serve(&self, mut stream: Stream, mut peer: SocketAddr, mut local: SocketAddr) {
        self.ctx.metrics.connections_total.inc();
        let _counted = Counted::new(&self.ctx.metrics.connections);
        if self.entry.expects_header(peer) {
            let _open = self.connections.open(peer, false);
            match Box::pin(self.proxy_header(&mut stream)).await {
                Ok(Header::Client { source, destination }) => (peer, local) = (source, destination),
                Ok(Header::Local) => {}
                Err(error) => {
                    self.ctx.metrics.refused("proxy_protocol");
                    tracing::debug!(%peer, error = %error, "connection refused");
                    return;
                }
            }
        }
        let open = self.connections.open(peer, false);
        open.shared().connected_to(local);
        let passing = Passing { local, send_proxy: self.entry.send_proxy };
        let served = match (&self.entry.takes, &self.tls) {
            (Takes::Http, None) => self.serve_plain(stream, open.shared()).await,
            // On the heap, as HTTP/2 below: a connection that speaks plain HTTP/1.1 does not pay for their size.
            (Takes::Http, Some(tls)) => Box::pin(self.serve_tls(tls, stream, open.shared())).await,
            (Takes::Tcp(service), None) => {
                Box::pin(serve::tcp(&self.ctx, stream, open.shared(), service, &passing))
                    .await
                    .map_err(Ended::Tcp)
            }
            (Takes::Tcp(service), Some(tls)) => {
                let served = async {
                    let stream = self.handshake(tls, stream, open.shared()).await?;
                    serve::tcp(&self.ctx, stream, open.shared(), service, &passing).await.map_err(Ended::Tcp)
                };
                Box::pin(served).await
            }
            (Takes::Captured(outgoing), _) => Box::pin(self.captured(stream, open.shared(), outgoing)).await,
            // Each is served by the door of its service.
            (Takes::CapturedInbound(_), _) => Ok(()),
            (Takes::Tls(domain), _) => {
                let domain = domain.as_deref();
                Box::pin(serve::tls(&self.ctx, stream, open.shared(), domain, &passing))
                    .await
                    .map_err(Ended::Tcp)
            }
        };
        let untold = open.shared().untold();
        if let Some(kind) = untold.or_else(|| served.as_ref().err()?.kind()) {
            self.ctx.metrics.refused(kind);
        }
        if let Err(error) = served {
            tracing::debug!(%peer, error = %error, "connection ended");
        }
    }

    async fn proxy_header(&self, stream: &mut Stream) -> Result<Header, Ended> {
        let reading = proxy_protocol::read(stream);
        let limit = self.ctx.timeouts.head;
        Ok(tokio::time::timeout(limit, reading).await.map_err(|_| Ended::SlowHeader(limit))??)
    }

    async fn serve_plain<S>(&self, mut stream: S, connection: &Rc<Connection>) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match detect(&mut stream, connection).await? {
            None => Ok(()),
            Some((Detected::Http1, seen)) => {
                self.http1(Guard::http1(stream, seen, connection.clone()), connection).await
            }
            Some((Detected::Http2, seen)) => {
                Box::pin(self.http2(Guard::http2(stream, seen, connection.clone()), connection)).await
            }
        }
    }

    /// Agrees on TLS, and notes who is there.
    async fn handshake(
        &self,
        tls: &DoorTls,
        stream: Stream,
        connection: &Connection,
    ) -> Result<TlsStream<Stream>, Ended> {
        let config = tls.config().ok_or(Ended::NoCertificate)?;
        let handshake = TlsAcceptor::from(config).accept(stream);
        let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                self.ctx.metrics.refused("tls_handshake");
                return Err(weft_core::tls::explain(&error).map_or(Ended::Io(error), Ended::Handshake));
            }
            Err(_) => {
                self.ctx.metrics.refused("tls_handshake");
                return Err(Ended::SlowHandshake);
            }
        };
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        connection.secured(tls.peer(shown, self.ctx.mesh.identity()));
        Ok(stream)
    }

    async fn serve_tls(
        &self,
        tls: &DoorTls,
        stream: Stream,
        connection: &Rc<Connection>,
    ) -> Result<(), Ended> {
        if tls.plaintext {
            match begins_with_tls(&stream, connection).await? {
                None => return Ok(()),
                Some(false) => return self.serve_plain(stream, connection).await,
                Some(true) => {}
            }
        }
        let stream = self.handshake(tls, stream, connection).await?;
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => {
                Box::pin(self.http2(Guard::http2(stream, Vec::new(), connection.clone()), connection)).await
            }
            Some(_) => self.http1(Guard::http1(stream, Vec::new(), connection.clone()), connection).await,
            None => self.serve_plain(stream, connection).await,
        }
    }

    async fn http1<S>(&self, io: Guard<S>, connection: &Rc<Connection>) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // On the heap, so that an idle connection has no room for a request.
        let service =
            |request| Box::pin(server::handle(self.ctx.clone(), connection.clone(), &**connection, request));
        let End::Switched(io, input) = http1::serve(io, connection, service).await? else { return Ok(()) };
        let Some(far_end) = connection.take_far_end() else { return Ok(()) };
        // HTTP has ended here, and the connection is still open. On the heap, as above.
        let tunnel = async {
            let (near, held) = io.into_parts();
            let ahead = [&input[..], &held].concat();
            far_end.tunnel(near, ahead, connection, self.ctx.timeouts.tunnel, &Default::default()).await
        };
        Ok(Box::pin(tunnel).await?)
    }

    async fn http2<S>(&self, io: Guard<S>, connection: &Rc<Connection>) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Ok(http2::serve(io, &self.ctx, connection).await?)
    }
}

/// Whether the first byte is that of a TLS record with a handshake, which no HTTP begins with. None if the client closed
/// first, or the connection is to be closed.
async fn begins_with_tls(stream: &Stream, connection: &Connection) -> io::Result<Option<bool>> {
    poll_fn(|cx| {
        let mut byte = [0];
        if let Poll::Ready(seen) = stream.poll_peek(cx, &mut byte) {
            return Poll::Ready(seen.map(|count| (count > 0).then_some(byte[0] == 0x16)));
        }
        if connection.is_closing() {
            return Poll::Ready(Ok(None));
        }
        connection.remember(cx.waker());
        Poll::Pending
    })
    .await
}

impl Ended {
    /// As what it is counted, where the client has broken a protocol and nobody was told: there are no requests, or none any more.
    fn kind(&self) -> Option<&'static str> {
        let is_tls = |error: &io::Error| weft_core::tls::explain(error).is_some();
        match self {
            Self::Http2(http2::Broken::Http2(h2)) => {
                // Found out here, and not told by the client.
                if h2.is_go_away() && h2.is_library() {
                    return Some("http2");
                }
                h2.get_io().filter(|error| is_tls(error)).map(|_| "tls")
            }
            Self::Io(error) | Self::Http1(http1::Broken::Io(error)) => is_tls(error).then_some("tls"),
            _ => None,
        }
    }
}

/// Counts a connection as open until it is dropped, also if its task panics or is cut.
struct Counted<'a>(&'a Gauge);

impl<'a> Counted<'a> {
    fn new(open: &'a Gauge) -> Self {
        open.inc();
        Self(open)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Why a connection ended other than by an orderly close; for the debug log.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Http2(#[from] http2::Broken),
    #[error(transparent)]
    Http1(#[from] http1::Broken),
    #[error(transparent)]
    Tunnel(#[from] Broken),
    #[error(transparent)]
    Tcp(TcpError),
    #[error(transparent)]
    Captured(captured::CaptureError),
    #[error(transparent)]
    ProxyHeader(#[from] ProxyHeaderError),
    #[error("no PROXY protocol header within {0:?}")]
    SlowHeader(Duration),
    #[error("it was cut off: nothing moved for too long")]
    Cut,
    #[error("no TLS handshake within {HANDSHAKE_TIMEOUT:?}")]
    SlowHandshake,
    #[error("TLS handshake: {0}")]
    Handshake(String),
    #[error("there is no certificate that can be used")]
    NoCertificate,
}
