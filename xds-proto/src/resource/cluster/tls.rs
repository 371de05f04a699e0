//! TLS to endpoints: Envoy's `UpstreamTlsContext`, and TLS with the sidecars' own identities, which Envoy has no field for.
//!
//! An endpoint's certificate is always verified: with a chain to a trusted CA and with its name. Envoy takes any certificate
//! where nothing is said; here that is refused, because TLS to whoever answers protects nobody.

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use prost::Message;
use serde::Serialize;

use super::Validator;
use crate::resource::InvalidResource;

mod cipher;
mod encode;
mod matches;
mod source;
mod validation;

pub use cipher::CipherSuite;
pub(super) use encode::{encode, encode_matches, encode_metadata};
pub use matches::SocketMatch;
pub use source::{DataSource, PEM_BYTES_MAX, Secret, SecretMaterial};

/// Most names that a certificate may be for.
pub const NAMES_MAX: usize = 64;
/// Longest of them, in bytes: that of a SPIFFE ID.
pub const NAME_BYTES_MAX: usize = 2048;

/// How connections to endpoints are protected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum ClusterTls {
    /// TLS as a client of whoever is there.
    Originate(Box<UpstreamTls>),
    /// TLS with the sidecars' own identities at both ends; an endpoint must be one of these, or any of the mesh.
    Mesh(Vec<PeerName>),
    /// By the labels of each endpoint.
    ByLabels {
        /// The first that is for an endpoint decides.
        matches: Vec<SocketMatch>,
        /// Where none is.
        otherwise: Option<Box<UpstreamTls>>,
    },
}

impl ClusterTls {
    /// All that is said of TLS as a client.
    pub fn contexts(&self) -> impl Iterator<Item = &UpstreamTls> {
        let (one, matches): (_, &[SocketMatch]) = match self {
            Self::Originate(tls) => (Some(&**tls), &[]),
            Self::Mesh(_) => (None, &[]),
            Self::ByLabels { matches, otherwise } => (otherwise.as_deref(), matches),
        };
        matches.iter().filter_map(|one| one.tls.as_ref()).chain(one)
    }
}

/// TLS as a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UpstreamTls {
    /// Sent as SNI; what the certificate must be for, unless `names` says it.
    pub server_name: Option<String>,
    /// Who may have signed the certificate.
    pub trust: Trust,
    /// Certificates that were taken back.
    pub crl: Option<DataSource>,
    /// The certificate must be for one of these.
    pub names: Vec<PeerName>,
    /// What endpoints that ask for a certificate are shown.
    pub identity: Option<Identity>,
    /// No older version is spoken.
    pub min_version: TlsVersion,
    /// The suites that are offered, most wanted first; of a version that none is for, all of its own.
    pub cipher_suites: Vec<CipherSuite>,
}

/// Who may have signed a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Trust {
    /// The CAs that the system trusts.
    System,
    /// These.
    Ca(DataSource),
    /// Those of a secret of this name, sent by the control plane.
    Secret(String),
}

/// A certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Identity {
    /// PEM.
    Pair {
        /// The chain, leaf first.
        certificate: DataSource,
        /// Its key.
        key: DataSource,
    },
    /// A secret of this name, sent by the control plane.
    Secret(String),
}

/// What a certificate may be for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum PeerName {
    /// This DNS name or address.
    Dns(String),
    /// This URI, such as a SPIFFE ID.
    Uri(String),
    /// A URI that begins so.
    UriPrefix(String),
}

/// Versions of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize)]
pub enum TlsVersion {
    /// 1.2 or later.
    #[default]
    Tls12,
    /// 1.3.
    Tls13,
}

impl Trust {
    /// Where its PEM is, if it has some.
    pub fn sources(&self) -> impl Iterator<Item = &DataSource> {
        match self {
            Self::Ca(source) => Some(source),
            Self::System | Self::Secret(_) => None,
        }
        .into_iter()
    }
}

