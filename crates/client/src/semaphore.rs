//! Counting semaphores, granted in the order of arrival by a queue that the servers hold.

use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use weft_xds_proto::weft as pb;
use weft_xds_proto::weft::semaphore_client::SemaphoreClient;

use crate::client::{Client, Patience, Repeat, random};
use crate::error::Error;
pub use crate::grant::Grant;
use crate::grant::is_session_gone;
use crate::session::{Lost, Session};

/// After its timeout a waiting call gets this much longer for the server's own answer to arrive.
const ANSWER_SLACK: Duration = Duration::from_secs(2);

/// How to acquire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcquireOptions {
    /// Permits to take at once, at least 1.
    pub permits: u32,
    /// Sets the semaphore's limit for all; 0 leaves it as it is (1 for a new one).
    pub limit: u32,
    /// Wait no longer than this; none waits as long as the session lives.
    pub timeout: Option<Duration>,
    /// Do not wait at all.
    pub try_only: bool,
}

impl Default for AcquireOptions {
    fn default() -> Self {
        Self { permits: 1, limit: 0, timeout: None, try_only: false }
    }
}

/// A holder of a semaphore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its grant.
    pub grant: Grant,
    /// Permits held by it.
    pub permits: u32,
}

/// A semaphore's state at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Description {
    /// Permits there are; 0 if nobody has used it.
    pub limit: u32,
    /// Present holders.
    pub holders: Vec<Holder>,
    /// Leases that wait, the head first.
    pub waiters: Vec<i64>,
    /// Store revision.
    pub revision: i64,
}

/// A named semaphore.
#[derive(Debug, Clone)]
pub struct Semaphore {
    client: Client,
    name: String,
}

impl Client {
    /// The semaphore called `name` (1 to 256 bytes). Nothing is sent until it is used.
    pub fn semaphore(&self, name: impl Into<String>) -> Semaphore {
        Semaphore { client: self.clone(), name: name.into() }
    }
}

impl Semaphore {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits for permits. None: the timeout passed, or with `try_only` it would have had to wait.
    ///
    /// When a server is lost meanwhile, the same request goes to another and keeps its place in the
    /// queue. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// `SessionLost`; `Refused`, for example for more permits than the limit.
    pub async fn acquire(&self, session: &Session, options: AcquireOptions) -> Result<Option<Permit>, Error> {
        session.alive()?;
        let deadline = options.timeout.map(|timeout| Instant::now() + timeout);
        let request_id = random().max(1);
        let mut leave = LeaveQueue { semaphore: self, lease: session.lease(), request_id, armed: true };
        let patience = Patience { attempt: None, total: None };
        let call = self.client.call_with("acquire", Repeat::Safe, patience, |channel| {
            let request = pb::AcquireRequest {
                name: self.name.clone(),
                lease: session.lease(),
                permits: options.permits,
                limit: options.limit,
                request_id,
                timeout_ms: remaining_ms(deadline),
                r#try: options.try_only,
            };
            async move { Ok(SemaphoreClient::new(channel).acquire(request).await?.into_inner()) }
        });
        let (answer, endpoint) = tokio::select! {
            biased;
            lost = session.lost() => {
                // The servers remove a waiter together with its session.
                leave.armed = false;
                return Err(Error::SessionLost(lost));
            }
            answer = call => answer.map_err(|error| session.explain(error)),
            () = until(deadline.map(|at| at + ANSWER_SLACK)) => {
                // No server answered in time: `leave` tells them when one is back.
                return Ok(None);
            }
        }?;
        if !answer.acquired {
            leave.armed = false;
            return Ok(None);
        }
        let Some(grant) = answer.grant else {
            return Err(Error::Protocol { endpoint, what: "acquired, but no grant".to_owned() });
        };
        // The answer may have come to a process that had been stopped for long.
        session.alive()?;
        leave.armed = false;
        Ok(Some(Permit {
            semaphore: self.clone(),
            session: session.clone(),
            request_id,
            grant: grant.into(),
        }))
    }

    /// Limit, holders and waiters.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn describe(&self) -> Result<Description, Error> {
        let described = self
            .client
            .call("describe a semaphore", Repeat::Safe, |channel| {
                let request = pb::DescribeSemaphoreRequest { name: self.name.clone() };
                async move { Ok(SemaphoreClient::new(channel).describe(request).await?.into_inner()) }
            })
            .await;
        let answer = match described {
            // Nobody has used it yet.
            Err(error) if error.is_not_found() => return Ok(Description::default()),
            other => other?,
        };
        let holders = answer
            .holders
            .into_iter()
            .map(|holder| Holder { permits: holder.permits, grant: holder.grant.unwrap_or_default().into() });
        Ok(Description {
            limit: answer.limit,
            holders: holders.collect(),
            waiters: answer.waiters,
            revision: answer.revision,
        })
    }

    async fn release(&self, lease: i64, request_id: u64) -> Result<(), Error> {
        let released = self
            .client
            .call("release", Repeat::Safe, |channel| {
                let request = pb::ReleaseRequest { name: self.name.clone(), lease, request_id };
                async move { SemaphoreClient::new(channel).release(request).await }
            })
            .await;
        match released {
            // Nothing to give back: it went with the session.
            Err(error) if is_session_gone(&error) => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

/// Permits that are held. They are held until [`Permit::release`] or the end of the session; dropping
/// this value alone gives nothing back.
#[derive(Debug)]
#[must_use = "permits are held until `release` or the end of the session"]
pub struct Permit {
    semaphore: Semaphore,
    session: Session,
    request_id: u64,
    grant: Grant,
}

impl Permit {
    /// The grant with its fencing token.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// The owning session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Waits until the permits are no longer ours, and says why: the session's end, or the servers took
    /// them back. Stop what they guard at once.
    pub async fn lost(&self) -> Lost {
        self.grant.lost(&self.session).await
    }

    /// Gives the permits back: the next in the queue is granted at once.
    ///
    /// # Errors
    /// Those of [`Client`]. What is not given back is freed with the session.
    pub async fn release(self) -> Result<(), Error> {
        self.semaphore.release(self.session.lease(), self.request_id).await
    }
}

/// Leaves the queue when an acquire is abandoned: the server must not grant to nobody.
struct LeaveQueue<'a> {
    semaphore: &'a Semaphore,
    lease: i64,
    request_id: u64,
    armed: bool,
}

impl Drop for LeaveQueue<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (semaphore, lease, request_id) = (self.semaphore.clone(), self.lease, self.request_id);
        // Without a runtime there is nobody left to tell it; the session's end frees it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Detached on purpose: bounded by the client's patience, and nobody waits for it.
            runtime.spawn(async move {
                if let Err(error) = semaphore.release(lease, request_id).await {
                    tracing::warn!(semaphore = semaphore.name, %error, "could not leave the queue");
                }
            });
        }
    }
}

/// What is left of a timeout, for the server: 0 is for ever, so a timeout that is over becomes 1.
pub(crate) fn remaining_ms(deadline: Option<Instant>) -> u64 {
    let left = |at: Instant| at.saturating_duration_since(Instant::now()).as_millis();
    deadline.map_or(0, |at| u64::try_from(left(at)).unwrap_or(u64::MAX).max(1))
}

/// Waits until an instant, or for ever.
pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_timeout_that_is_over_never_becomes_for_ever() {
        assert_eq!(remaining_ms(None), 0);
        let now = Instant::now();
        assert_eq!(remaining_ms(Some(now + Duration::from_millis(1500))), 1500);
        assert_eq!(remaining_ms(Some(now)), 1);
    }
}
