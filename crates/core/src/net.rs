//! Where connections come from and where they go: the system's sockets, or what a simulation gives in their
//! place, so that the code above runs unchanged on a network that loses, delays and cuts as a seed says.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// A connection: bytes in order both ways, until it ends.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that is not one of the system's.
pub type GivenStream = Box<dyn Stream>;

/// A connection being made.
pub type Dialling = Pin<Box<dyn Future<Output = io::Result<GivenStream>> + Send>>;

/// Makes connections in place of the system.
pub trait Dial: Send + Sync {
    /// Connects to an address. Dropping the future gives up.
    fn dial(&self, to: SocketAddr) -> Dialling;
}

/// Shared, as several parts of a process connect to others.
pub type Dialer = Arc<dyn Dial>;

/// Accepts connections.
pub enum Listener {
    /// On a port of this machine.
    Tcp(TcpListener),
    /// Those that come through a channel, each with the address of who connected.
    Given {
        /// What this end is called.
        addr: SocketAddr,
        /// The connections. When its other end is gone, no more come.
        incoming: mpsc::Receiver<(GivenStream, SocketAddr)>,
    },
}

/// An accepted connection.
pub enum Accepted {
    /// Of the system.
    Tcp(TcpStream),
    /// Of another source.
    Given(GivenStream),
}

impl Listener {
    /// The next connection and who made it. Dropping the future loses none.
    ///
    /// # Errors
    /// Those of the system's accept; the next call may do better.
    pub async fn accept(&mut self) -> io::Result<(Accepted, SocketAddr)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Accepted::Tcp(stream), peer))
            }
            Listener::Given { incoming, .. } => match incoming.recv().await {
                Some((stream, peer)) => Ok((Accepted::Given(stream), peer)),
                None => std::future::pending().await,
            },
        }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Those of the system.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr(),
            Listener::Given { addr, .. } => Ok(*addr),
        }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Listener::Tcp(listener)
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Listener").field(&self.local_addr().ok()).finish()
    }
}