impl Identity {
    /// Where its PEM is, if it has some.
    pub fn sources(&self) -> impl Iterator<Item = &DataSource> {
        match self {
            Self::Pair { certificate, key } => Some([certificate, key]),
            Self::Secret(_) => None,
        }
        .into_iter()
        .flatten()
    }
}

impl PeerName {
    /// From what a person writes: a URI, which may end with `*`, or a DNS name or address.
    ///
    /// # Errors
    /// What is allowed.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        const ALLOWED: &str = "a DNS name such as api.example.com, or a URI such as spiffe://example.org/ns/shop/*, \
                               with * at its end alone";
        let visible =
            !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.bytes().all(|b| b.is_ascii_graphic());
        let (body, prefix) = match text.strip_suffix('*') {
            Some(body) => (body, true),
            None => (text, false),
        };
        let is_uri =
            body.split_once("://").is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty());
        match (visible && !body.contains('*'), is_uri, prefix) {
            (false, _, _) | (_, false, true) => Err(ALLOWED),
            (true, true, true) => Ok(Self::UriPrefix(body.to_owned())),
            (true, true, false) => Ok(Self::Uri(text.to_owned())),
            (true, false, false) if is_dns_name(text) => Ok(Self::Dns(text.to_owned())),
            (true, false, false) => Err(ALLOWED),
        }
    }

    /// Whether a URI of a certificate is it.
    pub fn takes_uri(&self, uri: &str) -> bool {
        match self {
            Self::Dns(_) => false,
            Self::Uri(this) => this == uri,
            Self::UriPrefix(prefix) => uri.starts_with(prefix.as_str()),
        }
    }
}

impl std::fmt::Display for PeerName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dns(name) | Self::Uri(name) => f.write_str(name),
            Self::UriPrefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// A DNS name without wildcards, or an address.
pub fn is_dns_name(text: &str) -> bool {
    text.parse::<std::net::IpAddr>().is_ok()
        || (text.len() <= 253
            && text.trim_end_matches('.').split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            }))
}

const SOCKET: &str = "envoy.transport_sockets.tls";
const RAW: &str = "envoy.transport_sockets.raw_buffer";
const RAW_BUFFER_URL: &str = "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer";
const CONTEXT_URL: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext";
/// Where the system's CAs are under Debian and Alpine, and in Envoy's own images. Envoy does not do `system_root_certs`, and
/// refuses names that no CA stands behind.
const SYSTEM_CAS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Namespace in a cluster's metadata.
const NAMESPACE: &str = "weft.tls";

/// What a cluster says of TLS; `within` is the transport socket that it has in another one.
pub(super) fn decode(
    v: &Validator<'_>,
    p: &pb::Cluster,
    within: Option<&core::TransportSocket>,
) -> Result<Option<ClusterTls>, InvalidResource> {
    if let Some(ours) = p.metadata.as_ref().and_then(|m| m.filter_metadata.get(NAMESPACE)) {
        return mesh(v, ours).map(|names| Some(ClusterTls::Mesh(names)));
    }
    let own = match within {
        Some(within) => socket(v, "transport_socket.typed_config.transport_socket", within)?,
        None => match &p.transport_socket {
            Some(own) => socket(v, "transport_socket", own)?,
            None => None,
        },
    };
    let mut own = own.map(Box::new);
    if let (Some(own), Some(metadata)) = (&mut own, &p.metadata)
        && let Some(suites) = cipher::decode_metadata(v, &metadata.filter_metadata, own.min_version)?
    {
        own.cipher_suites = suites;
    }
    if p.transport_socket_matches.is_empty() {
        return Ok(own.map(ClusterTls::Originate));
    }
    if within.is_some() {
        let seen = "set beside a transport_socket with a PROXY protocol header";
        return Err(v.error("transport_socket_matches", seen, "unset"));
    }
    Ok(Some(ClusterTls::ByLabels { matches: matches::decode(v, p)?, otherwise: own }))
}

