//! gRPC's own services: what is there, and whether it serves.

use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};
use weft_control_plane::app;

use super::harness::{TestServer, config, until};

const XDS: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";

async fn reflect(server: &TestServer, request: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let mut client = ServerReflectionClient::new(server.channel().await);
    let answers = client.server_reflection_info(tokio_stream::once(request)).await.expect("answers");
    let answer: ServerReflectionResponse = answers.into_inner().message().await.expect("reads").expect("one");
    answer.message_response.expect("an answer")
}

async fn health(channel: tonic::transport::Channel, service: &str) -> Result<ServingStatus, Code> {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(request).await;
    answer.map(|answer| HealthCheckResponse::status(answer.get_ref())).map_err(|status| status.code())
}

#[tokio::test]
async fn reflection_lists_the_client_apis_and_describes_their_messages() {
    let mut server = TestServer::start().await;
    let MessageResponse::ListServicesResponse(listed) =
        reflect(&server, MessageRequest::ListServices(String::new())).await
    else {
        panic!("not a list")
    };
    let names: Vec<&str> = listed.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["etcdserverpb.KV", "etcdserverpb.Auth", "weft.v1.Semaphore", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("peer")), "what servers say among themselves: {names:?}");
    let symbol = |name: &str| MessageRequest::FileContainingSymbol(name.to_owned());
    let described = reflect(&server, symbol("etcdserverpb.KV.Range")).await;
    assert!(
        matches!(described, MessageResponse::FileDescriptorResponse(file) if !file.file_descriptor_proto.is_empty())
    );
    // Older clients ask in the older version of the protocol.
    use tonic_reflection::pb::v1alpha;
    let symbol =
        v1alpha::server_reflection_request::MessageRequest::FileContainingSymbol("no.Such".to_owned());
    let request = v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(symbol) };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel().await);
    let answers = client.server_reflection_info(tokio_stream::once(request)).await.expect("answers");
    let refused = answers.into_inner().message().await.expect_err("there is none");
    assert_eq!(refused.code(), Code::NotFound);
    server.stop().await;
}

#[tokio::test]
async fn health_follows_the_leader_and_xds_does_not() {
    let mut first = TestServer::start().await;
    let second = TestServer::named("s2", &[&first]).await;
    for service in ["", "etcdserverpb.KV", "weft.v1.Semaphore", XDS] {
        until(service, async || match health(second.channel().await, service).await {
            Ok(ServingStatus::Serving) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }
    assert_eq!(health(second.channel().await, "no.Such").await, Err(Code::NotFound));
    let channel = second.channel().await;
    let watched = HealthCheckRequest { service: "etcdserverpb.KV".to_owned() };
    let mut watch = HealthClient::new(channel.clone()).watch(watched).await.expect("watches").into_inner();
    let now = watch.message().await.expect("reads").expect("one");
    assert_eq!(now.status(), ServingStatus::Serving);
    // One of two is no majority.
    first.stop().await;
    let then =
        tokio::time::timeout(super::harness::PATIENCE, watch.message()).await.expect("is told in time");
    assert_eq!(then.expect("reads").expect("one").status(), ServingStatus::NotServing);
    assert_eq!(health(channel.clone(), XDS).await, Ok(ServingStatus::Serving));
    drop((watch, channel));
}

#[tokio::test]
async fn a_server_that_waits_to_be_taken_in_does_not_serve() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut config = config(dir.path());
    config.join = vec!["127.0.0.1:9".to_owned()];
    let alone = app::start(config).await.expect("it starts");
    let addr = alone.addrs().grpc;
    let channel =
        tonic::transport::Channel::from_shared(format!("http://{addr}")).expect("a URI").connect().await;
    let channel = channel.expect("it listens");
    until("xDS serves already", async || match health(channel.clone(), XDS).await {
        Ok(ServingStatus::Serving) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(health(channel.clone(), "").await, Ok(ServingStatus::NotServing));
    alone.shutdown().await;
}
