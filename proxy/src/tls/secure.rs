//! What makes a connection to one endpoint a TLS connection.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use weft_core::tls::explain;

use super::client::{ClientTls, Configs};
use super::live::InUse;
use super::mesh::{Expected, MeshTls};

/// What will be spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    Http1,
    Http2,
    /// Bytes that are none of ours.
    Raw,
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Secure {
    made: Arc<InUse<Configs>>,
    name: ServerName<'static>,
    /// Who must be there, between sidecars.
    expected: Option<Expected>,
}

impl Secure {
    /// TLS to whoever is there.
    ///
    /// # Errors
    /// If its certificates cannot be used.
    pub fn originate(tls: &ClientTls, addr: SocketAddr) -> Result<Self, String> {
        let name = tls.server_name.clone().unwrap_or_else(|| ServerName::from(addr.ip()));
        Self::new(tls.live.current(), name, None)
    }

    /// TLS to another sidecar.
    ///
    /// # Errors
    /// If this sidecar's own certificate cannot be used.
    pub fn to_peer(mesh: &MeshTls, addr: SocketAddr, expected: Expected) -> Result<Self, String> {
        Self::new(mesh.outbound.current(), ServerName::from(addr.ip()), Some(expected))
    }

    fn new(
        made: Arc<InUse<Configs>>,
        name: ServerName<'static>,
        expected: Option<Expected>,
    ) -> Result<Self, String> {
        match &made.value {
            Ok(_) => Ok(Self { made, name, expected }),
            Err(why) => Err(why.clone()),
        }
    }

    /// Never 0, and equal for connections that may take the place of each other: those with the same certificates, to
    /// whoever is expected.
    pub fn sort(&self) -> u64 {
        self.made.generation ^ self.expected.as_ref().map_or(0, |expected| expected.hash << 32)
    }

    /// Agrees on TLS.
    ///
    /// # Errors
    /// Says in one line whose certificate is at fault.
    pub async fn over(&self, stream: TcpStream, speaks: Speaks) -> io::Result<TlsStream<TcpStream>> {
        let Ok(configs) = &self.made.value else { return Err(io::Error::other("no certificates")) };
        let config = match speaks {
            Speaks::Http1 => &configs.http1,
            Speaks::Http2 => &configs.http2,
            Speaks::Raw => &configs.raw,
        };
        let stream =
            TlsConnector::from(config.clone()).connect(self.name.clone(), stream).await.map_err(|error| {
                match explain(&error) {
                    Some(why) => io::Error::other(format!("TLS: {why}")),
                    None => error,
                }
            })?;
        if let Some(expected) = &self.expected {
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            expected.check(shown).map_err(|why| io::Error::other(format!("TLS: {why}")))?;
        }
        Ok(stream)
    }
}
