//! TLS from PEM files, with one crypto provider for the whole process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

mod about;
mod both_ways;
mod by_sni;
mod dial;
mod named;
mod names;
pub mod spiffe;

pub use about::About;
pub use both_ways::{
    ClientCerts, Identity, client_config_showing, explain, is_for_name, server_config_asking,
    server_config_choosing,
};
pub use dial::{Dialling, Trust};
pub use named::{Accept, client_verifier, server_verifier, uris};
pub use names::Names;

/// Why TLS material was refused.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// From the file system.
        source: std::io::Error,
    },
    /// The file is no PEM file.
    #[error("{path} is not valid PEM: {reason}", path = path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// From the parser.
        reason: String,
    },
    /// It holds no certificate.
    #[error("{path} holds no certificate (no `-----BEGIN CERTIFICATE-----` section)", path = path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// It holds no revocation list.
    #[error("{path} holds no revocation list (no `-----BEGIN X509 CRL-----` section)", path = path.display())]
    NoCrl {
        /// The file.
        path: PathBuf,
    },
    /// It holds no private key.
    #[error("{path} holds no private key (no PKCS#8, PKCS#1 or SEC1 section)", path = path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// A certificate in it is unusable.
    #[error("{path}: certificate {number}: {reason}", path = path.display())]
    BadCertificate {
        /// The file.
        path: PathBuf,
        /// Its place in the file, from 1.
        number: usize,
        /// From the parser.
        reason: rustls::Error,
    },
    /// Nothing to be shown to clients.
    #[error("no certificate is named; at least one is needed")]
    NoIdentity,
    /// The key does not belong to the certificate.
    #[error("private key in {key} does not match the certificate in {cert}", key = key.display(), cert = cert.display())]
    KeyMismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// Certificate and key cannot be used together for another reason, such as an unsupported key.
    #[error("cannot use the key in {key} with the certificate in {cert}: {reason}", key = key.display(), cert = cert.display())]
    Unusable {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// From rustls.
        reason: rustls::Error,
    },
    /// No certificate in it can vouch for others.
    #[error("{path} cannot be used as a CA: {reason}", path = path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// From rustls.
        reason: String,
    },
    /// No system trust store where one is looked for.
    #[error("no system certificate bundle found (looked at SSL_CERT_FILE and {looked_at}); name a CA file")]
    NoSystemRoots {
        /// The paths, comma separated.
        looked_at: String,
    },
}

/// Makes aws-lc-rs the provider of this process. Call it before any TLS; again does nothing.
///
/// Keys are agreed on by X25519MLKEM768 first, which what is recorded today keeps secret from the quantum computers of
/// later, then by what older ends know. Of the cipher suites, those with AES-128 come first, as in BoringSSL and Go: no key of
/// 128 bits is found by trying, and they cost less than those with AES-256, whose SHA-384 has no instructions on most processors.
pub fn install_provider() {
    use rustls::CipherSuite as Suite;
    use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
    if CryptoProvider::get_default().is_some() {
        return;
    }
    let kx_groups =
        vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
    let mut provider = CryptoProvider { kx_groups, ..default_provider() };
    // Version by version, as before: sorting keeps the order of equals.
    provider.cipher_suites.sort_by_key(|suite| {
        let is_short = matches!(
            suite.suite(),
            Suite::TLS13_AES_128_GCM_SHA256
                | Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        );
        (suite.tls13().is_none(), !is_short)
    });
    // An error means that another thread was first, and it can only be this one: no other is built in.
    let _ = provider.install_default();
}

/// That of this process.
pub fn provider() -> Arc<CryptoProvider> {
    install_provider();
    CryptoProvider::get_default().cloned().expect("it was installed just now")
}

/// Server side: the certificate chain in `cert_pem` (leaf first) with the key in `key_pem`, which may be one file.
/// No client certificate is asked for. `alpn` in order of preference.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn server_config(cert_pem: &Path, key_pem: &Path, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
    install_provider();
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates(cert_pem)?, private_key(key_pem)?)
        .map_err(|reason| pair_error(cert_pem, key_pem, reason))?;
    config.ignore_client_order = true;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Says of a certificate and a key why they do not go together.
pub fn pair_error(cert: &Path, key: &Path, reason: rustls::Error) -> TlsError {
    match reason {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::KeyMismatch { cert: cert.to_path_buf(), key: key.to_path_buf() }
        }
        reason @ rustls::Error::InvalidCertificate(_) => {
            TlsError::BadCertificate { path: cert.to_path_buf(), number: 1, reason }
        }
        reason => TlsError::Unusable { cert: cert.to_path_buf(), key: key.to_path_buf(), reason },
    }
}

/// Client side: trusts the certificates in `ca_pem`, or those of the system if it is `None`. Sends no certificate.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn client_config(ca_pem: Option<&Path>, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
    install_provider();
    let roots = match ca_pem {
        Some(path) => strict_roots(path)?,
        None => system_roots()?,
    };
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// All certificates of a PEM file, in order.
///
/// # Errors
/// If there is none, or the file cannot be read or parsed.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    certificates_in(path, &read(path)?)
}

/// The same of a PEM text; `path` is what errors call it.
///
/// # Errors
/// If there is none, or the text cannot be parsed.
pub fn certificates_in(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| bad_pem(path, &e))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate { path: path.to_path_buf() });
    }
    Ok(chain)
}

