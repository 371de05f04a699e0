//! Bounds on what may be stored under a prefix.

use bytes::Bytes;
use weft_xds_proto::weft as pb;
use weft_xds_proto::weft::kv_client::KvClient;

use crate::client::{Client, Repeat};
use crate::endpoint::MESSAGE_BYTES_MAX;
use crate::error::Error;

impl Client {
    /// All quotas with what is used of them, by prefix. The messages are documented in `kv.proto`.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn quotas(&self) -> Result<Vec<pb::QuotaUsage>, Error> {
        let answer = self.call("list quotas", Repeat::Safe, |channel| async move {
            let mut client = KvClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
            Ok(client.quotas(pb::QuotasRequest {}).await?.into_inner())
        });
        Ok(answer.await?.quotas)
    }

    /// Sets how many bytes of keys and values may exist under a prefix, or takes the bound away. The empty
    /// prefix stands for all keys but Weft's own.
    ///
    /// # Errors
    /// Those of [`Client`]; `Refused` for marks or a prefix that no quota can have.
    pub async fn set_quota(&self, prefix: impl Into<Bytes>, quota: Option<pb::Quota>) -> Result<(), Error> {
        let request = pb::SetQuotaRequest { prefix: prefix.into(), quota };
        let answer = self.call("set a quota", Repeat::Safe, |channel| {
            let request = request.clone();
            async move { Ok(KvClient::new(channel).set_quota(request).await?.into_inner()) }
        });
        answer.await.map(|_| ())
    }
}
