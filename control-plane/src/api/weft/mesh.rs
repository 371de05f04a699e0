//! The operator's view of the mesh: services, endpoints with provenance, members, servers, proxies.
//!
//! With authentication on, services and endpoints are told to anyone, as over DNS and xDS; the rest to any user.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;
use tonic::{Request, Response as Reply, Status};
use weft_core::process::resident_bytes;
use weft_gossip::member::{MemberState, MemberView, Role};
use weft_state::command::{Command, Response};
use weft_xds_proto::resource::cluster::LbPolicy;
use weft_xds_proto::weft as pb;

use super::{WeftApi, unexpected};
use crate::api::registry::validate;
use crate::api::status;
use crate::catalog::{Catalog, CatalogEndpoint, ServiceView, names};
use crate::meshconfig::Balancing;
use crate::raft::PeerStatus;

/// Most names in an answer about an unknown one.
const NAMES_SHOWN_MAX: usize = 20;

#[tonic::async_trait]
impl pb::mesh_server::Mesh for WeftApi {
    async fn services(
        &self,
        _request: Request<pb::ServicesRequest>,
    ) -> Result<Reply<pb::ServicesResponse>, Status> {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let config = self.routes.lowered();
        let services = self.catalog.services().into_iter().map(|s| {
            let balancing = Balancing::of(&config, &s.name, s.load_balancing);
            pb::Service {
                name: s.name,
                healthy: count(s.healthy),
                total: count(s.total),
                load_balancing: balancing.policy.to_string(),
                sources: s.sources.into_iter().map(str::to_owned).collect(),
                load_balancing_by: balancing
                    .document
                    .map(|d| format!("TrafficPolicy {d}"))
                    .unwrap_or_default(),
            }
        });
        Ok(Reply::new(pb::ServicesResponse { services: services.collect() }))
    }

    async fn endpoints(
        &self,
        request: Request<pb::EndpointsRequest>,
    ) -> Result<Reply<pb::EndpointsResponse>, Status> {
        let service = request.into_inner().service;
        let endpoints = self.catalog.endpoints(&service);
        if endpoints.is_empty() {
            return Err(self.unknown_service(&service));
        }
        Ok(Reply::new(pb::EndpointsResponse { endpoints: endpoints.into_iter().map(endpoint).collect() }))
    }

    type WatchEndpointsStream = BoxStream<'static, Result<pb::EndpointsResponse, Status>>;

    async fn watch_endpoints(
        &self,
        request: Request<pb::EndpointsRequest>,
    ) -> Result<Reply<Self::WatchEndpointsStream>, Status> {
        let service = request.into_inner().service;
        check_service(&service)?;
        let changes = self.catalog.changes();
        let watched = Watched { catalog: self.catalog.clone(), service, changes, told: None };
        let all = stream::unfold(watched, async |mut watched| Some((Ok(watched.next().await?), watched)));
        Ok(Reply::new(all.take_until(self.stop.clone().cancelled_owned()).boxed()))
    }

    async fn members(
        &self,
        request: Request<pb::MembersRequest>,
    ) -> Result<Reply<pb::MembersResponse>, Status> {
        self.admit_user(request.metadata()).await?;
        let now = Instant::now();
        let members = self.gossip.as_ref().map(|g| g.members().iter().map(|m| member(m, now)).collect());
        Ok(Reply::new(pb::MembersResponse { members: members.unwrap_or_default() }))
    }

