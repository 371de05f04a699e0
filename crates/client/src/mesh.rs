//! What an operator asks of the mesh: services, endpoints with provenance, members, balancing, status.
//!
//! The answers are the messages of `weft.v1`, documented in `mesh.proto`.

use weft_xds_proto::weft as pb;
use weft_xds_proto::weft::mesh_client::MeshClient;

use crate::client::{Client, Repeat};
use crate::endpoint::MESSAGE_BYTES_MAX;
use crate::error::Error;

/// The mesh.
#[derive(Debug, Clone)]
pub struct Mesh {
    client: Client,
}

impl Client {
    /// The mesh.
    pub fn mesh(&self) -> Mesh {
        Mesh { client: self.clone() }
    }
}

impl Mesh {
    /// All services, with their counts.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn services(&self) -> Result<Vec<pb::Service>, Error> {
        let answer = self.client.call("list services", Repeat::Safe, |channel| async move {
            let mut client = MeshClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            Ok(client.services(pb::ServicesRequest {}).await?.into_inner())
        });
        Ok(answer.await?.services)
    }

    /// The endpoints of a service, healthy or not, with where they are known from.
    ///
    /// # Errors
    /// Those of [`Client`]; `Refused` with `NotFound` for an unknown service.
    pub async fn endpoints(&self, service: &str) -> Result<Vec<pb::Endpoint>, Error> {
        let answer = self.client.call("list endpoints", Repeat::Safe, |channel| {
            let request = pb::EndpointsRequest { service: service.to_owned() };
            async move {
                let mut client = MeshClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
                Ok(client.endpoints(request).await?.into_inner())
            }
        });
        Ok(answer.await?.endpoints)
    }

    /// The gossip pool, as the answering server sees it.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn members(&self) -> Result<Vec<pb::Member>, Error> {
        let answer = self.client.call("list members", Repeat::Safe, |channel| async move {
            let mut client = MeshClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            Ok(client.members(pb::MembersRequest {}).await?.into_inner())
        });
        Ok(answer.await?.members)
    }

    /// The control plane, as the answering server sees it.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn status(&self) -> Result<pb::StatusResponse, Error> {
        let answer = self.client.call("ask for status", Repeat::Safe, |channel| async move {
            Ok(MeshClient::new(channel).status(pb::StatusRequest {}).await?.into_inner())
        });
        answer.await
    }

    /// Sets how proxies balance over a service, in the words of `weft lb`. Answers the store's revision.
    ///
    /// # Errors
    /// Those of [`Client`]; `Refused` for another policy, with `FailedPrecondition` while a `TrafficPolicy` says it.
    pub async fn set_load_balancing(&self, service: &str, policy: &str) -> Result<i64, Error> {
        let answer = self.client.call("set load balancing", Repeat::Safe, |channel| {
            let request =
                pb::SetLoadBalancingRequest { service: service.to_owned(), policy: policy.to_owned() };
            async move { Ok(MeshClient::new(channel).set_load_balancing(request).await?.into_inner()) }
        });
        Ok(answer.await?.revision)
    }

    /// The proxies connected to the answering server, and what each has accepted or rejected.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn proxies(&self) -> Result<Vec<pb::Proxy>, Error> {
        let answer = self.client.call("list proxies", Repeat::Safe, |channel| async move {
            let mut client = MeshClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            Ok(client.proxies(pb::ProxiesRequest {}).await?.into_inner())
        });
        Ok(answer.await?.proxies)
    }
}
