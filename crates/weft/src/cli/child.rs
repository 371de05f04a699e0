//! A command that runs under `weft`: signals are forwarded to it, and it does not outlive us, nor a grant that it
//! was started with.
//!
//! Without a terminal on standard input the child gets a process group of its own, and signals go to
//! the whole group, so that what a shell script started ends with it. With a terminal it stays in ours,
//! so that it can read and that Ctrl-C and Ctrl-Z work: the terminal then sends SIGINT to it by itself.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::time::{Instant, sleep_until};
use weft_client::Session;
use weft_client::grant::Grant;

use super::children::Children;
use crate::failure::{Failure, NOT_EXECUTABLE, NOT_FOUND};
use crate::signals::Signals;

/// A group may gain a member while it is being killed, so it is killed again until the child has ended.
const KILL_AGAIN: Duration = Duration::from_secs(1);

/// How the child ended.
pub(crate) enum Ended {
    /// By itself, or by a signal that was forwarded: exit with this code.
    Code(u8),
    /// The session or the grant was lost, so it was made to end.
    Lost,
}

/// Runs `command` to its end, with `environment` added to ours.
pub(crate) async fn run(
    command: &[OsString],
    environment: &[(&str, String)],
    grant: &Grant,
    session: &Session,
    signals: &mut Signals,
) -> Result<Ended, Failure> {
    let gone = grant.lost(session);
    tokio::pin!(gone);
    let mut children = Children::listen()?;
    let mut child = Running::start(command, environment)?;
    let mut asked_to_end = false;
    // When to kill what did not end by itself after the loss.
    let mut kill_at: Option<Instant> = None;
    loop {
        tokio::select! {
            (pid, status) = children.next() => if let Some(code) = child.ended(pid, status) {
                return Ok(if kill_at.is_some() { Ended::Lost } else { Ended::Code(code) });
            },
            reason = &mut gone, if kill_at.is_none() => {
                // The margin before the lease's real end is split: half of it for an orderly end.
                let grace = session.margin() / 2;
                eprintln!("lost: {reason}; stopping the command, in {grace:?} by force");
                child.signal(Signal::TERM);
                kill_at = Some(Instant::now() + grace);
            }
            () = at(kill_at) => {
                child.signal(Signal::KILL);
                kill_at = Some(Instant::now() + KILL_AGAIN);
            }
            signal = signals.next() => {
                let ending = signal == Signal::TERM.as_raw() || signal == Signal::INT.as_raw();
                if ending && asked_to_end {
                    eprintln!("second signal: killing the command");
                    child.signal(Signal::KILL);
                } else {
                    child.forward(signal);
                }
                asked_to_end |= ending;
            }
        }
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// As shells report it: the exit code, or 128 + n after signal n.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code & 0xff).unwrap_or(u8::MAX)
}

/// A command that was started. It is killed when this is dropped.
pub(crate) struct Running {
    /// `None` once it has ended: the number may then be another's.
    pid: Option<Pid>,
    own_group: bool,
}

impl Running {
    /// Starts it, with `environment` added to ours.
    pub(crate) fn start(command: &[OsString], environment: &[(&str, String)]) -> Result<Self, Failure> {
        let (program, arguments) =
            command.split_first().ok_or_else(|| Failure::new("no command given after --"))?;
        let own_group = !std::io::stdin().is_terminal();
        let mut builder = Command::new(program);
        builder.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
        if own_group {
            builder.process_group(0);
        }
        die_with_parent(&mut builder, Signal::KILL);
        let process = builder.spawn().map_err(|error| {
            let code = match error.kind() {
                std::io::ErrorKind::NotFound => NOT_FOUND,
                _ => NOT_EXECUTABLE,
            };
            Failure::with_code(code, format!("cannot run {}: {error}", program.to_string_lossy()))
        })?;
        Ok(Self { pid: Some(Pid::from_child(&process)), own_group })
    }

    /// One that was started by the program before this one in the same process. What [`Self::process`] said of it.
    pub(crate) fn adopt(pid: Pid, own_group: bool) -> Self {
        Self { pid: Some(pid), own_group }
    }

    /// Its process, and whether that leads a group, as long as it was not found to have ended.
    pub(crate) fn process(&self) -> Option<(Pid, bool)> {
        self.pid.map(|pid| (pid, self.own_group))
    }

    /// Its exit code as shells report it, if it is the one that ended.
    pub(crate) fn ended(&mut self, pid: Pid, status: ExitStatus) -> Option<u8> {
        self.pid.take_if(|own| *own == pid).map(|_| code(status))
    }

    /// A signal that we got. With a terminal, the child has got its SIGINT already.
    pub(crate) fn forward(&self, signal: i32) {
        let from_terminal = !self.own_group && signal == Signal::INT.as_raw();
        if let (false, Some(signal)) = (from_terminal, Signal::from_named_raw(signal)) {
            self.signal(signal);
        }
    }

    /// Sends it a signal, and to what it started if it has a group of its own.
    pub(crate) fn signal(&self, signal: Signal) {
        let Some(pid) = self.pid else { return };
        let sent = if self.own_group { kill_process_group(pid, signal) } else { kill_process(pid, signal) };
        if let Err(error) = sent {
            // It ended a moment ago.
            tracing::debug!(%error, ?signal, "signal not delivered");
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Has the kernel end the child by a signal when this process dies without a word (SIGKILL, out of memory): nobody
/// would renew the session, and a child that went on would soon share the lock with its next owner.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
pub(crate) fn die_with_parent(builder: &mut Command, signal: Signal) {
    let parent = rustix::process::getpid();
    let tie = move || {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(std::io::Error::other("the parent ended before the command began"))
        }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. `tie` makes two plain
    // system calls, and allocates only on the path that gives up.
    unsafe {
        builder.pre_exec(tie);
    }
}

/// Only Linux has it. Elsewhere a command outlives a `weft` that was killed without a word.
#[cfg(not(target_os = "linux"))]
pub(crate) fn die_with_parent(_builder: &mut Command, _signal: Signal) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_shells() {
        assert_eq!(code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(code(ExitStatus::from_raw(15)), 143);
    }
}
