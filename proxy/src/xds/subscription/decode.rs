//! Resources of each type, checked as far as can be known before they are used.

use std::sync::Arc;

use prost::Message;
use weft_xds_proto::envoy_types::pb::envoy::config::cluster::v3::Cluster as ClusterProto;
use weft_xds_proto::envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment as AssignmentProto;
use weft_xds_proto::envoy_types::pb::envoy::config::route::v3::RouteConfiguration as RoutesProto;
use weft_xds_proto::envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::Secret as SecretProto;
use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::Resource as WireResource;
use weft_xds_proto::nack;
use weft_xds_proto::resource::cluster::tls::Secret;
use weft_xds_proto::resource::cluster::{Cluster, ClusterTls};
use weft_xds_proto::resource::endpoint::ClusterLoadAssignment;
use weft_xds_proto::resource::route::RouteConfiguration;
use weft_xds_proto::type_url::ResourceType;

use super::Held;
use crate::courtesy::{self, InSteps};
use crate::route::table::RouteTable;
use crate::tls::client;

/// A resource type that can be checked.
pub(super) trait Decode: Sized {
    const TYPE: ResourceType;
    /// Whether what was sent last goes on when the server takes the resource away.
    const OUTLIVES_REMOVAL: bool = false;
    fn decode(body: &[u8]) -> Result<Self, String>;
    fn name(&self) -> &str;
}

impl Decode for Cluster {
    const TYPE: ResourceType = ResourceType::Cluster;
    fn decode(body: &[u8]) -> Result<Self, String> {
        let proto = ClusterProto::decode(body).map_err(|e| e.to_string())?;
        let cluster = Self::try_from(proto).map_err(|e| e.to_string())?;
        // What is accepted is used, so certificates that come with it are tried here.
        for tls in cluster.tls.iter().flat_map(ClusterTls::contexts) {
            client::check(tls)
                .map_err(|why| format!("Cluster {:?}: transport_socket: {why}", cluster.name))?;
        }
        Ok(cluster)
    }
    fn name(&self) -> &str {
        &self.name
    }
}

impl Decode for ClusterLoadAssignment {
    const TYPE: ResourceType = ResourceType::Endpoint;
    fn decode(body: &[u8]) -> Result<Self, String> {
        // There are many, and they change often.
        let proto = AssignmentProto::decode(InSteps::new(body)).map_err(|e| e.to_string())?;
        courtesy::make_way();
        Self::try_from(proto).map_err(|e| e.to_string())
    }
    fn name(&self) -> &str {
        &self.cluster_name
    }
}

impl Decode for RouteConfiguration {
    const TYPE: ResourceType = ResourceType::Route;
    fn decode(body: &[u8]) -> Result<Self, String> {
        let proto = RoutesProto::decode(body).map_err(|e| e.to_string())?;
        let config = Self::try_from(proto).map_err(|e| e.to_string())?;
        // What is accepted is used, so it is tried here.
        RouteTable::new(&config)?;
        Ok(config)
    }
    fn name(&self) -> &str {
        &self.name
    }
}

impl Decode for Secret {
    const TYPE: ResourceType = ResourceType::Secret;
    /// Clusters that name it are still there, and would have nothing to connect with.
    const OUTLIVES_REMOVAL: bool = true;
    fn decode(body: &[u8]) -> Result<Self, String> {
        let proto = SecretProto::decode(body).map_err(|e| e.to_string())?;
        let secret = Self::try_from(proto).map_err(|e| e.to_string())?;
        client::check_secret(&secret).map_err(|why| format!("Secret {:?}: {why}", secret.name))?;
        Ok(secret)
    }
    fn name(&self) -> &str {
        &self.name
    }
}

/// A resource of a response.
pub(super) fn decode<T: Decode>(resource: WireResource) -> Result<Held<T>, String> {
    let body = resource.resource.ok_or("has no content")?;
    if body.type_url != T::TYPE.url() {
        let seen = nack::shortened(&body.type_url);
        return Err(format!("has type {seen:?}, expected {:?}", T::TYPE.url()));
    }
    let value = T::decode(&body.value)?;
    if value.name() != resource.name {
        let seen = nack::shortened(value.name());
        return Err(format!("is named {:?} outside and {seen:?} inside", resource.name));
    }
    Ok(Held { version: resource.version, value: Arc::new(value), body })
}
