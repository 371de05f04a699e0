//! One new connection to an endpoint.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::http1::{Conn, Shared};
use super::http2;
use super::stream::UpstreamStream;
use crate::proxy_protocol::Announced;
use crate::tcp::keepalive;
use crate::tls::secure::{Secure, Speaks};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("{}", reason(.0))]
    Io(#[from] io::Error),
    #[error("TLS: {0}")]
    NoCertificates(String),
    #[error("it takes no extended CONNECT")]
    NoExtendedConnect,
    #[error("handshake: {0}")]
    Handshake(#[from] h2::Error),
}

impl ConnectError {
    /// It says something of this process or machine, and nothing of the endpoint.
    pub fn is_shortage(&self) -> bool {
        matches!(self, Self::Io(error) if is_shortage(error))
    }
}

/// No file descriptors, local ports or memory left: whoever was to be reached may be well.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    use libc::{EADDRNOTAVAIL, EMFILE, ENFILE, ENOBUFS, ENOMEM};
    error.raw_os_error().is_some_and(|e| [EMFILE, ENFILE, EADDRNOTAVAIL, ENOBUFS, ENOMEM].contains(&e))
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        _ => error.to_string(),
    }
}

/// A connection that speaks HTTP/1.1.
pub(crate) async fn http1(to: &Place, limit: Duration) -> Result<Shared, ConnectError> {
    open(to, Speaks::Http1, limit).await.map(Conn::new)
}

/// A connection that speaks HTTP/2 by prior knowledge, which ALPN says as well where there is TLS.
pub(crate) async fn http2(to: &Place, limit: Duration) -> Result<http2::Conn, ConnectError> {
    Ok(http2::Conn::new(open(to, Speaks::Http2, limit).await?).await?)
}

/// A connection for one extended CONNECT.
pub(crate) async fn extended(to: &Place, limit: Duration) -> Result<http2::Conn, ConnectError> {
    let connecting = async { http2::Conn::extended(open(to, Speaks::Http2, limit).await?).await };
    tokio::time::timeout(limit, connecting).await.map_err(|_| ConnectError::Timeout(limit))?
}

/// A connection for whatever is to be spoken on it.
pub(crate) async fn open(
    to: &Place,
    speaks: Speaks,
    limit: Duration,
) -> Result<UpstreamStream, ConnectError> {
    let connecting = async {
        let stream = TcpStream::connect(to.addr).await?;
        stream.set_nodelay(true)?;
        keepalive::probe(&stream);
        begin(stream, to, speaks).await
    };
    Ok(tokio::time::timeout(limit, connecting).await.map_err(|_| ConnectError::Timeout(limit))??)
}

/// What a connection begins with: the client's address where it is told, then TLS where there is any.
pub(crate) async fn begin(mut stream: TcpStream, to: &Place, speaks: Speaks) -> io::Result<UpstreamStream> {
    if let Some(announced) = &to.announced {
        stream.write_all(&announced.header()).await?;
    }
    let Some(secure) = &to.secure else { return Ok(UpstreamStream::Left(stream)) };
    // On the heap, so that connections without TLS have no room for it.
    let stream = Box::pin(secure.over(stream, speaks)).await?;
    Ok(UpstreamStream::Right(Box::new(stream)))
}

/// An endpoint, how a connection to it is protected, and what it begins with.
#[derive(Clone)]
pub(crate) struct Place {
    pub addr: SocketAddr,
    pub secure: Option<Secure>,
    /// By the PROXY protocol, in front of TLS.
    pub announced: Option<Announced>,
}

impl Place {
    /// What connections have in common that may take the place of each other.
    pub fn key(&self) -> Key {
        let announced = self.announced.as_ref().map_or(0, Announced::sort);
        (self.addr, self.secure.as_ref().map_or(0, Secure::sort), announced)
    }
}

/// See [`Place::key`].
pub(crate) type Key = (SocketAddr, u64, u64);
