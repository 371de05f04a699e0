//! Leader election: candidates lead in the order in which they stood.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tonic::{Code, Streaming};
use weft_xds_proto::weft as pb;
use weft_xds_proto::weft::election_client::ElectionClient;

use crate::client::{Client, Patience, Repeat};
use crate::endpoint::Failure;
use crate::error::Error;
use crate::grant::{Grant, is_session_gone};
use crate::semaphore::{remaining_ms, until};
use crate::session::{Lost, Session};

/// After its timeout a waiting call gets this much longer for the server's own answer to arrive.
const ANSWER_SLACK: Duration = Duration::from_secs(2);

/// A named election.
#[derive(Debug, Clone)]
pub struct Election {
    client: Client,
    name: String,
}

/// Who leads, at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// The leader's grant and value; none: nobody leads.
    pub leader: Option<(Grant, Bytes)>,
    /// Store revision.
    pub revision: i64,
}

impl Client {
    /// The election called `name` (1 to 256 bytes). Nothing is sent until it is used.
    pub fn election(&self, name: impl Into<String>) -> Election {
        Election { client: self.clone(), name: name.into() }
    }
}

impl Election {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Stands for leader with `value` and waits until the session leads. None: the timeout passed.
    /// When a server is lost meanwhile, the candidacy goes on through another. Dropping the future
    /// withdraws it.
    ///
    /// # Errors
    /// `SessionLost`, and those of [`Client`].
    pub async fn campaign(
        &self,
        session: &Session,
        value: impl Into<Bytes>,
        timeout: Option<Duration>,
    ) -> Result<Option<Leadership>, Error> {
        session.alive()?;
        let value: Bytes = value.into();
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut withdraw = Withdraw { election: self, lease: session.lease(), armed: true };
        let patience = Patience { attempt: None, total: None };
        let call = self.client.call_with("campaign", Repeat::Safe, patience, |channel| {
            let request = pb::CampaignRequest {
                name: self.name.clone(),
                lease: session.lease(),
                value: value.clone(),
                timeout_ms: remaining_ms(deadline),
            };
            async move { Ok(ElectionClient::new(channel).campaign(request).await?.into_inner()) }
        });
        let (answer, endpoint) = tokio::select! {
            biased;
            lost = session.lost() => {
                // The servers remove a candidate together with its session.
                withdraw.armed = false;
                return Err(Error::SessionLost(lost));
            }
            answer = call => answer.map_err(|error| session.explain(error)),
            () = until(deadline.map(|at| at + ANSWER_SLACK)) => return Ok(None),
        }?;
        if !answer.elected {
            withdraw.armed = false;
            return Ok(None);
        }
        let Some(grant) = answer.grant else {
            return Err(Error::Protocol { endpoint, what: "elected, but no grant".to_owned() });
        };
        session.alive()?;
        withdraw.armed = false;
        Ok(Some(Leadership { election: self.clone(), session: session.clone(), grant: grant.into() }))
    }

    /// Follows who leads. The first answer is the present leader.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn observe(&self) -> Result<Observer, Error> {
        let mut observer = Observer { election: self.clone(), stream: None, last: None, established: false };
        observer.open().await?;
        Ok(observer)
    }

    async fn resign(&self, lease: i64) -> Result<(), Error> {
        let resigned = self
            .client
            .call("resign", Repeat::Safe, |channel| {
                let request = pb::ResignRequest { name: self.name.clone(), lease };
                async move { ElectionClient::new(channel).resign(request).await }
            })
            .await;
        match resigned {
            // Nothing to give up: it went with the session.
            Err(error) if is_session_gone(&error) => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

/// The session leads. It does until [`Leadership::resign`] or the end of the session; dropping this
/// value alone changes nothing.
#[derive(Debug)]
#[must_use = "the session leads until `resign` or its end"]
pub struct Leadership {
    election: Election,
    session: Session,
    grant: Grant,
}

impl Leadership {
    /// The grant with its fencing token.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// The leading session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Replaces the value that observers see. Answers the store's revision.
    ///
    /// # Errors
    /// `Refused` if another leads by now, or the session has ended.
    pub async fn proclaim(&self, value: impl Into<Bytes>) -> Result<i64, Error> {
        self.session.alive()?;
        let value: Bytes = value.into();
        let answer = self
            .election
            .client
            .call("proclaim", Repeat::Safe, |channel| {
                let request = pb::ProclaimRequest {
                    name: self.election.name.clone(),
                    lease: self.session.lease(),
                    fence: self.grant.fence,
                    value: value.clone(),
                };
                async move { Ok(ElectionClient::new(channel).proclaim(request).await?.into_inner()) }
            })
            .await;
        answer.map(|answer| answer.revision)
    }

    /// Waits until the session no longer leads, and says why. Stop leading at once.
    pub async fn lost(&self) -> Lost {
        self.grant.lost(&self.session).await
    }

    /// Gives up leadership: the next candidate leads at once.
    ///
    /// # Errors
    /// Those of [`Client`]. What is not given up ends with the session.
    pub async fn resign(self) -> Result<(), Error> {
        self.election.resign(self.session.lease()).await
    }
}

/// Withdraws when a campaign is abandoned.
struct Withdraw<'a> {
    election: &'a Election,
    lease: i64,
    armed: bool,
}

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let (election, lease) = (self.election.clone(), self.lease);
        // Without a runtime there is nobody left to tell it; the session's end withdraws it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            // Detached on purpose: bounded by the client's patience, and nobody waits for it.
            runtime.spawn(async move {
                if let Err(error) = election.resign(lease).await {
                    tracing::warn!(election = election.name, %error, "could not withdraw the candidacy");
                }
            });
        }
    }
}

