//! What any gRPC server is asked about itself: which services it has (reflection), and whether they serve (health).
//!
//! *Reflection*, v1 and v1alpha: the etcd API, `weft.v1` and health, for `grpcurl` and the like. xDS is left out: its
//! descriptions are megabytes, and its clients bring them. Nothing here is secret, so nothing is asked of the caller.
//!
//! *Health* (`grpc.health.v1`): the server as a whole (the empty name) and each service of etcd and `weft.v1` are
//! `SERVING` while this server is a voter of a group, knows a leader that a majority confirms, and its log has space to go
//! on: when a write through it can be expected to succeed. Followers serve as the leader does, since they forward.
//! xDS is `SERVING` until the server drains: what proxies run on must not depend on a quorum.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::service::RoutesBuilder;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use weft_xds_proto::CLIENT_API_DESCRIPTORS;

use super::probes::why_not_ready_alone;
use crate::raft::Coordinator;

/// How often is looked whether the state has changed: silence of a leader is noticed by time alone.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Services that need a leader; the empty name is the server as a whole.
const NEED_A_LEADER: [&str; 12] = [
    "",
    "etcdserverpb.KV",
    "etcdserverpb.Watch",
    "etcdserverpb.Lease",
    "etcdserverpb.Cluster",
    "etcdserverpb.Maintenance",
    "etcdserverpb.Auth",
    "weft.v1.Kv",
    "weft.v1.Semaphore",
    "weft.v1.Election",
    "weft.v1.Mesh",
    "weft.v1.MeshConfig",
];

/// Serves whoever leads.
const XDS: &str = "envoy.service.discovery.v3.AggregatedDiscoveryService";

/// Adds both services. What health answers is told by [`report`].
pub fn add_services(routes: &mut RoutesBuilder) -> HealthReporter {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(CLIENT_API_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    routes.add_service(builder().build_v1().expect("descriptors that the build made"));
    routes.add_service(builder().build_v1alpha().expect("descriptors that the build made"));
    let (reporter, health) = tonic_health::server::health_reporter();
    routes.add_service(health);
    reporter
}

/// Keeps what health answers true until the server drains, which is said too.
pub async fn report(reporter: HealthReporter, coordinator: Coordinator, drained: CancellationToken) {
    let mut leader = coordinator.leader_changes();
    set(&reporter, &NEED_A_LEADER, false).await;
    set(&reporter, &[XDS], true).await;
    let mut told = false;
    while !drained.is_cancelled() {
        let serves = coordinator.has_leader() && why_not_ready_alone(&coordinator).is_empty();
        if std::mem::replace(&mut told, serves) != serves {
            set(&reporter, &NEED_A_LEADER, serves).await;
        }
        tokio::select! {
            _ = leader.changed() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = drained.cancelled() => {}
        }
    }
    set(&reporter, &NEED_A_LEADER, false).await;
    set(&reporter, &[XDS], false).await;
}

async fn set(reporter: &HealthReporter, services: &[&str], serve: bool) {
    let status = if serve { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in services {
        reporter.set_service_status(service, status).await;
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;

    use super::*;

    #[test]
    fn every_service_of_the_client_apis_has_a_health() {
        let pool = DescriptorPool::decode(CLIENT_API_DESCRIPTORS).expect("decodes");
        let mut described: Vec<String> = pool.services().map(|s| s.full_name().to_owned()).collect();
        described.push(String::new());
        described.sort_unstable();
        let mut told = NEED_A_LEADER.to_vec();
        told.sort_unstable();
        assert_eq!(told, described);
    }
}
