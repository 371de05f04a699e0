//! What this proxy asks for, holds, and tells the server about it. Pure: names and responses in, requests out.
//!
//! ```text
//!  want ─▶ subscribed ─resource─▶ held ─resource that is bad─▶ held, last good version (NACK by name)
//!              │                   │
//!              └─removed─▶ absent ◀┘removed         unwant ─▶ forgotten
//! ```
//!
//! What is held outlives the stream: a new one starts with the versions held, and is sent only what differs.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_xds_proto::envoy_types::pb::envoy::config::core::v3::Node;
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource as WireResource,
};
use weft_xds_proto::envoy_types::pb::google::protobuf::Any;
use weft_xds_proto::nack;
use weft_xds_proto::resource::cluster::tls::Secret;
use weft_xds_proto::resource::cluster::{Cluster, ClusterTls};
use weft_xds_proto::resource::endpoint::ClusterLoadAssignment;
use weft_xds_proto::resource::route::{OUTBOUND, RouteConfiguration};
use weft_xds_proto::type_url::ResourceType;

use crate::tls::client;
use crate::tls::live::Secrets;

mod decode;
mod held;

use held::TypeState;

/// A resource in use: decoded, and as it came, for the cache.
#[derive(Debug, Clone)]
pub struct Held<T> {
    /// As the server named it.
    pub version: String,
    /// Validated.
    pub value: Arc<T>,
    body: Any,
}

/// What became of one resource in a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Held now, and was not before.
    Added,
    /// Held in a new version.
    Replaced,
    /// Sent again in the version held.
    Unchanged,
    /// The server says that it does not exist. A secret that is held stays.
    Removed,
    /// Bad; the last good version stays, if there is one.
    Rejected,
}

/// What a response led to.
#[derive(Debug)]
pub struct Handled {
    /// ACK or NACK, to be sent after the changes are in use.
    pub answer: DeltaDiscoveryRequest,
    /// Changes of wanted resources, in the order of the response.
    pub changes: Vec<(ResourceType, String, Change)>,
    /// Rejected resources with reasons, for the log; the answer carries them too.
    pub rejected: Vec<(String, String)>,
}

/// The client's state over all streams, one at a time.
#[derive(Debug)]
pub struct Client {
    node: Node,
    streaming: bool,
    node_sent: bool,
    clusters: TypeState<Cluster>,
    endpoints: TypeState<ClusterLoadAssignment>,
    routes: TypeState<RouteConfiguration>,
    /// Those that clusters name.
    secrets: TypeState<Secret>,
    held_secrets: Arc<Secrets>,
}

/// All that is held of each type, as it came: for the cache.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exported {
    /// CDS.
    pub clusters: Vec<WireResource>,
    /// EDS.
    pub endpoints: Vec<WireResource>,
    /// RDS.
    pub routes: Vec<WireResource>,
}

impl Client {
    /// Nothing held, and only the routes of hosts wanted.
    pub fn new(node: Node) -> Self {
        let mut routes = TypeState::default();
        routes.wanted.insert(OUTBOUND.to_owned());
        Self {
            node,
            streaming: false,
            node_sent: false,
            clusters: TypeState::default(),
            endpoints: TypeState::default(),
            routes,
            secrets: TypeState::default(),
            held_secrets: Arc::default(),
        }
    }

    /// All secrets held.
    pub fn secrets(&self) -> &Arc<Secrets> {
        &self.held_secrets
    }

    /// Whether the server has said something of each secret that a cluster names.
    pub fn knows_secrets_of(&self, cluster: &Cluster) -> bool {
        let known =
            |name: &String| self.secrets.held.contains_key(name) || self.secrets.absent.contains_key(name);
        secrets_of(cluster).iter().all(known)
    }

