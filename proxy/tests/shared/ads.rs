//! A scripted ADS server over TCP.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use weft_xds_proto::envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use weft_xds_proto::envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment as AssignmentProto;
use weft_xds_proto::envoy_types::pb::envoy::config::route::v3::RouteConfiguration as RoutesProto;
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use weft_xds_proto::envoy_types::pb::google::protobuf::Any;
use weft_xds_proto::envoy_types::util::pack_any;
use weft_xds_proto::nack;
use weft_xds_proto::resource::cluster::Cluster;
use weft_xds_proto::resource::endpoint::{ClusterLoadAssignment, Endpoint, EndpointHealth, EndpointSource};
use weft_xds_proto::resource::route::RouteConfiguration;
use weft_xds_proto::type_url::ResourceType;

pub const PATIENCE: Duration = Duration::from_secs(10);

/// A server that does what the test says, stream by stream.
pub struct FakeServer {
    pub addr: SocketAddr,
    streams: mpsc::Receiver<FakeStream>,
    pub stop: CancellationToken,
}

pub struct FakeStream {
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    sent: u32,
}

struct Service {
    streams: mpsc::Sender<FakeStream>,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = ReceiverStream<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("incremental only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, receiver) = mpsc::channel(16);
        let stream = FakeStream { requests: request.into_inner(), responses, sent: 0 };
        self.streams.send(stream).await.map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl FakeServer {
    pub async fn start(addr: SocketAddr) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::channel(4);
        let stop = CancellationToken::new();
        let server = tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(Service { streams: sender }))
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.clone().cancelled_owned());
        tokio::spawn(server);
        Self { addr, streams, stop }
    }

    pub async fn stream(&mut self) -> FakeStream {
        tokio::time::timeout(PATIENCE, self.streams.recv()).await.expect("a stream in time").unwrap()
    }
}

impl FakeStream {
    pub async fn request(&mut self) -> DeltaDiscoveryRequest {
        tokio::time::timeout(PATIENCE, self.requests.message())
            .await
            .expect("a request in time")
            .unwrap()
            .expect("the stream goes on")
    }

    /// The next request of a type, whatever comes between.
    pub async fn request_of(&mut self, t: ResourceType) -> DeltaDiscoveryRequest {
        loop {
            let request = self.request().await;
            if request.type_url == t.url() {
                return request;
            }
        }
    }

    pub async fn send(&mut self, t: ResourceType, resources: Vec<Resource>, removed: &[&str]) -> String {
        self.sent += 1;
        let nonce = format!("nonce-{}", self.sent);
        let error = |n: &&str| {
            nack::resource_error(n, tonic::Code::NotFound, &format!("no service {n}; known: z (1 of 1)"))
        };
        let response = DeltaDiscoveryResponse {
            type_url: t.url().to_owned(),
            resources,
            removed_resources: removed.iter().map(|n| n.to_string()).collect(),
            resource_errors: removed.iter().map(error).collect(),
            nonce: nonce.clone(),
            ..DeltaDiscoveryResponse::default()
        };
        self.responses.send(Ok(response)).await.unwrap();
        nonce
    }

    /// Cluster and endpoints of one service.
    pub async fn send_service(&mut self, name: &str, version: &str, ports: &[u16]) {
        self.send(ResourceType::Cluster, vec![cluster(name, version)], &[]).await;
        self.send(ResourceType::Endpoint, vec![endpoints(name, version, ports)], &[]).await;
        self.send_routes(&RouteConfiguration::plain(name), version).await;
    }

    pub async fn send_routes(&mut self, routes: &RouteConfiguration, version: &str) -> String {
        let body = pack_any(RoutesProto::from(routes));
        self.send(ResourceType::Route, vec![resource(&routes.name, version, body)], &[]).await
    }

    /// The answer to the response with this nonce.
    pub async fn answer(&mut self, nonce: &str) -> DeltaDiscoveryRequest {
        loop {
            let request = self.request().await;
            if request.response_nonce == nonce {
                return request;
            }
        }
    }
}

pub fn cluster(name: &str, version: &str) -> Resource {
    resource(name, version, pack_any(ClusterProto::from(&Cluster::with_defaults(name))))
}

pub fn endpoint(port: u16) -> Endpoint {
    Endpoint {
        address: ([127, 0, 0, 1], port).into(),
        instance_id: format!("i{port}"),
        health: EndpointHealth::Healthy,
        weight: 1,
        source: EndpointSource::Registry,
        owner: "1f".to_owned(),
        metadata: Default::default(),
    }
}

pub fn endpoints(name: &str, version: &str, ports: &[u16]) -> Resource {
    let endpoints = ports.iter().map(|p| endpoint(*p)).collect();
    let assignment = ClusterLoadAssignment { cluster_name: name.to_owned(), endpoints };
    resource(name, version, pack_any(AssignmentProto::from(&assignment)))
}

pub fn resource(name: &str, version: &str, body: Any) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(body),
        ..Resource::default()
    }
}
