//! Elections: words around one log command each.

use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use tonic::{Request, Response as Reply, Status};
use weft_state::auth::{Access, AuthState, Caller};
use weft_state::command::{Campaign, Command, Proclaim, Resign, Response};
use weft_state::recipes::election::prefix;
use weft_xds_proto::weft as pb;

use super::wait::{self, Ask, CallKey, Turn};
use super::{WeftApi, check_name, check_session, observe, unexpected};
use crate::api::status;

/// Largest value of a leader, in bytes: it is a name or an address, and every observer receives it.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;

#[tonic::async_trait]
impl pb::election_server::Election for WeftApi {
    type ObserveStream = Pin<Box<dyn Stream<Item = Result<pb::ObserveResponse, Status>> + Send>>;

    async fn campaign(
        &self,
        request: Request<pb::CampaignRequest>,
    ) -> Result<Reply<pb::CampaignResponse>, Status> {
        let asking = self.asking(request.metadata()).await?;
        let pb::CampaignRequest { name, lease, value, timeout_ms } = request.into_inner();
        check_name(&name)?;
        check_session(lease)?;
        check_value(&value)?;
        let attempt = wait::attempt();
        let enter = Command::Campaign(Campaign { name: name.clone(), lease, value, attempt });
        asking.admit(&self.coordinator, &enter).await?;
        let ask = Ask {
            // Recognised by its session, so it needs no other name.
            enter: enter.enclosed(asking.caller.clone(), None),
            key: call_key(&name, lease),
            undo: wait::undo(&asking, Command::Resign(Resign { name, lease, attempt: Some(attempt) })),
            lease,
            timeout: (timeout_ms > 0).then(|| Duration::from_millis(timeout_ms)),
        };
        let answer = match self.waits.turn(ask).await? {
            Turn::Granted(grant, revision) => {
                pb::CampaignResponse { elected: true, grant: Some(super::grant(&grant, revision)) }
            }
            Turn::NotGranted => pb::CampaignResponse { elected: false, grant: None },
        };
        Ok(Reply::new(answer))
    }

    async fn proclaim(
        &self,
        request: Request<pb::ProclaimRequest>,
    ) -> Result<Reply<pb::ProclaimResponse>, Status> {
        let asking = self.asking(request.metadata()).await?;
        let pb::ProclaimRequest { name, lease, fence, value } = request.into_inner();
        check_name(&name)?;
        check_session(lease)?;
        check_value(&value)?;
        let proclaim = Command::Proclaim(Proclaim { name, lease, fence, value });
        let proposed = self.propose(&asking, proclaim).await?;
        match proposed.response {
            Ok(Response::Proclaim) => Ok(Reply::new(pb::ProclaimResponse { revision: proposed.revision })),
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(status::store(&error)),
        }
    }

    async fn resign(&self, request: Request<pb::ResignRequest>) -> Result<Reply<pb::ResignResponse>, Status> {
        let asking = self.asking(request.metadata()).await?;
        let pb::ResignRequest { name, lease } = request.into_inner();
        check_name(&name)?;
        check_session(lease)?;
        let key = call_key(&name, lease);
        let resign = Command::Resign(Resign { name, lease, attempt: None });
        asking.admit(&self.coordinator, &resign).await?;
        self.waits.withdraw(&key);
        let proposed = self.propose(&asking, resign).await?;
        match proposed.response {
            Ok(Response::Resign { resigned }) => {
                Ok(Reply::new(pb::ResignResponse { resigned, revision: proposed.revision }))
            }
            Ok(other) => Err(unexpected(&other)),
            Err(error) => Err(status::store(&error)),
        }
    }

    async fn observe(
        &self,
        request: Request<pb::ObserveRequest>,
    ) -> Result<Reply<Self::ObserveStream>, Status> {
        let asking = self.asking(request.metadata()).await?;
        let name = request.into_inner().name;
        check_name(&name)?;
        let may = |auth: &AuthState, caller: &Caller| auth.check_prefix(caller, Access::Read, &prefix(&name));
        asking.check(&self.coordinator, may).await?;
        let stream = observe::start(self, name).await?;
        Ok(Reply::new(Box::pin(stream)))
    }
}

/// A session campaigns once in an election: the session is the request.
fn call_key(name: &str, lease: i64) -> CallKey {
    ("election", name.to_owned(), lease, 0)
}

fn check_value(value: &[u8]) -> Result<(), Status> {
    if value.len() <= VALUE_BYTES_MAX {
        return Ok(());
    }
    Err(Status::invalid_argument(format!(
        "value: is {} bytes long, allowed are at most {VALUE_BYTES_MAX}",
        value.len()
    )))
}
