//! Whoever is the control plane: a resource is taken or refused, whatever was sent, and what is taken is told on as it came.
//! Known inputs are in `tests/corpus`; those of messages are their encodings.

use std::collections::BTreeMap;
use std::fmt::Debug;

use envoy_types::pb::envoy::config::cluster::v3 as cluster_pb;
use envoy_types::pb::envoy::config::core::v3::transport_socket::ConfigType;
use envoy_types::pb::envoy::config::route::v3 as route_pb;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls_pb;
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use envoy_types::util::pack_any;
use prost::Message;
use weft_corpus::{feed, feed_text};

use crate::resource::cluster::tls::{
    CipherSuite, ClusterTls, DataSource, PeerName, Secret, TlsVersion, Trust, UpstreamTls,
};
use crate::resource::cluster::{Cluster, LbPolicy};
use crate::resource::guard::JwksUri;
use crate::resource::route::{RouteConfiguration, pattern};
use crate::resource::subset::Subset;

macro_rules! corpus {
    ($parser:literal) => {
        concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/", $parser)
    };
}

/// Whether bytes are a resource. One that is taken is the same when it was sent on.
fn is_resource<Proto, Resource>(bytes: &[u8]) -> bool
where
    Proto: Message + Default + for<'a> From<&'a Resource>,
    Resource: TryFrom<Proto> + PartialEq + Debug,
    Resource::Error: Debug,
{
    let Ok(proto) = Proto::decode(bytes) else { return false };
    let Ok(resource) = Resource::try_from(proto) else { return false };
    let sent = Proto::from(&resource).encode_to_vec();
    assert_eq!(Resource::try_from(Proto::decode(sent.as_slice()).unwrap()).unwrap(), resource);
    true
}

#[test]
fn a_cluster_is_sent_on_as_it_came() {
    feed(
        corpus!("cluster"),
        "\n[\u{1}-\u{9}][a-z]{1,9}[\0-\u{7f}]{0,60}",
        is_resource::<cluster_pb::Cluster, Cluster>,
    );
}

#[test]
fn routes_are_sent_on_as_they_came() {
    feed(
        corpus!("routes"),
        "\n[\u{1}-\u{9}][a-z]{1,9}\u{12}[\0-\u{3f}][\0-\u{7f}]{0,60}",
        is_resource::<route_pb::RouteConfiguration, RouteConfiguration>,
    );
}

#[test]
fn a_secret_has_one_kind_of_material_and_does_not_show_it() {
    feed(corpus!("secret"), "\n[\u{1}-\u{9}][a-z]{1,9}[\u{12}\"][\0-\u{3f}][\0-\u{7f}]{0,60}", |bytes| {
        let Ok(proto) = tls_pb::Secret::decode(bytes) else { return false };
        let Ok(secret) = Secret::try_from(proto) else { return false };
        for source in secret.sources() {
            let shown = format!("{source:?}");
            assert!(matches!(source, DataSource::File(_)) || shown.ends_with(" bytes inline"), "{shown}");
        }
        true
    });
}

/// The text in a cluster's metadata.
#[test]
fn a_guard_is_taken_whole_or_not_at_all() {
    let near = r#"\{("(tokens|policies)":\[(\{"(name|action|audit|rules|issuer)":("[a-zA-Z]{0,6}"|true|\[\])\},?){0,2}\],?){0,2}\}"#;
    feed_text(corpus!("guard"), near, |text| {
        let mut proto = cluster_pb::Cluster::from(&Cluster::with_defaults("orders"));
        let value = Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let guard = Struct { fields: [("json".to_owned(), value)].into() };
        proto.metadata.get_or_insert_default().filter_metadata.insert("weft.guard".to_owned(), guard);
        let bytes = proto.encode_to_vec();
        let taken = is_resource::<cluster_pb::Cluster, Cluster>(&bytes);
        assert!(!taken || Cluster::try_from(proto).unwrap().guard.is_some());
        taken
    });
}

#[test]
fn a_place_of_keys_is_read_as_it_is_written() {
    feed_text(corpus!("jwks_uri"), "https?://[a-z0-9.:@-]{0,20}(/[a-z?#=%. ]{0,12})?", |text| {
        let Ok(uri) = JwksUri::parse(text) else { return false };
        assert_eq!(uri.to_string(), text);
        assert!(!uri.service.contains(['/', '@', ':']));
        true
    });
}

