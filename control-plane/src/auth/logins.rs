//! Passwords are slow to check on purpose. Here is how many are checked at one time, so that a storm of logins takes its share
//! of the machine and no more: the rest of the server goes on, and the storm is told to come back later.

use std::{num::NonZeroU32, sync::Arc};

use tokio::sync::Semaphore;

use super::password::{self, ITERATIONS, PASSWORD_BYTES_MAX};

/// Logins that may wait for their turn; more are refused. At about 0.1 s each, the last of them waits for a few seconds,
/// which is as long as clients wait.
pub const WAITING_MAX: usize = 32;

/// Hashes and checks passwords on threads of their own, few at a time. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Logins {
    turns: Arc<Semaphore>,
    room: Arc<Semaphore>,
    iterations: NonZeroU32,
}

/// Why a password was neither hashed nor checked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// Too many wait.
    #[error("{WAITING_MAX} logins wait at this server already; try again later")]
    Busy,
    /// The password is too long.
    #[error("password of {seen} bytes exceeds the limit of {PASSWORD_BYTES_MAX} bytes")]
    TooLong {
        /// Bytes given.
        seen: usize,
    },
    /// The system gives no random bytes, or this server stops.
    #[error("the password could not be hashed")]
    Failed,
}

impl Default for Logins {
    fn default() -> Self {
        // Half of the cores, so that the other half always serves.
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self::with((cores / 2).max(1), ITERATIONS)
    }
}

impl Logins {
    fn with(at_once: usize, iterations: NonZeroU32) -> Self {
        Self {
            turns: Arc::new(Semaphore::new(at_once)),
            room: Arc::new(Semaphore::new(at_once + WAITING_MAX)),
            iterations,
        }
    }

    /// Hashes a password to be kept.
    ///
    /// # Errors
    /// See [`LoginError`].
    pub async fn hash(&self, password: String) -> Result<String, LoginError> {
        let iterations = self.iterations;
        self.run(password, move |password| password::hash(password, iterations).ok())
            .await?
            .ok_or(LoginError::Failed)
    }

    /// Whether the password is the hashed one. Without a hash, because there is no such user, the answer is no and takes as
    /// long, so that the time does not tell who exists.
    ///
    /// # Errors
    /// See [`LoginError`].
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, LoginError> {
        let iterations = self.iterations;
        self.run(password, move |password| match hash {
            Some(hash) => password::verify(password, &hash),
            None => {
                let _ = password::hash(password, iterations);
                false
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        password: String,
        work: impl FnOnce(&str) -> T + Send + 'static,
    ) -> Result<T, LoginError> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(LoginError::TooLong { seen: password.len() });
        }
        let room = self.room.clone().try_acquire_owned().map_err(|_| LoginError::Busy)?;
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| LoginError::Failed)?;
        // The permits go with the work: it is not stopped when its client goes away.
        let work = crate::blocking::run(move || {
            let _permits = (room, turn);
            work(&password)
        });
        Ok(work.await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logins() -> Logins {
        Logins::with(1, NonZeroU32::new(10).expect("not zero"))
    }

    #[tokio::test]
    async fn a_password_is_accepted_against_its_own_hash_and_nobody_without_one_is() {
        let logins = logins();
        let hash = logins.hash("secret".into()).await.expect("is hashed");
        assert_eq!(logins.verify("secret".into(), Some(hash.clone())).await, Ok(true));
        assert_eq!(logins.verify("other".into(), Some(hash)).await, Ok(false));
        assert_eq!(logins.verify("secret".into(), None).await, Ok(false));
        let long = "x".repeat(PASSWORD_BYTES_MAX + 1);
        assert_eq!(logins.hash(long).await, Err(LoginError::TooLong { seen: 1025 }));
    }

    #[tokio::test]
    async fn a_storm_of_logins_is_refused_beyond_its_room_and_the_others_get_their_turn() {
        let logins = logins();
        let turn = logins.turns.clone().acquire_owned().await.expect("free");
        let waiting: Vec<_> = (0..WAITING_MAX + 1)
            .map(|_| {
                let logins = logins.clone();
                tokio::spawn(async move { logins.hash("secret".into()).await })
            })
            .collect();
        while logins.room.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(logins.hash("secret".into()).await, Err(LoginError::Busy));
        drop(turn);
        for login in waiting {
            assert!(login.await.expect("does not panic").is_ok());
        }
        assert!(logins.hash("secret".into()).await.is_ok());
    }
}
