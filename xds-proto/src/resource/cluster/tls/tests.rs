use envoy_types::pb::google::protobuf::ListValue;
use envoy_types::util::pack_any;

use super::encode::common;
use super::*;
use crate::resource::cluster::{Cluster, Protocol};

fn full() -> UpstreamTls {
    UpstreamTls {
        server_name: Some("api.example.com".into()),
        trust: Trust::Ca(DataSource::File("/etc/ca.pem".into())),
        crl: Some(DataSource::Inline(b"crl".to_vec())),
        names: vec![
            PeerName::Dns("10.0.0.1".into()),
            PeerName::Uri("spiffe://example.org/a".into()),
            PeerName::UriPrefix("spiffe://example.org/ns/".into()),
        ],
        identity: Some(Identity::Pair {
            certificate: DataSource::File("/etc/cert.pem".into()),
            key: DataSource::Inline(b"secret".to_vec()),
        }),
        min_version: TlsVersion::Tls13,
        cipher_suites: Vec::new(),
    }
}

fn with(tls: ClusterTls) -> pb::Cluster {
    pb::Cluster::from(&Cluster { tls: Some(tls), ..Cluster::with_defaults("orders") })
}

fn there_and_back(tls: ClusterTls) -> Option<ClusterTls> {
    Cluster::try_from(with(tls)).unwrap().tls
}

#[test]
fn tls_comes_back_as_it_was_sent() {
    let secrets = UpstreamTls {
        trust: Trust::Secret("ROOTCA".into()),
        identity: Some(Identity::Secret("default".into())),
        crl: None,
        ..full()
    };
    let system = UpstreamTls { trust: Trust::System, identity: None, ..full() };
    for tls in [full(), secrets, system] {
        let tls = ClusterTls::Originate(Box::new(tls));
        assert_eq!(there_and_back(tls.clone()), Some(tls));
    }
    let mesh = ClusterTls::Mesh(vec![PeerName::UriPrefix("spiffe://example.org/".into())]);
    assert_eq!(there_and_back(mesh.clone()), Some(mesh));
}

#[test]
fn suites_come_back_in_their_order_and_envoy_is_told_of_those_of_tls_1_2() {
    let suites =
        |names: &[&str]| names.iter().map(|name| CipherSuite::parse(name).unwrap()).collect::<Vec<_>>();
    let old = ["ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES256-GCM-SHA384"];
    for names in [&old[..], &["TLS_AES_256_GCM_SHA384", old[0]]] {
        let tls = UpstreamTls { min_version: TlsVersion::Tls12, cipher_suites: suites(names), ..full() };
        let told = common(&tls, Protocol::Http1).tls_params.unwrap().cipher_suites;
        assert!(told.iter().all(|name| old.contains(&name.as_str())), "{told:?}");
        let tls = ClusterTls::Originate(Box::new(tls));
        assert_eq!(there_and_back(tls.clone()), Some(tls));
    }
}

#[test]
fn of_the_suites_that_others_name_those_count_that_are_spoken_and_none_is_refused() {
    let decoded = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        cipher::decode(&Validator { kind: "Cluster", name: "orders" }, "at", &names)
    };
    let groups =
        decoded(&["[ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]", "AES128-SHA"]).unwrap();
    let names: Vec<_> = groups.iter().map(|suite| suite.name()).collect();
    assert_eq!(
        names,
        ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"]
    );
    assert_eq!(decoded(&[]).unwrap(), []);
    let error = decoded(&["AES128-SHA"]).unwrap_err();
    assert!(error.allowed.contains("ECDHE-RSA-AES128-GCM-SHA256"), "{error}");
}

fn by_labels() -> ClusterTls {
    let one = |name: &str, key: &str, tls: Option<UpstreamTls>| SocketMatch {
        name: name.to_owned(),
        labels: [(crate::resource::labels::socket_match(key), "istio".to_owned())].into(),
        tls,
    };
    let matches = vec![one("sidecars", "tlsMode", Some(full())), one("others", "plain", None)];
    ClusterTls::ByLabels { matches, otherwise: Some(Box::new(full())) }
}

#[test]
fn sockets_by_labels_of_endpoints_come_back_as_they_were_sent() {
    assert_eq!(there_and_back(by_labels()), Some(by_labels()));
    assert_eq!(by_labels().contexts().count(), 2);
}

