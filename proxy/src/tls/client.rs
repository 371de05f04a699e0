//! TLS to endpoints that are no sidecars, as a cluster's configuration says.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use weft_core::tls::{self, About, Accept};
use weft_xds_proto::resource::cluster::tls::{
    CipherSuite, DataSource, Identity, PeerName, Secret, SecretMaterial, TlsVersion, Trust, UpstreamTls,
};

use super::live::{Certificates, Live, Made, Secrets, Shown};
use super::spoken::spoken;

/// One for each protocol that is asked for in the handshake.
#[derive(Debug, Clone)]
pub struct Configs {
    /// HTTP/1.1.
    pub http1: Arc<ClientConfig>,
    /// HTTP/2.
    pub http2: Arc<ClientConfig>,
    /// Bytes that are none of ours.
    pub raw: Arc<ClientConfig>,
}

impl Configs {
    /// The same for all of them.
    pub fn new(config: ClientConfig) -> Self {
        let with = |alpn: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
            Arc::new(config)
        };
        Self { http1: with(&[b"http/1.1"]), http2: with(&[b"h2"]), raw: with(&[]) }
    }
}

/// TLS of one cluster.
#[derive(Debug)]
pub struct ClientTls {
    /// What it was made from.
    pub spec: UpstreamTls,
    /// Sent as SNI; none: the address.
    pub server_name: Option<ServerName<'static>>,
    /// What is in use.
    pub live: Arc<Live<Configs>>,
}

/// The same one: another of the same text has connections of its own.
impl PartialEq for ClientTls {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl ClientTls {
    /// What cannot be used now may be later: its files may come, its secrets too.
    pub fn new(cluster: &str, spec: &UpstreamTls, certificates: &Certificates) -> Self {
        let made = spec.clone();
        let live = certificates
            .live(format!("TLS to {cluster}"), files(spec), secrets(spec), move |all| configs(&made, all));
        let server_name = spec.server_name.clone().and_then(|name| ServerName::try_from(name).ok());
        Self { spec: spec.clone(), server_name, live }
    }
}

/// Whether what a cluster brings with it can be used, as far as that can be known now.
///
/// # Errors
/// Says what is wrong with it.
pub fn check(spec: &UpstreamTls) -> Result<(), String> {
    check_trust(&spec.trust, spec.crl.as_ref())?;
    spec.identity.as_ref().map_or(Ok(()), check_identity)
}

/// The same of a secret.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_secret(secret: &Secret) -> Result<(), String> {
    match &secret.material {
        SecretMaterial::Identity(identity) => check_identity(identity),
        SecretMaterial::Validation { trust, crl, .. } => check_trust(trust, crl.as_ref()),
    }
}

fn inline(source: &DataSource) -> bool {
    source.file().is_none()
}

