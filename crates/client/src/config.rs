//! The mesh's configuration: routes as documents of the Gateway API.
//!
//! The answers are the messages of `weft.v1`, documented in `config.proto`.

use bytes::Bytes;
use weft_xds_proto::weft as pb;
use weft_xds_proto::weft::mesh_config_client::MeshConfigClient;

use crate::client::{Client, Repeat};
use crate::endpoint::MESSAGE_BYTES_MAX;
use crate::error::Error;

/// The mesh's configuration.
#[derive(Debug, Clone)]
pub struct Config {
    client: Client,
}

impl Client {
    /// The mesh's configuration.
    pub fn config(&self) -> Config {
        Config { client: self.clone() }
    }
}

impl Config {
    /// Creates or replaces documents, all or none; each is JSON. With problems in the answer, nothing was changed.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn apply(
        &self,
        documents: Vec<Bytes>,
        dry_run: bool,
    ) -> Result<pb::ApplyConfigResponse, Error> {
        // Applying the same again changes nothing.
        let answer = self.client.call("apply configuration", Repeat::Safe, |channel| {
            let request = pb::ApplyConfigRequest { documents: documents.clone(), dry_run };
            async move {
                let mut client = MeshConfigClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX);
                Ok(client.apply(request).await?.into_inner())
            }
        });
        answer.await
    }

    /// Documents of a kind, or of all if it is empty; of one name, or of all if it is empty.
    ///
    /// # Errors
    /// Those of [`Client`]; `Refused` for an unknown kind.
    pub async fn list(&self, kind: &str, name: &str) -> Result<Vec<pb::ConfigDocument>, Error> {
        let answer = self.client.call("list configuration", Repeat::Safe, |channel| {
            let request = pb::ListConfigRequest { kind: kind.to_owned(), name: name.to_owned() };
            async move {
                let mut client = MeshConfigClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
                Ok(client.list(request).await?.into_inner())
            }
        });
        Ok(answer.await?.documents)
    }

    /// Takes a document out. Answers the revision of the configuration.
    ///
    /// # Errors
    /// Those of [`Client`]; `Refused` with `NotFound` if there is none, with `FailedPrecondition` while another document
    /// refers to it.
    pub async fn delete(&self, kind: &str, name: &str) -> Result<i64, Error> {
        // Done twice, it says the second time that there is none.
        let answer = self.client.call("delete configuration", Repeat::Safe, |channel| {
            let request = pb::DeleteConfigRequest { kind: kind.to_owned(), name: name.to_owned() };
            async move { Ok(MeshConfigClient::new(channel).delete(request).await?.into_inner()) }
        });
        Ok(answer.await?.revision)
    }
}
