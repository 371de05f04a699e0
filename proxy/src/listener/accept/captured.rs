//! Connections that were on their way elsewhere, and that the kernel has redirected here (`weft proxy install-redirect`).
//!
//! ```text
//! HTTP/1 whose Host, TLS whose SNI is a service      to that service, as through other listeners
//! HTTP/2 on its way to an endpoint of a service      to that service
//! everything else, and a server that speaks first    to where it was on its way, byte for byte: if that is an instance of a
//!                                                    service, as connections to it are made (`instance`)
//! ```
//! It is decided once a connection, by its first bytes. Where nobody speaks, both sides are listened to.

use std::collections::HashSet;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::task::Poll;

use parking_lot::Mutex;
use socket2::SockRef;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::{Door, Ended};
use crate::http::resolve;
use crate::http::target::Target;
use crate::limits::{CAPTURED_CLIENT_FIRST, CAPTURED_CONNECT_TIMEOUT, CAPTURED_RESOLVE_TIMEOUT};
use crate::listener::connection::Connection;
use crate::listener::guard::Guard;
use crate::listener::sniff::{Sniffed, sniff};
use crate::listener::stream::Stream;
use crate::route::host;
use crate::tcp::keepalive;
use crate::tcp::relay::relay;
use crate::tcp::serve::{self, Begun, Passing};
use crate::tcp::sni;

mod instance;

/// Ports of connections that this process has made to where captured ones were on their way. One of them that comes
/// back was captured in turn. Bounded by the connections at once.
#[derive(Debug, Default)]
pub(crate) struct Outgoing(Mutex<HashSet<SocketAddr>>);

/// Why a captured connection was not passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    #[error("it was not redirected here; this listener is for captured connections only")]
    NotCaptured,
    #[error("it is a connection of this proxy, captured in turn: exclude the user that runs it")]
    Loop,
    #[error("it was on its way to {0}, and no local service has that port")]
    NoService(SocketAddr),
    #[error("no connection to {0} within {CAPTURED_CONNECT_TIMEOUT:?}")]
    Slow(SocketAddr),
    #[error("no connection to {0}: {1}")]
    Connect(SocketAddr, io::Error),
}

/// What a captured connection leads to.
enum Far<'a> {
    /// Where it was on its way.
    There(TcpStream, Port<'a>),
    /// That is an instance of a service.
    Instance(Box<Begun>, Option<Port<'a>>),
}

impl Far<'_> {
    /// Completes when it has said something.
    async fn speaks(&mut self) -> io::Result<()> {
        match self {
            Self::There(stream, _) => stream.readable().await,
            Self::Instance(begun, _) => begun.speaks().await,
        }
    }
}

/// Held by the connection.
struct Port<'a> {
    of: &'a Outgoing,
    at: SocketAddr,
}

impl Outgoing {
    /// The kernel gives no other connection a port that is bound.
    async fn connect(&self, to: SocketAddr) -> io::Result<(TcpStream, Port<'_>)> {
        let (socket, any): (_, IpAddr) = match to {
            SocketAddr::V4(_) => (TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into()),
            SocketAddr::V6(_) => (TcpSocket::new_v6()?, Ipv6Addr::UNSPECIFIED.into()),
        };
        socket.bind(SocketAddr::new(any, 0))?;
        let port = Port { of: self, at: socket.local_addr()? };
        self.0.lock().insert(port.at);
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        keepalive::probe(&stream);
        Ok((stream, port))
    }

    fn has(&self, peer: SocketAddr) -> bool {
        let any: IpAddr = match peer {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        self.0.lock().contains(&SocketAddr::new(any, peer.port()))
    }
}

impl Drop for Port<'_> {
    fn drop(&mut self) {
        self.of.0.lock().remove(&self.at);
    }
}

