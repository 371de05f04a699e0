//! A session: a lease that keeps itself alive, and knows when it can no longer be relied on.
//!
//! ```text
//! Live ──renewed──▶ Live                       (deadline moves later)
//! Live ──deadline passes, or a server says the lease has ended──▶ Lost     (final)
//! Live ──close──▶ Closed                       (final; the lease is revoked)
//! ```
//! `Live` is a promise by the local monotonic clock alone (P20): the deadline is
//! `time a renewal was sent + TTL - margin`, so a holder that is cut off learns of its loss before any
//! server can give what it holds to another.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::client::{Client, Patience};
use crate::deadline::{Deadline, interval, margin};
use crate::error::Error;
use crate::grant::is_session_gone;
use crate::lease::Leases;

/// Shortest pause between attempts to renew after one failed.
const RETRY_PAUSE_MIN: Duration = Duration::from_millis(100);

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// No server confirmed a renewal in time.
    #[error("no server renewed lease {lease:x} within its {ttl:?} ({last_failure})")]
    Unrenewed {
        /// The lease.
        lease: i64,
        /// Its time to live.
        ttl: Duration,
        /// Why the last renewal failed.
        last_failure: String,
    },
    /// A server says that there is no such lease: it expired or was revoked.
    #[error("lease {lease:x} has expired or was revoked")]
    Ended {
        /// The lease.
        lease: i64,
    },
    /// The session lives, but the servers took the grant back.
    #[error("the grant with fence {fence} was taken back by the servers")]
    TakenBack {
        /// Its fencing token.
        fence: i64,
    },
    /// [`Session::close`] was called.
    #[error("session with lease {lease:x} was closed")]
    Closed {
        /// The lease.
        lease: i64,
    },
}

#[derive(Debug, Clone)]
struct State {
    deadline: Deadline,
    lost: Option<Lost>,
}

/// A lease that is kept alive in the background while any clone exists. When the last one is dropped
/// without [`Session::close`], renewals stop and the lease runs out by itself.
#[derive(Debug, Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    lease: i64,
    ttl: Duration,
    state: watch::Sender<State>,
    keeper: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Client {
    /// Opens a session whose lease lives for `ttl` (whole seconds, at least one) after its last
    /// renewal. It is renewed every third of that.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn session(&self, ttl: Duration) -> Result<Session, Error> {
        let granted = self.leases().grant(ttl).await?;
        let deadline = Deadline::new(granted.sent, granted.ttl);
        let (state, _) = watch::channel(State { deadline, lost: None });
        let leases = self.leases();
        // One renewal is tried at each endpoint for a share of the interval, so that a silent server
        // does not use up the time in which another one would answer.
        let share = interval(granted.ttl) / 2;
        let patience = Patience { attempt: Some(share.max(RETRY_PAUSE_MIN)), total: Some(Duration::ZERO) };
        let renew = move || renew(leases.clone(), granted.id, patience);
        let keeper = tokio::spawn(keep_alive(granted.id, granted.sent, granted.ttl, state.clone(), renew));
        let inner = Inner {
            client: self.clone(),
            lease: granted.id,
            ttl: granted.ttl,
            state,
            keeper: keeper.abort_handle(),
        };
        Ok(Session { inner: Arc::new(inner) })
    }
}

impl Session {
    /// The lease's id.
    pub fn lease(&self) -> i64 {
        self.inner.lease
    }

    /// Granted time to live.
    pub fn ttl(&self) -> Duration {
        self.inner.ttl
    }

    /// How long before the lease's end the session is reported lost: time to stop the work in.
    pub fn margin(&self) -> Duration {
        margin(self.inner.ttl)
    }

    /// Until when the session may be relied on without a further renewal.
    pub fn deadline(&self) -> Instant {
        self.inner.state.borrow().deadline.until()
    }

    /// Whether it can be relied on now. Reads the clock, so it is also right in a process that was
    /// stopped and woke up a moment ago.
    pub fn is_live(&self) -> bool {
        let state = self.inner.state.borrow();
        state.lost.is_none() && Instant::now() < state.deadline.until()
    }

    /// Waits until the session is over, and says why.
    pub async fn lost(&self) -> Lost {
        let mut states = self.inner.state.subscribe();
        let over = states.wait_for(|state| state.lost.is_some()).await;
        // The sender lives as long as `self`, and the condition held.
        let lost = over.ok().and_then(|state| state.lost.clone());
        lost.unwrap_or(Lost::Closed { lease: self.inner.lease })
    }

    /// Ends the session for all its clones and revokes its lease: all that it holds is free at once.
    ///
    /// # Errors
    /// If no server could be told; the lease then runs out by itself within its time to live.
    pub async fn close(&self) -> Result<(), Error> {
        self.inner.keeper.abort();
        let lease = self.inner.lease;
        self.inner.state.send_if_modified(|state| {
            let live = state.lost.is_none();
            state.lost.get_or_insert(Lost::Closed { lease });
            live
        });
        self.inner.client.leases().revoke(lease).await
    }

