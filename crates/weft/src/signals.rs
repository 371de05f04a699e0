//! Signals that ask the process to end.

use std::future::{Future, poll_fn};
use std::process::ExitCode;
use std::task::Poll;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// Listens for SIGINT, SIGTERM and SIGHUP from its creation on, so that none ends the process unheard.
pub(crate) struct Signals(Vec<(SignalKind, Signal)>);

impl Signals {
    pub(crate) fn listen() -> Result<Self, Failure> {
        Self::of(&[SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()])
    }

    /// Those, and the others that apps know what to do with: SIGQUIT, SIGUSR1 and SIGWINCH.
    pub(crate) fn listen_for_app() -> Result<Self, Failure> {
        let Self(mut all) = Self::listen()?;
        let Self(others) =
            Self::of(&[SignalKind::quit(), SignalKind::user_defined1(), SignalKind::window_change()])?;
        all.extend(others);
        Ok(Self(all))
    }

    fn of(kinds: &[SignalKind]) -> Result<Self, Failure> {
        let one = |kind: &SignalKind| signal(*kind).map(|signal| (*kind, signal));
        let all = kinds.iter().map(one).collect::<Result<_, _>>();
        all.map(Self).map_err(|error| Failure::new(format!("cannot listen for signals: {error}")))
    }

    /// The number of the next signal that asks for the end. What is for an app alone is for nobody then. May be cancelled and
    /// called again.
    pub(crate) async fn next(&mut self) -> i32 {
        loop {
            let signal = self.next_for_app().await;
            if ![SignalKind::user_defined1(), SignalKind::window_change()]
                .iter()
                .any(|kind| kind.as_raw_value() == signal)
            {
                return signal;
            }
        }
    }

    /// The number of the next signal of all. May be cancelled and called again.
    pub(crate) async fn next_for_app(&mut self) -> i32 {
        poll_fn(|cx| {
            // A stream ends with the runtime only.
            for (kind, signal) in &mut self.0 {
                if signal.poll_recv(cx) == Poll::Ready(Some(())) {
                    return Poll::Ready(kind.as_raw_value());
                }
            }
            Poll::Pending
        })
        .await
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

/// Those that would end a program, or be lost, while one takes the place of another in the same process.
const HELD: [libc::c_int; 6] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// Has them wait, as far as this thread and those that it starts are concerned, also beyond `execve`.
pub(crate) fn hold() {
    mask(libc::SIG_BLOCK);
}

/// Lets in those that wait.
pub(crate) fn release() {
    mask(libc::SIG_UNBLOCK);
}

#[allow(unsafe_code)]
fn mask(how: libc::c_int) {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: `sigemptyset` makes the set, which is ours; the other calls read it. They fail only for what is no signal.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in HELD {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(how, set.as_ptr(), std::ptr::null_mut());
    }
}

/// What shells report for a process that ended by a signal.
pub(crate) fn signal_exit(signal: i32) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(crate::failure::FAILED))
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    /// A terminal whose size changes ends nothing, neither while a sidecar starts nor while it drains.
    #[tokio::test]
    async fn only_what_asks_for_the_end_is_an_end() {
        let mut signals = Signals::listen_for_app().unwrap();
        let raise = |signal| kill_process(getpid(), signal).unwrap();
        [Signal::WINCH, Signal::USR1].into_iter().for_each(raise);
        let later = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            raise(Signal::QUIT);
        };
        let (end, ()) = tokio::join!(signals.next(), later);
        assert_eq!(end, Signal::QUIT.as_raw());
        raise(Signal::WINCH);
        assert_eq!(signals.next_for_app().await, Signal::WINCH.as_raw());
    }
}