impl Door {
    /// See the module.
    pub(super) async fn captured(
        &self,
        mut stream: Stream,
        connection: &Rc<Connection>,
        outgoing: &Outgoing,
    ) -> Result<(), Ended> {
        let Some(to) = original(&stream) else {
            return Err(self.refused("not_captured", CaptureError::NotCaptured));
        };
        if outgoing.has(connection.peer) {
            return Err(self.refused("capture_loop", CaptureError::Loop));
        }
        connection.connected_to(to);
        connection.becomes_tunnel(self.ctx.timeouts.tunnel);
        let aim = self.aim(to);
        let mut seen = Vec::new();
        let mut far = None;
        match timeout(CAPTURED_CLIENT_FIRST, more(&mut stream, &mut seen)).await {
            Ok(read) => {
                if read? == 0 {
                    return Ok(());
                }
            }
            Err(_) => {
                let mut reached = self.reach(&aim, connection, outgoing).await?;
                let client_speaks = tokio::select! {
                    biased;
                    read = more(&mut stream, &mut seen) => read? > 0,
                    spoken = reached.speaks() => { spoken?; false }
                    () = cut(connection) => return Err(Ended::Cut),
                };
                if !client_speaks {
                    return self.pass(stream, seen, reached, to, connection).await;
                }
                far = Some(reached);
            }
        }
        let sniffing = async {
            loop {
                if let Some(sniffed) = sniff(&seen) {
                    return io::Result::Ok(sniffed);
                }
                if more(&mut stream, &mut seen).await? == 0 {
                    return Ok(Sniffed::Other);
                }
            }
        };
        // One that is slow is none of ours to judge.
        let sniffed = match timeout(self.ctx.timeouts.head, sniffing).await {
            Ok(sniffed) => sniffed?,
            Err(_) => Sniffed::Other,
        };
        match sniffed {
            Sniffed::Http1 { host } => {
                let named = host::normalise(&host).ok().and_then(|h| host::service(&h).map(str::to_owned));
                if let Some(service) = named
                    && self.is_service(&service).await
                {
                    drop(far);
                    connection.is_no_tunnel();
                    return self.http1(Guard::http1(stream, seen, connection.clone()), connection).await;
                }
            }
            Sniffed::Http2 => {
                if let Some(service) = self.service_at(to) {
                    drop(far);
                    connection.is_no_tunnel();
                    let door = Self { ctx: Rc::new(self.ctx.toward(&service)), ..self.clone() };
                    let guard = Guard::http2(stream, seen, connection.clone());
                    return door.http2(guard, connection).await;
                }
            }
            Sniffed::Tls => {
                let name = sni::read(&mut stream, &mut seen, self.ctx.timeouts.head).await;
                if let Some(service) = name.ok().and_then(|name| sni::service(&name, None))
                    && self.is_service(&service).await
                {
                    drop(far);
                    let passing = Passing { local: to, send_proxy: None };
                    let passed = serve::tcp_from(&self.ctx, stream, seen, connection, &service, &passing);
                    return passed.await.map_err(Ended::Tcp);
                }
            }
            Sniffed::Other => {}
        }
        let far = match far {
            Some(far) => far,
            None => {
                self.settle(&aim).await;
                self.reach(&aim, connection, outgoing).await?
            }
        };
        self.pass(stream, seen, far, to, connection).await
    }

    pub(super) fn refused(&self, kind: &'static str, why: CaptureError) -> Ended {
        self.ctx.metrics.refused(kind);
        Ended::Captured(why)
    }

    /// Waits until it is known whether there is such a service, for a moment.
    async fn is_service(&self, name: &str) -> bool {
        // Not worth a question: everybody has it.
        if name == "localhost" {
            return false;
        }
        let target = Target::service(name);
        let resolved = timeout(CAPTURED_RESOLVE_TIMEOUT, resolve::named(&self.ctx, &target)).await;
        matches!(resolved, Ok(Ok(_)))
    }

    /// The service that has an endpoint there.
    fn service_at(&self, addr: SocketAddr) -> Option<String> {
        self.ctx.with_view(|view| {
            let has = |cluster: &crate::cluster::state::Cluster| {
                cluster.endpoints.endpoints().iter().any(|endpoint| endpoint.state.addr() == addr)
            };
            view.clusters.iter().find(|(_, cluster)| has(cluster)).map(|(name, _)| name.to_string())
        })
    }

    async fn connect<'a>(
        &self,
        outgoing: &'a Outgoing,
        to: SocketAddr,
    ) -> Result<(TcpStream, Port<'a>), Ended> {
        let connected = match timeout(CAPTURED_CONNECT_TIMEOUT, outgoing.connect(to)).await {
            Ok(connected) => connected.map_err(|error| CaptureError::Connect(to, error)),
            Err(_) => Err(CaptureError::Slow(to)),
        };
        connected.map_err(Ended::Captured)
    }

    /// Until both have ended.
    async fn pass(
        &self,
        mut stream: Stream,
        seen: Vec<u8>,
        far: Far<'_>,
        to: SocketAddr,
        connection: &Connection,
    ) -> Result<(), Ended> {
        let (mut far, _port) = match far {
            Far::There(far, port) => (far, port),
            Far::Instance(begun, _port) => {
                let passing = Passing { local: to, send_proxy: None };
                return begun.pass(&self.ctx, stream, seen, connection, &passing).await.map_err(Ended::Tcp);
            }
        };
        let metrics = self.ctx.metrics.passed_through();
        let _open = super::Counted::new(&metrics.open);
        let idle = self.ctx.timeouts.tunnel;
        relay((&mut stream, seen), (&mut far, Vec::new()), connection, idle, &metrics, &Default::default())
            .await?;
        Ok(())
    }
}

/// Reads what there is.
async fn more(stream: &mut Stream, seen: &mut Vec<u8>) -> io::Result<usize> {
    let mut piece = [0; 4096];
    let read = stream.read(&mut piece).await?;
    seen.extend_from_slice(&piece[..read]);
    Ok(read)
}

/// Completes when the connection is to end.
async fn cut(connection: &Connection) {
    poll_fn(|cx| {
        connection.remember(cx.waker());
        if connection.is_cut() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Where it was on its way before the kernel has redirected it, if it has.
#[cfg(target_os = "linux")]
pub(super) fn original(stream: &Stream) -> Option<SocketAddr> {
    let Stream::Tcp(stream) = stream else { return None };
    let local = stream.local_addr().ok()?;
    // A socket for both families shows IPv4 in IPv6 form.
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    let socket = SockRef::from(stream);
    let found = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    found.ok()?.as_socket().filter(|to| *to != local)
}

/// Only Linux redirects so.
#[cfg(not(target_os = "linux"))]
pub(super) fn original(_: &Stream) -> Option<SocketAddr> {
    None
}
