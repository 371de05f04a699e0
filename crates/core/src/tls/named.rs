//! Verification of certificates whose names TLS itself does not look at: URIs, and those of clients.
//!
//! The chain, times, uses and revocation are rustls's to verify, by the verifiers that are inside; what is added is the
//! question whether the certificate is for one of the names that are wanted. It is asked only of a certificate whose chain is good.

use std::fmt;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};

use super::install_provider;

/// Says what is wrong with the names of a certificate, if anything is.
pub type Accept = Arc<dyn Fn(&CertificateDer<'_>) -> Result<(), String> + Send + Sync>;

/// The URIs that a certificate is for.
///
/// # Errors
/// If it is no certificate.
pub fn uris(certificate: &CertificateDer<'_>) -> Result<Vec<String>, Error> {
    let parsed = webpki::EndEntityCert::try_from(certificate)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
    Ok(parsed.valid_uri_names().map(str::to_owned).collect())
}

/// For clients: takes a server whose chain ends at one of `roots`, if `accept` takes its names. Revocation lists, if there
/// are any, have to be of all issuers of a chain, and not be over.
///
/// # Errors
/// If roots or lists are unusable.
pub fn server_verifier(
    roots: RootCertStore,
    crls: Vec<CertificateRevocationListDer<'static>>,
    accept: Option<Accept>,
) -> Result<Arc<dyn ServerCertVerifier>, String> {
    install_provider();
    let mut builder = WebPkiServerVerifier::builder(Arc::new(roots));
    if !crls.is_empty() {
        builder = builder.with_crls(crls).enforce_revocation_expiration();
    }
    let inner = builder.build().map_err(|error| error.to_string())?;
    Ok(match accept {
        None => inner,
        Some(accept) => Arc::new(NamedServer { inner, accept }),
    })
}

/// For servers: requires of clients what [`server_verifier`] does of servers.
///
/// # Errors
/// If roots or lists are unusable.
pub fn client_verifier(
    roots: RootCertStore,
    crls: Vec<CertificateRevocationListDer<'static>>,
    accept: Accept,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    install_provider();
    // Peers have one certificate each, so that a list of those who may sign it is of no use to them.
    let mut builder = WebPkiClientVerifier::builder(Arc::new(roots)).clear_root_hint_subjects();
    if !crls.is_empty() {
        builder = builder.with_crls(crls).enforce_revocation_expiration();
    }
    let inner = builder.build().map_err(|error| error.to_string())?;
    Ok(Arc::new(NamedClient { inner, accept }))
}

struct NamedServer {
    inner: Arc<WebPkiServerVerifier>,
    accept: Accept,
}

struct NamedClient {
    inner: Arc<dyn ClientCertVerifier>,
    accept: Accept,
}

#[derive(Debug)]
struct WrongName(String);

impl fmt::Display for WrongName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WrongName {}

fn checked(accept: &Accept, certificate: &CertificateDer<'_>) -> Result<(), Error> {
    accept(certificate).map_err(|why| CertificateError::Other(OtherError(Arc::new(WrongName(why)))).into())
}

impl ServerCertVerifier for NamedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        use CertificateError::{NotValidForName, NotValidForNameContext};
        match self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // The name is looked at last, when all else is good; and it is another one that is wanted.
            Ok(_) | Err(Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. })) => {}
            Err(error) => return Err(error),
        }
        checked(&self.accept, end_entity).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl ClientCertVerifier for NamedClient {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        checked(&self.accept, end_entity).map(|()| verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl fmt::Debug for NamedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedServer").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl fmt::Debug for NamedClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NamedClient").field("inner", &self.inner).finish_non_exhaustive()
    }
}