/// What cannot be honoured is refused rather than ignored: dropping TLS silently would send plaintext.
fn socket(
    v: &Validator<'_>,
    at: &str,
    socket: &core::TransportSocket,
) -> Result<Option<UpstreamTls>, InvalidResource> {
    let at = format!("{at}.typed_config");
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        return Err(v.error(at, "nothing", "an UpstreamTlsContext"));
    };
    match any.type_url.as_str() {
        RAW_BUFFER_URL => return Ok(None),
        CONTEXT_URL => {}
        other => {
            return Err(v.error(at, other, "an UpstreamTlsContext or RawBuffer"));
        }
    }
    let context = tls::UpstreamTlsContext::decode(any.value.as_slice())
        .map_err(|e| v.error(&at, format!("undecodable: {e}"), "an UpstreamTlsContext"))?;
    upstream(v, &at, context).map(Some)
}

fn upstream(v: &Validator<'_>, at: &str, p: tls::UpstreamTlsContext) -> Result<UpstreamTls, InvalidResource> {
    let at = |field: &str| format!("{at}.{field}");
    if p.allow_renegotiation {
        return Err(v.error(at("allow_renegotiation"), "true", "false"));
    }
    let server_name = (!p.sni.is_empty()).then_some(p.sni);
    if let Some(name) = server_name.as_ref().filter(|name| !is_dns_name(name)) {
        return Err(v.error(at("sni"), format!("{:?}", shortened(name)), "a DNS name"));
    }
    let common = p.common_tls_context.unwrap_or_default();
    let unsupported = [
        ("custom_handshaker", common.custom_handshaker.is_some()),
        ("custom_tls_certificate_selector", common.custom_tls_certificate_selector.is_some()),
        ("tls_certificate_provider_instance", common.tls_certificate_provider_instance.is_some()),
    ];
    if let Some((field, _)) = unsupported.into_iter().find(|(_, set)| *set) {
        return Err(v.error(at(&format!("common_tls_context.{field}")), "set", "unset"));
    }
    let identity = identity(v, &at("common_tls_context"), &common)?;
    let min_version = min_version(v, &at("common_tls_context.tls_params"), common.tls_params.as_ref())?;
    let suites = common.tls_params.as_ref().map_or(&[][..], |params| &params.cipher_suites);
    let cipher_suites = cipher::decode(v, &at("common_tls_context.tls_params.cipher_suites"), suites)?;
    let (trust, crl, names) =
        validation::decode(v, &at("common_tls_context"), common.validation_context_type)?;
    // A secret may bring names.
    if names.is_empty() && server_name.is_none() && !matches!(trust, Trust::Secret(_)) {
        let allowed = "an sni, or match_typed_subject_alt_names: the certificate has to be for some name";
        return Err(v.error(at("sni"), "nothing", allowed));
    }
    Ok(UpstreamTls { server_name, trust, crl, names, identity, min_version, cipher_suites })
}

fn identity(
    v: &Validator<'_>,
    at: &str,
    p: &tls::CommonTlsContext,
) -> Result<Option<Identity>, InvalidResource> {
    match (p.tls_certificates.as_slice(), p.tls_certificate_sds_secret_configs.as_slice()) {
        ([], []) => Ok(None),
        ([one], []) => pair(v, &format!("{at}.tls_certificates[0]"), one).map(Some),
        ([], [one]) => secret_name(v, &format!("{at}.tls_certificate_sds_secret_configs[0]"), one)
            .map(Identity::Secret)
            .map(Some),
        (all, secrets) => {
            let seen = format!("{} of them", all.len() + secrets.len());
            Err(v.error(format!("{at}.tls_certificates"), seen, "at most one certificate"))
        }
    }
}

