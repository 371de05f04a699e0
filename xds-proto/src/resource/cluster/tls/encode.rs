//! [`ClusterTls`] as Envoy has it: what servers tell those who ask over xDS.

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::google::protobuf::{ListValue, Struct, Value, value::Kind};
use envoy_types::util::pack_any;

use super::{
    ClusterTls, DataSource, Identity, NAMESPACE, PeerName, RAW, SOCKET, SYSTEM_CAS, TlsVersion, Trust,
    UpstreamTls, cipher, matches, source,
};
use crate::resource::cluster::Protocol;
use crate::resource::over_ads;

/// What goes into the metadata.
pub(in crate::resource::cluster) fn encode_metadata(tls: &ClusterTls) -> Option<(String, Struct)> {
    let names = match tls {
        ClusterTls::Mesh(names) => names,
        ClusterTls::Originate(tls) => return cipher::encode_metadata(&tls.cipher_suites),
        ClusterTls::ByLabels { .. } => return None,
    };
    let text = |name: &PeerName| Value { kind: Some(Kind::StringValue(name.to_string())) };
    let list = Value { kind: Some(Kind::ListValue(ListValue { values: names.iter().map(text).collect() })) };
    Some((NAMESPACE.to_owned(), Struct { fields: [("subject_alt_names".to_owned(), list)].into() }))
}

/// What goes into `transport_socket`.
pub(in crate::resource::cluster) fn encode(
    tls: &ClusterTls,
    protocol: Protocol,
) -> Option<core::TransportSocket> {
    let (ClusterTls::Originate(tls) | ClusterTls::ByLabels { otherwise: Some(tls), .. }) = tls else {
        return None;
    };
    Some(to_socket(Some(tls), protocol))
}

/// What goes into `transport_socket_matches`.
pub(in crate::resource::cluster) fn encode_matches(
    tls: Option<&ClusterTls>,
    protocol: Protocol,
) -> Vec<pb::cluster::TransportSocketMatch> {
    let Some(ClusterTls::ByLabels { matches, .. }) = tls else { return Vec::new() };
    matches.iter().map(|one| matches::encode(one, protocol)).collect()
}

pub(super) fn to_socket(tls: Option<&UpstreamTls>, protocol: Protocol) -> core::TransportSocket {
    use core::transport_socket::ConfigType::TypedConfig;
    let Some(tls) = tls else {
        let config_type = Some(TypedConfig(pack_any(RawBuffer::default())));
        return core::TransportSocket { name: RAW.to_owned(), config_type };
    };
    let context = tls::UpstreamTlsContext {
        sni: tls.server_name.clone().unwrap_or_default(),
        common_tls_context: Some(common(tls, protocol)),
        ..tls::UpstreamTlsContext::default()
    };
    core::TransportSocket { name: SOCKET.to_owned(), config_type: Some(TypedConfig(pack_any(context))) }
}

pub(super) fn common(t: &UpstreamTls, protocol: Protocol) -> tls::CommonTlsContext {
    use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
    use tls::tls_parameters::TlsProtocol;
    let context = tls::CertificateValidationContext {
        trusted_ca: match &t.trust {
            Trust::Ca(ca) => Some(source::encode(ca)),
            Trust::System => Some(source::encode(&DataSource::File(SYSTEM_CAS.into()))),
            Trust::Secret(_) => None,
        },
        system_root_certs: (t.trust == Trust::System)
            .then(tls::certificate_validation_context::SystemRootCerts::default),
        crl: t.crl.as_ref().map(source::encode),
        match_typed_subject_alt_names: wanted(t).iter().map(matcher).collect(),
        ..tls::CertificateValidationContext::default()
    };
    let secret = |name: &String| tls::SdsSecretConfig { name: name.clone(), sds_config: Some(over_ads()) };
    tls::CommonTlsContext {
        tls_params: Some(tls::TlsParameters {
            tls_minimum_protocol_version: match t.min_version {
                TlsVersion::Tls12 => TlsProtocol::TlSv12,
                TlsVersion::Tls13 => TlsProtocol::TlSv13,
            } as i32,
            tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
            cipher_suites: cipher::encode(&t.cipher_suites),
            ..tls::TlsParameters::default()
        }),
        alpn_protocols: vec![
            match protocol {
                Protocol::Http1 => "http/1.1",
                Protocol::Http2 => "h2",
            }
            .to_owned(),
        ],
        tls_certificates: match &t.identity {
            Some(Identity::Pair { certificate, key }) => vec![tls::TlsCertificate {
                certificate_chain: Some(source::encode(certificate)),
                private_key: Some(source::encode(key)),
                ..tls::TlsCertificate::default()
            }],
            _ => Vec::new(),
        },
        tls_certificate_sds_secret_configs: match &t.identity {
            Some(Identity::Secret(name)) => vec![secret(name)],
            _ => Vec::new(),
        },
        validation_context_type: Some(match &t.trust {
            Trust::Secret(name) => {
                ValidationContextType::CombinedValidationContext(CombinedCertificateValidationContext {
                    default_validation_context: Some(context),
                    validation_context_sds_secret_config: Some(secret(name)),
                    ..CombinedCertificateValidationContext::default()
                })
            }
            _ => ValidationContextType::ValidationContext(context),
        }),
        ..tls::CommonTlsContext::default()
    }
}

/// Envoy looks at no name by itself, so it is told the one that we would.
fn wanted(t: &UpstreamTls) -> Vec<PeerName> {
    match (&t.server_name, t.names.as_slice()) {
        (Some(name), []) => vec![PeerName::Dns(name.clone())],
        (_, names) => names.to_vec(),
    }
}

fn matcher(name: &PeerName) -> tls::SubjectAltNameMatcher {
    use tls::subject_alt_name_matcher::SanType;
    let (kind, pattern) = match name {
        PeerName::Dns(name) if name.parse::<std::net::IpAddr>().is_ok() => {
            (SanType::IpAddress, MatchPattern::Exact(name.clone()))
        }
        PeerName::Dns(name) => (SanType::Dns, MatchPattern::Exact(name.clone())),
        PeerName::Uri(uri) => (SanType::Uri, MatchPattern::Exact(uri.clone())),
        PeerName::UriPrefix(prefix) => (SanType::Uri, MatchPattern::Prefix(prefix.clone())),
    };
    tls::SubjectAltNameMatcher {
        san_type: kind as i32,
        matcher: Some(StringMatcher { match_pattern: Some(pattern), ignore_case: false }),
        ..tls::SubjectAltNameMatcher::default()
    }
}
