//! A control plane whose endpoints never stand still: what it costs a sidecar's traffic to take in their changes.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::Context;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use weft_xds_proto::{
    envoy_types::{
        pb::envoy::{
            config::{cluster::v3 as cds, endpoint::v3 as eds, route::v3 as rds},
            service::discovery::v3::{
                DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
                aggregated_discovery_service_server::{
                    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
                },
            },
        },
        util::pack_any,
    },
    resource::{
        cluster::Cluster,
        endpoint::{ClusterLoadAssignment, Endpoint, EndpointHealth, EndpointSource},
        route::RouteConfiguration,
    },
    type_url::ResourceType,
};

/// The one service whose endpoint stays as it is.
const STILL: &str = "upstream";

/// One of the others changes each so often.
const TICK: Duration = Duration::from_millis(10);

/// Serves ADS: `upstream` at `endpoint`, and whatever else is asked for with `each` endpoints, of which `rate` change in a
/// second.
pub async fn run(listen: SocketAddr, endpoint: SocketAddr, each: u32, rate: u32) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {}", listener.local_addr()?);
    tonic::transport::Server::builder()
        .add_service(AggregatedDiscoveryServiceServer::new(Churn { endpoint, each, rate }))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await
        .context("the server ended")
}

#[derive(Debug, Clone, Copy)]
struct Churn {
    endpoint: SocketAddr,
    each: u32,
    rate: u32,
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Churn {
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
        let (responses, receiver) = mpsc::channel(64);
        tokio::spawn(self.serve(request.into_inner(), responses));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

impl Churn {
    /// Ends with the stream.
    async fn serve(
        self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) {
        let (mut moving, mut version) = (BTreeSet::new(), 0u64);
        let mut tick = tokio::time::interval(TICK);
        // What could not be sent in time is sent late, so that as many changes are sent as are asked for.
        let mut owed = 0.0;
        loop {
            let response = tokio::select! {
                request = requests.message() => {
                    let Ok(Some(request)) = request else { return };
                    if request.type_url == ResourceType::Endpoint.url() {
                        let others = request.resource_names_subscribe.iter().filter(|name| *name != STILL);
                        moving.extend(others.cloned());
                    }
                    self.asked(request, version)
                }
                _ = tick.tick(), if !moving.is_empty() => {
                    owed += f64::from(self.rate) * TICK.as_secs_f64() / f64::from(self.each);
                    let due = moving.iter().cycle().skip(version as usize % moving.len()).take(owed as usize);
                    let (type_url, mut resources) = (ResourceType::Endpoint.url(), Vec::new());
                    for name in due {
                        version += 1;
                        resources.extend(self.resource(type_url, name, version));
                    }
                    owed -= resources.len() as f64;
                    response(type_url, resources, Vec::new(), version)
                }
            };
            let empty = response.resources.is_empty() && response.removed_resources.is_empty();
            if !empty && responses.send(Ok(response)).await.is_err() {
                return;
            }
        }
    }

    /// What was asked for, and what there is not.
    fn asked(self, request: DeltaDiscoveryRequest, version: u64) -> DeltaDiscoveryResponse {
        if let Some(error) = &request.error_detail {
            eprintln!("{}: {}", request.type_url, error.message);
        }
        let (mut resources, mut missing) = (Vec::new(), Vec::new());
        for name in request.resource_names_subscribe {
            match self.resource(&request.type_url, &name, version) {
                Some(resource) => resources.push(resource),
                None => missing.push(name),
            }
        }
        response(&request.type_url, resources, missing, version)
    }

    /// A resource of a name; all endpoints of a version differ from those of the one before.
    fn resource(&self, type_url: &str, name: &str, version: u64) -> Option<Resource> {
        let body = if type_url == ResourceType::Cluster.url() {
            pack_any(cds::Cluster::from(&Cluster::with_defaults(name)))
        } else if type_url == ResourceType::Endpoint.url() {
            let addresses: Vec<SocketAddr> = if name == STILL {
                vec![self.endpoint]
            } else {
                (0..self.each).map(|i| ([127, 1, (i / 250) as u8, (i % 250 + 1) as u8], 9).into()).collect()
            };
            let weight = if name == STILL { 1 } else { 1 + (version % 2) as u32 };
            let endpoints = addresses.into_iter().map(|address| endpoint(address, weight)).collect();
            pack_any(eds::ClusterLoadAssignment::from(&ClusterLoadAssignment {
                cluster_name: name.to_owned(),
                endpoints,
            }))
        } else if type_url == ResourceType::Route.url() && !name.contains('.') {
            pack_any(rds::RouteConfiguration::from(&RouteConfiguration::plain(name)))
        } else {
            return None;
        };
        Some(Resource {
            name: name.to_owned(),
            version: version.to_string(),
            resource: Some(body),
            ..Resource::default()
        })
    }
}

fn response(
    type_url: &str,
    resources: Vec<Resource>,
    removed_resources: Vec<String>,
    version: u64,
) -> DeltaDiscoveryResponse {
    let (type_url, nonce) = (type_url.to_owned(), version.to_string());
    DeltaDiscoveryResponse { type_url, resources, removed_resources, nonce, ..Default::default() }
}

fn endpoint(address: SocketAddr, weight: u32) -> Endpoint {
    Endpoint {
        address,
        instance_id: address.to_string(),
        health: EndpointHealth::Healthy,
        weight,
        source: EndpointSource::Registry,
        owner: "1".to_owned(),
        metadata: Default::default(),
    }
}
