//! The operator's view, DNS and metrics.

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use http::StatusCode;
use tokio::net::UdpSocket;
use tonic::Code;
use weft_xds_proto::weft as pb;

use crate::harness::{TestServer, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_and_endpoints_show_where_they_come_from() {
    let server = TestServer::start().await;
    server.register("web", "one", 80, "30s").await;
    let mut mesh = server.mesh().await;
    let services = until("the catalogue knows it", async || {
        let services = mesh.services(pb::ServicesRequest {}).await.unwrap().into_inner().services;
        if services.is_empty() { Err("no service".into()) } else { Ok(services) }
    })
    .await;
    assert_eq!((services[0].name.as_str(), services[0].healthy, services[0].total), ("web", 1, 1));
    assert_eq!(services[0].sources, ["registry"]);
    let of = |service: &str| pb::EndpointsRequest { service: service.into() };
    let endpoints = mesh.endpoints(of("web")).await.unwrap().into_inner().endpoints;
    assert_eq!((endpoints[0].address.as_str(), endpoints[0].health.as_str()), ("127.0.0.1:80", "passing"));
    let unknown = mesh.endpoints(of("wep")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("wep") && unknown.message().contains("web"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_endpoints_is_told_of_each_change_and_of_none_besides() {
    let mut server = TestServer::start().await;
    let mut mesh = server.mesh().await;
    let of = |service: &str| pb::EndpointsRequest { service: service.into() };
    let mut web = mesh.watch_endpoints(of("web")).await.unwrap().into_inner();
    let ids = |told: pb::EndpointsResponse| -> Vec<String> {
        told.endpoints.into_iter().map(|endpoint| endpoint.instance_id).collect()
    };
    assert!(ids(web.message().await.unwrap().unwrap()).is_empty(), "nobody is there yet");
    server.register("web", "one", 80, "30s").await;
    assert_eq!(ids(web.message().await.unwrap().unwrap()), ["one"]);
    // Another service is no news.
    server.register("db", "a", 5432, "30s").await;
    server.register("web", "two", 81, "30s").await;
    assert_eq!(ids(web.message().await.unwrap().unwrap()), ["one", "two"]);
    for (id, left) in [("one", &["two"][..]), ("two", &[])] {
        server.http(http::Method::DELETE, &format!("/deregister/web/{id}"), "").await;
        assert_eq!(ids(web.message().await.unwrap().unwrap()), left);
    }
    let bad = mesh.watch_endpoints(of("No Service")).await.unwrap_err();
    assert!(bad.code() == Code::InvalidArgument && bad.message().contains("DNS label"), "{bad}");
    let (ended, _) = tokio::join!(web.message(), server.stop());
    assert!(matches!(ended, Ok(None) | Err(_)), "a server that stops waits for no watcher: {ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn balancing_is_set_by_name_and_bad_names_list_the_good_ones() {
    let server = TestServer::start().await;
    server.register("web", "one", 80, "30s").await;
    let mut mesh = server.mesh().await;
    let set = |service: &str, policy: &str| pb::SetLoadBalancingRequest {
        service: service.into(),
        policy: policy.into(),
    };
    mesh.set_load_balancing(set("web", "least-connections")).await.unwrap();
    until("the catalogue has it", async || {
        let services = mesh.services(pb::ServicesRequest {}).await.unwrap().into_inner().services;
        match services.first().map(|s| s.load_balancing.as_str()) {
            Some("least-connections") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let bad = mesh.set_load_balancing(set("web", "fastest")).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    assert!(bad.message().contains("round-robin, random, least-connections"), "{bad}");
    let bad = mesh.set_load_balancing(set("No Service", "random")).await.unwrap_err();
    assert!(bad.message().contains("DNS label"), "{bad}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_and_members_show_this_server() {
    let server = TestServer::start().await;
    let mut mesh = server.mesh().await;
    let status = mesh.status(pb::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.name.as_str(), status.leader_id), ("s1", status.id));
    assert_eq!((status.servers.len(), status.servers[0].role.as_str()), (1, "leader"));
    assert!(status.servers[0].voter && !status.cluster_id.is_empty());
    let members = mesh.members(pb::MembersRequest {}).await.unwrap().into_inner().members;
    assert_eq!((members[0].role.as_str(), members[0].state.as_str()), ("server", "alive"));
    assert_eq!(members[0].gossip_address, server.server().addrs().gossip.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dns_answers_registered_instances() {
    let server = TestServer::start().await;
    server.register("web", "one", 80, "30s").await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut query = Message::new(9, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii("web.service.weft.").unwrap(), RecordType::A));
    until("DNS knows it", async || {
        socket.send_to(&query.to_vec().unwrap(), server.server().addrs().dns).await.unwrap();
        let mut buffer = [0; 512];
        let len = socket.recv(&mut buffer).await.unwrap();
        let answer = Message::from_vec(&buffer[..len]).unwrap();
        match answer.answers.first() {
            Some(record) => {
                assert_eq!(record.data.to_string(), "127.0.0.1");
                Ok(())
            }
            None => Err(answer.metadata.response_code.to_string()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_and_metrics_answer() {
    let server = TestServer::start().await;
    assert_eq!(server.get("/livez").await.status, StatusCode::OK);
    let ready = server.get("/readyz").await;
    assert_eq!((ready.status, &ready.json()["ready"]), (StatusCode::OK, &true.into()));
    server.get("/discover/nobody").await;
    let metrics = server.get("/metrics").await;
    for wanted in [
        "weft_raft_is_leader 1",
        "weft_store_revision ",
        "weft_leases ",
        "weft_watches_open ",
        "weft_gossip_members{state=\"alive\"} 1",
        "weft_catalog_services 0",
        "weft_xds_proxies 0",
        "weft_http_requests_total{route=\"/discover/{service}\",status=\"404\"} 1",
        "# HELP weft_raft_wal_bytes ",
    ] {
        assert!(metrics.body.contains(wanted), "{wanted} in {}", metrics.body);
    }
}
