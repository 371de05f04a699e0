//! etcd v3 over gRPC, for `etcdctl` and etcd's client libraries.
//!
//! A request is checked and turned into a [`Command`](weft_state::command::Command) or a read
//! ([`convert`]), carried out through the [`Coordinator`], and answered with etcd's header; refusals get
//! etcd's codes and texts ([`status`]). Consistency, per call:
//!
//! - Writes: linearizable; the answer comes after the change was applied on this server.
//! - `Range`, read-only `Txn`, lease queries: linearizable through a read barrier, unless `serializable`,
//!   which reads what this server has.
//! - `Watch`: ordered and gap-free from the start revision, at this server's pace.
//! - `Maintenance`, `Cluster`: what this server knows.

mod auth;
mod cluster;
pub mod convert;
mod kv;
mod lease;
pub mod limits;
mod maintenance;
mod pager;
mod read_txn;
mod snapshot;
pub mod status;
mod stream_end;
mod txn_keys;
mod watch;

use std::convert::Infallible;
use std::sync::Arc;

use hyper::body::Incoming;
use tonic::metadata::MetadataMap;
use tonic::service::{Routes, RoutesBuilder};
use tonic::{Response, Status};
use tower::Service;
use weft_core::drain::DrainWatch;
use weft_core::id::NodeId;
use weft_state::auth::AuthState;
use weft_state::command::Revision;
use weft_state::machine::Machine;
use weft_xds_proto::etcdserverpb as pb;

use crate::api::caller::Asking;
use crate::auth::Logins;
use crate::raft::{Coordinator, Proposed};
use crate::watch_driver::Watches;
use limits::{Limits, MESSAGE_BYTES_MAX};

/// The etcd API version that is answered to clients, which switch features by it (Kubernetes asks for
/// progress requests only from 3.5.8 on).
pub const API_VERSION: &str = "3.6.0";

/// URLs at which clients reach a member, by its id; empty if not known.
pub type ClientUrls = Arc<dyn Fn(NodeId) -> Vec<String> + Send + Sync>;

/// What the etcd API needs to know beyond the group itself.
#[derive(Clone)]
pub struct EtcdOptions {
    /// For `MemberList`, which client libraries use to find further endpoints.
    pub client_urls: ClientUrls,
    /// What the servers speak with each other: `http` or `https`.
    pub peer_scheme: &'static str,
    /// Ends watches and keep-alive streams when the server drains; they would never end by themselves.
    pub drain: Option<DrainWatch>,
    /// Bounds.
    pub limits: Limits,
}

impl Default for EtcdOptions {
    fn default() -> Self {
        EtcdOptions {
            client_urls: Arc::new(|_| Vec::new()),
            peer_scheme: "http",
            drain: None,
            limits: Limits::default(),
        }
    }
}

/// All services of the etcd API as routes of their own.
pub fn services(coordinator: Coordinator, watches: Arc<Watches>, options: EtcdOptions) -> Routes {
    let mut builder = Routes::builder();
    add_services(&mut builder, coordinator, watches, options);
    builder.routes()
}

/// Adds all services of the etcd API to a gRPC server that is being built; answers those that are called most.
pub fn add_services(
    routes: &mut RoutesBuilder,
    coordinator: Coordinator,
    watches: Arc<Watches>,
    options: EtcdOptions,
) -> Hot {
    let id = coordinator.status().id;
    let api = Arc::new(Api { coordinator, watches, options, id, logins: Logins::default() });
    // Answers are as large as what was asked for, as in etcd; requests are bounded.
    macro_rules! server {
        ($module:ident :: $server:ident) => {
            pb::$module::$server::from_arc(api.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(usize::MAX)
        };
    }
    let kv = server!(kv_server::KvServer);
    let lease = server!(lease_server::LeaseServer);
    routes.add_service(kv.clone());
    routes.add_service(lease.clone());
    routes.add_service(server!(cluster_server::ClusterServer));
    routes.add_service(server!(maintenance_server::MaintenanceServer));
    routes.add_service(server!(auth_server::AuthServer));
    routes.add_service(watch::WatchServer(api));
    Hot { kv, lease }
}

/// The services that are called most, to be called past the router: a router's look-up and its layers cost a small
/// read more than the read itself.
#[derive(Clone)]
pub struct Hot {
    kv: pb::kv_server::KvServer<Api>,
    lease: pb::lease_server::LeaseServer<Api>,
}

/// One of [`Hot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HotService {
    /// `etcdserverpb.KV`.
    Kv,
    /// `etcdserverpb.Lease`.
    Lease,
}

