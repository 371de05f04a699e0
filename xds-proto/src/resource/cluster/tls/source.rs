//! Where PEM comes from: a file of the machine that uses it, or the resource itself; and secrets, which bring it over ADS.

use std::fmt;
use std::path::{Path, PathBuf};

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use serde::{Serialize, Serializer};

use super::{Identity, PeerName, Trust};
use crate::resource::{InvalidResource, Validator};

/// Largest PEM text of a resource, in bytes; the bundle of a large public root program is a quarter of it.
pub const PEM_BYTES_MAX: usize = 1024 * 1024;

/// PEM, or where it is.
#[derive(Clone, PartialEq, Eq)]
pub enum DataSource {
    /// In this file, which may be replaced while it is used.
    File(PathBuf),
    /// This text. It may be a key, so it is never shown.
    Inline(Vec<u8>),
}

impl DataSource {
    /// The file, if it is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Inline(_) => None,
        }
    }
}

impl fmt::Debug for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Inline(text) => write!(f, "{} bytes inline", text.len()),
        }
    }
}

impl Serialize for DataSource {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&format!("{self:?}"))
    }
}

/// SDS: what a secret of the control plane holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Secret {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub material: SecretMaterial,
}

/// See [`Secret`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum SecretMaterial {
    /// A certificate with its key; never a reference to another secret.
    Identity(Identity),
    /// Who is trusted.
    Validation {
        /// Never a reference to another secret.
        trust: Trust,
        /// Certificates that were taken back.
        crl: Option<DataSource>,
        /// The certificate must be for one of these, or of those that the cluster names; of any if neither names one.
        names: Vec<PeerName>,
    },
}

impl Secret {
    /// Where its PEM is.
    pub fn sources(&self) -> Vec<&DataSource> {
        match &self.material {
            SecretMaterial::Identity(identity) => identity.sources().collect(),
            SecretMaterial::Validation { trust, crl, .. } => trust.sources().chain(crl).collect(),
        }
    }
}

/// What a secret can hold here.
const KINDS: &str = "tls_certificate or validation_context";

impl TryFrom<tls::Secret> for Secret {
    type Error = InvalidResource;

    fn try_from(p: tls::Secret) -> Result<Self, InvalidResource> {
        let v = Validator { kind: "Secret", name: &p.name };
        let name = v.name("name")?;
        let material = match &p.r#type {
            Some(tls::secret::Type::TlsCertificate(pair)) => {
                SecretMaterial::Identity(super::pair(&v, "tls_certificate", pair)?)
            }
            Some(tls::secret::Type::ValidationContext(context)) => {
                let (trust, crl, names) = super::validation::trust(&v, "validation_context", context)?;
                SecretMaterial::Validation { trust, crl, names }
            }
            Some(tls::secret::Type::SessionTicketKeys(_)) => {
                return Err(v.error("type", "session_ticket_keys", KINDS));
            }
            Some(tls::secret::Type::GenericSecret(_)) => {
                return Err(v.error("type", "generic_secret", KINDS));
            }
            None => return Err(v.error("type", "nothing", KINDS)),
        };
        Ok(Self { name, material })
    }
}

pub(super) fn decode(
    v: &Validator<'_>,
    at: &str,
    p: Option<&core::DataSource>,
) -> Result<DataSource, InvalidResource> {
    use core::data_source::Specifier;
    let allowed = "filename, inline_string or inline_bytes";
    let source = match p.and_then(|p| p.specifier.as_ref()) {
        Some(Specifier::Filename(path)) if path.starts_with('/') => DataSource::File(path.into()),
        Some(Specifier::Filename(path)) => {
            return Err(v.error(at, format!("{:?}", super::shortened(path)), "an absolute path"));
        }
        Some(Specifier::InlineBytes(bytes)) => DataSource::Inline(bytes.clone()),
        Some(Specifier::InlineString(text)) => DataSource::Inline(text.clone().into_bytes()),
        Some(Specifier::EnvironmentVariable(_)) => return Err(v.error(at, "environment_variable", allowed)),
        None => return Err(v.error(at, "nothing", allowed)),
    };
    match &source {
        DataSource::Inline(text) if text.len() > PEM_BYTES_MAX => {
            Err(v.error(at, format!("{} bytes", text.len()), format!("at most {PEM_BYTES_MAX} bytes")))
        }
        _ => Ok(source),
    }
}

pub(super) fn encode(source: &DataSource) -> core::DataSource {
    use core::data_source::Specifier;
    core::DataSource {
        specifier: Some(match source {
            DataSource::File(path) => Specifier::Filename(path.display().to_string()),
            DataSource::Inline(text) => Specifier::InlineBytes(text.clone()),
        }),
        ..core::DataSource::default()
    }
}
