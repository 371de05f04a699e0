//! The life of an app beside its sidecar.

use std::pin::pin;
use std::process::ExitCode;

use futures::FutureExt;
use rustix::process::Signal;
use tokio::signal::unix::{Signal as Notifications, SignalKind, signal};

use super::replace::{Handed, rehearse, replace};
use super::sidecar::Sidecar;
use crate::cli::child::Running;
use crate::cli::children::Children;
use crate::failure::Failure;
use crate::notify;
use crate::signals::{self, Signals};

/// All that a supervisor is told by the kernel.
pub(super) struct Heard {
    pub(super) signals: Signals,
    upgrades: Notifications,
    children: Children,
}

impl Heard {
    pub(super) fn listen() -> Result<Self, Failure> {
        let upgrades = signal(SignalKind::user_defined2())
            .map_err(|error| Failure::new(format!("cannot listen for signals: {error}")))?;
        Ok(Self { signals: Signals::listen_for_app()?, upgrades, children: Children::listen()? })
    }
}

/// See the module.
pub(super) struct Supervisor {
    pub(super) app: Running,
    pub(super) sidecar: Sidecar,
    pub(super) heard: Heard,
}

/// Whether a signal asks an app for something else than its end, such as to read its files anew.
fn is_no_end(signal: i32) -> bool {
    [Signal::HUP, Signal::USR1, Signal::WINCH].iter().any(|passed| passed.as_raw() == signal)
}

/// What comes first.
enum First {
    /// The app ends by itself, with this code.
    Ended(u8),
    /// This signal asks it to.
    Asked(i32),
}

impl Supervisor {
    /// Until the app has ended, then the sidecar. Answers the app's exit code.
    pub(super) async fn run(mut self) -> ExitCode {
        notify::ready();
        let first = self.supervise().await;
        notify::stopping();
        let code = match first {
            First::Ended(code) => code,
            First::Asked(signal) => self.withdraw(signal).await,
        };
        let Heard { mut signals, mut children, .. } = self.heard;
        signals.end_gracefully(None, self.sidecar.end(&mut children)).await;
        ExitCode::from(code)
    }

    async fn supervise(&mut self) -> First {
        loop {
            let signal = tokio::select! {
                (pid, status) = self.heard.children.next() => match self.app.ended(pid, status) {
                    Some(code) => return First::Ended(code),
                    None => {
                        self.sidecar.ended(pid, status);
                        continue;
                    }
                },
                () = self.sidecar.tend() => match self.replace().await {
                    Some(signal) => signal,
                    None => continue,
                },
                Some(()) = self.heard.upgrades.recv() => {
                    self.sidecar.upgrade();
                    continue;
                }
                signal = self.heard.signals.next_for_app() => signal,
            };
            match is_no_end(signal) {
                true => self.app.forward(signal),
                false => return First::Asked(signal),
            }
        }
    }

    /// The app gets the signal once its callers have gone elsewhere. Answers its exit code.
    async fn withdraw(&mut self, asked: i32) -> u8 {
        let Heard { signals, children, .. } = &mut self.heard;
        let mut withdrawn = false;
        let mut withdrawing = pin!(self.sidecar.withdraw());
        loop {
            tokio::select! {
                (pid, status) = children.next() => if let Some(code) = self.app.ended(pid, status) {
                    return code;
                },
                () = &mut withdrawing, if !withdrawn => {
                    withdrawn = true;
                    self.app.forward(asked);
                }
                signal = signals.next_for_app() => match is_no_end(signal) {
                    true => self.app.forward(signal),
                    false => {
                        eprintln!("second signal: killing the app");
                        self.app.signal(Signal::KILL);
                    }
                },
            }
        }
    }

    /// Becomes the program that is now in the place of this one. If that cannot be, says why, and goes on. Answers a signal
    /// that has come first.
    async fn replace(&mut self) -> Option<i32> {
        let (data_dir, sidecars) = self.sidecar.known();
        let handed = Handed::new(self.app.process()?, data_dir?.to_owned(), sidecars);
        let program = self.sidecar.program();
        // From here on they wait, for the next program or for this one; what came before is looked at once more.
        signals::hold();
        let refused = rehearse(program, &handed, &mut self.heard.children).await;
        let asked = self.heard.signals.next_for_app().now_or_never();
        let again = self.heard.upgrades.recv().now_or_never().is_some();
        let refused = match refused {
            Ok(()) if asked.is_none() && !again => Err(replace(program, &handed).to_string()),
            refused => refused,
        };
        signals::release();
        if let Err(why) = refused {
            eprintln!(
                "{} does not take the place of the app's supervisor, which goes on: {why}",
                program.display()
            );
            self.sidecar.stays();
            notify::ready();
        }
        // Else what came in between is looked at first, and the exchange is tried again.
        if again {
            self.sidecar.upgrade();
        }
        asked
    }
}
