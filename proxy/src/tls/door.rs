//! TLS on a port of this proxy.

use std::path::Path;
use std::sync::Arc;

use http::HeaderValue;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use weft_core::tls::spiffe::SpiffeId;
use weft_core::tls::{self, About, ClientCerts};

use super::client_cert;
use super::live::{Certificates, Live, Shown};
use super::mesh::{MeshMode, MeshTls};
use super::spoken::spoken;
use crate::config::PortTls;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct DoorTls {
    live: Arc<Live<Arc<ServerConfig>>>,
    /// Who begins without TLS is served as well.
    pub plaintext: bool,
    /// Clients are sidecars, with names.
    pub peers: bool,
    /// Other clients show certificates.
    asks: bool,
}

impl DoorTls {
    /// With certificates, for any client; `alpn` is what they may agree on.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn terminate(
        what: &str,
        port: &PortTls,
        alpn: &'static [&'static [u8]],
        certificates: &Certificates,
    ) -> Result<Self, String> {
        let asks = port.clients != ClientCerts::Unasked;
        let ca = match &port.clients {
            ClientCerts::Unasked => None,
            ClientCerts::Asked(ca) | ClientCerts::Required(ca) => Some(ca.clone()),
        };
        let pairs = port.certificates.iter().flat_map(|pair| [&pair.cert, &pair.key]);
        let files = pairs.chain(&ca).chain(&port.client_crl).cloned().collect();
        let port = port.clone();
        let live = certificates.live(what.to_owned(), files, Vec::new(), move |_| {
            let config = server_config(&port, alpn).map_err(|error| error.to_string())?;
            let own = port.certificates.iter().map(|pair| ("certificate", &pair.cert));
            let shown = own.chain(ca.iter().map(|ca| ("ca", ca))).flat_map(|(role, file)| shown(role, file));
            Ok((config, shown.collect()))
        });
        let error = live.current().value.as_ref().err().cloned();
        error.map_or(Ok(Self { live, plaintext: false, peers: false, asks }), Err)
    }

    /// For other sidecars.
    pub fn peers(mesh: &MeshTls) -> Self {
        let plaintext = mesh.mode == MeshMode::Permissive;
        Self { live: mesh.inbound.clone(), plaintext, peers: true, asks: false }
    }

    /// The same for what is no HTTP: nobody can tell by the first byte of a connection on which the server may speak first,
    /// so it is always TLS, between sidecars, or never.
    pub fn for_bytes(&self) -> Option<Self> {
        Some(self.clone()).filter(|tls| tls.peers && !tls.plaintext)
    }

    /// Whoever has shown this certificate, which was verified, or none. `own` is who this sidecar is.
    pub fn peer(&self, shown: Option<&CertificateDer<'_>>, own: Option<&SpiffeId>) -> Option<Peer> {
        if self.peers {
            let id = SpiffeId::of(shown?).ok()?;
            let client_cert = client_cert::of_sidecar(shown?, &id, own);
            return Some(Peer { id: Some(id), client_cert });
        }
        self.asks.then(|| Peer { id: None, client_cert: shown.and_then(client_cert::of_client) })
    }

    /// What the next connection is to use.
    pub fn config(&self) -> Option<Arc<ServerConfig>> {
        self.live.current().value.as_ref().ok().cloned()
    }
}

/// A file's certificates, for people.
fn shown(role: &'static str, file: &Path) -> Vec<Shown> {
    let source = file.display().to_string();
    let all = tls::certificates(file).unwrap_or_default();
    all.iter().filter_map(About::of).map(|about| Shown { role, source: source.clone(), about }).collect()
}

fn server_config(port: &PortTls, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, tls::TlsError> {
    let (provider, versions) = spoken(port.min_version, &port.cipher_suites);
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions);
    let builder = builder.expect("each version has suites");
    let crls = port.client_crl.as_deref().map_or(Ok(Vec::new()), tls::crls)?;
    let config = tls::server_config_choosing(builder, &port.certificates, &port.clients, crls, alpn)?;
    if port.clients != ClientCerts::Unasked {
        return Ok(config);
    }
    let mut config = Arc::unwrap_or_clone(config);
    // All workers can open the tickets of each other, and nothing is kept for clients that do not come back.
    if let Ok(ticketer) = rustls::crypto::aws_lc_rs::Ticketer::new() {
        config.ticketer = ticketer;
    }
    Ok(Arc::new(config))
}

/// Who is at the other end of a connection, where that was asked.
#[derive(Debug)]
pub(crate) struct Peer {
    /// A sidecar.
    pub id: Option<SpiffeId>,
    /// What its certificate says, if it has shown one.
    pub client_cert: Option<HeaderValue>,
}
