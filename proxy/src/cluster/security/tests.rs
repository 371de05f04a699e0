use weft_xds_proto::resource::cluster::Cluster;

use super::*;
use crate::config::static_config::static_endpoint;
use crate::tls::mesh::MeshFiles;

const OWN: &str = "spiffe://mesh.example/web";

fn proxy_tls(mode: MeshMode) -> (ProxyTls, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(OWN.try_into().unwrap()));
    let key = rcgen::KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    let (cert_file, key_file) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert_file, cert.pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let certificates = Arc::new(Certificates::default());
    let files = MeshFiles { ca: cert_file.clone(), cert: cert_file, key: key_file, crl: None, mode };
    let mesh = MeshTls::load(&files, &certificates).unwrap();
    (ProxyTls { certificates, mesh: Some(Arc::new(mesh)), ..ProxyTls::default() }, dir)
}

fn endpoint(port: u16, source: EndpointSource, id: Option<&str>) -> Endpoint {
    let mut endpoint = static_endpoint(SocketAddr::from(([127, 0, 0, 1], port)), 1);
    endpoint.source = source;
    endpoint.metadata.extend(id.map(|id| (SPIFFE_LABEL.to_owned(), id.to_owned())));
    endpoint
}

fn config(tls: Option<ClusterTls>, endpoints: Vec<Endpoint>) -> ClusterConfig {
    let cluster = Cluster { tls, ..Cluster::with_defaults("orders") };
    ClusterConfig { cluster, endpoints, version: String::new() }
}

/// `peer`, `plain` or what is wrong.
fn hops(tls: &ProxyTls, config: &ClusterConfig) -> Vec<String> {
    let security = tls.security(config, None);
    let hop = |e: &Endpoint| match security.place(e.address) {
        Ok(place) => if place.secure.is_some() { "peer" } else { "plain" }.to_owned(),
        Err(why) => why,
    };
    config.endpoints.iter().map(hop).collect()
}

const PEER: &str = "spiffe://mesh.example/orders";
const STRANGER: &str = "spiffe://other.example/orders";

#[test]
fn instances_that_are_advertised_with_an_id_of_the_trust_domain_are_peers() {
    let (tls, _dir) = proxy_tls(MeshMode::Permissive);
    let gossip = EndpointSource::Gossip;
    let all =
        vec![endpoint(1, gossip, Some(PEER)), endpoint(2, gossip, None), endpoint(3, gossip, Some(STRANGER))];
    let config = config(None, all);
    assert_eq!(hops(&tls, &config), ["peer", "plain", "plain"]);
    assert!(!tls.security(&config, None).is_all_peers());
    let peers = self::config(None, vec![endpoint(1, gossip, Some(PEER))]);
    assert!(tls.security(&peers, None).is_all_peers());
    let none = ProxyTls::default();
    assert_eq!(hops(&none, &peers), ["plain"], "without an identity of its own");
}

/// A record that says nothing of TLS, or that somebody has changed so, must not make it plaintext.
#[test]
fn strict_sends_no_plaintext_to_what_it_was_told_of() {
    let (tls, _dir) = proxy_tls(MeshMode::Strict);
    let all = vec![
        endpoint(1, EndpointSource::Gossip, None),
        endpoint(2, EndpointSource::Registry, None),
        endpoint(3, EndpointSource::Gossip, Some(STRANGER)),
        endpoint(4, EndpointSource::Static, None),
        endpoint(5, EndpointSource::Gossip, Some("nonsense")),
    ];
    let hops = hops(&tls, &config(None, all));
    assert!(hops[0].contains("plaintext alone") && hops[1].contains("plaintext alone"), "{hops:?}");
    assert!(hops[2].contains("not of the trust domain mesh.example"), "{hops:?}");
    assert_eq!(hops[3], "plain", "an operator has written it down");
    assert!(hops[4].contains("no SPIFFE ID"), "{hops:?}");
}

#[test]
fn a_service_that_wants_sidecars_identities_gets_them_or_nothing() {
    let wanted = || Some(ClusterTls::Mesh(vec![PeerName::Uri(PEER.into())]));
    let config = config(wanted(), vec![endpoint(1, EndpointSource::Static, None)]);
    let (tls, _dir) = proxy_tls(MeshMode::Permissive);
    assert_eq!(hops(&tls, &config), ["peer"]);
    assert!(hops(&ProxyTls::default(), &config)[0].contains("this one has no certificate"));
}

