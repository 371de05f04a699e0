use weft_xds_proto::envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use weft_xds_proto::envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment as AssignmentProto;
use weft_xds_proto::envoy_types::pb::envoy::config::route::v3::RouteConfiguration as RoutesProto;
use weft_xds_proto::envoy_types::pb::google::rpc::Status;
use weft_xds_proto::envoy_types::util::pack_any;
use weft_xds_proto::resource::cluster::ClusterTls;
use weft_xds_proto::resource::cluster::tls::{DataSource, TlsVersion, Trust, UpstreamTls};
use weft_xds_proto::resource::endpoint::{Endpoint, EndpointHealth, EndpointSource};

use super::*;

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::Endpoint;
const RDS: ResourceType = ResourceType::Route;

fn client() -> Client {
    Client::new(Node { id: "n1".to_owned(), ..Node::default() })
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| n.to_string()).collect()
}

pub(crate) fn cluster(name: &str, version: &str) -> WireResource {
    wire(name, version, pack_any(ClusterProto::from(&Cluster::with_defaults(name))))
}

pub(crate) fn endpoints(name: &str, version: &str, ports: &[u16]) -> WireResource {
    let endpoints = ports
        .iter()
        .map(|port| Endpoint {
            address: ([127, 0, 0, 1], *port).into(),
            instance_id: format!("i{port}"),
            health: EndpointHealth::Healthy,
            weight: 1,
            source: EndpointSource::Registry,
            owner: "1".to_owned(),
            metadata: Default::default(),
        })
        .collect();
    let assignment = ClusterLoadAssignment { cluster_name: name.to_owned(), endpoints };
    wire(name, version, pack_any(AssignmentProto::from(&assignment)))
}

/// A cluster that no proxy can use: its endpoints would not come by EDS.
fn bad_cluster(name: &str, version: &str) -> WireResource {
    let mut proto = ClusterProto::from(&Cluster::with_defaults(name));
    proto.eds_cluster_config = None;
    wire(name, version, pack_any(proto))
}

/// A cluster with TLS whose endpoints are verified by this.
fn tls_cluster(trust: Trust) -> WireResource {
    let tls = UpstreamTls {
        server_name: Some("a.example".to_owned()),
        trust,
        crl: None,
        names: Vec::new(),
        identity: None,
        min_version: TlsVersion::default(),
        cipher_suites: Vec::new(),
    };
    let cluster = Cluster { tls: Some(ClusterTls::Originate(Box::new(tls))), ..Cluster::with_defaults("a") };
    wire("a", "1", pack_any(ClusterProto::from(&cluster)))
}

/// Routes of a name, all to one cluster, with something that the plain ones have not.
pub(crate) fn routes(name: &str, version: &str, to: &str) -> WireResource {
    let mut config = RouteConfiguration::plain(to);
    config.name = name.to_owned();
    wire(name, version, pack_any(RoutesProto::from(&config)))
}

fn wire(name: &str, version: &str, body: Any) -> WireResource {
    WireResource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(body),
        ..WireResource::default()
    }
}

pub(crate) fn response(
    t: ResourceType,
    resources: Vec<WireResource>,
    removed: &[&str],
) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: t.url().to_owned(),
        resources,
        removed_resources: names(removed),
        nonce: "n".to_owned(),
        ..DeltaDiscoveryResponse::default()
    }
}

fn changes(handled: &Handled) -> Vec<(&str, Change)> {
    handled.changes.iter().map(|(_, n, c)| (n.as_str(), *c)).collect()
}

fn version(c: &Client, name: &str) -> Option<String> {
    c.held(name).0.map(|h| h.version.clone())
}

#[test]
fn only_routes_of_hosts_are_asked_for_until_something_is_wanted() {
    let mut c = client();
    let first = c.connected();
    assert_eq!(first.len(), 1);
    assert_eq!(
        (first[0].type_url.as_str(), &first[0].resource_names_subscribe[..]),
        (RDS.url(), &[OUTBOUND.to_owned()][..])
    );
    let requests = c.want(&names(&["a"]));
    let types: Vec<_> = requests.iter().map(|r| r.type_url.as_str()).collect();
    assert_eq!(types, [CDS.url(), EDS.url(), RDS.url()]);
    assert!(requests.iter().all(|r| r.resource_names_subscribe == ["a"]));
}

