//! Each rule of incremental xDS that applies to us, by name; then the state-of-the-world ones.

use std::sync::Arc;

use weft_xds_proto::envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use weft_xds_proto::envoy_types::pb::google::protobuf::Any;
use weft_xds_proto::envoy_types::pb::google::rpc::Status;
use weft_xds_proto::nack;

use super::*;
use crate::xds::config_snapshot::Resource;

mod delta;
mod sotw;

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::Endpoint;
const LDS: ResourceType = ResourceType::Listener;
const RDS: ResourceType = ResourceType::Route;

/// Services as (name, version of the cluster, version of the endpoints).
fn snapshot(services: &[(&str, &str, &str)]) -> ConfigSnapshot {
    ConfigSnapshot::new(services.iter().flat_map(|(name, cluster, endpoints)| {
        [(CDS, *cluster), (EDS, *endpoints), (LDS, "1"), (RDS, "1")].map(|(t, version)| {
            let body = Any { type_url: t.url().to_owned(), value: format!("{name}@{version}").into_bytes() };
            (t, Arc::new(Resource { name: name.to_string(), version: version.to_owned(), body }))
        })
    }))
}

/// `name@version` of what a delta response carries, then `-name` of what it removes.
fn content(r: &DeltaDiscoveryResponse) -> Vec<String> {
    let resources = r.resources.iter().map(|r| format!("{}@{}", r.name, r.version));
    resources.chain(r.removed_resources.iter().map(|n| format!("-{n}"))).collect()
}

/// `name@version` of what a full response carries.
fn bodies(r: &DiscoveryResponse) -> Vec<String> {
    r.resources.iter().map(|a| String::from_utf8(a.value.clone()).unwrap()).collect()
}

fn status(s: &Subscriptions, t: ResourceType, name: &str) -> ResourceStatus {
    s.status().into_iter().find(|r| r.resource_type == t && r.name == name).expect("has a status")
}

#[test]
fn a_name_is_mentioned_only_as_a_whole_word() {
    assert!(mentions(r#"Cluster "web": bad"#, "web"));
    assert!(mentions("web: bad", "web"));
    assert!(!mentions("web-2: bad, my-web: bad", "web"));
}
