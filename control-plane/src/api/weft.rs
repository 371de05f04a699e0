//! `weft.v1` over gRPC: semaphores and locks, elections, and the operator's view of the mesh.
//!
//! - [`semaphore`], [`election`], [`mesh`], [`config`]: one service each; validation and wording.
//! - [`wait`]: what acquire and campaign share: one command, then waiting for the turn, and giving it back
//!   when nobody waits for it any more.
//! - [`observe`]: the leader of an election, change by change.
//! - [`write`](mod@write): pipelined writes of keys.

pub mod config;
pub mod election;
pub mod mesh;
pub mod observe;
mod quota;
pub mod semaphore;
pub mod wait;
mod write;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::service::RoutesBuilder;
use weft_gossip::driver::GossipHandle;
use weft_state::auth::AuthState;
use weft_state::command::Command;
use weft_xds_proto::weft as pb;

use super::caller::Asking;
use super::etcd::limits::MESSAGE_BYTES_MAX;
use super::read::Reader;
use super::status;
use crate::catalog::Catalog;
use crate::meshconfig::Routes;
use crate::raft::{Coordinator, Proposed};
use crate::watch_driver::Watches;
use crate::xds::XdsServer;

/// Largest request: names and values are small.
const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// Largest request that applies configuration.
const CONFIG_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Longest name of a semaphore or election, in bytes; as the state machine has it.
const NAME_BYTES_MAX: usize = weft_state::recipes::name::NAME_BYTES_MAX;

/// What the services of `weft.v1` share.
pub struct WeftApi {
    pub(super) coordinator: Coordinator,
    pub(super) reader: Reader,
    pub(super) watches: Arc<Watches>,
    pub(super) catalog: Catalog,
    pub(super) routes: Arc<Routes>,
    pub(super) gossip: Option<GossipHandle>,
    pub(super) xds: Arc<XdsServer>,
    pub(super) waits: Arc<wait::Waits>,
    pub(super) tasks: TaskTracker,
    pub(super) stop: CancellationToken,
    /// Room for writes of pipelined streams, all together.
    pub(super) write_room: Arc<tokio::sync::Semaphore>,
}

/// What [`WeftApi::new`] needs.
pub struct WeftParts {
    /// Writes.
    pub coordinator: Coordinator,
    /// Reads.
    pub reader: Reader,
    /// Where waiters wait. Must be among the coordinator's observers.
    pub watches: Arc<Watches>,
    /// Services and endpoints.
    pub catalog: Catalog,
    /// What configuration means.
    pub routes: Arc<Routes>,
    /// Members; none without gossip.
    pub gossip: Option<GossipHandle>,
    /// Connected proxies.
    pub xds: Arc<XdsServer>,
    /// Owns every task of these services.
    pub tasks: TaskTracker,
    /// Ends waits and observations when the server drains.
    pub stop: CancellationToken,
}

impl WeftApi {
    /// The services' shared part.
    pub fn new(parts: WeftParts) -> Arc<Self> {
        let waits = wait::Waits::new(
            parts.coordinator.clone(),
            parts.watches.clone(),
            parts.tasks.clone(),
            parts.stop.clone(),
        );
        Arc::new(Self {
            coordinator: parts.coordinator,
            reader: parts.reader,
            watches: parts.watches,
            catalog: parts.catalog,
            routes: parts.routes,
            gossip: parts.gossip,
            xds: parts.xds,
            waits,
            tasks: parts.tasks,
            stop: parts.stop,
            write_room: write::room(),
        })
    }

    /// Calls that wait for their turn now.
    pub fn waiting(&self) -> usize {
        self.waits.waiting()
    }

    /// Adds all services to a gRPC server that is being built.
    pub fn add_services(self: &Arc<Self>, routes: &mut RoutesBuilder) {
        routes.add_service(
            pb::semaphore_server::SemaphoreServer::from_arc(self.clone())
                .max_decoding_message_size(REQUEST_BYTES_MAX),
        );
        routes.add_service(
            pb::election_server::ElectionServer::from_arc(self.clone())
                .max_decoding_message_size(REQUEST_BYTES_MAX),
        );
        // As large as a command may be.
        routes.add_service(
            pb::mesh_config_server::MeshConfigServer::from_arc(self.clone())
                .max_decoding_message_size(CONFIG_BYTES_MAX),
        );
        routes.add_service(
            pb::mesh_server::MeshServer::from_arc(self.clone()).max_decoding_message_size(REQUEST_BYTES_MAX),
        );
        routes.add_service(
            pb::kv_server::KvServer::from_arc(self.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
        );
    }
}

impl WeftApi {
    /// Who asks; see [`Asking`].
    async fn asking(&self, metadata: &MetadataMap) -> Result<Asking, Status> {
        Ok(Asking::of(&self.coordinator, metadata.as_ref()).await?)
    }

    /// For what any user may see.
    async fn admit_user(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let asking = self.asking(metadata).await?;
        Ok(asking.check(&self.coordinator, AuthState::check_user).await?)
    }

    /// Has a command of that caller carried out, unless the caller may not.
    async fn propose(&self, asking: &Asking, command: Command) -> Result<Proposed, Status> {
        asking.admit(&self.coordinator, &command).await?;
        self.coordinator.propose(asking.enclose(command)).await.map_err(|e| status::propose(&e))
    }
}

fn check_name(name: &str) -> Result<(), Status> {
    if (1..=NAME_BYTES_MAX).contains(&name.len()) {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "name: is {} bytes long, allowed are 1 to {NAME_BYTES_MAX}",
        name.len()
    )))
}

fn check_session(lease: i64) -> Result<(), Status> {
    if lease != 0 {
        return Ok(());
    }
    Err(Status::invalid_argument("lease: is 0, allowed is the id of a lease that is kept alive as a session"))
}

/// An answer to another command than was proposed: a fault of ours, never of the caller.
fn unexpected(response: &weft_state::command::Response) -> Status {
    tracing::error!(?response, "a command was answered with another command's response");
    Status::internal("the state machine answered another command")
}

fn grant(grant: &weft_state::command::Grant, revision: i64) -> pb::Grant {
    pb::Grant {
        fence: grant.fence,
        revision,
        lease: grant.lease,
        key: String::from_utf8_lossy(&grant.key).into_owned(),
    }
}
