//! TLS between sidecars. Each has a certificate with a SPIFFE ID, signed by the mesh's CA.
//!
//! Both ends verify the other's chain and that its ID is of their own trust domain. The calling end also looks whether
//! it is the ID that the instance is advertised with: an address that another workload has taken over meanwhile, or a
//! record that somebody else has made, does not get the requests of that service. Which IDs may call what is decided
//! behind the handshake, by authorisation policies.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use weft_core::tls::spiffe::SpiffeId;
use weft_core::tls::{self, About, Accept};
use weft_xds_proto::resource::cluster::tls::{PeerName, TlsVersion};

use super::client::{Configs, client_config};
use super::live::{Certificates, Live, Made, Shown};

/// Label of an instance that takes TLS from other sidecars: its SPIFFE ID.
pub const SPIFFE_LABEL: &str = "spiffe";

/// Whether plaintext is let in, and sent to instances that take nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MeshMode {
    /// Yes: for as long as not all have certificates.
    #[default]
    Permissive,
    /// No.
    Strict,
}

impl MeshMode {
    /// As people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Permissive => "permissive",
            Self::Strict => "strict",
        }
    }
}

impl std::str::FromStr for MeshMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Permissive, Self::Strict]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| format!("{text:?} is no mode; allowed are permissive and strict"))
    }
}

/// Files of a sidecar's identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshFiles {
    /// Certificate chain, leaf first.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// CAs of the mesh.
    pub ca: PathBuf,
    /// Revocation lists of these CAs.
    pub crl: Option<PathBuf>,
    /// Whether plaintext is taken and sent as well.
    pub mode: MeshMode,
}

/// A sidecar's identity in use.
#[derive(Debug)]
pub struct MeshTls {
    /// Whose certificate it is. A renewed one has to be for the same.
    pub id: SpiffeId,
    /// Whether plaintext is taken and sent as well.
    pub mode: MeshMode,
    /// For connections to others.
    pub outbound: Arc<Live<Configs>>,
    /// For connections from others.
    pub inbound: Arc<Live<Arc<ServerConfig>>>,
}

impl MeshTls {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn load(files: &MeshFiles, certificates: &Certificates) -> Result<Self, String> {
        let id = Material::read(files, None)?.id;
        let all: Vec<_> = [Some(&files.cert), Some(&files.key), Some(&files.ca), files.crl.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        let (read, own) = (files.clone(), id.clone());
        let outbound =
            certificates.live("mesh, to other sidecars".to_owned(), all.clone(), Vec::new(), move |_| {
                Material::read(&read, Some(&own))?.outbound()
            });
        let (read, own) = (files.clone(), id.clone());
        let inbound = certificates.live("mesh, from other sidecars".to_owned(), all, Vec::new(), move |_| {
            Material::read(&read, Some(&own))?.inbound()
        });
        let mesh = Self { id, mode: files.mode, outbound, inbound };
        match (&mesh.outbound.current().value, &mesh.inbound.current().value) {
            (Err(why), _) | (_, Err(why)) => Err(why.clone()),
            _ => Ok(mesh),
        }
    }
}

/// What the files hold.
struct Material {
    id: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    key: rustls::pki_types::PrivateKeyDer<'static>,
    roots: rustls::RootCertStore,
    crls: Vec<rustls::pki_types::CertificateRevocationListDer<'static>>,
    shown: Vec<Shown>,
    files: MeshFiles,
}

impl Material {
    fn read(files: &MeshFiles, own: Option<&SpiffeId>) -> Result<Self, String> {
        let text = |e: tls::TlsError| e.to_string();
        let bytes = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        let chain = tls::certificates(&files.cert).map_err(text)?;
        let key = tls::private_key(&files.key).map_err(text)?;
        let ca = bytes(&files.ca)?;
        let roots = tls::roots_in(&files.ca, &ca).map_err(text)?;
        let crls = match &files.crl {
            None => Vec::new(),
            Some(crl) => tls::crls_in(crl, &bytes(crl)?).map_err(text)?,
        };
        let id = SpiffeId::of(&chain[0]).map_err(|why| format!("{}: {why}", files.cert.display()))?;
        if let Some(own) = own.filter(|own| **own != id) {
            let path = files.cert.display();
            return Err(format!(
                "{path} is for {id} now, and this sidecar is {own}; another name needs a restart"
            ));
        }
        let mut shown = Vec::new();
        let cas = tls::certificates_in(&files.ca, &ca).unwrap_or_default();
        for (role, path, certificates) in [("certificate", &files.cert, &chain), ("ca", &files.ca, &cas)] {
            let about = certificates.iter().filter_map(About::of);
            let source = path.display().to_string();
            shown.extend(about.map(|about| Shown { role, source: source.clone(), about }));
        }
        Ok(Self { id, chain, key, roots, crls, shown, files: files.clone() })
    }