#[test]
fn the_node_is_in_the_first_request_of_a_stream_only() {
    let mut c = client();
    c.want(&names(&["a"]));
    for _ in 0..2 {
        let requests = c.connected();
        assert_eq!(requests[0].node.as_ref().unwrap().id, "n1");
        assert!(requests[1].node.is_none());
        assert!(c.want(&names(&["b"])).iter().all(|r| r.node.is_none()));
        c.unwant(&names(&["b"]));
        c.disconnected();
    }
}

#[test]
fn wanting_again_asks_nothing_new() {
    let mut c = client();
    c.connected();
    c.want(&names(&["a"]));
    assert_eq!(c.want(&names(&["a"])), []);
}

#[test]
fn a_new_stream_starts_with_the_versions_held() {
    let mut c = client();
    c.want(&names(&["a", "b"]));
    c.connected();
    c.handle(response(CDS, vec![cluster("a", "7")], &["b"]));
    c.disconnected();
    let requests = c.connected();
    assert_eq!(requests[0].resource_names_subscribe, ["a", "b"]);
    assert_eq!(requests[0].initial_resource_versions, [("a".to_owned(), "7".to_owned())].into());
    assert!(requests[1].initial_resource_versions.is_empty());
}

#[test]
fn without_a_stream_wants_are_kept_for_the_next_one() {
    let mut c = client();
    assert_eq!(c.want(&names(&["a", "b"])), []);
    assert_eq!(c.unwant(&names(&["b"])), []);
    assert_eq!(c.connected()[0].resource_names_subscribe, ["a"]);
}

#[test]
fn a_good_response_is_acknowledged_by_its_nonce() {
    let mut c = client();
    c.want(&names(&["a"]));
    let h = c.handle(response(CDS, vec![cluster("a", "1")], &[]));
    assert_eq!((h.answer.response_nonce.as_str(), h.answer.error_detail), ("n", None));
    assert_eq!(h.answer.type_url, CDS.url());
}

/// The good one of a response is used although the other one is bad (gRPC would drop both), and the bad one's last
/// good version stays.
#[test]
fn a_bad_resource_is_rejected_by_name_while_the_others_are_used() {
    let mut c = client();
    c.want(&names(&["bad", "good"]));
    c.handle(response(CDS, vec![cluster("bad", "1"), cluster("good", "1")], &[]));
    let h = c.handle(response(CDS, vec![bad_cluster("bad", "2"), cluster("good", "2")], &[]));
    assert_eq!(changes(&h), [("bad", Change::Rejected), ("good", Change::Replaced)]);
    let error = h.answer.error_detail.unwrap();
    let reason = r#"Cluster "bad": eds_cluster_config: seen nothing, allowed eds_config with ads"#;
    assert_eq!(nack::rejected(&error), [("bad".to_owned(), reason.to_owned())]);
    assert_eq!((version(&c, "bad").as_deref(), version(&c, "good").as_deref()), (Some("1"), Some("2")));
}