/// As a range of versions, or the label itself. Taken is a range.
#[test]
fn a_subset_is_made_of_its_texts() {
    feed_text(
        corpus!("version_range"),
        "([=<>~^]{0,2} ?[0-9*]{1,3}(\\.[0-9*x]{1,3}){0,3}(-[a-z0-9.]{0,5})?,? ?){0,3}",
        |text| {
            let labels = |version: &str| BTreeMap::from([("version".to_owned(), version.to_owned())]);
            let from_one = Subset::new([("version", ">=1")]).unwrap();
            let label = text.trim_start_matches(['=', '<', '>', '~', '^', ' ']);
            assert!(!from_one.contains(&labels(label)) || label.contains(|c: char| ('1'..='9').contains(&c)));
            let Ok(subset) = Subset::new([("version", text)]) else { return false };
            let texts: Vec<_> = subset.texts().collect();
            let again = Subset::new(texts.iter().map(|(key, text, _)| (*key, *text)));
            assert_eq!(again.as_ref(), Ok(&subset));
            assert_eq!(subset.to_string(), format!("version={text}"));
            let [(_, _, range)] = texts[..] else { panic!("one label") };
            for version in [text, "1.4.0", "v2", "18446744073709551615.0"] {
                let has = subset.contains(&labels(version));
                assert!(range || has == (version == text), "{version}");
            }
            range
        },
    );
}

/// As people write them, with `:` between, and as Envoy does, with `[A|B]` for those of equal rank. Taken is a list that
/// people may write.
#[test]
fn cipher_suites_are_a_list_without_repetition() {
    let tls = UpstreamTls {
        server_name: Some("api.example".to_owned()),
        trust: Trust::System,
        crl: None,
        names: Vec::new(),
        identity: None,
        min_version: TlsVersion::Tls12,
        cipher_suites: Vec::new(),
    };
    let tls = Some(ClusterTls::Originate(Box::new(tls)));
    let proto = cluster_pb::Cluster::from(&Cluster { tls, ..Cluster::with_defaults("orders") });
    let by_envoy = |text: &str| {
        let mut proto = proto.clone();
        let Some(ConfigType::TypedConfig(any)) = &mut proto.transport_socket.as_mut().unwrap().config_type
        else {
            panic!("TLS has a socket")
        };
        let mut context = tls_pb::UpstreamTlsContext::decode(any.value.as_slice()).unwrap();
        let params = context.common_tls_context.as_mut().unwrap().tls_params.as_mut().unwrap();
        params.cipher_suites = text.split(':').map(str::to_owned).collect();
        *any = pack_any(context);
        Cluster::try_from(proto)
    };
    let near = "\\[?((TLS_|ECDHE-)?(ECDSA|RSA|AES)[-_](AES128|AES256|CHACHA20)[-_](GCM|POLY1305)[-_](SHA256|SHA384)[:|]?){0,3}\\]?";
    feed_text(corpus!("cipher_suites"), near, |text| {
        let lists = |all: &[CipherSuite]| {
            let names: Vec<_> = all.iter().map(|suite| suite.name()).collect();
            assert_eq!(CipherSuite::parse_all(names, TlsVersion::Tls12).as_deref(), Ok(all));
        };
        if let Ok(Cluster { tls: Some(ClusterTls::Originate(tls)), .. }) = by_envoy(text) {
            lists(&tls.cipher_suites);
        }
        let Ok(all) = CipherSuite::parse_all(text.split(':'), TlsVersion::Tls12) else { return false };
        lists(&all);
        let newer = CipherSuite::parse_all(text.split(':'), TlsVersion::Tls13);
        assert_eq!(newer.is_ok(), all.iter().all(|suite| suite.version() == TlsVersion::Tls13));
        true
    });
}

#[test]
fn a_name_of_a_peer_is_read_as_it_is_written() {
    feed_text(corpus!("peer_name"), "([a-z]{0,6}://)?[a-zA-Z0-9.:_/-]{0,20}\\*?", |text| {
        let Ok(name) = PeerName::parse(text) else { return false };
        assert_eq!(name.to_string(), text);
        assert_eq!(PeerName::parse(&name.to_string()), Ok(name.clone()));
        assert_eq!(name.takes_uri(text), text.contains("://"));
        true
    });
}

/// Two lines: a pattern, and what is put in place of what it matches.
#[test]
fn a_pattern_costs_little_and_a_substitution_names_its_groups() {
    feed_text(corpus!("pattern"), "[a-c/().*+?|\\\\\\[\\]{}0-9^$-]{0,20}(\n[a-z$\\\\0-9{}]{0,8})?", |text| {
        let (text, by) = text.split_once('\n').unwrap_or((text, ""));
        let Ok(whole) = pattern::whole(text) else { return false };
        if let Some(found) = whole.find("/abc/a") {
            assert_eq!(found.range(), 0..6);
        }
        let part = pattern::part(text).unwrap();
        let Ok(by) = pattern::substitution(by, &part) else { return false };
        part.replace_all("/abc/a", by.as_str());
        true
    });
}

#[test]
fn a_balancing_policy_is_read_as_it_is_written() {
    feed_text(
        corpus!("lb_policy"),
        "(round-robin|ring-hash|maglev)(:(header|cookie|source)=?[a-zA-Z0-9_ =:-]{0,8})?",
        |text| {
            let Ok(policy) = text.parse::<LbPolicy>() else { return false };
            assert_eq!(policy.to_string().parse::<LbPolicy>(), Ok(policy.clone()));
            assert!(policy.to_string().eq_ignore_ascii_case(text));
            true
        },
    );
}
