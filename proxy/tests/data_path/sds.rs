//! Secrets by name: certificates, keys and CAs that a control plane sends beside the clusters that take them.

use std::net::SocketAddr;
use std::path::Path;

use http::StatusCode;
use weft_core::tls::ClientCerts;
use weft_proxy::config::ProxyConfig;
use weft_xds_proto::envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use weft_xds_proto::envoy_types::pb::envoy::config::core::v3::{DataSource, data_source::Specifier};
use weft_xds_proto::envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::Resource;
use weft_xds_proto::envoy_types::util::pack_any;
use weft_xds_proto::nack;
use weft_xds_proto::resource::cluster::tls::{Identity, TlsVersion, Trust, UpstreamTls};
use weft_xds_proto::resource::cluster::{Cluster, ClusterTls};
use weft_xds_proto::resource::route::RouteConfiguration;
use weft_xds_proto::type_url::ResourceType;

use crate::ads::{FakeServer, FakeStream, endpoints, resource};
use crate::pki::{Ca, tls_in_front};
use crate::support::*;

const SDS: ResourceType = ResourceType::Secret;

/// `orders`, which shows the secret `client` and trusts the secret `ROOTCA`.
fn orders_by_secrets(version: &str) -> Resource {
    let tls = UpstreamTls {
        server_name: Some("api.example".to_owned()),
        trust: Trust::Secret("ROOTCA".to_owned()),
        crl: None,
        names: Vec::new(),
        identity: Some(Identity::Secret("client".to_owned())),
        min_version: TlsVersion::default(),
        cipher_suites: Vec::new(),
    };
    let tls = Some(ClusterTls::Originate(Box::new(tls)));
    let cluster = Cluster { tls, ..Cluster::with_defaults("orders") };
    resource("orders", version, pack_any(ClusterProto::from(&cluster)))
}

fn inline(text: impl Into<String>) -> Option<DataSource> {
    Some(DataSource { specifier: Some(Specifier::InlineString(text.into())), ..Default::default() })
}

