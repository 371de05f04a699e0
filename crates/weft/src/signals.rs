//! Signals that ask the process to end.

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// Listens for SIGINT, SIGTERM and SIGHUP from its creation on, so that none ends the process unheard.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::new(format!("cannot listen for signals: {error}")));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// The next signal's number. May be cancelled and called again.
    pub(crate) async fn next(&mut self) -> i32 {
        tokio::select! {
            Some(()) = self.interrupt.recv() => SignalKind::interrupt().as_raw_value(),
            Some(()) = self.terminate.recv() => SignalKind::terminate().as_raw_value(),
            Some(()) = self.hangup.recv() => SignalKind::hangup().as_raw_value(),
            // The streams end with the runtime only.
            else => std::future::pending().await,
        }
    }

    /// Runs an orderly end to its own end, unless a second signal or `limit` comes first.
    pub(crate) async fn end_gracefully(
        &mut self,
        limit: Option<Duration>,
        ending: impl Future<Output = ()>,
    ) -> ExitCode {
        let limited = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ending => ExitCode::SUCCESS,
            signal = self.next() => {
                eprintln!("second signal: stopping at once");
                signal_exit(signal)
            }
            () = limited => {
                eprintln!("not everything stopped in time: stopping at once");
                ExitCode::SUCCESS
            }
        }
    }
}

/// What shells report for a process that ended by a signal.
pub(crate) fn signal_exit(signal: i32) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(crate::failure::FAILED))
}
