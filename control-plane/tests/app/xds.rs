//! From a registration to a proxy's subscription, and what the operator sees of it.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weft_xds_proto::envoy_types::pb::envoy::config::core::v3::Node;
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use weft_xds_proto::type_url::ResourceType;
use weft_xds_proto::weft as pb;

use crate::harness::{PATIENCE, TestServer, until};

async fn next(stream: &mut tonic::Streaming<DeltaDiscoveryResponse>) -> DeltaDiscoveryResponse {
    tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_reaches_a_subscriber_and_its_ack_reaches_the_operator() {
    let mut server = TestServer::start().await;
    let (requests, outgoing) = mpsc::channel(8);
    let mut client = AggregatedDiscoveryServiceClient::new(server.channel().await);
    let subscribe = DeltaDiscoveryRequest {
        node: Some(Node { id: "p1".into(), ..Node::default() }),
        type_url: ResourceType::Endpoint.url().into(),
        resource_names_subscribe: vec!["web".into()],
        ..Default::default()
    };
    requests.send(subscribe).await.unwrap();
    let answer = client.delta_aggregated_resources(ReceiverStream::new(outgoing)).await.unwrap();
    let mut answers = answer.into_inner();
    let unknown = next(&mut answers).await;
    assert_eq!(unknown.removed_resources, ["web"]);

    server.register("web", "one", 9_001, "60s").await;
    let known = next(&mut answers).await;
    assert_eq!(known.resources[0].name, "web");
    let ack = DeltaDiscoveryRequest {
        type_url: ResourceType::Endpoint.url().into(),
        response_nonce: known.nonce.clone(),
        ..Default::default()
    };
    requests.send(ack).await.unwrap();
    let mut mesh = server.mesh().await;
    until("the operator sees the ACK", async || {
        let proxies = mesh.proxies(pb::ProxiesRequest {}).await.unwrap().into_inner().proxies;
        let acked = proxies.iter().any(|p| {
            p.node_id == "p1"
                && !p.address.is_empty()
                && p.resources
                    .iter()
                    .any(|r| r.name == "web" && r.version_acked == known.resources[0].version)
        });
        if acked { Ok(()) } else { Err(format!("{proxies:?}")) }
    })
    .await;
    // A stream that never ends by itself does not hold up the stop.
    let took = server.stop().await;
    assert!(took < Duration::from_secs(2), "{took:?}");
}
