//! The gate of the peer port: who is let in to speak as a server of the group, and how this server gets in elsewhere.
//!
//! ```text
//! TCP ─► TLS, if this server has --peer-tls-cert: both sides verify ─► the join token is proved ([`handshake`]) ─► HTTP/2
//! ```
//! Before the last step nothing of HTTP/2, and nothing that a stranger sends, is read. Whoever is let in may propose
//! and vote as a server, so one proof a connection is enough, and every call on the port needs it.
//!
//! *The name in certificates.* Both sides ask for the DNS name [`PEER_NAME`], not for addresses: servers learn
//! each other's addresses from gossip and keep them through moves, and what is to be known is that the other end is a
//! server of this mesh, not where it runs. A certificate that the CA gave to anything else is refused.

pub mod error;
mod handshake;
mod tls;
pub mod token;

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};
use weft_core::net::{Accepted, Dialer, GivenStream};

pub use error::{Refused, Unreached};
pub use handshake::Random;
pub use tls::{PeerTls, PeerTlsError, PeerTlsFiles};
pub use token::{Secret, TokenError, TokenSource, Tokens};

/// DNS name that a server's certificate for the peer port has to be for.
pub const PEER_NAME: &str = "server.weft";

/// How long whoever connects may take to be let in.
const ACCEPT_MAX: Duration = Duration::from_secs(5);

/// How long a connection may take to be made. On one network a healthy server answers within milliseconds;
/// longer would keep proposals waiting for a server that is gone.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// How long a server that answers may take to let this one in: certificates are computed with, and it may be busy.
const HANDSHAKE_MAX: Duration = Duration::from_secs(2);

/// Connections that are not let in yet at a time; further ones are closed at once. A TLS handshake holds tens of
/// kilobytes, and a group has few servers.
const PENDING_MAX: usize = 512;

/// Addresses and reasons that were logged, after which nothing more is.
const LOGGED_MAX: usize = 64;

/// What of a refused connection is read before it is closed: unread bytes would reset it, and the answer with it.
const DRAINED_BYTES_MAX: u64 = 64 * 1024;
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// An accepted connection that was let in.
pub enum LetIn {
    /// As it came.
    Tcp(TcpStream),
    /// Through TLS, or not of the system.
    Other(GivenStream),
}

/// See the module.
#[derive(Debug)]
pub struct Gate {
    tokens: Tokens,
    tls: Option<PeerTls>,
    random: Random,
    pending: Semaphore,
    refused: Mutex<HashSet<(IpAddr, Refused)>>,
    unreached: Mutex<HashMap<SocketAddr, String>>,
}

impl Gate {
    /// With these tokens, and TLS or none.
    pub fn new(tokens: Tokens, tls: Option<PeerTls>) -> Self {
        Self {
            tokens,
            tls,
            random: handshake::system_random,
            pending: Semaphore::new(PENDING_MAX),
            refused: Mutex::default(),
            unreached: Mutex::default(),
        }
    }

    /// Takes what has to be random from there: in a simulation, from its seed.
    pub fn with_random(self, random: Random) -> Self {
        Self { random, ..self }
    }

    /// Whether connections between servers are encrypted.
    pub fn has_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The token's file, if this start has made it.
    pub fn made_token(&self) -> Option<&std::path::Path> {
        self.tokens.made()
    }