impl HotService {
    /// The one that a path leads to, whatever the method.
    pub fn of(path: &str) -> Option<Self> {
        let path = path.strip_prefix("/etcdserverpb.")?;
        match path {
            _ if path.starts_with("KV/") => Some(Self::Kv),
            _ if path.starts_with("Lease/") => Some(Self::Lease),
            _ => None,
        }
    }
}

impl Hot {
    /// Has a call answered, also one of a method that does not exist.
    pub fn call(&mut self, service: HotService, request: http::Request<Incoming>) -> Calling {
        match service {
            HotService::Kv => self.kv.call(request),
            HotService::Lease => self.lease.call(request),
        }
    }
}

/// A call being answered.
pub type Calling = tonic::codegen::BoxFuture<http::Response<tonic::body::Body>, Infallible>;

/// What all services share. One service is one `impl` in its own file.
#[derive(Clone)]
pub struct Api {
    coordinator: Coordinator,
    watches: Arc<Watches>,
    options: EtcdOptions,
    id: NodeId,
    logins: Logins,
}

impl Api {
    fn header(&self, revision: Revision, term: u64) -> pb::ResponseHeader {
        pb::ResponseHeader {
            cluster_id: self.coordinator.cluster_id().map_or(0, |id| id.0),
            member_id: self.id.0,
            revision,
            raft_term: term,
        }
    }

    /// For an answer that was read here rather than proposed: the term is that of the state it was read
    /// from.
    fn header_at(&self, revision: Revision) -> pb::ResponseHeader {
        let applied = self.coordinator.read(Machine::applied_term);
        // Nothing is applied yet in a group that was only just formed.
        let term = if applied > 0 { applied } else { self.coordinator.status().term };
        self.header(revision, term)
    }

    fn header_now(&self) -> pb::ResponseHeader {
        self.header_at(self.coordinator.read(Machine::revision))
    }

    /// Before anything else: a request may say that it needs a leader (`hasleader`), and a server that is
    /// not in a group yet has nothing to answer from.
    fn admit(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let lacks_leader = requires_leader(metadata) && !self.coordinator.has_leader();
        if lacks_leader || self.coordinator.cluster_id().is_none() {
            return Err(status::no_leader());
        }
        Ok(())
    }

    /// Who asks; see [`Asking`].
    async fn asking(&self, metadata: &MetadataMap) -> Result<Asking, Status> {
        Ok(Asking::of(&self.coordinator, metadata.as_ref()).await?)
    }

    /// As [`Api::admit`], for what only an administrator may do.
    async fn admit_admin(&self, metadata: &MetadataMap) -> Result<(), Status> {
        self.admit(metadata)?;
        let asking = self.asking(metadata).await?;
        Ok(asking.check(&self.coordinator, AuthState::check_admin).await?)
    }

    /// As [`Api::admit`], for what any user may do.
    async fn admit_user(&self, metadata: &MetadataMap) -> Result<(), Status> {
        self.admit(metadata)?;
        let asking = self.asking(metadata).await?;
        Ok(asking.check(&self.coordinator, AuthState::check_user).await?)
    }

    async fn propose(
        &self,
        asking: &Asking,
        command: weft_state::command::Command,
    ) -> Result<(Proposed, pb::ResponseHeader), Status> {
        asking.admit(&self.coordinator, &command).await?;
        let command = asking.enclose(command);
        let proposed = self.coordinator.propose(command).await.map_err(|error| status::propose(&error))?;
        let header = self.header(proposed.revision, proposed.term);
        Ok((proposed, header))
    }

    /// After it, reads of this server's state are linearizable.
    async fn read_barrier(&self) -> Result<(), Status> {
        self.coordinator.read_barrier().await.map_err(|error| status::propose(&error))
    }

    /// After it, this server's state may be read as was asked for.
    async fn before_read(&self, serializable: bool) -> Result<(), Status> {
        if serializable {
            self.coordinator.check_taken_in().map_err(|error| status::propose(&error))
        } else {
            self.read_barrier().await
        }
    }
}

/// `clientv3.WithRequireLeader`.
fn requires_leader(metadata: &MetadataMap) -> bool {
    metadata.get("hasleader").is_some_and(|value| value == "true")
}

/// An answer that the state machine cannot give to the command that was proposed.
fn unexpected(response: &weft_state::command::Response) -> Status {
    debug_assert!(false, "answer of another command: {response:?}");
    Status::internal("weft: the state machine answered another command; please report this")
}

type Answer<T> = Result<Response<T>, Status>;
