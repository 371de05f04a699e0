//! `Lease`: grants, renewals and queries.

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use tonic::{Request, Status, Streaming};
use weft_state::auth::{Access, Caller};
use weft_state::command::{Command, LeaseId, Response as Outcome};
use weft_state::error::StoreError;
use weft_state::lease::TTL_SECS_MAX;
use weft_xds_proto::etcdserverpb as pb;

use super::stream_end::stream_end;
use super::{Answer, Api, requires_leader, status, unexpected};
use crate::api::caller::{Asking, permitted};
use crate::raft::LeaseError;

#[tonic::async_trait]
impl pb::lease_server::Lease for Api {
    async fn lease_grant(&self, request: Request<pb::LeaseGrantRequest>) -> Answer<pb::LeaseGrantResponse> {
        self.admit(request.metadata())?;
        let asking = self.asking(request.metadata()).await?;
        let pb::LeaseGrantRequest { ttl, id } = request.into_inner();
        if ttl > TTL_SECS_MAX {
            return Err(status::store(&StoreError::LeaseTtlOutOfRange { seen: ttl, limit: TTL_SECS_MAX }));
        }
        // Zero and negative TTLs are raised too, as in etcd; clients read the answer.
        let ttl_secs = ttl.max(self.options.limits.min_lease_ttl_secs);
        loop {
            let chosen = if id == 0 { random_lease_id() } else { id };
            let (proposed, header) =
                self.propose(&asking, Command::LeaseGrant { id: chosen, ttl_secs }).await?;
            return match proposed.response {
                Ok(Outcome::LeaseGrant { id, ttl_secs }) => Ok(pb::LeaseGrantResponse {
                    header: Some(header),
                    id,
                    ttl: ttl_secs,
                    ..Default::default()
                }
                .into()),
                // Somebody has the id that we drew: draw again.
                Err(StoreError::LeaseExists { .. }) if id == 0 => continue,
                Ok(other) => Err(unexpected(&other)),
                Err(error) => Err(status::store(&error)),
            };
        }
    }

    async fn lease_revoke(
        &self,
        request: Request<pb::LeaseRevokeRequest>,
    ) -> Answer<pb::LeaseRevokeResponse> {
        self.admit(request.metadata())?;
        let asking = self.asking(request.metadata()).await?;
        let id = request.into_inner().id;
        let (proposed, header) = self.propose(&asking, Command::LeaseRevoke { id }).await?;
        match proposed.response.map_err(|error| status::store(&error))? {
            Outcome::LeaseRevoke => Ok(pb::LeaseRevokeResponse { header: Some(header) }.into()),
            other => Err(unexpected(&other)),
        }
    }

    type LeaseKeepAliveStream = BoxStream<'static, Result<pb::LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<pb::LeaseKeepAliveRequest>>,
    ) -> Answer<Self::LeaseKeepAliveStream> {
        self.admit(request.metadata())?;
        let Asking { caller, .. } = self.asking(request.metadata()).await?;
        let end = stream_end(self, requires_leader(request.metadata()));
        let state =
            KeepAlive { api: self.clone(), caller, input: request.into_inner(), end, finished: false };
        let stream = stream::unfold(state, |mut state| async move {
            let answer = state.next().await?;
            state.finished = answer.is_err();
            Some((answer, state))
        });
        Ok(stream.boxed().into())
    }

    async fn lease_time_to_live(
        &self,
        request: Request<pb::LeaseTimeToLiveRequest>,
    ) -> Answer<pb::LeaseTimeToLiveResponse> {
        self.admit(request.metadata())?;
        let Asking { caller, .. } = self.asking(request.metadata()).await?;
        let pb::LeaseTimeToLiveRequest { id, keys } = request.into_inner();
        self.read_barrier().await?;
        let permitted = self.coordinator.read(|machine| match keys {
            true => machine.permits_lease(&caller, Access::Read, id),
            false => machine.auth().check_user(&caller),
        });
        permitted.map_err(|error| status::auth(&error))?;
        let remaining =
            self.coordinator.lease_remaining(id).await.map_err(|error| status::propose(&error))?;
        let (revision, lease) = self.coordinator.read(|machine| (machine.revision(), machine.lease(id)));
        let header = Some(self.header_at(revision));
        let unknown = pb::LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() };
        // Both must know it: between the two questions it may have ended.
        let (Some(remaining), Some(lease)) = (remaining, lease) else { return Ok(unknown.into()) };
        Ok(pb::LeaseTimeToLiveResponse {
            ttl: i64::try_from(remaining.as_secs()).unwrap_or(i64::MAX),
            granted_ttl: lease.ttl_secs,
            keys: if keys { lease.keys } else { Vec::new() },
            ..unknown
        }
        .into())
    }

    async fn lease_leases(
        &self,
        request: Request<pb::LeaseLeasesRequest>,
    ) -> Answer<pb::LeaseLeasesResponse> {
        self.admit(request.metadata())?;
        let Asking { caller, .. } = self.asking(request.metadata()).await?;
        self.read_barrier().await?;
        let (revision, leases) = self.coordinator.read(|machine| {
            let leases = machine.leases();
            // As in etcd: whoever may read everything that hangs on them may list them.
            let all = leases.iter().try_for_each(|id| machine.permits_lease(&caller, Access::Read, *id));
            let permitted = machine.auth().check_user(&caller).and(all);
            (machine.revision(), permitted.map(|()| leases))
        });
        let leases = leases.map_err(|error| status::auth(&error))?;
        let leases = leases.into_iter().map(|id| pb::LeaseStatus { id }).collect();
        Ok(pb::LeaseLeasesResponse { header: Some(self.header_at(revision)), leases }.into())
    }
}

/// One keep-alive stream: a request, its answer, the next request. Polled only when the client has room,
/// so a client that never reads its answers is not read from either.
struct KeepAlive {
    api: Api,
    caller: Caller,
    input: Streaming<pb::LeaseKeepAliveRequest>,
    end: BoxFuture<'static, Status>,
    finished: bool,
}

impl KeepAlive {
    async fn next(&mut self) -> Option<Result<pb::LeaseKeepAliveResponse, Status>> {
        if self.finished {
            return None;
        }
        tokio::select! {
            request = self.input.message() => match request {
                Ok(Some(request)) => Some(self.api.keep_alive(&self.caller, request.id).await),
                // The client is done, or gone.
                Ok(None) | Err(_) => None,
            },
            end = &mut self.end => Some(Err(end)),
        }
    }
}

impl Api {
    /// An unknown lease is answered with TTL 0, not refused: the stream goes on for the other leases.
    async fn keep_alive(&self, caller: &Caller, id: LeaseId) -> Result<pb::LeaseKeepAliveResponse, Status> {
        permitted(&self.coordinator, |machine| machine.permits_lease(caller, Access::Write, id)).await?;
        let ttl = match self.coordinator.lease_renew(id).await {
            Ok(ttl) => ttl,
            Err(LeaseError::Store(StoreError::LeaseNotFound { .. })) => 0,
            Err(error) => return Err(status::lease(&error)),
        };
        Ok(pb::LeaseKeepAliveResponse { header: Some(self.header_now()), id, ttl })
    }
}

/// Positive, as etcd's are, so that clients may keep them in signed and unsigned fields alike.
fn random_lease_id() -> LeaseId {
    fastrand::i64(1..=i64::MAX)
}