    /// Subscribes to the secrets that clusters held and clusters in use name, and to no others.
    pub fn want_secrets<'a>(
        &mut self,
        in_use: impl Iterator<Item = &'a Cluster>,
    ) -> Vec<DeltaDiscoveryRequest> {
        let held = self.clusters.held.values().flat_map(|held| secrets_of(&held.value));
        let named: BTreeSet<String> = held.chain(in_use.flat_map(secrets_of)).collect();
        let unused: Vec<String> = self.secrets.wanted.difference(&named).cloned().collect();
        let new: Vec<String> = named.difference(&self.secrets.wanted).cloned().collect();
        let requests =
            [self.secrets.want(&new, self.streaming), self.secrets.unwant(&unused, self.streaming)];
        if !unused.is_empty() {
            self.share_secrets();
        }
        self.with_node(requests)
    }

    fn share_secrets(&mut self) {
        let held = self.secrets.held.iter();
        self.held_secrets = Arc::new(held.map(|(name, held)| (name.clone(), held.value.clone())).collect());
    }

    /// The routes held under a name.
    pub fn routes(&self, name: &str) -> Option<&Held<RouteConfiguration>> {
        self.routes.held.get(name)
    }

    /// Whether a server has said which routes a name has, or that it has none.
    pub fn knows_routes(&self, name: &str) -> bool {
        self.routes.held.contains_key(name) || self.routes.absent.contains_key(name)
    }

    /// The cluster and the endpoints held under a name.
    pub fn held(&self, name: &str) -> (Option<&Held<Cluster>>, Option<&Held<ClusterLoadAssignment>>) {
        (self.clusters.held.get(name), self.endpoints.held.get(name))
    }

    /// Names of all services of which something is held, sorted.
    pub fn held_names(&self) -> Vec<String> {
        let routes = self.routes.held.keys().filter(|name| *name != OUTBOUND);
        let mut names: Vec<_> = self.clusters.held.keys().chain(routes).cloned().collect();
        names.sort();
        names.dedup();
        names
    }

    /// What the server said when asked for a name that does not exist.
    pub fn absent(&self, name: &str) -> Option<&str> {
        self.clusters.absent.get(name).or_else(|| self.endpoints.absent.get(name)).map(String::as_str)
    }

    /// Whether the server has yet to say something about a wanted name. Not about its routes and secrets: some servers have
    /// none.
    pub fn is_waiting(&self) -> bool {
        self.clusters.is_waiting() || self.endpoints.is_waiting()
    }

    /// A stream is open: the first requests, with the versions held. None for types of which nothing is wanted, since
    /// a first request without names would ask for everything.
    pub fn connected(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.streaming = true;
        self.node_sent = false;
        self.clusters.started = false;
        self.endpoints.started = false;
        self.routes.started = false;
        self.secrets.started = false;
        let requests = [
            self.clusters.first_request(),
            self.endpoints.first_request(),
            self.routes.first_request(),
            self.secrets.first_request(),
        ];
        self.with_node(requests)
    }

    /// The stream is gone. What is held stays.
    pub fn disconnected(&mut self) {
        self.streaming = false;
    }

    /// Subscribes to clusters and endpoints of these names.
    pub fn want(&mut self, names: &[String]) -> Vec<DeltaDiscoveryRequest> {
        let requests = [
            self.clusters.want(names, self.streaming),
            self.endpoints.want(names, self.streaming),
            self.routes.want(names, self.streaming),
        ];
        self.with_node(requests)
    }

    /// Gives these names up, with all that is held of them.
    pub fn unwant(&mut self, names: &[String]) -> Vec<DeltaDiscoveryRequest> {
        // Routes and endpoints first, as a server removes them: nobody waits for the endpoints of a cluster given up.
        let requests = [
            self.routes.unwant(names, self.streaming),
            self.endpoints.unwant(names, self.streaming),
            self.clusters.unwant(names, self.streaming),
        ];
        self.with_node(requests)
    }

    /// Takes a response. Good resources are held, bad ones are rejected by name.
    pub fn handle(&mut self, response: DeltaDiscoveryResponse) -> Handled {
        match ResourceType::from_url(&response.type_url) {
            Some(ResourceType::Cluster) => self.clusters.handle(response),
            Some(ResourceType::Endpoint) => self.endpoints.handle(response),
            Some(ResourceType::Route) => self.routes.handle(response),
            Some(ResourceType::Secret) => {
                let handled = self.secrets.handle(response);
                self.share_secrets();
                handled
            }
            Some(ResourceType::Listener) | None => {
                let reason = format!("type {:?} was not asked for", nack::shortened(&response.type_url));
                let rejected: Vec<_> =
                    response.resources.into_iter().map(|r| (r.name, reason.clone())).collect();
                let answer = DeltaDiscoveryRequest {
                    type_url: response.type_url,
                    response_nonce: response.nonce,
                    error_detail: Some(nack::rejection(&rejected)),
                    ..DeltaDiscoveryRequest::default()
                };
                Handled { answer, changes: Vec::new(), rejected }
            }
        }
    }

    /// All that is held, as it came, sorted by name: for the cache. Without secrets: private keys are written nowhere.
    pub fn export(&self) -> Exported {
        Exported {
            clusters: self.clusters.export(),
            endpoints: self.endpoints.export(),
            routes: self.routes.export(),
        }
    }

    /// Takes back what [`Self::export`] gave, and wants it. Answers what could not be used: a later release may
    /// refuse what an earlier one accepted.
    pub fn import(&mut self, saved: Exported) -> Vec<(String, String)> {
        let routes = saved.routes.iter().filter(|r| r.name != OUTBOUND);
        let names: Vec<String> = saved.clusters.iter().chain(routes).map(|r| r.name.clone()).collect();
        self.want(&names);
        let response = |resources| DeltaDiscoveryResponse { resources, ..DeltaDiscoveryResponse::default() };
        let mut rejected = self.clusters.handle(response(saved.clusters)).rejected;
        rejected.extend(self.endpoints.handle(response(saved.endpoints)).rejected);
        rejected.extend(self.routes.handle(response(saved.routes)).rejected);
        rejected
    }

    /// The first request of a stream says who we are.
    fn with_node<const N: usize>(
        &mut self,
        requests: [Option<DeltaDiscoveryRequest>; N],
    ) -> Vec<DeltaDiscoveryRequest> {
        let mut requests: Vec<_> = requests.into_iter().flatten().collect();
        if let Some(first) = requests.first_mut()
            && !std::mem::replace(&mut self.node_sent, true)
        {
            first.node = Some(self.node.clone());
        }
        requests
    }
}

/// Names of the secrets that a cluster takes.
fn secrets_of(cluster: &Cluster) -> Vec<String> {
    cluster.tls.iter().flat_map(ClusterTls::contexts).flat_map(client::secrets).collect()
}

#[cfg(test)]
pub(crate) mod tests;
