//! Who is in the group of servers, and who leads it.

use tonic::Request;
use tonic::metadata::MetadataValue;
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::cluster_client::ClusterClient;
use weft_xds_proto::etcdserverpb::maintenance_client::MaintenanceClient;

use crate::client::{Client, Repeat};
use crate::error::Error;

impl Client {
    /// Takes a server out of the group. It ends, and its data is of no use any more. `force`: also if fewer than a
    /// majority of the voters that are left answer.
    ///
    /// # Errors
    /// Those of [`Client`]; `Refused` if it is unknown (also: removed already), the last voter, or needed.
    pub async fn remove_server(&self, id: u64, force: bool) -> Result<(), Error> {
        let answer = self.call("remove a server", Repeat::Safe, |channel| async move {
            let mut request = Request::new(pb::MemberRemoveRequest { id });
            if force {
                request.metadata_mut().insert("weft-force", MetadataValue::from_static("true"));
            }
            Ok(ClusterClient::new(channel).member_remove(request).await?.into_inner())
        });
        answer.await.map(|_| ())
    }

    /// Makes a learner a voter.
    ///
    /// # Errors
    /// Those of [`Client`]; `Refused` if it is unknown, does not answer, or has not got the log yet.
    pub async fn promote_server(&self, id: u64) -> Result<(), Error> {
        let answer = self.call("promote a server", Repeat::Safe, |channel| async move {
            let request = pb::MemberPromoteRequest { id };
            Ok(ClusterClient::new(channel).member_promote(request).await?.into_inner())
        });
        answer.await.map(|_| ())
    }

    /// Hands leadership to a server.
    ///
    /// # Errors
    /// Those of [`Client`]; `Refused` if it is unknown, does not vote, does not answer, or lacks some of the log.
    pub async fn transfer_leadership(&self, id: u64) -> Result<(), Error> {
        let answer = self.call("hand over leadership", Repeat::Safe, |channel| async move {
            let request = pb::MoveLeaderRequest { target_id: id };
            Ok(MaintenanceClient::new(channel).move_leader(request).await?.into_inner())
        });
        answer.await.map(|_| ())
    }
}