    pub(crate) fn client(&self) -> &Client {
        &self.inner.client
    }

    /// Tells a refusal that means the session's end from others, on calls that only a session can be
    /// the reason to refuse so.
    pub(crate) fn explain(&self, error: Error) -> Error {
        if is_session_gone(&error) {
            Error::SessionLost(Lost::Ended { lease: self.inner.lease })
        } else {
            error
        }
    }

    pub(crate) fn alive(&self) -> Result<(), Error> {
        let state = self.inner.state.borrow();
        match &state.lost {
            Some(lost) => Err(Error::SessionLost(lost.clone())),
            None if Instant::now() >= state.deadline.until() => Err(Error::SessionLost(Lost::Unrenewed {
                lease: self.inner.lease,
                ttl: self.inner.ttl,
                last_failure: "this process did not run for a while".to_owned(),
            })),
            None => Ok(()),
        }
    }
}

async fn renew(leases: Leases, id: i64, patience: Patience) -> Result<(Instant, Duration), Error> {
    match leases.keep_alive_within(id, patience).await {
        Err(error) if error.is_not_found() => Ok((Instant::now(), Duration::ZERO)),
        other => other,
    }
}

/// Renews until the session is over. `renew` answers when the renewal had been sent and the lease's
/// time to live, zero if there is no such lease.
async fn keep_alive<F, Fut>(
    lease: i64,
    sent: Instant,
    ttl: Duration,
    state: watch::Sender<State>,
    mut renew: F,
) where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<(Instant, Duration), Error>>,
{
    let mut next = sent + interval(ttl);
    let mut last_failure = "no answer".to_owned();
    loop {
        let deadline = state.borrow().deadline.until();
        let lost = Lost::Unrenewed { lease, ttl, last_failure: last_failure.clone() };
        if next >= deadline {
            sleep_until(deadline).await;
            return end(&state, lost);
        }
        sleep_until(next).await;
        match timeout_at(deadline, renew()).await {
            Err(_) => return end(&state, lost),
            Ok(Ok((_, Duration::ZERO))) => return end(&state, Lost::Ended { lease }),
            Ok(Ok((sent, ttl))) => {
                state.send_modify(|state| state.deadline.renewed(sent, ttl));
                next = sent + interval(ttl);
            }
            Ok(Err(error)) => {
                last_failure = error.brief();
                tracing::warn!(
                    lease = format!("{lease:x}"),
                    why = last_failure,
                    "session not renewed; trying again"
                );
                next = Instant::now() + (interval(ttl) / 8).max(RETRY_PAUSE_MIN);
            }
        }
    }
}

fn end(state: &watch::Sender<State>, lost: Lost) {
    state.send_modify(|state| {
        state.lost.get_or_insert(lost);
    });
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    // Divides into whole milliseconds, which is what paused time moves in.
    const TTL: Duration = Duration::from_secs(15);

    fn state() -> watch::Sender<State> {
        watch::channel(State { deadline: Deadline::new(Instant::now(), TTL), lost: None }).0
    }

    /// P20: with no network at all the session is lost at `sent + ttl - margin`, by the local clock.
    #[tokio::test(start_paused = true)]
    async fn a_session_that_is_cut_off_is_lost_before_its_lease_ends() {
        let (state, start) = (state(), Instant::now());
        keep_alive(7, start, TTL, state.clone(), pending).await;
        assert_eq!(start.elapsed(), TTL - margin(TTL));
        assert!(matches!(state.borrow().lost, Some(Lost::Unrenewed { lease: 7, .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn failed_renewals_are_tried_again_until_the_deadline_and_no_longer() {
        let (state, start) = (state(), Instant::now());
        let mut attempts = 0;
        keep_alive(7, start, TTL, state.clone(), || {
            attempts += 1;
            async { Err(Error::Unreachable { attempts: Vec::new() }) }
        })
        .await;
        assert_eq!(start.elapsed(), TTL - margin(TTL));
        assert!(attempts > 5, "{attempts} attempts");
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_counts_from_when_it_was_sent() {
        let (state, start) = (state(), Instant::now());
        let mut first = true;
        keep_alive(7, start, TTL, state.clone(), || {
            let slow_answer = std::mem::take(&mut first);
            async move {
                if !slow_answer {
                    return pending().await;
                }
                let sent = Instant::now();
                tokio::time::sleep(Duration::from_secs(2)).await;
                Ok((sent, TTL))
            }
        })
        .await;
        assert_eq!(start.elapsed(), interval(TTL) + TTL - margin(TTL));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_the_server_does_not_know_is_lost_at_once() {
        let (state, start) = (state(), Instant::now());
        keep_alive(7, start, TTL, state.clone(), || async { Ok((Instant::now(), Duration::ZERO)) }).await;
        assert_eq!(start.elapsed(), interval(TTL));
        assert_eq!(state.borrow().lost, Some(Lost::Ended { lease: 7 }));
    }
}