/// The first private key of a PEM file.
///
/// # Errors
/// If there is none, or the file cannot be read or parsed.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    private_key_in(path, &read(path)?)
}

/// The same of a PEM text; `path` is what errors call it.
///
/// # Errors
/// If there is none, or the text cannot be parsed.
pub fn private_key_in(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey { path: path.to_path_buf() },
        error => bad_pem(path, &error),
    })
}

/// All revocation lists of a PEM file.
///
/// # Errors
/// If there is none, or the file cannot be read or parsed.
pub fn crls(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    crls_in(path, &read(path)?)
}

/// All revocation lists of a PEM text; `path` is what errors call it.
///
/// # Errors
/// If there is none, or the text cannot be parsed.
pub fn crls_in(path: &Path, pem: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let all: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| bad_pem(path, &e))?;
    if all.is_empty() {
        return Err(TlsError::NoCrl { path: path.to_path_buf() });
    }
    Ok(all)
}

fn strict_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    roots_in(path, &read(path)?)
}

/// All certificates of a PEM text as CAs; `path` is what errors call it.
///
/// # Errors
/// If there is none, or one of them is unusable.
pub fn roots_in(path: &Path, pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates_in(path, pem)?.into_iter().enumerate() {
        roots.add(certificate).map_err(|reason| TlsError::BadCertificate {
            path: path.to_path_buf(),
            number: index + 1,
            reason,
        })?;
    }
    Ok(roots)
}

/// Where distributions keep the bundle.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The CAs that the system trusts.
///
/// # Errors
/// If none of the usual files is there, or it cannot be read.
pub fn system_roots() -> Result<RootCertStore, TlsError> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let found = named.or_else(|| SYSTEM_BUNDLES.iter().map(PathBuf::from).find(|p| p.exists()));
    let Some(path) = found else {
        return Err(TlsError::NoSystemRoots { looked_at: SYSTEM_BUNDLES.join(", ") });
    };
    let mut roots = RootCertStore::empty();
    // System bundles carry some that rustls does not take; they are not ours to refuse.
    roots.add_parsable_certificates(certificates(&path)?);
    Ok(roots)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_path_buf(), source })
}

fn bad_pem(path: &Path, error: &pem::Error) -> TlsError {
    let reason = match error {
        pem::Error::MissingSectionEnd { end_marker } => format!("no line {:?} follows", shown(end_marker)),
        pem::Error::IllegalSectionStart { line } => format!("{:?} begins no section", shown(line)),
        error => error.to_string(),
    };
    TlsError::Pem { path: path.to_path_buf(), reason }
}

/// The beginning of a line, which may be of any length.
fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(line.get(..64).unwrap_or(line)).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Files {
        _dir: tempfile::TempDir,
        cert: PathBuf,
        key: PathBuf,
        other_key: PathBuf,
        text: PathBuf,
    }

    fn files() -> Files {
        let dir = tempfile::tempdir().unwrap();
        let one = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let two = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let at = |name: &str, content: String| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        Files {
            cert: at("cert.pem", one.cert.pem()),
            key: at("key.pem", one.signing_key.serialize_pem()),
            other_key: at("other.pem", two.signing_key.serialize_pem()),
            text: at("text.pem", "hello\n".to_owned()),
            _dir: dir,
        }
    }

    #[test]
    fn a_matching_pair_is_accepted_with_its_protocols() {
        let f = files();
        let server = server_config(&f.cert, &f.key, &[b"h2", b"http/1.1"]).unwrap();
        assert_eq!(server.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
        let client = client_config(Some(&f.cert), &[b"h2"]).unwrap();
        assert_eq!(client.alpn_protocols, [b"h2".to_vec()]);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let f = files();
        let error = server_config(&f.cert, &f.other_key, &[]).unwrap_err();
        assert!(matches!(error, TlsError::KeyMismatch { .. }), "{error}");
    }

    #[test]
    fn errors_name_the_file_and_what_it_lacks() {
        let f = files();
        for (error, file) in [
            (server_config(&f.text, &f.key, &[]).unwrap_err(), &f.text),
            (server_config(&f.key, &f.key, &[]).unwrap_err(), &f.key),
            (client_config(Some(&f.key), &[]).unwrap_err(), &f.key),
        ] {
            assert!(matches!(error, TlsError::NoCertificate { .. }), "{error}");
            assert!(error.to_string().contains(&file.display().to_string()));
        }
        let error = server_config(&f.cert, &f.cert, &[]).unwrap_err();
        assert!(matches!(error, TlsError::NoKey { .. }), "{error}");
        let error = server_config(Path::new("/nonexistent"), &f.key, &[]).unwrap_err();
        assert!(error.to_string().starts_with("cannot read /nonexistent"));
    }

    #[test]
    fn damaged_sections_are_refused() {
        let f = files();
        fs::write(&f.text, "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n").unwrap();
        let error = server_config(&f.text, &f.key, &[]).unwrap_err();
        assert!(matches!(error, TlsError::Pem { .. }), "{error}");
        fs::write(&f.text, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        let error = client_config(Some(&f.text), &[]).unwrap_err();
        assert!(matches!(error, TlsError::BadCertificate { number: 1, .. }), "{error}");
    }
}
