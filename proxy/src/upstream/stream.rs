//! A connection to an endpoint, with or without TLS. One type, so that what stands on it is compiled once.

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use crate::http2::Tunnel;

/// Left is TCP; right is TLS over it, on the heap: connections without it do not pay for its size.
pub(crate) type UpstreamStream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// What a tunnel leads to. Right is a stream of HTTP/2.
pub(crate) type FarStream = Either<UpstreamStream, Tunnel>;
