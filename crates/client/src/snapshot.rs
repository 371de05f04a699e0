//! The whole state of a server as bytes, for backups.

use bytes::Bytes;
use tonic::Streaming;
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::maintenance_client::MaintenanceClient;

use crate::client::{Client, Repeat};
use crate::endpoint::MESSAGE_BYTES_MAX;
use crate::error::Error;

/// A snapshot that a server sends, of the moment at which it began. Its bytes come one piece at a time, and the
/// server waits for the reader.
#[derive(Debug)]
pub struct Snapshot {
    stream: Streaming<pb::SnapshotResponse>,
    endpoint: String,
}

impl Client {
    /// Asks one server for its state, through etcd's `Maintenance.Snapshot`.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn snapshot(&self) -> Result<Snapshot, Error> {
        let answer =
            self.call_with("ask for a snapshot", Repeat::Safe, self.patience(), |channel| async move {
                let mut client = MaintenanceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
                Ok(client.snapshot(pb::SnapshotRequest {}).await?.into_inner())
            });
        let (stream, endpoint) = answer.await?;
        Ok(Snapshot { stream, endpoint })
    }
}

impl Snapshot {
    /// The server that sends it.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The next bytes; none at the end. What came is whole only then.
    ///
    /// # Errors
    /// `Refused` if the server ends it early.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match self.stream.message().await {
            Ok(piece) => Ok(piece.map(|piece| piece.blob)),
            Err(status) => Err(Error::Refused {
                endpoint: self.endpoint.clone(),
                code: status.code(),
                message: status.message().to_owned(),
            }),
        }
    }
}
