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
    fn serve(
        self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) -> impl Future<Output = ()> + use<> {
        async move {
            let (mut moving, mut next, mut version) = (BTreeSet::new(), 0, 0u64);
            let mut tick = tokio::time::interval(TICK);
            // What could not be sent in time is sent late, so that as many changes are sent as are asked for.
            let mut owed = 0.0;
            loop {
                let response = tokio::select! {
                    request = requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        if let Some(error) = &request.error_detail {
                            eprintln!("{}: {}", request.type_url, error.message);
                        }
                        let names = request.resource_names_subscribe;
                        if request.type_url == ResourceType::Endpoint.url() {
                            moving.extend(names.iter().filter(|name| *name != STILL).cloned());
                        }
                        let resources = names.iter().filter_map(|n| self.resource(&request.type_url, n, version));
                        let resources: Vec<Resource> = resources.collect();
                        let known = |name: &&String| resources.iter().any(|r| r.name == **name);
                        let removed = names.iter().filter(|name| !known(name)).cloned().collect();
                        if names.is_empty() {
                            continue;
                        }
                        DeltaDiscoveryResponse {
                            type_url: request.type_url,
                            resources,
                            removed_resources: removed,
                            nonce: format!("asked-{version}"),
                            ..DeltaDiscoveryResponse::default()
                        }
                    }
                    _ = tick.tick(), if !moving.is_empty() && self.rate > 0 => {
                        owed += f64::from(self.rate) * TICK.as_secs_f64() / f64::from(self.each);
                        let mut resources = Vec::new();
                        while owed >= 1.0 {
                            owed -= 1.0;
                            version += 1;
                            next = (next + 1) % moving.len();
                            let name = moving.iter().nth(next).cloned().unwrap_or_default();
                            resources.extend(self.resource(ResourceType::Endpoint.url(), &name, version));
                        }
                        if resources.is_empty() {
                            continue;
                        }
                        DeltaDiscoveryResponse {
                            type_url: ResourceType::Endpoint.url().to_owned(),
                            resources,
                            nonce: format!("churn-{version}"),
                            ..DeltaDiscoveryResponse::default()
                        }
                    }
                };
                if responses.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        }
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