#[test]
fn what_is_no_socket_or_no_label_is_refused_by_its_place() {
    let changed = |change: fn(&mut pb::cluster::TransportSocketMatch)| {
        let mut wire = with(by_labels());
        change(&mut wire.transport_socket_matches[1]);
        let error = Cluster::try_from(wire).unwrap_err();
        (error.field, error.seen)
    };
    let (at, seen) = changed(|one| {
        let labels = &mut one.r#match.as_mut().unwrap().fields;
        labels.insert("zones".to_owned(), Value { kind: Some(Kind::ListValue(ListValue::default())) });
    });
    assert_eq!((at.as_str(), seen.as_str()), ("transport_socket_matches[1].match.zones", "another value"));
    let (at, seen) = changed(|one| {
        let any = envoy_types::pb::google::protobuf::Any {
            type_url: "type.example/Alts".to_owned(),
            ..Default::default()
        };
        let config = core::transport_socket::ConfigType::TypedConfig(any);
        one.transport_socket.as_mut().unwrap().config_type = Some(config);
    });
    assert_eq!(at, "transport_socket_matches[1].transport_socket.typed_config");
    assert_eq!(seen, "type.example/Alts");
    let mut wire = with(by_labels());
    wire.transport_socket_matches = vec![Default::default(); 65];
    assert_eq!(Cluster::try_from(wire).unwrap_err().seen, "65");
}

/// Envoy looks at no name that it is not told.
#[test]
fn without_other_names_envoy_is_told_the_server_name() {
    let tls = UpstreamTls { names: Vec::new(), ..full() };
    let Some(ClusterTls::Originate(back)) = there_and_back(ClusterTls::Originate(Box::new(tls))) else {
        panic!("no TLS");
    };
    assert_eq!(back.names, [PeerName::Dns("api.example.com".into())]);
}

fn refused(change: impl FnOnce(&mut tls::UpstreamTlsContext)) -> InvalidResource {
    decoded(change).unwrap_err()
}

fn decoded(change: impl FnOnce(&mut tls::UpstreamTlsContext)) -> Result<Cluster, InvalidResource> {
    let mut context = tls::UpstreamTlsContext {
        sni: "a".into(),
        common_tls_context: Some(common(&full(), Protocol::Http1)),
        ..Default::default()
    };
    change(&mut context);
    let mut cluster = with(ClusterTls::Originate(Box::new(full())));
    cluster.transport_socket = Some(core::TransportSocket {
        name: SOCKET.into(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pack_any(context))),
    });
    Cluster::try_from(cluster)
}

/// A certificate that anybody may have, or that is for anything, protects nobody.
#[test]
fn tls_that_verifies_nothing_is_refused() {
    let without = refused(|c| c.common_tls_context = None);
    assert!(without.field.ends_with("validation_context_type"), "{without}");
    let nameless = refused(|c| {
        c.sni.clear();
        let context = c.common_tls_context.as_mut().unwrap();
        let tls = UpstreamTls { names: vec![], server_name: None, ..full() };
        *context = common(&tls, Protocol::Http1);
    });
    assert!(nameless.field.ends_with(".sni"), "{nameless}");
    let no_ca = refused(|c| {
        let context = c.common_tls_context.as_mut().unwrap();
        context.validation_context_type =
            Some(tls::common_tls_context::ValidationContextType::ValidationContext(Default::default()));
    });
    assert!(no_ca.field.ends_with("trusted_ca"), "{no_ca}");
    let expired = refused(|c| {
        let Some(tls::common_tls_context::ValidationContextType::ValidationContext(context)) =
            &mut c.common_tls_context.as_mut().unwrap().validation_context_type
        else {
            panic!("another context");
        };
        context.allow_expired_certificate = true;
    });
    assert!(expired.field.ends_with("allow_expired_certificate"), "{expired}");
}

#[test]
fn what_cannot_be_done_is_refused_by_its_field() {
    let relative = refused(|c| {
        let pair = &mut c.common_tls_context.as_mut().unwrap().tls_certificates[0];
        pair.certificate_chain = Some(core::DataSource {
            specifier: Some(core::data_source::Specifier::Filename("cert.pem".into())),
            ..Default::default()
        });
    });
    assert_eq!((relative.seen.as_str(), relative.allowed.as_str()), ("\"cert.pem\"", "an absolute path"));
    let two = refused(|c| {
        let all = &mut c.common_tls_context.as_mut().unwrap().tls_certificates;
        all.push(all[0].clone());
    });
    assert_eq!(two.seen, "2 of them");
    let old = refused(|c| {
        let params = c.common_tls_context.as_mut().unwrap().tls_params.as_mut().unwrap();
        params.tls_maximum_protocol_version = tls::tls_parameters::TlsProtocol::TlSv12 as i32;
    });
    assert!(old.field.ends_with("tls_maximum_protocol_version"), "{old}");
    let curves = refused(|c| {
        let params = c.common_tls_context.as_mut().unwrap().tls_params.as_mut().unwrap();
        params.ecdh_curves = vec!["P-521".into()];
    });
    assert!(curves.field.ends_with("tls_params.ecdh_curves") && curves.seen.contains("P-521"), "{curves}");
    assert!(refused(|c| c.allow_renegotiation = true).field.ends_with("allow_renegotiation"));
    assert!(refused(|c| c.sni = "*.a".into()).field.ends_with(".sni"));
}