    /// Any workload of the trust domain.
    fn accept(&self) -> Accept {
        let domain = self.id.trust_domain().to_owned();
        Arc::new(move |certificate| {
            let id = SpiffeId::of(certificate).map_err(|why| why.to_string())?;
            if id.trust_domain() == domain {
                return Ok(());
            }
            Err(format!("it is for {id}, which is not of the trust domain {domain}"))
        })
    }

    fn pair_error(&self, reason: rustls::Error) -> String {
        tls::pair_error(&self.files.cert, &self.files.key, reason).to_string()
    }

    fn outbound(self) -> Made<Configs> {
        let verifier = tls::server_verifier(self.roots.clone(), self.crls.clone(), Some(self.accept()))?;
        let config = client_config(verifier, TlsVersion::Tls13, &[])
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|reason| self.pair_error(reason))?;
        Ok((Configs::new(config), self.shown))
    }

    fn inbound(self) -> Made<Arc<ServerConfig>> {
        let verifier = tls::client_verifier(self.roots.clone(), self.crls.clone(), self.accept())?;
        let mut config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|reason| self.pair_error(reason))?;
        config.ignore_client_order = true;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A resumed session is one whose certificate is not looked at again, also if it was taken back since. Sidecars
        // keep their connections, so that there is little to save.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok((Arc::new(config), self.shown))
    }
}

/// Who must be at the other end of a connection to a sidecar.
#[derive(Debug, Clone, PartialEq)]
pub struct Expected {
    /// As the instance is advertised; none: any of the mesh.
    pub id: Option<SpiffeId>,
    /// One of these, if there are any.
    pub names: Arc<[PeerName]>,
    /// Of both; connections to others do not take the place of each other.
    pub(crate) hash: u64,
}

impl Expected {
    /// With the hash.
    pub fn new(id: Option<SpiffeId>, names: Arc<[PeerName]>) -> Self {
        let texts = id.iter().map(ToString::to_string).chain(names.iter().map(ToString::to_string));
        let hash = u64::from(crc32fast::hash(texts.collect::<Vec<_>>().join(" ").as_bytes()));
        Self { id, names, hash }
    }

    /// Looks at the certificate that was shown.
    pub fn check(&self, shown: Option<&CertificateDer<'_>>) -> Result<(), String> {
        let Some(shown) = shown else { return Err("it shows no certificate".to_owned()) };
        let id = SpiffeId::of(shown).map_err(|why| why.to_string())?;
        if let Some(wanted) = self.id.as_ref().filter(|wanted| **wanted != id) {
            return Err(format!("its certificate is for {id}, and it is advertised as {wanted}"));
        }
        if !self.names.is_empty() && !self.names.iter().any(|name| name.takes_uri(id.as_str())) {
            let wanted: Vec<_> = self.names.iter().map(ToString::to_string).collect();
            return Err(format!("its certificate is for {id}; wanted is {}", wanted.join(" or ")));
        }
        Ok(())
    }
}