    async fn status(&self, request: Request<pb::StatusRequest>) -> Result<Reply<pb::StatusResponse>, Status> {
        self.admit_user(request.metadata()).await?;
        let raft = self.coordinator.status();
        let (revision, compacted, keys, leases, data_bytes) = self.coordinator.read(|m| {
            let leases = m.all_lease_terms().len() as u64;
            (m.revision(), m.compacted(), m.key_count(), leases, m.data_bytes())
        });
        let members = self.gossip.as_ref().map(|g| g.members()).unwrap_or_default();
        let alive = members.iter().filter(|m| m.state == MemberState::Alive).count() as u64;
        Ok(Reply::new(pb::StatusResponse {
            cluster_id: raft.cluster_id.map(|id| id.to_string()).unwrap_or_default(),
            name: raft.name,
            id: raft.id.0,
            leader_id: raft.leader.map_or(0, |id| id.0),
            term: raft.term,
            last_log_index: raft.last_log,
            commit_index: raft.committed,
            applied_index: raft.applied,
            revision,
            compact_revision: compacted,
            keys,
            leases,
            wal_bytes: raft.wal_bytes,
            servers: raft.peers.iter().map(|p| server(p, &members)).collect(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            members_alive: alive,
            connected_proxies: self.xds.connected() as u64,
            memory_bytes: resident_bytes().unwrap_or(0),
            data_bytes,
            fsyncs: raft.fsyncs,
            fsync_slowest_us: u64::try_from(raft.fsync_slowest.as_micros()).unwrap_or(u64::MAX),
            disk: raft.disk.to_string(),
            snapshot_index: raft.snapshot,
        }))
    }

    async fn set_load_balancing(
        &self,
        request: Request<pb::SetLoadBalancingRequest>,
    ) -> Result<Reply<pb::SetLoadBalancingResponse>, Status> {
        let asking = self.asking(request.metadata()).await?;
        let pb::SetLoadBalancingRequest { service, policy } = request.into_inner();
        check_service(&service)?;
        let policy: LbPolicy =
            policy.parse().map_err(|e| Status::invalid_argument(format!("policy: {e}")))?;
        let present = Balancing::of(&self.routes.lowered(), &service, policy.clone());
        if let Some(document) = present.document {
            return Err(Status::failed_precondition(format!(
                "TrafficPolicy {document} says how {service} is balanced ({}); change loadBalancing there, or take it out",
                present.policy
            )));
        }
        let command = Command::SetLoadBalancing { service, policy: policy.to_string() };
        let proposed = self.propose(&asking, command).await?;
        match proposed.response {
            Ok(Response::SetLoadBalancing) => {
                Ok(Reply::new(pb::SetLoadBalancingResponse { revision: proposed.revision }))
            }
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(status::store(&error)),
        }
    }

    async fn proxies(
        &self,
        request: Request<pb::ProxiesRequest>,
    ) -> Result<Reply<pb::ProxiesResponse>, Status> {
        self.admit_user(request.metadata()).await?;
        let proxies = self.xds.proxies().into_iter().map(|p| pb::Proxy {
            node_id: p.node_id,
            address: p.address.map(|a| a.to_string()).unwrap_or_default(),
            resources: p
                .resources
                .into_iter()
                .map(|r| pb::ProxyResource {
                    type_url: r.resource_type.url().to_owned(),
                    name: r.name,
                    version_sent: r.version_sent,
                    version_acked: r.version_acked,
                    error: r.error.unwrap_or_default(),
                })
                .collect(),
        });
        Ok(Reply::new(pb::ProxiesResponse { proxies: proxies.collect() }))
    }
}

impl WeftApi {
    fn unknown_service(&self, service: &str) -> Status {
        let known = self.catalog.service_names();
        let near = names::near(service, known.iter().map(String::as_str), NAMES_SHOWN_MAX);
        let hint = match (near.as_slice(), known.as_slice()) {
            ([], []) => "no service has an instance".to_owned(),
            ([], known) => {
                let shown: Vec<&str> = known.iter().take(NAMES_SHOWN_MAX).map(String::as_str).collect();
                format!("{} services are known: {}", known.len(), shown.join(", "))
            }
            (near, _) => format!("did you mean {}", near.join(", ")),
        };
        Status::not_found(format!("service {service:?} is unknown; {hint}"))
    }
}

/// One service, for somebody who wants to know of each change.
struct Watched {
    catalog: Catalog,
    service: String,
    changes: watch::Receiver<u64>,
    /// What was told last, once something was.
    told: Option<Option<Arc<ServiceView>>>,
}

impl Watched {
    /// The endpoints as they stand, once they are others than those that were told. What changes while the reader is slow is
    /// told as one. None: the catalogue is no more.
    async fn next(&mut self) -> Option<pb::EndpointsResponse> {
        loop {
            self.changes.mark_unchanged();
            let present = self.catalog.service(&self.service);
            if self.told.as_ref() != Some(&present) {
                let now = Instant::now();
                let claims = present.iter().flat_map(|view| view.routable());
                let endpoints =
                    claims.map(|claim| endpoint(CatalogEndpoint::of(&self.service, claim, now))).collect();
                self.told = Some(present);
                return Some(pb::EndpointsResponse { endpoints });
            }
            self.changes.changed().await.ok()?;
        }
    }
}

fn check_service(name: &str) -> Result<(), Status> {
    validate::service_name_text(name)
        .map_err(|p| Status::invalid_argument(format!("{}: {}, allowed is {}", p.field, p.error, p.allowed)))
}

fn millis(age: Duration) -> u64 {
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

fn endpoint(e: CatalogEndpoint) -> pb::Endpoint {
    let address = match e.address {
        Some(address) => address.to_string(),
        None => format!("{}:{}", e.host, e.port),
    };
    pb::Endpoint {
        instance_id: e.instance_id,
        address,
        health: e.health.as_str().to_owned(),
        source: e.source.as_str().to_owned(),
        owner: e.source.owner(),
        age_ms: millis(e.age),
        metadata: e.metadata.into_iter().collect(),
    }
}

fn member(m: &MemberView, now: Instant) -> pb::Member {
    let role = match m.member.role {
        Role::Server { .. } => "server",
        Role::Proxy => "proxy",
    };
    let state = match m.state {
        MemberState::Alive => "alive",
        MemberState::Suspect => "suspect",
        MemberState::Down => "down",
    };
    pb::Member {
        name: m.member.name.clone(),
        id: m.member.id.to_string(),
        role: role.to_owned(),
        gossip_address: m.member.gossip_addr.to_string(),
        state: state.to_owned(),
        incarnation: m.member.incarnation,
        since_ms: millis(now.saturating_duration_since(m.since)),
    }
}

/// A server's part in the group, unless gossip says that it is down: raft itself knows only what it was.
fn server(p: &PeerStatus, members: &[MemberView]) -> pb::ServerStatus {
    let member = members.iter().find(|m| m.member.id == p.id);
    let is_down = member.is_some_and(|m| m.state == MemberState::Down);
    let grpc_address = match member.map(|m| &m.member.role) {
        Some(Role::Server { grpc_addr, .. }) => grpc_addr.to_string(),
        _ => String::new(),
    };
    pb::ServerStatus {
        name: p.name.clone(),
        id: p.id.0,
        peer_address: p.addr.to_string(),
        role: if is_down { "unreachable".to_owned() } else { p.role.to_string() },
        voter: p.voter,
        matched_index: p.matched.unwrap_or(0),
        grpc_address,
    }
}
