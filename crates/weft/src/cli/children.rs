//! Waits for child processes by pid: for those that this program started, for those that the program before it in this very
//! process started, and, as the first process of a container, for those whose parents have ended.
//!
//! It waits for whatever child there is, so nothing else in the process may wait for one.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, wait, waitpid};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// See the module.
pub(crate) struct Children {
    /// Comes once for any number of them.
    some_ended: Signal,
}

impl Children {
    /// To be made before the first of them is started.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let some_ended = signal(SignalKind::child())
            .map_err(|error| Failure::new(format!("cannot listen for signals: {error}")))?;
        Ok(Self { some_ended })
    }

    /// The next one that ends, whichever it is. May be cancelled and called again.
    pub(crate) async fn next(&mut self) -> (Pid, ExitStatus) {
        loop {
            if let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                return (pid, ExitStatus::from_raw(status.as_raw()));
            }
            self.some_ended.recv().await;
        }
    }

    /// How this one ended. `None` if there is no such child any more. May be cancelled and called again.
    pub(crate) async fn wait(&mut self, pid: Pid) -> Option<ExitStatus> {
        loop {
            match waitpid(Some(pid), WaitOptions::NOHANG) {
                Ok(Some((_, status))) => return Some(ExitStatus::from_raw(status.as_raw())),
                Err(Errno::CHILD) => return None,
                _ => self.some_ended.recv().await,
            };
        }
    }
}
