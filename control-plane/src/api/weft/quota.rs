//! `weft.v1.Kv/SetQuota` and `Quotas`: bounds on what may be stored under a prefix.

use tonic::{Request, Status};
use weft_state::command::{Command, Quota, Response};
use weft_xds_proto::weft as pb;

use super::{WeftApi, unexpected};
use crate::api::status;

pub(super) async fn set(
    api: &WeftApi,
    request: Request<pb::SetQuotaRequest>,
) -> Result<pb::SetQuotaResponse, Status> {
    let asking = api.asking(request.metadata()).await?;
    let request = request.into_inner();
    let quota =
        request.quota.map(|quota| Quota { soft_bytes: quota.soft_bytes, hard_bytes: quota.hard_bytes });
    let command = Command::SetQuota { prefix: request.prefix, quota };
    let proposed = api.propose(&asking, command).await?;
    match proposed.response {
        Ok(Response::SetQuota) => Ok(pb::SetQuotaResponse {}),
        Ok(other) => Err(unexpected(&other)),
        Err(error) => Err(status::store(&error)),
    }
}

pub(super) async fn all(
    api: &WeftApi,
    request: Request<pb::QuotasRequest>,
) -> Result<pb::QuotasResponse, Status> {
    api.admit_user(request.metadata()).await?;
    api.coordinator.read_barrier().await.map_err(|e| status::propose(&e))?;
    let quotas = api.coordinator.read(|machine| machine.quotas()).into_iter().map(|view| pb::QuotaUsage {
        prefix: view.prefix,
        quota: Some(pb::Quota { soft_bytes: view.quota.soft_bytes, hard_bytes: view.quota.hard_bytes }),
        used_bytes: view.used_bytes,
    });
    Ok(pb::QuotasResponse { quotas: quotas.collect() })
}
