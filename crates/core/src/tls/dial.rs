//! A client's side of TLS over one connection, from files that may be renewed meanwhile.

use std::{io, path::PathBuf, sync::Arc};

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Identity, TlsError, client_config_showing, explain};
use crate::reload::Reloading;

/// Whom a client trusts, and what it shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// PEM file with the CA of the servers; the system's if there is none.
    pub ca: Option<PathBuf>,
    /// What servers that ask for a certificate are shown.
    pub identity: Option<Identity>,
}

/// Makes connections TLS connections.
#[derive(Debug)]
pub struct Dialling {
    config: Reloading<Arc<rustls::ClientConfig>>,
}

impl Dialling {
    /// Reads the files. HTTP/2 is what will be spoken.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(trust: Trust) -> Result<Self, TlsError> {
        let identity =
            trust.identity.iter().flat_map(|identity| [identity.cert.clone(), identity.key.clone()]);
        let files = trust.ca.clone().into_iter().chain(identity).collect();
        let load = move || client_config_showing(trust.ca.as_deref(), trust.identity.as_ref(), &[b"h2"]);
        Ok(Self { config: Reloading::new("TLS to servers", files, load)? })
    }

    /// Agrees on TLS with a server whose certificate is for `name`, a DNS name or an address.
    ///
    /// # Errors
    /// Says in one line whose certificate is at fault.
    pub async fn over(&self, stream: TcpStream, name: &str) -> io::Result<TlsStream<TcpStream>> {
        let bare = name.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name =
            ServerName::try_from(bare).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let connected = TlsConnector::from(self.config.current()).connect(name, stream).await;
        connected.map_err(|error| match explain(&error) {
            Some(why) => io::Error::other(format!("TLS with the server: {why}")),
            None => error,
        })
    }
}
