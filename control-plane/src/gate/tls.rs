//! TLS between servers: each shows a certificate, and each verifies the other's.

use std::{io, path::PathBuf, sync::Arc};

use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use weft_core::{
    reload::Reloading,
    tls::{self, ClientCerts, Identity, TlsError},
};

use super::{
    PEER_NAME,
    error::{Refused, Unreached},
    handshake::{NO_SERVER, TLS_HANDSHAKE},
};

/// What this port speaks inside TLS, so that a certificate's use elsewhere cannot be mistaken for one here (ALPACA).
const ALPN: &[u8] = b"weft-peer/1";

/// Says which keying material is meant (RFC 9266 §2).
const EXPORT_LABEL: &[u8] = b"EXPORTER-Channel-Binding";
const EXPORT_BYTES: usize = 32;

/// An alert of TLS 1.2 form, `protocol_version`, which a server without TLS understands as: there is TLS here.
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 70];

/// The files, from `--peer-tls-cert`, `--peer-tls-key` and `--peer-tls-ca`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerTlsFiles {
    /// For [`PEER_NAME`], good for both sides of a connection.
    pub identity: Identity,
    /// Signs the certificates of all servers.
    pub ca: PathBuf,
}

/// Both sides, made anew when the files change.
#[derive(Debug)]
pub struct PeerTls {
    configs: Reloading<(Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>)>,
}

impl PeerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file and what is wrong with it, also if the certificate is for another name.
    pub fn load(files: PeerTlsFiles) -> Result<Self, PeerTlsError> {
        let PeerTlsFiles { identity, ca } = files;
        let all = vec![identity.cert.clone(), identity.key.clone(), ca.clone()];
        let load = move || {
            let leaf = tls::certificates(&identity.cert)?;
            if !leaf.first().is_some_and(is_of_a_server) {
                return Err(PeerTlsError::Name { path: identity.cert.clone() });
            }
            let server = tls::server_config_asking(&identity, &ClientCerts::Required(ca.clone()), &[ALPN])?;
            let client = tls::client_config_showing(Some(&ca), Some(&identity), &[ALPN])?;
            Ok((server, client))
        };
        Ok(Self { configs: Reloading::new("TLS of the peer port", all, load)? })
    }

    /// The accepting side of a connection, and what binds a proof to it.
    pub async fn accept(&self, mut stream: TcpStream) -> Result<(TlsStream<TcpStream>, Vec<u8>), Refused> {
        let broken = |error: io::Error| Refused::Broken(error.kind());
        let mut first = [0];
        if stream.peek(&mut first).await.map_err(broken)? == 0 {
            return Err(Refused::Broken(io::ErrorKind::UnexpectedEof));
        }
        if first[0] != TLS_HANDSHAKE {
            let _ = stream.write_all(&ALERT).await;
            super::drain(stream).await;
            return Err(Refused::NoTls);
        }
        let (config, _) = self.configs.current();
        let mut accepted = match TlsAcceptor::from(config).accept(stream).into_fallible().await {
            Ok(accepted) => accepted,
            Err((error, stream)) => {
                // The alert that says why is on its way.
                super::drain(stream).await;
                return Err(tls::explain(&error).map_or(Refused::Broken(error.kind()), Refused::Tls));
            }
        };
        let shown = accepted.get_ref().1.peer_certificates().and_then(<[_]>::first);
        if !shown.is_some_and(is_of_a_server) {
            let _ = accepted.write_all(&NO_SERVER).await;
            super::drain(accepted).await;
            return Err(Refused::NoServer);
        }
        let binding = accepted
            .get_ref()
            .1
            .export_keying_material(vec![0; EXPORT_BYTES], EXPORT_LABEL, None)
            .map_err(|error| Refused::Tls(error.to_string()))?;
        Ok((accepted.into(), binding))
    }

    /// The connecting side.
    pub async fn connect(&self, stream: TcpStream) -> Result<(TlsStream<TcpStream>, Vec<u8>), Unreached> {
        let (_, config) = self.configs.current();
        let name = ServerName::try_from(PEER_NAME).map_err(|error| Unreached::Tls(error.to_string()))?;
        let connected = TlsConnector::from(config)
            .connect(name, stream)
            .await
            .map_err(|error| tls::explain(&error).map_or(Unreached::Closed(error.kind()), Unreached::Tls))?;
        let binding = connected
            .get_ref()
            .1
            .export_keying_material(vec![0; EXPORT_BYTES], EXPORT_LABEL, None)
            .map_err(|error| Unreached::Tls(error.to_string()))?;
        Ok((connected.into(), binding))
    }
}

/// Why a server's TLS files were refused.
#[derive(Debug, thiserror::Error)]
pub enum PeerTlsError {
    /// A file is unusable.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The certificate is for something else.
    #[error("{path}: the certificate must be for the DNS name {PEER_NAME}, by which servers know each other", path = path.display())]
    Name {
        /// The certificate's file.
        path: PathBuf,
    },
}

fn is_of_a_server(certificate: &CertificateDer<'_>) -> bool {
    ServerName::try_from(PEER_NAME).is_ok_and(|name| tls::is_for_name(certificate, &name))
}
