//! The PROXY protocol to endpoints: Envoy's `ProxyProtocolUpstreamTransport`, around the transport socket that they would else be
//! reached by.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::extensions::transport_sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::util::pack_any;
use prost::{Message, Name};
use serde::Serialize;

use super::{InvalidResource, Validator};

/// Which version of the PROXY protocol is written (HAProxy's `proxy-protocol.txt`, §2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

impl ProxyVersion {
    /// All of them, as people write them.
    pub const WORDS: &[&str] = &["v1", "v2"];
}

impl std::str::FromStr for ProxyVersion {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "v1" => Ok(Self::V1),
            "v2" => Ok(Self::V2),
            _ => Err("expected v1 or v2"),
        }
    }
}

const SOCKET: &str = "envoy.transport_sockets.upstream_proxy_protocol";
const AT: &str = "transport_socket.typed_config";

/// The version, if a cluster says one, with the socket within.
pub(super) fn decode(
    v: &Validator<'_>,
    socket: Option<&core::TransportSocket>,
) -> Result<Option<(ProxyVersion, core::TransportSocket)>, InvalidResource> {
    use core::proxy_protocol_config::Version;
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) =
        socket.and_then(|socket| socket.config_type.as_ref())
    else {
        return Ok(None);
    };
    if any.type_url != ProxyProtocolUpstreamTransport::type_url() {
        return Ok(None);
    }
    let p = ProxyProtocolUpstreamTransport::decode(any.value.as_slice())
        .map_err(|e| v.error(AT, format!("undecodable: {e}"), "a ProxyProtocolUpstreamTransport"))?;
    let config = p.config.unwrap_or_default();
    let unsupported = [
        ("config.pass_through_tlvs", config.pass_through_tlvs.is_some()),
        ("config.added_tlvs", !config.added_tlvs.is_empty()),
        ("allow_unspecified_address", p.allow_unspecified_address),
        ("tlv_as_pool_key", p.tlv_as_pool_key),
    ];
    if let Some((field, _)) = unsupported.into_iter().find(|(_, set)| *set) {
        return Err(v.error(format!("{AT}.{field}"), "set", "unset"));
    }
    let version = match Version::try_from(config.version) {
        Ok(Version::V1) => ProxyVersion::V1,
        Ok(Version::V2) => ProxyVersion::V2,
        Err(_) => {
            return Err(v.error(format!("{AT}.config.version"), config.version.to_string(), "V1 or V2"));
        }
    };
    let within = p.transport_socket.ok_or_else(|| {
        v.error(format!("{AT}.transport_socket"), "nothing", "the socket that it is put around")
    })?;
    Ok(Some((version, within)))
}

/// Around a socket, or around none in plaintext.
pub(super) fn encode(version: ProxyVersion, within: Option<core::TransportSocket>) -> core::TransportSocket {
    use core::proxy_protocol_config::Version;
    let version = match version {
        ProxyVersion::V1 => Version::V1,
        ProxyVersion::V2 => Version::V2,
    };
    let plain = || typed("envoy.transport_sockets.raw_buffer", pack_any(RawBuffer::default()));
    let transport = ProxyProtocolUpstreamTransport {
        config: Some(core::ProxyProtocolConfig {
            version: version as i32,
            ..core::ProxyProtocolConfig::default()
        }),
        transport_socket: Some(within.unwrap_or_else(plain)),
        ..ProxyProtocolUpstreamTransport::default()
    };
    typed(SOCKET, pack_any(transport))
}

