//! `Cluster`: who the members are. Changing them is Weft's own business.

use tonic::Request;
use weft_xds_proto::etcdserverpb as pb;

use super::{Answer, Api, status};

#[tonic::async_trait]
impl pb::cluster_server::Cluster for Api {
    async fn member_list(&self, request: Request<pb::MemberListRequest>) -> Answer<pb::MemberListResponse> {
        self.admit(request.metadata())?;
        self.admit_user(request.metadata()).await?;
        if request.into_inner().linearizable {
            self.read_barrier().await?;
        }
        let members = self
            .coordinator
            .status()
            .peers
            .into_iter()
            .map(|peer| pb::Member {
                id: peer.id.0,
                name: peer.name,
                peer_ur_ls: vec![format!("{}://{}", self.options.peer_scheme, peer.addr)],
                client_ur_ls: (self.options.client_urls)(peer.id),
                is_learner: !peer.voter,
            })
            .collect();
        Ok(pb::MemberListResponse { header: Some(self.header_now()), members }.into())
    }

    async fn member_add(&self, request: Request<pb::MemberAddRequest>) -> Answer<pb::MemberAddResponse> {
        self.admit_admin(request.metadata()).await?;
        Err(status::not_offered("adding a member", "start `weft server --join HOST:PORT` on the new machine"))
    }

    async fn member_remove(
        &self,
        request: Request<pb::MemberRemoveRequest>,
    ) -> Answer<pb::MemberRemoveResponse> {
        self.admit_admin(request.metadata()).await?;
        Err(status::not_offered("removing a member", "membership is changed with weft; see `weft status`"))
    }

    async fn member_update(
        &self,
        request: Request<pb::MemberUpdateRequest>,
    ) -> Answer<pb::MemberUpdateResponse> {
        self.admit_admin(request.metadata()).await?;
        Err(status::not_offered(
            "updating a member",
            "restart it with weft; its new addresses spread by gossip",
        ))
    }

    async fn member_promote(
        &self,
        request: Request<pb::MemberPromoteRequest>,
    ) -> Answer<pb::MemberPromoteResponse> {
        self.admit_admin(request.metadata()).await?;
        Err(status::not_offered(
            "promoting a learner",
            "weft does it by itself when the learner has caught up",
        ))
    }
}