#[test]
fn names_are_dns_names_addresses_and_uris_with_a_star_at_the_end() {
    for (text, expected) in [
        ("api.example.com", PeerName::Dns("api.example.com".into())),
        ("10.0.0.1", PeerName::Dns("10.0.0.1".into())),
        ("::1", PeerName::Dns("::1".into())),
        ("spiffe://a/b", PeerName::Uri("spiffe://a/b".into())),
        ("spiffe://a/ns/*", PeerName::UriPrefix("spiffe://a/ns/".into())),
    ] {
        assert_eq!(PeerName::parse(text), Ok(expected.clone()), "{text}");
        assert_eq!(expected.to_string(), text);
    }
    for text in
        ["", "*", "*.example.com", "a b", "spiffe://*/a", "spiffe://", "://a", "a..b", "spiffe://a/*/b"]
    {
        assert!(PeerName::parse(text).is_err(), "{text}");
    }
}

/// What is dumped on the admin port and logged.
#[test]
fn keys_are_never_shown() {
    let tls = ClusterTls::Originate(Box::new(full()));
    let (debug, json) = (format!("{tls:?}"), serde_json::to_string(&tls).unwrap());
    for shown in [&debug, &json] {
        assert!(!shown.contains("secret") && !shown.contains("115, 101"), "{shown}");
        assert!(shown.contains("6 bytes inline"), "{shown}");
    }
}

#[test]
fn a_secret_is_a_certificate_or_a_trust() {
    let context = common(&full(), Protocol::Http1);
    let pair = tls::Secret {
        name: "default".into(),
        r#type: Some(tls::secret::Type::TlsCertificate(context.tls_certificates[0].clone())),
    };
    let secret = Secret::try_from(pair).unwrap();
    assert_eq!(secret.material, SecretMaterial::Identity(full().identity.unwrap()));
    let Some(tls::common_tls_context::ValidationContextType::ValidationContext(validation)) =
        context.validation_context_type
    else {
        panic!("another context");
    };
    let trust =
        tls::Secret { name: "ROOTCA".into(), r#type: Some(tls::secret::Type::ValidationContext(validation)) };
    let UpstreamTls { trust: ca, crl, names, .. } = full();
    assert_eq!(
        Secret::try_from(trust).unwrap().material,
        SecretMaterial::Validation { trust: ca, crl, names }
    );
    for (r#type, seen) in [
        (None, "nothing"),
        (Some(tls::secret::Type::SessionTicketKeys(Default::default())), "session_ticket_keys"),
        (Some(tls::secret::Type::GenericSecret(Default::default())), "generic_secret"),
    ] {
        let why = Secret::try_from(tls::Secret { name: "x".into(), r#type }).unwrap_err();
        assert_eq!((why.field.as_str(), why.seen.as_str()), ("type", seen));
    }
}

/// What stands beside a secret's name holds as well.
#[test]
fn a_secret_by_name_comes_over_ads_and_what_stands_beside_it_is_checked() {
    use self::core::config_source::ConfigSourceSpecifier as Source;
    use tls::common_tls_context::ValidationContextType as T;
    let by_name = UpstreamTls { trust: Trust::Secret("ROOTCA".into()), ..full() };
    let context = |change: &dyn Fn(&mut tls::common_tls_context::CombinedCertificateValidationContext)| {
        let mut common = common(&by_name, Protocol::Http1);
        let Some(T::CombinedValidationContext(both)) = &mut common.validation_context_type else {
            panic!("another context");
        };
        change(both);
        common
    };
    let tls = ClusterTls::Originate(Box::new(by_name.clone()));
    assert_eq!(there_and_back(tls.clone()), Some(tls), "with its list of what was taken back");
    for (source, seen) in [
        (Some(Source::PathConfigSource(Default::default())), Some("path_config_source")),
        (Some(Source::ApiConfigSource(Default::default())), Some("api_config_source")),
        (Some(Source::Self_(Default::default())), None),
        (None, None),
    ] {
        let common = context(&|both| {
            let secret = both.validation_context_sds_secret_config.as_mut().unwrap();
            secret.sds_config = source.clone().map(|source| core::ConfigSource {
                config_source_specifier: Some(source),
                ..Default::default()
            });
        });
        let decoded = decoded(|c| c.common_tls_context = Some(common));
        match (seen, decoded) {
            (None, Ok(_)) => {}
            (Some(seen), Err(why)) => {
                assert!(why.field.ends_with("sds_config") && why.seen == seen, "{why}");
            }
            (seen, other) => panic!("{seen:?}: {other:?}"),
        }
    }
    let expired = context(&|both| {
        both.default_validation_context.as_mut().unwrap().allow_expired_certificate = true;
    });
    let expired = refused(|c| c.common_tls_context = Some(expired));
    assert!(expired.field.ends_with("default_validation_context.allow_expired_certificate"), "{expired}");
}