fn check_trust(trust: &Trust, crl: Option<&DataSource>) -> Result<(), String> {
    if let Trust::Ca(ca) = trust
        && inline(ca)
    {
        tls::roots_in(&label(ca), &read(ca)?).map_err(|error| error.to_string())?;
    }
    if let Some(crl) = crl.filter(|crl| inline(crl)) {
        tls::crls_in(&label(crl), &read(crl)?).map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn check_identity(identity: &Identity) -> Result<(), String> {
    if let Identity::Pair { certificate, key } = identity
        && inline(certificate)
        && inline(key)
    {
        let (chain, key) = pair(certificate, key)?;
        rustls::sign::CertifiedKey::from_der(chain, key, &tls::provider())
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn files(spec: &UpstreamTls) -> Vec<PathBuf> {
    let sources = spec.trust.sources().chain(&spec.crl);
    let sources = sources.chain(spec.identity.iter().flat_map(Identity::sources));
    sources.filter_map(DataSource::file).map(Path::to_path_buf).collect()
}

/// Names of the secrets that it takes.
pub fn secrets(spec: &UpstreamTls) -> Vec<String> {
    let trust = match &spec.trust {
        Trust::Secret(name) => Some(name),
        _ => None,
    };
    let identity = match &spec.identity {
        Some(Identity::Secret(name)) => Some(name),
        _ => None,
    };
    trust.into_iter().chain(identity).cloned().collect()
}

/// What errors call it.
fn label(source: &DataSource) -> PathBuf {
    source.file().map_or_else(|| "inline PEM".into(), Path::to_path_buf)
}

fn read(source: &DataSource) -> Result<Vec<u8>, String> {
    match source {
        DataSource::Inline(text) => Ok(text.clone()),
        DataSource::File(path) => {
            std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        }
    }
}

type Pair = (Vec<CertificateDer<'static>>, rustls::pki_types::PrivateKeyDer<'static>);

fn pair(certificate: &DataSource, key: &DataSource) -> Result<Pair, String> {
    let chain = tls::certificates_in(&label(certificate), &read(certificate)?);
    let key = tls::private_key_in(&label(key), &read(key)?);
    Ok((chain.map_err(|e| e.to_string())?, key.map_err(|e| e.to_string())?))
}

/// A source of certificates, with the certificates for people.
fn shown(role: &'static str, source: &str, chain: &[CertificateDer<'_>], all: &mut Vec<Shown>) {
    let about = chain.iter().filter_map(About::of);
    all.extend(about.map(|about| Shown { role, source: source.to_owned(), about }));
}

fn configs(spec: &UpstreamTls, secrets: &Secrets) -> Made<Configs> {
    let mut all = Vec::new();
    let (roots, crl, names) = match &spec.trust {
        Trust::Secret(name) => {
            let SecretMaterial::Validation { trust, crl, names } = &sent(secrets, name)?.material else {
                return Err(format!(
                    "secret {name:?} holds a certificate with its key; wanted is a validation context"
                ));
            };
            let roots =
                trusted(trust, &by(name), &mut all).map_err(|why| format!("secret {name:?}: {why}"))?;
            (roots, crl.as_ref(), names.as_slice())
        }
        trust => (trusted(trust, &label, &mut all)?, None, [].as_slice()),
    };
    let crls = match crl.or(spec.crl.as_ref()) {
        None => Vec::new(),
        Some(crl) => tls::crls_in(&label(crl), &read(crl)?).map_err(|e| e.to_string())?,
    };
    // What a secret names is taken as well, as where Envoy merges the two.
    let names = [&spec.names, names].concat();
    if let (Trust::Secret(secret), None, []) = (&spec.trust, &spec.server_name, names.as_slice()) {
        return Err(format!("neither the cluster nor secret {secret:?} says whose certificate is wanted"));
    }
    let accept = (!names.is_empty()).then(|| accept(names));
    let verifier = tls::server_verifier(roots, crls, accept)?;
    let config = client_config(verifier, spec.min_version, &spec.cipher_suites);
    let config = match &spec.identity {
        None => config.with_no_client_auth(),
        Some(identity) => {
            let (source, certificate, key) = match identity {
                Identity::Pair { certificate, key } => (label(certificate), certificate, key),
                Identity::Secret(name) => match &sent(secrets, name)?.material {
                    SecretMaterial::Identity(Identity::Pair { certificate, key }) => {
                        (by(name)(certificate), certificate, key)
                    }
                    _ => return Err(format!("secret {name:?} holds no certificate with its key")),
                },
            };
            let (chain, private) = pair(certificate, key)?;
            shown("certificate", &source.display().to_string(), &chain, &mut all);
            config
                .with_client_auth_cert(chain, private)
                .map_err(|reason| tls::pair_error(&label(certificate), &label(key), reason).to_string())?
        }
    };
    Ok((Configs::new(config), all))
}

/// Up to what a client shows.
pub(super) fn client_config(
    verifier: Arc<dyn ServerCertVerifier>,
    min: TlsVersion,
    suites: &[CipherSuite],
) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    let (provider, versions) = spoken(min, suites);
    ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("each version has suites")
        .dangerous()
        .with_custom_certificate_verifier(verifier)
}

fn sent<'a>(secrets: &'a Secrets, name: &str) -> Result<&'a Secret, String> {
    let secret = secrets.get(name).map(Arc::as_ref);
    secret.ok_or_else(|| format!("the control plane has not sent secret {name:?}"))
}

/// What people are told of a source in a secret.
fn by(secret: &str) -> impl Fn(&DataSource) -> PathBuf {
    move |source| match source.file() {
        None => format!("secret {secret:?}").into(),
        Some(path) => format!("secret {secret:?}, {}", path.display()).into(),
    }
}

fn trusted(
    trust: &Trust,
    label: &dyn Fn(&DataSource) -> PathBuf,
    all: &mut Vec<Shown>,
) -> Result<RootCertStore, String> {
    match trust {
        Trust::System => tls::system_roots().map_err(|e| e.to_string()),
        Trust::Ca(source) => {
            let pem = read(source)?;
            let roots = tls::roots_in(&label(source), &pem).map_err(|e| e.to_string())?;
            let chain = tls::certificates_in(&label(source), &pem).unwrap_or_default();
            shown("ca", &label(source).display().to_string(), &chain, all);
            Ok(roots)
        }
        Trust::Secret(name) => Err(format!("it refers to another secret, {name:?}")),
    }
}

/// The certificate is for one of these.
fn accept(names: Vec<PeerName>) -> Accept {
    Arc::new(move |certificate| {
        let uris = tls::uris(certificate).map_err(|error| error.to_string())?;
        let is_for = |name: &PeerName| match name {
            PeerName::Dns(name) => {
                ServerName::try_from(name.as_str()).is_ok_and(|name| tls::is_for_name(certificate, &name))
            }
            uri => uris.iter().any(|seen| uri.takes_uri(seen)),
        };
        if names.iter().any(is_for) {
            return Ok(());
        }
        let wanted: Vec<_> = names.iter().map(ToString::to_string).collect();
        let seen = About::of(certificate).map(|about| about.names.join(", ")).unwrap_or_default();
        Err(format!("it is for {seen}; wanted is {}", wanted.join(" or ")))
    })
}
