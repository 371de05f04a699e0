//! TLS in which clients, too, may have to show a certificate, and what went wrong with it in words.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, ConfigBuilder, Error, ServerConfig, WantsVerifier,
    client::verify_server_name,
    server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier},
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName};

use super::by_sni::BySni;
use super::{TlsError, certificates, install_provider, pair_error, private_key, strict_roots, system_roots};

/// A certificate and its key, which may be one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// PEM file with the chain, leaf first.
    pub cert: PathBuf,
    /// PEM file with the private key.
    pub key: PathBuf,
}

/// Whether a server asks its clients for a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientCerts {
    /// No.
    Unasked,
    /// It asks, and who shows none is let in; who shows one that the CA of this file did not sign is not.
    Asked(PathBuf),
    /// Who shows none that the CA of this file signed is refused.
    Required(PathBuf),
}

/// Server side. `alpn` in order of preference.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn server_config_asking(
    identity: &Identity,
    clients: &ClientCerts,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    install_provider();
    server_config_choosing(ServerConfig::builder(), std::slice::from_ref(identity), clients, Vec::new(), alpn)
}

/// The same with several certificates, of which a client is shown the one for the name that it asks for; the first if there is
/// none. `builder` knows the versions and suites that are spoken, of which the first that a client knows is taken. `crls`, if there are any, are
/// of all issuers of clients' chains.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn server_config_choosing(
    builder: ConfigBuilder<ServerConfig, WantsVerifier>,
    identities: &[Identity],
    clients: &ClientCerts,
    crls: Vec<CertificateRevocationListDer<'static>>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let builder = match clients {
        ClientCerts::Unasked => builder.with_no_client_auth(),
        ClientCerts::Asked(ca) | ClientCerts::Required(ca) => {
            let mut verifier = WebPkiClientVerifier::builder(Arc::new(strict_roots(ca)?));
            if !crls.is_empty() {
                verifier = verifier.with_crls(crls).enforce_revocation_expiration();
            }
            let verifier = match clients {
                ClientCerts::Asked(_) => verifier.allow_unauthenticated(),
                _ => verifier,
            };
            let verifier = verifier
                .build()
                .map_err(|error| TlsError::Roots { path: ca.clone(), reason: error.to_string() })?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(BySni::load(identities)?));
    config.ignore_client_order = true;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    if *clients != ClientCerts::Unasked {
        // A resumed session is one whose certificate is not looked at again, also if the CA has changed since.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(Arc::new(config))
}

/// Client side: trusts the certificates in `ca`, or those of the system, and shows `identity` to servers that ask.
///
/// # Errors
/// Names the file and what is wrong with it.
pub fn client_config_showing(
    ca: Option<&Path>,
    identity: Option<&Identity>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    install_provider();
    let roots = match ca {
        Some(path) => strict_roots(path)?,
        None => system_roots()?,
    };
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(Identity { cert, key }) => builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(|reason| pair_error(cert, key, reason))?,
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// Whether a certificate, verified already, is for this name. TLS checks the name of a server only; a server that
/// wants to know who its client is asks here.
pub fn is_for_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    ParsedCertificate::try_from(certificate).is_ok_and(|cert| verify_server_name(&cert, name).is_ok())
}

/// What went wrong with the other end, in words that say whose certificate it is and what to look at. `None` if TLS
/// is not the cause.
pub fn explain(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::InvalidCertificate(reason) => format!("its certificate {}", certificate_fault(reason)),
        Error::NoCertificatesPresented => "it shows no certificate, and one is required".to_owned(),
        Error::AlertReceived(alert) => format!("it {}", alert_meaning(*alert)),
        Error::InvalidMessage(_) => "it does not speak TLS".to_owned(),
        other => other.to_string(),
    })
}

fn certificate_fault(reason: &CertificateError) -> String {
    match reason {
        // A CA made anew under its old name gives the second: the name fits, the key does not.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "was not signed by the CA that is trusted here; if the CA was made anew, all its certificates have to be"
                .to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("has run out, or a clock is wrong ({reason})")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("is not valid yet, or a clock is wrong ({reason})")
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("is for another name ({reason})")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            format!("may not be used for this ({reason}): its extended key usage has to allow it")
        }
        other => format!("is refused: {other}"),
    }
}

fn alert_meaning(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => "requires a certificate, and none was shown".to_owned(),
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "refuses our certificate: the CA that it trusts did not sign it".to_owned()
        }
        AlertDescription::CertificateExpired => {
            "refuses our certificate: it has run out, or a clock is wrong".to_owned()
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::CertificateUnknown => format!("refuses our certificate ({alert:?})"),
        AlertDescription::NoApplicationProtocol => "speaks TLS, but not our protocol".to_owned(),
        other => format!("ended TLS with {other:?}"),
    }
}
