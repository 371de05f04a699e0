//! Semaphores and locks: words around one log command each.

use std::time::Duration;

use tonic::{Request, Response as Reply, Status};
use weft_state::auth::Access;
use weft_state::command::{Acquire, Command, Release, Response};
use weft_state::recipes::semaphore::prefix;
use weft_xds_proto::weft as pb;

use super::wait::{self, Ask, CallKey, Turn};
use super::{WeftApi, check_name, check_session, unexpected};
use crate::api::caller::Asking;
use crate::api::read::Wanted;
use crate::api::status;

/// Most permits a semaphore can have.
pub const LIMIT_MAX: u32 = 1_000_000;

#[tonic::async_trait]
impl pb::semaphore_server::Semaphore for WeftApi {
    async fn acquire(
        &self,
        request: Request<pb::AcquireRequest>,
    ) -> Result<Reply<pb::AcquireResponse>, Status> {
        let asking = self.asking(request.metadata()).await?;
        let ask = ask(&asking, request.into_inner())?;
        asking.admit(&self.coordinator, &ask.enter).await?;
        let answer = match self.waits.turn(ask).await? {
            Turn::Granted(grant, revision) => {
                pb::AcquireResponse { acquired: true, grant: Some(super::grant(&grant, revision)) }
            }
            Turn::NotGranted => pb::AcquireResponse { acquired: false, grant: None },
        };
        Ok(Reply::new(answer))
    }

    async fn release(
        &self,
        request: Request<pb::ReleaseRequest>,
    ) -> Result<Reply<pb::ReleaseResponse>, Status> {
        let asking = self.asking(request.metadata()).await?;
        let pb::ReleaseRequest { name, lease, request_id } = request.into_inner();
        check_name(&name)?;
        check_session(lease)?;
        let key = call_key(&name, lease, request_id);
        let release = Command::Release(Release { name, lease, request_id, attempt: None });
        asking.admit(&self.coordinator, &release).await?;
        self.waits.withdraw(&key);
        let proposed = self.propose(&asking, release).await?;
        match proposed.response {
            Ok(Response::Release { released }) => {
                Ok(Reply::new(pb::ReleaseResponse { released, revision: proposed.revision }))
            }
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(status::store(&error)),
        }
    }

    async fn describe(
        &self,
        request: Request<pb::DescribeSemaphoreRequest>,
    ) -> Result<Reply<pb::DescribeSemaphoreResponse>, Status> {
        let Asking { caller, .. } = self.asking(request.metadata()).await?;
        let name = request.into_inner().name;
        check_name(&name)?;
        let read = |m: &weft_state::machine::Machine| {
            m.auth().check_prefix(&caller, Access::Read, &prefix(&name))?;
            Ok((m.semaphore(&name), m.revision()))
        };
        let (seen, _) =
            self.reader.read(Wanted::Linearizable, read).await.map_err(|e| status::propose(&e))?;
        let (view, revision) = seen.map_err(|e| status::auth(&e))?;
        let Some(view) = view else {
            return Err(Status::not_found(format!("semaphore {name:?}: nobody holds it or waits for it")));
        };
        let holder = |h: &weft_state::machine::SemaphoreHolder| pb::SemaphoreHolder {
            grant: Some(super::grant(&h.grant, h.grant.fence)),
            permits: h.permits,
        };
        Ok(Reply::new(pb::DescribeSemaphoreResponse {
            limit: view.limit,
            holders: view.holders.iter().map(holder).collect(),
            waiters: view.waiters.iter().map(|w| w.lease).collect(),
            revision,
        }))
    }
}

fn call_key(name: &str, lease: i64, request_id: u64) -> CallKey {
    ("semaphore", name.to_owned(), lease, request_id)
}

fn ask(asking: &Asking, request: pb::AcquireRequest) -> Result<Ask, Status> {
    let pb::AcquireRequest { name, lease, permits, limit, request_id, timeout_ms, r#try } = request;
    check_name(&name)?;
    check_session(lease)?;
    for (field, value) in [("permits", permits), ("limit", limit)] {
        if value > LIMIT_MAX {
            return Err(Status::invalid_argument(format!(
                "{field}: is {value}, allowed are 0 to {LIMIT_MAX}"
            )));
        }
    }
    let permits = permits.max(1);
    if limit != 0 && permits > limit {
        return Err(Status::invalid_argument(format!(
            "permits: is {permits}, allowed are 1 to the limit of {limit}"
        )));
    }
    let attempt = wait::attempt();
    let enter = Command::Acquire(Acquire {
        name: name.clone(),
        lease,
        permits,
        limit,
        request_id,
        try_only: r#try,
        attempt,
    });
    Ok(Ask {
        // Recognised by its request id, so it needs no other name.
        enter: enter.enclosed(asking.caller.clone(), None),
        key: call_key(&name, lease, request_id),
        undo: wait::undo(
            asking,
            Command::Release(Release { name, lease, request_id, attempt: Some(attempt) }),
        ),
        lease,
        timeout: (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms)),
    })
}