/// Follows an election across servers. While connected it sees every change in order; after a break it
/// goes on with the present leader.
#[derive(Debug)]
pub struct Observer {
    election: Election,
    stream: Option<Streaming<pb::ObserveResponse>>,
    last: Option<Leader>,
    established: bool,
}

impl Observer {
    /// The present leader at first, then the next change. Waits for it, and for a server when none is
    /// there. May be cancelled and called again.
    ///
    /// # Errors
    /// `Refused`: observing is over.
    pub async fn next(&mut self) -> Result<Leader, Error> {
        loop {
            let Some(stream) = &mut self.stream else {
                self.open().await?;
                continue;
            };
            let why = match stream.message().await {
                Ok(Some(answer)) => {
                    if let Some(leader) = self.news(answer) {
                        return Ok(leader);
                    }
                    continue;
                }
                Ok(None) => "the server ended the stream".to_owned(),
                Err(status) => match Failure::of(&status) {
                    // We fell behind what the server remembers; the present leader is what counts.
                    Failure::Refused(Code::OutOfRange, message) => message,
                    Failure::Refused(code, message) => {
                        self.stream = None;
                        let endpoint = self.election.client.endpoints().collect::<Vec<_>>().join(",");
                        return Err(Error::Refused { endpoint, code, message });
                    }
                    failure => failure.why().to_owned(),
                },
            };
            tracing::warn!(election = self.election.name, why, "observing interrupted; resuming");
            self.stream = None;
        }
    }

    /// None for what was told before, or is older than it: another server may lag behind.
    fn news(&mut self, answer: pb::ObserveResponse) -> Option<Leader> {
        let leader = if answer.has_leader {
            Some((answer.grant.unwrap_or_default().into(), answer.value))
        } else {
            None
        };
        let seen = Leader { leader, revision: answer.revision };
        if let Some(last) = &self.last
            && (last.leader == seen.leader || seen.revision < last.revision)
        {
            return None;
        }
        self.last = Some(seen.clone());
        Some(seen)
    }

    async fn open(&mut self) -> Result<(), Error> {
        let ordinary = self.election.client.patience();
        let patience = Patience { total: if self.established { None } else { ordinary.total }, ..ordinary };
        let (stream, _) = self
            .election
            .client
            .call_with("observe", Repeat::Safe, patience, |channel| {
                let request = pb::ObserveRequest { name: self.election.name.clone() };
                async move { Ok(ElectionClient::new(channel).observe(request).await?.into_inner()) }
            })
            .await?;
        self.stream = Some(stream);
        self.established = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(fence: i64, value: &str, revision: i64) -> pb::ObserveResponse {
        let grant = pb::Grant { fence, revision: fence, ..Default::default() };
        pb::ObserveResponse { has_leader: true, grant: Some(grant), value: value.to_owned().into(), revision }
    }

    #[tokio::test]
    async fn after_a_break_the_leader_that_was_told_is_not_told_again() {
        let election = Client::connect(["127.0.0.1:1"]).unwrap().election("job");
        let mut observer = Observer { election, stream: None, last: None, established: true };
        assert!(observer.news(answer(5, "a", 5)).is_some());
        assert!(observer.news(answer(5, "a", 9)).is_none(), "the same leader at a later revision");
        assert!(observer.news(answer(3, "old", 3)).is_none(), "a server that lags behind");
        assert!(observer.news(answer(5, "b", 10)).is_some(), "a new value");
        let nobody = pb::ObserveResponse { revision: 11, ..Default::default() };
        assert_eq!(observer.news(nobody).unwrap().leader, None);
    }
}