#[test]
fn each_malformed_resource_is_rejected_with_its_reason() {
    let mut no_content = cluster("a", "1");
    no_content.resource = None;
    let mut cut = cluster("a", "1");
    cut.resource.as_mut().unwrap().value.pop();
    let cases = [
        (no_content, "has no content"),
        (cut, "failed to decode"),
        (endpoints("a", "1", &[80]), "has type"),
        (tls_cluster(Trust::Ca(DataSource::Inline(b"no PEM".to_vec()))), "inline PEM holds no certificate"),
        (wire("a", "1", cluster("b", "1").resource.unwrap()), r#"is named "a" outside and "b" inside"#),
    ];
    for (resource, reason) in cases {
        let mut c = client();
        c.want(&names(&["a"]));
        let h = c.handle(response(CDS, vec![resource], &[]));
        assert!(h.rejected[0].1.contains(reason), "{:?} lacks {reason:?}", h.rejected[0].1);
        assert!(c.held("a").0.is_none());
    }
}

#[test]
fn a_name_twice_in_one_response_is_rejected() {
    let mut c = client();
    c.want(&names(&["a"]));
    let h = c.handle(response(CDS, vec![cluster("a", "1"), cluster("a", "2")], &[]));
    assert_eq!(h.rejected, [("a".to_owned(), "comes twice in one response".to_owned())]);
    assert_eq!(version(&c, "a").as_deref(), Some("1"));
}

#[test]
fn a_removed_resource_is_absent_with_the_servers_words() {
    let mut c = client();
    c.want(&names(&["a", "b"]));
    c.handle(response(CDS, vec![cluster("a", "1")], &[]));
    let mut r = response(CDS, vec![], &["a", "b"]);
    r.resource_errors = vec![nack::resource_error("a", tonic::Code::NotFound, "no service a; known: c")];
    let h = c.handle(r);
    assert_eq!(changes(&h), [("a", Change::Removed), ("b", Change::Removed)]);
    assert_eq!(h.answer.error_detail, None);
    assert_eq!((c.absent("a"), c.absent("b")), (Some("no service a; known: c"), Some("no service b")));
    assert!(c.held("a").0.is_none());
    c.handle(response(CDS, vec![cluster("a", "2")], &[]));
    assert_eq!(c.absent("a"), None);
}

/// Else what crosses with an unsubscription would be held for ever.
#[test]
fn what_is_not_wanted_is_not_held() {
    let mut c = client();
    c.want(&names(&["a"]));
    c.unwant(&names(&["a"]));
    let h = c.handle(response(CDS, vec![cluster("a", "1")], &["b"]));
    assert_eq!(changes(&h), []);
    assert_eq!(h.answer.error_detail, None);
    assert!(c.held("a").0.is_none() && c.absent("b").is_none());
}

#[test]
fn a_type_that_was_not_asked_for_is_rejected() {
    let mut c = client();
    let mut r = response(CDS, vec![cluster("a", "1")], &[]);
    r.type_url = "type.googleapis.com/envoy.service.runtime.v3.Runtime".to_owned();
    let h = c.handle(r);
    let Some(Status { message, .. }) = h.answer.error_detail else { panic!("acknowledged") };
    assert!(message.contains("was not asked for"), "{message}");
}

#[test]
fn unwanting_forgets_and_unsubscribes_routes_and_endpoints_first() {
    let mut c = client();
    c.connected();
    c.want(&names(&["a"]));
    c.handle(response(CDS, vec![cluster("a", "1")], &[]));
    c.handle(response(RDS, vec![routes("a", "1", "b")], &[]));
    let requests = c.unwant(&names(&["a"]));
    let types: Vec<_> = requests.iter().map(|r| r.type_url.as_str()).collect();
    assert_eq!(types, [RDS.url(), EDS.url(), CDS.url()]);
    assert!(requests.iter().all(|r| r.resource_names_unsubscribe == ["a"]));
    assert!(c.held("a").0.is_none() && !c.knows_routes("a"));
    assert_eq!(c.unwant(&names(&["a"])), []);
}

#[test]
fn waiting_ends_with_an_answer_of_either_kind() {
    let mut c = client();
    c.want(&names(&["a"]));
    assert!(c.is_waiting());
    c.handle(response(CDS, vec![], &["a"]));
    assert!(c.is_waiting());
    c.handle(response(EDS, vec![endpoints("a", "1", &[80])], &[]));
    assert!(!c.is_waiting());
}

#[test]
fn what_was_exported_can_be_imported() {
    let mut c = client();
    c.want(&names(&["a", "b"]));
    c.handle(response(CDS, vec![cluster("b", "1"), cluster("a", "1")], &[]));
    c.handle(response(EDS, vec![endpoints("a", "2", &[80, 81])], &[]));
    c.handle(response(RDS, vec![routes("a", "3", "b"), routes(OUTBOUND, "4", "b")], &[]));
    let exported = c.export();
    let mut restarted = client();
    assert_eq!(restarted.import(exported), []);
    assert_eq!(restarted.held_names(), ["a", "b"]);
    assert_eq!(restarted.held("a").1.unwrap().value.endpoints.len(), 2);
    assert_eq!(restarted.connected()[0].initial_resource_versions.len(), 2);
    assert_eq!(restarted.routes("a").unwrap().value.clusters(), ["b"]);
    assert!(restarted.knows_routes(OUTBOUND) && !restarted.knows_routes("b"));
}

#[test]
fn what_this_release_refuses_is_not_imported() {
    let mut c = client();
    let rejected = c
        .import(Exported { clusters: vec![bad_cluster("a", "1"), cluster("b", "1")], ..Exported::default() });
    assert_eq!(rejected.len(), 1);
    assert_eq!(c.held_names(), ["b"]);
}

/// D02: bad routes are rejected by name, and the last good ones stay.
#[test]
fn bad_routes_are_rejected_by_name_and_the_last_good_ones_stay() {
    let mut c = client();
    c.want(&names(&["a"]));
    c.handle(response(RDS, vec![routes("a", "1", "b")], &[]));
    let mut proto = RoutesProto::from(&RouteConfiguration::plain("a"));
    proto.virtual_hosts[0].routes[0].action = None;
    let h = c.handle(response(RDS, vec![wire("a", "2", pack_any(proto)), routes(OUTBOUND, "1", "b")], &[]));
    assert_eq!(changes(&h), [("a", Change::Rejected), (OUTBOUND, Change::Added)]);
    let rejected = nack::rejected(&h.answer.error_detail.unwrap());
    assert!(rejected[0].1.contains("virtual_hosts[0].routes[0].action"), "{rejected:?}");
    assert_eq!(c.routes("a").unwrap().version, "1");
}

const SDS: ResourceType = ResourceType::Secret;

fn secret(name: &str, version: &str, ca: &str) -> WireResource {
    use weft_xds_proto::envoy_types::pb::envoy::config::core::v3 as core;
    use weft_xds_proto::envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
    let trusted_ca = core::DataSource {
        specifier: Some(core::data_source::Specifier::Filename(ca.to_owned())),
        ..Default::default()
    };
    let context = tls::CertificateValidationContext { trusted_ca: Some(trusted_ca), ..Default::default() };
    let r#type = Some(tls::secret::Type::ValidationContext(context));
    wire(name, version, pack_any(tls::Secret { name: name.to_owned(), r#type }))
}

/// A client that holds a cluster whose CA is a secret, and has asked for that.
fn client_with_a_secret() -> Client {
    let mut c = client();
    c.want(&names(&["a"]));
    c.connected();
    c.handle(response(CDS, vec![tls_cluster(Trust::Secret("ROOTCA".to_owned()))], &[]));
    let requests = c.want_secrets(std::iter::empty());
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].type_url, SDS.url());
    assert_eq!(requests[0].resource_names_subscribe, ["ROOTCA"]);
    c
}

#[test]
fn secrets_are_wanted_for_as_long_as_a_cluster_that_is_held_or_used_names_them() {
    let mut c = client_with_a_secret();
    assert_eq!(c.want_secrets(std::iter::empty()), [], "it is asked for already");
    let cluster = c.held("a").0.unwrap().value.clone();
    assert!(!c.knows_secrets_of(&cluster));
    let h = c.handle(response(SDS, vec![secret("ROOTCA", "1", "/ca")], &[]));
    assert_eq!(changes(&h), [("ROOTCA", Change::Added)]);
    assert!(c.knows_secrets_of(&cluster) && c.secrets().contains_key("ROOTCA"));
    c.unwant(&names(&["a"]));
    assert_eq!(c.want_secrets([&*cluster].into_iter()), [], "requests still use it");
    let requests = c.want_secrets(std::iter::empty());
    assert_eq!(requests[0].resource_names_unsubscribe, ["ROOTCA"]);
    assert!(c.secrets().is_empty());
}

#[test]
fn a_secret_that_is_bad_or_taken_away_is_used_as_it_came_last() {
    let mut c = client_with_a_secret();
    c.handle(response(SDS, vec![secret("ROOTCA", "1", "/ca")], &[]));
    let h = c.handle(response(SDS, vec![secret("ROOTCA", "2", "ca")], &[]));
    assert_eq!(changes(&h), [("ROOTCA", Change::Rejected)]);
    assert!(h.rejected[0].1.contains("allowed an absolute path"), "{:?}", h.rejected);
    let h = c.handle(response(SDS, vec![], &["ROOTCA"]));
    assert_eq!(changes(&h), [("ROOTCA", Change::Removed)]);
    assert!(c.secrets().contains_key("ROOTCA"));
    let requests = {
        c.disconnected();
        c.connected()
    };
    let first = requests.iter().find(|r| r.type_url == SDS.url()).unwrap();
    assert_eq!(first.initial_resource_versions["ROOTCA"], "1");
}

/// Private keys are written to no disk.
#[test]
fn secrets_are_not_exported_and_are_asked_for_again_after_an_import() {
    let mut c = client_with_a_secret();
    c.handle(response(SDS, vec![secret("ROOTCA", "1", "/ca")], &[]));
    let mut restarted = client();
    restarted.import(c.export());
    assert!(restarted.secrets().is_empty());
    restarted.want_secrets(std::iter::empty());
    let requests = restarted.connected();
    let first = requests.iter().find(|r| r.type_url == SDS.url()).unwrap();
    assert_eq!(first.resource_names_subscribe, ["ROOTCA"]);
    assert!(first.initial_resource_versions.is_empty());
}