/// The first entry that is for an endpoint decides, and one that stays the same keeps its connections.
#[test]
fn labels_of_an_endpoint_choose_how_it_is_spoken_to() {
    use weft_xds_proto::resource::cluster::tls::SocketMatch;
    use weft_xds_proto::resource::labels;
    let entry = |mode: Option<&str>, tls: Option<UpstreamTls>| SocketMatch {
        name: "m".to_owned(),
        labels: mode.map(|mode| (labels::socket_match("tlsMode"), mode.to_owned())).into_iter().collect(),
        tls,
    };
    let by_labels = |matches, otherwise: Option<UpstreamTls>| {
        let modes = [(1, Some("istio")), (2, Some("off")), (3, None)].map(|(port, mode)| {
            let mut endpoint = endpoint(port, EndpointSource::Registry, None);
            endpoint.metadata.extend(mode.map(|mode| (labels::socket_match("tlsMode"), mode.to_owned())));
            endpoint
        });
        config(Some(ClusterTls::ByLabels { matches, otherwise: otherwise.map(Box::new) }), modes.into())
    };
    let over_tls = |name: &str| UpstreamTls {
        server_name: Some(name.to_owned()),
        trust: weft_xds_proto::resource::cluster::tls::Trust::Secret(name.to_owned()),
        crl: None,
        names: Vec::new(),
        identity: None,
        min_version: Default::default(),
        cipher_suites: Vec::new(),
    };
    let proxy = ProxyTls::default();
    // There are no secrets, so that the reason says whose TLS it would be.
    let seen = |config: &ClusterConfig| {
        hops(&proxy, config)
            .iter()
            .map(|hop| hop.split('"').nth(1).unwrap_or(hop).to_owned())
            .collect::<Vec<_>>()
    };
    let istio = || entry(Some("istio"), Some(over_tls("a")));
    let one = by_labels(vec![istio(), entry(Some("off"), None)], Some(over_tls("b")));
    assert_eq!(seen(&one), ["a", "plain", "b"]);
    assert_eq!(seen(&by_labels(vec![istio()], None)), ["a", "plain", "plain"]);
    let first = by_labels(vec![entry(None, None), istio()], Some(over_tls("b")));
    assert_eq!(seen(&first), ["plain", "plain", "plain"], "an entry without labels is for all");

    let before = proxy.security(&one, None);
    let other = by_labels(vec![istio(), entry(Some("off"), None)], Some(over_tls("c")));
    let after = proxy.security(&other, Some(&before));
    let same = one.endpoints.iter().map(|e| before.is_same_for(&after, e.address));
    assert_eq!(same.collect::<Vec<_>>(), [true, true, false]);
    assert!(!after.is_all_originated() && !after.is_usable());
}

/// Strict holds for what no entry is for, and for entries without TLS.
#[test]
fn strict_sends_no_plaintext_for_want_of_a_label() {
    let (tls, _dir) = proxy_tls(MeshMode::Strict);
    let none = ClusterTls::ByLabels { matches: Vec::new(), otherwise: None };
    let hops = hops(&tls, &config(Some(none), vec![endpoint(1, EndpointSource::Registry, None)]));
    assert!(hops[0].contains("plaintext alone"), "{hops:?}");
}

#[test]
fn an_unchanged_cluster_keeps_its_certificates_and_connections() {
    let spec = weft_xds_proto::resource::cluster::UpstreamTls {
        server_name: Some("a".into()),
        trust: weft_xds_proto::resource::cluster::tls::Trust::Secret("not-there".into()),
        crl: None,
        names: Vec::new(),
        identity: None,
        min_version: Default::default(),
        cipher_suites: Vec::new(),
    };
    let tls = ProxyTls::default();
    let one = config(Some(ClusterTls::Originate(Box::new(spec.clone()))), vec![]);
    let first = tls.security(&one, None);
    let addr = SocketAddr::from(([127, 0, 0, 1], 1));
    assert!(first.is_same_for(&tls.security(&one, Some(&first)), addr));
    let other = weft_xds_proto::resource::cluster::UpstreamTls { server_name: Some("b".into()), ..spec };
    let two = config(Some(ClusterTls::Originate(Box::new(other))), vec![]);
    assert!(!first.is_same_for(&tls.security(&two, Some(&first)), addr));
    assert!(first.place(addr).err().unwrap().contains("has not sent secret \"not-there\""));
}
