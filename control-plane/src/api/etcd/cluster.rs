//! `Cluster`: who the members are, and changing that.

use tonic::metadata::MetadataMap;
use tonic::{Request, Status};
use weft_xds_proto::etcdserverpb as pb;

use super::{Answer, Api, status};
use crate::raft::GroupChange;

#[tonic::async_trait]
impl pb::cluster_server::Cluster for Api {
    async fn member_list(&self, request: Request<pb::MemberListRequest>) -> Answer<pb::MemberListResponse> {
        self.admit(request.metadata())?;
        self.admit_user(request.metadata()).await?;
        if request.into_inner().linearizable {
            self.read_barrier().await?;
        }
        let members = self.members();
        Ok(pb::MemberListResponse { header: Some(self.header_now()), members }.into())
    }

    /// A member announces itself: its id is that of its data folder, which does not exist yet when etcd's clients ask.
    async fn member_add(&self, request: Request<pb::MemberAddRequest>) -> Answer<pb::MemberAddResponse> {
        self.admit_admin(request.metadata()).await?;
        let instead = "start `weft server --join HOST:PORT` on the new machine, which adds itself";
        Err(status::not_offered("adding a member that was not started", instead))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Answer<pb::MemberRemoveResponse> {
        self.admit_admin(request.metadata()).await?;
        let force = forces(request.metadata())?;
        let id = request.into_inner().id;
        self.change_group(GroupChange::Remove { id, force }).await?;
        Ok(pb::MemberRemoveResponse { header: Some(self.header_now()), members: self.members() }.into())
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Answer<pb::MemberUpdateResponse> {
        self.admit_admin(request.metadata()).await?;
        Err(status::not_offered(
            "updating a member",
            "restart it with its new address, which it tells the others itself",
        ))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Answer<pb::MemberPromoteResponse> {
        self.admit_admin(request.metadata()).await?;
        let id = request.into_inner().id;
        self.change_group(GroupChange::Promote { id }).await?;
        Ok(pb::MemberPromoteResponse { header: Some(self.header_now()), members: self.members() }.into())
    }
}

/// Metadata entry of a removal: also if it leaves the group without a majority that answers.
const FORCE: &str = "weft-force";

fn forces(metadata: &MetadataMap) -> Result<bool, Status> {
    match metadata.get(FORCE) {
        None => Ok(false),
        Some(value) if value == "true" => Ok(true),
        Some(value) => {
            Err(Status::invalid_argument(format!("metadata {FORCE} is {value:?}: expected \"true\"")))
        }
    }
}

impl Api {
    /// Changes the group through whoever leads it.
    pub(super) async fn change_group(&self, change: GroupChange) -> Result<(), Status> {
        self.coordinator.change_group(change).await.map_err(|error| status::group_change(&error))
    }

    fn members(&self) -> Vec<pb::Member> {
        let peers = self.coordinator.status().peers.into_iter();
        peers
            .map(|peer| pb::Member {
                id: peer.id.0,
                name: peer.name,
                peer_ur_ls: vec![format!("{}://{}", self.options.peer_scheme, peer.addr)],
                client_ur_ls: (self.options.client_urls)(peer.id),
                is_learner: !peer.voter,
            })
            .collect()
    }
}