/// A certificate with its key.
pub(super) fn pair(
    v: &Validator<'_>,
    at: &str,
    p: &tls::TlsCertificate,
) -> Result<Identity, InvalidResource> {
    if p.private_key_provider.is_some() || p.pkcs12.is_some() {
        return Err(v.error(at, "private_key_provider or pkcs12", "certificate_chain and private_key"));
    }
    Ok(Identity::Pair {
        certificate: source::decode(v, &format!("{at}.certificate_chain"), p.certificate_chain.as_ref())?,
        key: source::decode(v, &format!("{at}.private_key"), p.private_key.as_ref())?,
    })
}

fn secret_name(v: &Validator<'_>, at: &str, p: &tls::SdsSecretConfig) -> Result<String, InvalidResource> {
    use core::config_source::ConfigSourceSpecifier as Source;
    let other = match p.sds_config.as_ref().and_then(|c| c.config_source_specifier.as_ref()) {
        // Where nothing is said, it is the stream that the cluster came by.
        None | Some(Source::Ads(_) | Source::Self_(_)) => None,
        Some(Source::ApiConfigSource(_)) => Some("api_config_source"),
        Some(_) => Some("path_config_source"),
    };
    if let Some(seen) = other {
        return Err(v.error(format!("{at}.sds_config"), seen, "ads, self or nothing"));
    }
    Validator { kind: v.kind, name: &p.name }
        .name(&format!("{at}.name"))
        .map_err(|error| InvalidResource { name: v.name.to_owned(), ..error })
}

fn min_version(
    v: &Validator<'_>,
    at: &str,
    p: Option<&tls::TlsParameters>,
) -> Result<TlsVersion, InvalidResource> {
    use tls::tls_parameters::TlsProtocol as P;
    let Some(p) = p else { return Ok(TlsVersion::default()) };
    let fixed = [
        ("ecdh_curves", &p.ecdh_curves, "unset: X25519MLKEM768, X25519, P-256 and P-384 are spoken"),
        ("signature_algorithms", &p.signature_algorithms, "unset: ECDSA, Ed25519 and RSA with SHA-2 are"),
    ];
    for (field, texts, allowed) in fixed {
        if !texts.is_empty() {
            return Err(v.error(
                format!("{at}.{field}"),
                format!("{:?}", shortened(&texts.join(", "))),
                allowed,
            ));
        }
    }
    if !matches!(P::try_from(p.tls_maximum_protocol_version), Ok(P::TlsAuto | P::TlSv13)) {
        let seen = p.tls_maximum_protocol_version.to_string();
        return Err(v.error(format!("{at}.tls_maximum_protocol_version"), seen, "TLSv1_3 or TLS_AUTO"));
    }
    match P::try_from(p.tls_minimum_protocol_version) {
        Ok(P::TlSv13) => Ok(TlsVersion::Tls13),
        // Older ones are not spoken, so that a lower minimum is kept as well.
        Ok(_) => Ok(TlsVersion::Tls12),
        Err(_) => {
            let seen = p.tls_minimum_protocol_version.to_string();
            Err(v.error(format!("{at}.tls_minimum_protocol_version"), seen, "a TlsProtocol, 0 to 4"))
        }
    }
}

fn mesh(v: &Validator<'_>, ours: &Struct) -> Result<Vec<PeerName>, InvalidResource> {
    let at = format!("metadata[{NAMESPACE}].subject_alt_names");
    let Some(Kind::ListValue(list)) = ours.fields.get("subject_alt_names").and_then(|f| f.kind.as_ref())
    else {
        return Err(v.error(at, "no list", "a list of texts"));
    };
    if list.values.len() > NAMES_MAX {
        return Err(v.error(at, list.values.len().to_string(), format!("at most {NAMES_MAX}")));
    }
    let name = |value: &Value| match &value.kind {
        Some(Kind::StringValue(text)) => {
            PeerName::parse(text).map_err(|allowed| v.error(&at, format!("{:?}", shortened(text)), allowed))
        }
        _ => Err(v.error(&at, "no text", "texts")),
    };
    list.values.iter().map(name).collect()
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests;