fn secret(name: &str, version: &str, r#type: tls::secret::Type) -> Resource {
    let body = tls::Secret { name: name.to_owned(), r#type: Some(r#type) };
    resource(name, version, pack_any(body))
}

fn root_ca(version: &str, pem: String) -> Resource {
    let context = tls::CertificateValidationContext { trusted_ca: inline(pem), ..Default::default() };
    secret("ROOTCA", version, tls::secret::Type::ValidationContext(context))
}

/// The secret `client`, made of these files' content.
fn client_pair(version: &str, files: &weft_core::tls::Identity) -> Resource {
    let read = |path: &Path| inline(std::fs::read_to_string(path).unwrap());
    let pair = tls::TlsCertificate {
        certificate_chain: read(&files.cert),
        private_key: read(&files.key),
        ..Default::default()
    };
    secret("client", version, tls::secret::Type::TlsCertificate(pair))
}

/// A control plane, an app that wants a certificate of `ca`, and a sidecar that knows of neither.
struct Fixture {
    ca: Ca,
    app: Upstream,
    endpoint: SocketAddr,
    server: FakeServer,
}

impl Fixture {
    async fn new() -> Self {
        let (app, ca) = (Upstream::start("a").await, Ca::new("one"));
        let clients = ClientCerts::Required(ca.file());
        let served = ca.issue("server", "api.example");
        let (endpoint, _) = tls_in_front(app.addr, &served, &clients, &[b"http/1.1"]).await;
        let server = FakeServer::start(([127, 0, 0, 1], 0).into()).await;
        Self { ca, app, endpoint, server }
    }

    fn config(&self) -> ProxyConfig {
        let mut config = ProxyConfig::new("test");
        config.outbound = Some(([127, 0, 0, 1], 0).into());
        config.servers = vec![self.server.addr];
        config
    }

    /// Sends everything but the secrets.
    async fn send_orders(&self, stream: &mut FakeStream) {
        stream.send(ResourceType::Cluster, vec![orders_by_secrets("1")], &[]).await;
        let endpoints = endpoints("orders", "1", &[self.endpoint.port()]);
        stream.send(ResourceType::Endpoint, vec![endpoints], &[]).await;
        stream.send_routes(&RouteConfiguration::plain("orders"), "1").await;
    }

    fn secrets(&self) -> Vec<Resource> {
        let client = self.ca.issue("client", "client.example");
        vec![root_ca("1", self.ca.pem()), client_pair("1", &client)]
    }
}

async fn ask(proxy: &Proxy) -> Reply {
    get(proxy.outbound, "orders", "/").await
}

async fn until_body(proxy: &Proxy, part: &str) {
    until(part, || async {
        let answer = ask(proxy).await;
        let text = format!("{} {}", answer.status, answer.body);
        if text.contains(part) { Ok(()) } else { Err(text) }
    })
    .await;
}

/// The first request waits for the secrets, and connections change with them, those in the pool too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_connected_to_with_the_secrets_that_it_names_and_with_their_successors() {
    let mut f = Fixture::new().await;
    let proxy = start(f.config()).await;
    let first = tokio::spawn(get(proxy.outbound, "orders", "/"));
    let mut stream = f.server.stream().await;
    stream.request_of(ResourceType::Cluster).await;
    f.send_orders(&mut stream).await;
    assert_eq!(stream.request_of(SDS).await.resource_names_subscribe, ["ROOTCA", "client"]);
    let nonce = stream.send(SDS, f.secrets(), &[]).await;
    assert_eq!(stream.answer(&nonce).await.error_detail, None);
    let first = first.await.unwrap();
    assert_eq!((first.status, first.body.as_str()), (StatusCode::OK, "a"));

    let certs = get(proxy.admin, "admin", "/certs").await.body;
    for source in [r#""source": "secret \"client\"""#, r#""source": "secret \"ROOTCA\"""#] {
        assert!(certs.contains(source), "{certs}");
    }
    assert!(!certs.contains("PRIVATE KEY"));

    let other = Ca::new("other");
    stream.send(SDS, vec![root_ca("2", other.pem())], &[]).await;
    until_body(&proxy, "was not signed by the CA").await;
    stream.send(SDS, vec![root_ca("3", other.pem() + &f.ca.pem())], &[]).await;
    until_body(&proxy, "200 OK").await;
    let strange = other.issue("client", "client.example");
    stream.send(SDS, vec![client_pair("2", &strange)], &[]).await;
    until_body(&proxy, "502").await;
    stream.send(SDS, f.secrets(), &[]).await;
    until_body(&proxy, "200 OK").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_is_bad_or_taken_away_leaves_the_last_one_in_use() {
    let mut f = Fixture::new().await;
    let proxy = start(f.config()).await;
    let first = tokio::spawn(get(proxy.outbound, "orders", "/"));
    let mut stream = f.server.stream().await;
    stream.request_of(ResourceType::Cluster).await;
    f.send_orders(&mut stream).await;
    stream.request_of(SDS).await;
    stream.send(SDS, f.secrets(), &[]).await;
    assert_eq!(first.await.unwrap().status, StatusCode::OK);

    let (one, other) = (f.ca.issue("one", "client.example"), f.ca.issue("other", "client.example"));
    let mixed = weft_core::tls::Identity { cert: one.cert, key: other.key };
    let context = tls::CertificateValidationContext {
        trusted_ca: inline(f.ca.pem()),
        allow_expired_certificate: true,
        ..Default::default()
    };
    for (bad, why) in [
        (root_ca("2", "no PEM".to_owned()), "holds no certificate"),
        (client_pair("2", &mixed), "KeyMismatch"),
        (secret("ROOTCA", "2", tls::secret::Type::ValidationContext(context)), "allow_expired_certificate"),
        (secret("client", "2", tls::secret::Type::GenericSecret(Default::default())), "seen generic_secret"),
    ] {
        let name = bad.name.clone();
        let nonce = stream.send(SDS, vec![bad], &[]).await;
        let error = stream.answer(&nonce).await.error_detail.unwrap();
        let rejected = nack::rejected(&error);
        assert_eq!((rejected.len(), rejected[0].0.as_str()), (1, name.as_str()));
        assert!(rejected[0].1.contains(why), "{why}: {}", rejected[0].1);
        assert_eq!(ask(&proxy).await.status, StatusCode::OK);
    }
    let nonce = stream.send(SDS, vec![], &["ROOTCA", "client"]).await;
    assert_eq!(stream.answer(&nonce).await.error_detail, None);
    assert_eq!(ask(&proxy).await.status, StatusCode::OK);
}

/// Neither in plaintext nor unverified, however long it takes; and a key is on no disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_secret_a_cluster_is_not_connected_to_and_says_which_one_is_missing() {
    let mut f = Fixture::new().await;
    let folder = tempfile::tempdir().unwrap();
    let mut config = f.config();
    config.data_dir = Some(folder.path().to_owned());
    let running = start(config.clone()).await;
    let first = tokio::spawn(get(running.outbound, "orders", "/"));
    let mut stream = f.server.stream().await;
    stream.request_of(ResourceType::Cluster).await;
    f.send_orders(&mut stream).await;
    stream.request_of(SDS).await;
    let [ca, client]: [_; 2] = f.secrets().try_into().unwrap();
    stream.send(SDS, vec![ca.clone()], &[]).await;
    let missing = r#"the control plane has not sent secret "client""#;
    let first = first.await.unwrap();
    assert_eq!(first.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(first.header("x-weft-error"), "connect-failed");
    assert!(first.body.contains(missing), "{}", first.body);
    // Nor does it count against the endpoint.
    for _ in 0..10 {
        assert!(ask(&running).await.body.contains(missing));
    }
    assert_eq!(f.app.served(), 0);
    stream.send(SDS, vec![client.clone()], &[]).await;
    until_body(&running, "200 OK").await;

    f.server.stop.cancel();
    running.running.drain_and_shutdown().await;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let content = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!String::from_utf8_lossy(&content).contains("-----BEGIN"));
    }
    let (sockets, server) = (f.server.addr, f.app.served());
    let again = start(config).await;
    until_body(&again, r#"has not sent secret "ROOTCA""#).await;
    assert_eq!(f.app.served(), server);
    f.server = FakeServer::start(sockets).await;
    let mut stream = f.server.stream().await;
    assert_eq!(stream.request_of(SDS).await.resource_names_subscribe, ["ROOTCA", "client"]);
    stream.send(SDS, vec![ca, client], &[]).await;
    until_body(&again, "200 OK").await;
}