    /// Lets an accepted connection in, or says why not, in the log once for an address and reason.
    pub async fn let_in(&self, accepted: Accepted, from: SocketAddr) -> Option<LetIn> {
        let _pending = self.pending.try_acquire().ok()?;
        let refused = match timeout(ACCEPT_MAX, self.accept(accepted)).await {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(refused)) => refused,
            Err(_) => Refused::Silent(ACCEPT_MAX),
        };
        self.log_refused(from, refused);
        None
    }

    async fn accept(&self, accepted: Accepted) -> Result<LetIn, Refused> {
        let tokens = self.tokens.current();
        match (accepted, &self.tls) {
            (Accepted::Tcp(mut stream), None) => {
                let _ = stream.set_nodelay(true);
                let accepted = handshake::accept(&mut stream, &tokens, &[], self.random).await;
                if let Err(refused) = accepted {
                    drain(stream).await;
                    return Err(refused);
                }
                Ok(LetIn::Tcp(stream))
            }
            (Accepted::Tcp(stream), Some(tls)) => {
                let _ = stream.set_nodelay(true);
                let (mut stream, binding) = tls.accept(stream).await?;
                let accepted = handshake::accept(&mut stream, &tokens, &binding, self.random).await;
                if let Err(refused) = accepted {
                    drain(stream).await;
                    return Err(refused);
                }
                Ok(LetIn::Other(Box::new(stream)))
            }
            (Accepted::Given(mut stream), _) => {
                handshake::accept(&mut stream, &tokens, &[], self.random).await?;
                Ok(LetIn::Other(stream))
            }
        }
    }

    fn log_refused(&self, from: SocketAddr, refused: Refused) {
        if !refused.is_worth_a_line() {
            tracing::debug!(%from, reason = %refused, "a connection to the peer port was not let in");
            return;
        }
        let mut logged = self.refused.lock();
        if logged.len() >= LOGGED_MAX || !logged.insert((from.ip(), refused.clone())) {
            return;
        }
        tracing::error!(%from, reason = %refused, "refuse a connection to the peer port");
        if logged.len() == LOGGED_MAX {
            tracing::error!("further refusals at the peer port are not logged");
        }
    }

    /// Connects to another server and is let in there. What keeps it out is logged once for an address, until it
    /// changes.
    ///
    /// # Errors
    /// Says on whose side to look.
    pub async fn connect(&self, to: SocketAddr, dialer: Option<Dialer>) -> Result<GivenStream, Unreached> {
        let connected = self.reach(to, dialer).await;
        match &connected {
            Ok(_) => drop(self.unreached.lock().remove(&to)),
            // The others notice that a server is gone, and say so.
            Err(Unreached::Connect(_) | Unreached::Silent(_) | Unreached::Closed(_)) => {}
            Err(error) => {
                let (mut logged, reason) = (self.unreached.lock(), error.to_string());
                let is_new = logged.get(&to) != Some(&reason);
                if is_new && (logged.len() < LOGGED_MAX || logged.contains_key(&to)) {
                    tracing::error!(%to, reason, "another server does not let this one in");
                    logged.insert(to, reason);
                }
            }
        }
        connected
    }

    async fn reach(&self, to: SocketAddr, dialer: Option<Dialer>) -> Result<GivenStream, Unreached> {
        let late = |_| Unreached::Connect(io::ErrorKind::TimedOut.into());
        let tokens = self.tokens.current();
        match (dialer, &self.tls) {
            (Some(dialer), _) => {
                let dialled = timeout(CONNECT_MAX, dialer.dial(to)).await.map_err(late)?;
                let mut stream = dialled.map_err(Unreached::Connect)?;
                in_time(handshake::connect(&mut stream, &tokens, &[], self.random)).await?;
                Ok(stream)
            }
            (None, tls) => {
                let connected = timeout(CONNECT_MAX, TcpStream::connect(to)).await.map_err(late)?;
                let mut stream = connected.map_err(Unreached::Connect)?;
                let _ = stream.set_nodelay(true);
                let Some(tls) = tls else {
                    in_time(handshake::connect(&mut stream, &tokens, &[], self.random)).await?;
                    return Ok(Box::new(stream));
                };
                in_time(async {
                    let (mut stream, binding) = tls.connect(stream).await?;
                    handshake::connect(&mut stream, &tokens, &binding, self.random).await?;
                    Ok(Box::new(stream) as GivenStream)
                })
                .await
            }
        }
    }
}

async fn in_time<T>(handshake: impl Future<Output = Result<T, Unreached>>) -> Result<T, Unreached> {
    timeout(HANDSHAKE_MAX, handshake).await.unwrap_or(Err(Unreached::Silent(HANDSHAKE_MAX)))
}

/// A channel to another server's peer port through the gate, connected when first used and anew when it breaks.
pub fn channel(
    gate: std::sync::Arc<Gate>,
    to: SocketAddr,
    endpoint: Endpoint,
    dialer: Option<Dialer>,
) -> Channel {
    let connect = move |_: http::Uri| {
        let (gate, dialer) = (gate.clone(), dialer.clone());
        async move { gate.connect(to, dialer).await.map(TokioIo::new) }
    };
    endpoint.connect_with_connector_lazy(tower::service_fn(connect))
}

/// Ends a connection so that what was said last arrives.
async fn drain<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let drained = async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(DRAINED_BYTES_MAX), &mut tokio::io::sink()).await
    };
    let _ = timeout(DRAIN_MAX, drained).await;
}

#[cfg(test)]
mod tests;
