//! TLS on a listener of the proxy's file, for clients that are no sidecars.
//!
//! ```yaml
//! tls:
//!   certificates:                    # by the name that a client asks for; the first for everybody else
//!     - {certificate-file: /etc/tls/shop.pem, key-file: /etc/tls/shop.key}
//!   client-ca: /etc/tls/clients.pem  # clients show a certificate of it; leave it out for none
//!   client-crl: /etc/tls/revoked.pem # revocation lists of that CA
//!   client-certificates: optional    # who shows none is let in; required if missing
//!   min-version: "1.3"               # 1.2 if missing
//!   cipher-suites: [TLS_AES_256_GCM_SHA384]   # most wanted first; of a version that none is for, all
//! ```

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use weft_core::tls::{ClientCerts, Identity};
use weft_xds_proto::resource::cluster::tls::{CipherSuite, TlsVersion};

use super::PortTls;

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ListenerTls {
    /// A client is shown the one for the name that it asks for, or else the first.
    pub certificates: Vec<CertificateFiles>,
    /// PEM file with the CA of clients.
    pub client_ca: Option<PathBuf>,
    /// PEM file with revocation lists of that CA.
    pub client_crl: Option<PathBuf>,
    /// `required` (default) or `optional`.
    pub client_certificates: Option<String>,
    /// `1.2` (default) or `1.3`.
    pub min_version: Option<String>,
    /// By name, most wanted first.
    pub cipher_suites: Vec<String>,
}

/// PEM files of one certificate.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub certificate_file: PathBuf,
    /// Its key.
    pub key_file: PathBuf,
}

impl ListenerTls {
    /// What is wrong between its keys, each with the key.
    pub(crate) fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.certificates.is_empty() {
            problems.push(("certificates", "none; at least one is needed".to_owned()));
        }
        let of_clients = [
            ("client-crl", self.client_crl.is_some()),
            ("client-certificates", self.client_certificates.is_some()),
        ];
        for (key, _) in of_clients.into_iter().filter(|(_, given)| *given && self.client_ca.is_none()) {
            problems.push((key, "needs client-ca, by which clients are verified".to_owned()));
        }
        let least = min_version("min-version", self.min_version.as_deref()).unwrap_or_default();
        if let Err(why) = CipherSuite::parse_all(self.cipher_suites.iter().map(String::as_str), least) {
            problems.push(("cipher-suites", why));
        }
        problems
    }

    /// What the port does.
    ///
    /// # Errors
    /// Names the key and what is allowed.
    pub fn port(&self) -> Result<PortTls, String> {
        let pair = |files: &CertificateFiles| Identity {
            cert: files.certificate_file.clone(),
            key: files.key_file.clone(),
        };
        if let Some((key, why)) = self.problems().first() {
            return Err(format!("{key}: {why}"));
        }
        let min_version = min_version("min-version", self.min_version.as_deref())?;
        let suites = CipherSuite::parse_all(self.cipher_suites.iter().map(String::as_str), min_version);
        Ok(PortTls {
            certificates: self.certificates.iter().map(pair).collect(),
            clients: client_certs(
                ("client-ca", self.client_ca.clone()),
                ("client-certificates", self.client_certificates.as_deref()),
            )?,
            client_crl: self.client_crl.clone(),
            min_version,
            cipher_suites: suites.map_err(|why| format!("cipher-suites: {why}"))?,
        })
    }
}

/// The same of keys that stand beside others, with this in front of their names; none if there is no certificate.
///
/// # Errors
/// Names the key and what is allowed.
pub fn of_keys(
    prefix: &str,
    (certs, keys): (Vec<PathBuf>, Vec<PathBuf>),
    (ca, crl, clients): (Option<PathBuf>, Option<PathBuf>, Option<&str>),
    (least, suites): (Option<&str>, Option<&str>),
) -> Result<Option<PortTls>, String> {
    let named = |key: &str| format!("{prefix}{key}");
    let (cert, key) = (named("cert"), named("key"));
    if certs.len() != keys.len() {
        let (certs, keys) = (certs.len(), keys.len());
        return Err(format!(
            "{cert} names {certs} files and {key} {keys}; each certificate needs its key, in the same order"
        ));
    }
    let mode = named("client-certificates");
    let (ca_key, least_key, suites_key) = (named("client-ca"), named("min-version"), named("cipher-suites"));
    if crl.is_some() && ca.is_none() {
        return Err(format!("{} needs {ca_key}, by which clients are verified", named("client-crl")));
    }
    let clients = client_certs((&ca_key, ca), (&mode, clients))?;
    let min_version = min_version(&least_key, least)?;
    // Divided as OpenSSL does.
    let names = suites.into_iter().flat_map(|text| text.split(':'));
    let cipher_suites =
        CipherSuite::parse_all(names, min_version).map_err(|why| format!("{suites_key}: {why}"))?;
    if certs.is_empty() {
        let alone = [
            (ca_key, clients != ClientCerts::Unasked),
            (least_key, least.is_some()),
            (suites_key, suites.is_some()),
        ];
        return match alone.into_iter().find(|(_, given)| *given) {
            Some((alone, _)) => Err(format!("{alone} needs {cert} and {key}")),
            None => Ok(None),
        };
    }
    let certificates = certs.into_iter().zip(keys).map(|(cert, key)| Identity { cert, key }).collect();
    Ok(Some(PortTls { certificates, clients, client_crl: crl, min_version, cipher_suites }))
}

/// Of two keys, each with its name.
///
/// # Errors
/// Names the key and what is allowed.
pub fn client_certs(
    (ca_key, ca): (&str, Option<PathBuf>),
    (key, mode): (&str, Option<&str>),
) -> Result<ClientCerts, String> {
    match (mode, ca) {
        (None, None) => Ok(ClientCerts::Unasked),
        (None | Some("required"), Some(ca)) => Ok(ClientCerts::Required(ca)),
        (Some("optional"), Some(ca)) => Ok(ClientCerts::Asked(ca)),
        (Some("required" | "optional"), None) => {
            Err(format!("{key} needs {ca_key}, by which they are verified"))
        }
        (Some(other), _) => Err(format!("{key} {other:?} is unknown; allowed are required and optional")),
    }
}

/// Of a key with its name.
///
/// # Errors
/// Names the key and what is allowed.
pub fn min_version(key: &str, text: Option<&str>) -> Result<TlsVersion, String> {
    match text {
        None | Some("1.2") => Ok(TlsVersion::Tls12),
        Some("1.3") => Ok(TlsVersion::Tls13),
        Some(other) => Err(format!("{key} {other:?} is unknown; allowed are 1.2 and 1.3")),
    }
}
