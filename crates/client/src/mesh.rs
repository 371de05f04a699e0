//! What an operator asks of the mesh: services, endpoints with provenance, members, balancing, status.
//!
//! The answers are the messages of `weft.v1`, documented in `mesh.proto`.

use tonic::Streaming;
use weft_xds_proto::weft as pb;
use weft_xds_proto::weft::mesh_client::MeshClient;

use crate::client::{Client, Patience, Repeat};
use crate::endpoint::{Failure, MESSAGE_BYTES_MAX};
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

    /// Follows the endpoints of a service, also of one that is not known yet. Nothing is sent until it is used.
    pub fn watch_endpoints(&self, service: impl Into<String>) -> EndpointsWatch {
        EndpointsWatch {
            client: self.client.clone(),
            service: service.into(),
            stream: None,
            established: false,
        }
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

/// Follows the endpoints of a service across servers.
#[derive(Debug)]
pub struct EndpointsWatch {
    client: Client,
    service: String,
    stream: Option<Streaming<pb::EndpointsResponse>>,
    /// A server has answered once; from then on a lost one is no reason to give up.
    established: bool,
}

impl EndpointsWatch {
    /// The endpoints as they stand at first, then all of them again when they have changed. After a break they are told once
    /// more, by another server if need be. May be cancelled and called again.
    ///
    /// # Errors
    /// Those of [`Client`] until a server has answered; from then on `Refused` alone.
    pub async fn next(&mut self) -> Result<Vec<pb::Endpoint>, Error> {
        loop {
            let Some(stream) = &mut self.stream else {
                self.open().await?;
                continue;
            };
            let why = match stream.message().await {
                Ok(Some(answer)) => return Ok(answer.endpoints),
                Ok(None) => "the server ended the stream".to_owned(),
                Err(status) => match Failure::of(&status) {
                    Failure::Refused(code, message) => {
                        self.stream = None;
                        let endpoint = self.client.endpoints().collect::<Vec<_>>().join(",");
                        return Err(Error::Refused { endpoint, code, message });
                    }
                    failure => failure.why().to_owned(),
                },
            };
            tracing::warn!(service = self.service, why, "watching endpoints interrupted; resuming");
            self.stream = None;
        }
    }

    async fn open(&mut self) -> Result<(), Error> {
        let ordinary = self.client.patience();
        let patience = Patience { total: if self.established { None } else { ordinary.total }, ..ordinary };
        let opened = self.client.call_with("watch endpoints", Repeat::Safe, patience, |channel| {
            let request = pb::EndpointsRequest { service: self.service.clone() };
            async move {
                let mut client = MeshClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
                Ok(client.watch_endpoints(request).await?.into_inner())
            }
        });
        self.stream = Some(opened.await?.0);
        self.established = true;
        Ok(())
    }
}
