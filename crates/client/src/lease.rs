//! Leases, one call at a time. Most callers want a [`Session`](crate::Session), which keeps one alive.

use std::time::Duration;

use tokio::time::Instant;
use tokio_stream::once;
use tonic::Status;
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::lease_client::LeaseClient;

use crate::client::{Client, Patience, Repeat, random};
use crate::error::Error;

/// A granted lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// Its id.
    pub id: i64,
    /// Time to live that the server granted; may be longer than asked for.
    pub ttl: Duration,
    /// When the request that was answered had been sent: the lease lives at least until `sent + ttl`.
    pub sent: Instant,
}

/// What a lease has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeToLive {
    /// Until it expires without a renewal.
    pub remaining: Duration,
    /// Granted.
    pub granted: Duration,
    /// Attached keys.
    pub keys: Vec<bytes::Bytes>,
}

/// Leases.
#[derive(Debug, Clone)]
pub struct Leases {
    client: Client,
}

impl Client {
    /// Leases.
    pub fn leases(&self) -> Leases {
        Leases { client: self.clone() }
    }
}

impl Leases {
    /// Grants a lease of `ttl`, rounded up to whole seconds, at least one. Its id is chosen here, so that a request whose
    /// answer was lost can be repeated without granting a second one.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn grant(&self, ttl: Duration) -> Result<Granted, Error> {
        let secs = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let ttl = i64::try_from(secs.max(1)).unwrap_or(i64::MAX);
        let id = (random() >> 1).max(1) as i64;
        let granted = self
            .client
            .call("grant a lease", Repeat::Safe, |channel| async move {
                let sent = Instant::now();
                let request = pb::LeaseGrantRequest { ttl, id };
                Ok((sent, LeaseClient::new(channel).lease_grant(request).await?.into_inner()))
            })
            .await;
        let (sent, answer) = match granted {
            Err(error) if self.is_ours_already(&error, id).await => {
                // An earlier attempt had been carried out. Its time runs since then, so renew it.
                let (sent, ttl) = self.keep_alive_within(id, self.client.patience()).await?;
                return Ok(Granted { id, ttl, sent });
            }
            other => other?,
        };
        if answer.id != id || answer.ttl < 1 {
            return Err(Error::Protocol {
                endpoint: self.client.endpoints().collect::<Vec<_>>().join(","),
                what: format!("a grant of lease {:x} with a TTL of {} s", answer.id, answer.ttl),
            });
        }
        Ok(Granted { id, ttl: Duration::from_secs(answer.ttl.unsigned_abs()), sent })
    }

    /// Ends a lease and deletes its keys. Ending one that has ended already is no error.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn revoke(&self, id: i64) -> Result<(), Error> {
        let revoked = self
            .client
            .call("revoke a lease", Repeat::Safe, |channel| async move {
                LeaseClient::new(channel).lease_revoke(pb::LeaseRevokeRequest { id }).await
            })
            .await;
        match revoked {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Renews a lease once: when the renewal was sent, and the lease's time to live, which is zero if
    /// there is no such lease any more.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn keep_alive(&self, id: i64) -> Result<(Instant, Duration), Error> {
        self.keep_alive_within(id, self.client.patience()).await
    }

    pub(crate) async fn keep_alive_within(
        &self,
        id: i64,
        patience: Patience,
    ) -> Result<(Instant, Duration), Error> {
        let (answer, _) = self
            .client
            .call_with("keep a lease alive", Repeat::Safe, patience, |channel| async move {
                let sent = Instant::now();
                let request = once(pb::LeaseKeepAliveRequest { id });
                let mut answers = LeaseClient::new(channel).lease_keep_alive(request).await?.into_inner();
                let answer = answers.message().await?;
                let answer = answer.ok_or_else(|| Status::unavailable("the server ended the stream"))?;
                Ok((sent, Duration::from_secs(answer.ttl.max(0).unsigned_abs())))
            })
            .await?;
        Ok(answer)
    }

    /// What a lease has left, with its keys; none if there is no such lease.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn time_to_live(&self, id: i64) -> Result<Option<TimeToLive>, Error> {
        let answer = self
            .client
            .call("ask for a lease", Repeat::Safe, |channel| async move {
                let request = pb::LeaseTimeToLiveRequest { id, keys: true };
                Ok(LeaseClient::new(channel).lease_time_to_live(request).await?.into_inner())
            })
            .await?;
        Ok((answer.ttl >= 0).then(|| TimeToLive {
            remaining: Duration::from_secs(answer.ttl.unsigned_abs()),
            granted: Duration::from_secs(answer.granted_ttl.max(0).unsigned_abs()),
            keys: answer.keys,
        }))
    }

    /// A grant refused because the id is taken: ids are random, so it was taken by our own first attempt.
    async fn is_ours_already(&self, error: &Error, id: i64) -> bool {
        let taken =
            matches!(error.code(), Some(tonic::Code::AlreadyExists | tonic::Code::FailedPrecondition));
        taken && matches!(self.time_to_live(id).await, Ok(Some(_)))
    }
}