fn typed(name: &str, config: envoy_types::pb::google::protobuf::Any) -> core::TransportSocket {
    core::TransportSocket {
        name: name.to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(config)),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::cluster::v3 as pb;

    use super::*;
    use crate::resource::cluster::tls::{ClusterTls, PeerName, TlsVersion, Trust, UpstreamTls};
    use crate::resource::cluster::{Cluster, Protocol};

    fn cluster(send_proxy: Option<ProxyVersion>, tls: Option<ClusterTls>) -> Cluster {
        Cluster { send_proxy, tls, protocol: Protocol::Http2, ..Cluster::with_defaults("orders") }
    }

    fn tls() -> ClusterTls {
        ClusterTls::Originate(Box::new(UpstreamTls {
            server_name: Some("api.example".into()),
            trust: Trust::System,
            crl: None,
            names: vec![PeerName::Dns("api.example".into())],
            identity: None,
            min_version: TlsVersion::Tls13,
            cipher_suites: Vec::new(),
        }))
    }

    #[test]
    fn it_is_around_plaintext_and_around_tls_alike() {
        for version in [ProxyVersion::V1, ProxyVersion::V2] {
            for tls in [None, Some(tls()), Some(ClusterTls::Mesh(vec![]))] {
                let one = cluster(Some(version), tls);
                let sent = pb::Cluster::from(&one);
                assert_eq!(sent.transport_socket.as_ref().unwrap().name, SOCKET);
                assert_eq!(Cluster::try_from(sent), Ok(one));
            }
        }
    }

    fn refused(change: impl FnOnce(&mut ProxyProtocolUpstreamTransport)) -> InvalidResource {
        let mut sent = pb::Cluster::from(&cluster(Some(ProxyVersion::V2), Some(tls())));
        let Some(core::transport_socket::ConfigType::TypedConfig(any)) =
            sent.transport_socket.unwrap().config_type
        else {
            panic!("no config")
        };
        let mut transport = ProxyProtocolUpstreamTransport::decode(any.value.as_slice()).unwrap();
        change(&mut transport);
        sent.transport_socket = Some(typed(SOCKET, pack_any(transport)));
        Cluster::try_from(sent).unwrap_err()
    }

    /// What endpoints would not be told has to be known to whoever asked for it.
    #[test]
    fn what_is_not_done_is_refused_by_its_field() {
        let config = |p: &mut ProxyProtocolUpstreamTransport| p.config.clone().unwrap_or_default();
        let version = refused(|p| {
            p.config = Some(core::ProxyProtocolConfig { version: 7, ..config(p) });
        });
        assert_eq!(
            (version.field.as_str(), version.seen.as_str()),
            ("transport_socket.typed_config.config.version", "7")
        );
        let passed = refused(|p| {
            let pass_through_tlvs = Some(core::ProxyProtocolPassThroughTlVs::default());
            p.config = Some(core::ProxyProtocolConfig { pass_through_tlvs, ..config(p) });
        });
        assert!(passed.field.ends_with("config.pass_through_tlvs"), "{passed}");
        let added = refused(|p| {
            let added_tlvs = vec![core::TlvEntry::default()];
            p.config = Some(core::ProxyProtocolConfig { added_tlvs, ..config(p) });
        });
        assert!(added.field.ends_with("config.added_tlvs"), "{added}");
        for (field, error) in [
            ("allow_unspecified_address", refused(|p| p.allow_unspecified_address = true)),
            ("tlv_as_pool_key", refused(|p| p.tlv_as_pool_key = true)),
            ("typed_config.transport_socket", refused(|p| p.transport_socket = None)),
        ] {
            assert!(error.field.ends_with(field), "{error}");
        }
        // One around another would be two heads.
        let twice = refused(|p| p.transport_socket = Some(encode(ProxyVersion::V1, None)));
        assert_eq!(twice.field, "transport_socket.typed_config.transport_socket.typed_config");
        let bad = refused(|p| {
            p.transport_socket = Some(typed("x", envoy_types::pb::google::protobuf::Any::default()));
        });
        assert_eq!(bad.allowed, "an UpstreamTlsContext or RawBuffer");
    }

    /// As real control planes send it: version 1 is nothing on the wire.
    #[test]
    fn without_a_config_it_is_version_1() {
        let mut sent = pb::Cluster::from(&cluster(None, None));
        let within = typed("envoy.transport_sockets.raw_buffer", pack_any(RawBuffer::default()));
        let transport =
            ProxyProtocolUpstreamTransport { transport_socket: Some(within), ..Default::default() };
        sent.transport_socket = Some(typed("any name", pack_any(transport)));
        assert_eq!(Cluster::try_from(sent).unwrap().send_proxy, Some(ProxyVersion::V1));
    }
}
