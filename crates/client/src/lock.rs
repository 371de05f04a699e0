//! Locks: a semaphore with one permit, in a name space of their own.

use std::time::Duration;

use crate::client::Client;
use crate::error::Error;
use crate::semaphore::{AcquireOptions, Description, Permit, Semaphore};
use crate::session::Session;

/// Locks and semaphores of one name are different things: a semaphore's limit can be changed by
/// whoever acquires it, and a lock's must stay 1.
const NAME_PREFIX: &str = "lock:";

/// A named lock.
#[derive(Debug, Clone)]
pub struct Lock {
    semaphore: Semaphore,
}

impl Client {
    /// The lock called `name` (1 to 251 bytes). Nothing is sent until it is used.
    pub fn lock(&self, name: impl AsRef<str>) -> Lock {
        Lock { semaphore: self.semaphore(format!("{NAME_PREFIX}{}", name.as_ref())) }
    }
}

impl Lock {
    /// Waits for the lock as long as the session lives.
    ///
    /// # Errors
    /// As [`Semaphore::acquire`].
    pub async fn acquire(&self, session: &Session) -> Result<Permit, Error> {
        let held = self.acquire_with(session, None, false).await?;
        held.ok_or_else(|| Error::BadRequest("the server gave up on a wait without a timeout".to_owned()))
    }

    /// Waits no longer than `timeout`; none: it passed.
    ///
    /// # Errors
    /// As [`Semaphore::acquire`].
    pub async fn acquire_within(
        &self,
        session: &Session,
        timeout: Duration,
    ) -> Result<Option<Permit>, Error> {
        self.acquire_with(session, Some(timeout), false).await
    }

    /// Takes it if it is free now.
    ///
    /// # Errors
    /// As [`Semaphore::acquire`].
    pub async fn try_acquire(&self, session: &Session) -> Result<Option<Permit>, Error> {
        self.acquire_with(session, None, true).await
    }

    /// Holder and waiters.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn describe(&self) -> Result<Description, Error> {
        self.semaphore.describe().await
    }

    /// The semaphore underneath.
    pub fn semaphore(&self) -> &Semaphore {
        &self.semaphore
    }

    async fn acquire_with(
        &self,
        session: &Session,
        timeout: Option<Duration>,
        try_only: bool,
    ) -> Result<Option<Permit>, Error> {
        let options = AcquireOptions { permits: 1, limit: 1, timeout, try_only };
        self.semaphore.acquire(session, options).await
    }
}
