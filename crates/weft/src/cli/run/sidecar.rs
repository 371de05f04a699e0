//! The sidecar of an app: part of this process, until another one takes over. From then on it is told by its socket what
//! to do, whoever has started it.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use weft_proxy::app::{Event, RunningProxy};
use weft_proxy::handover::{Order, order};

use crate::cli::child::die_with_parent;
use crate::cli::children::Children;
use crate::notify;

/// For a sidecar of its own to take its services out of the mesh.
const WITHDRAW_MAX: Duration = Duration::from_secs(8);
/// For one to say that it begins to stop.
const STOP_MAX: Duration = Duration::from_secs(5);
/// For one to end after that, if it was started here: its drain takes as long as its flags say.
const END_MAX: Duration = Duration::from_secs(60);
/// Before one that has ended by itself is started again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Between two looks at who has the data folder.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// So often a new sidecar has to be seen there: half a second.
const SERVES_AFTER_LOOKS: u32 = 5;

/// See the module.
pub(super) struct Sidecar {
    own: Option<Box<RunningProxy>>,
    /// What was ours finishes what it has.
    finishing: Option<JoinHandle<()>>,
    data_dir: Option<PathBuf>,
    /// How another one is started: program and arguments.
    program: PathBuf,
    arguments: Vec<OsString>,
    /// Those started here that still run: at most one serves, the others finish what they have.
    others: Vec<Pid>,
    /// When to see whether there is one at all.
    again_at: Option<Instant>,
    /// The one that this program was asked to start from what is in its place now. Once it serves, this program is outdated.
    successor: Option<Pid>,
    /// How the last one ended, for whoever wants to know why another one is started.
    last: Option<ExitStatus>,
}

impl Sidecar {
    /// Without one in this process there are `others`, or soon will be.
    pub(super) fn new(own: Option<Box<RunningProxy>>, data_dir: Option<PathBuf>, others: Vec<Pid>) -> Self {
        Self {
            again_at: own.is_none().then(|| Instant::now() + AGAIN_AFTER),
            own,
            finishing: None,
            data_dir,
            program: program(),
            arguments: arguments(std::env::args_os()),
            others,
            successor: None,
            last: None,
        }
    }

    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// Its folder, and the processes started here.
    pub(super) fn known(&self) -> (Option<&Path>, &[Pid]) {
        (self.data_dir.as_deref(), &self.others)
    }

    /// Starts the program that is now where ours was, to take over, and has [`Self::tend`] say when it has and nothing of the
    /// sidecar is left in this process.
    pub(super) fn upgrade(&mut self) {
        notify::reloading();
        self.successor = self.start_successor();
        if self.successor.is_none() {
            notify::ready();
        }
    }

    /// This program goes on as it is.
    pub(super) fn stays(&mut self) {
        self.successor = None;
    }

    fn start_successor(&mut self) -> Option<Pid> {
        if self.data_dir.is_none() {
            eprintln!("the sidecar cannot be upgraded while it runs: it has no --data-dir");
            return None;
        }
        let mut command = Command::new(&self.program);
        // What is supervised is this process.
        command.env_remove(notify::SOCKET);
        command.arg("proxy").args(&self.arguments).arg("--take-over").stdin(Stdio::null());
        // What it prints at its start is none of the app's output; its access log may be.
        let to_stdout = self.arguments.iter().any(|argument| argument.to_string_lossy().contains("stdout"));
        command.stdout(if to_stdout { Stdio::inherit() } else { Stdio::null() }).stderr(Stdio::inherit());
        let says =
            |name: &str| self.arguments.iter().any(|argument| argument.to_string_lossy().starts_with(name));
        if std::env::var_os("WEFT_LOG_LEVEL").is_none() && !says("--log-level") && !says("--config") {
            command.env("WEFT_LOG_LEVEL", "warn");
        }
        die_with_parent(&mut command, Signal::TERM);
        match command.spawn() {
            Ok(child) => {
                let pid = Pid::from_child(&child);
                self.others.push(pid);
                Some(pid)
            }
            Err(error) => {
                eprintln!("cannot run {}: {error}", self.program.display());
                None
            }
        }
    }

    /// Takes care of it, until this program is [outdated](Self::upgrade) and free to go. May be cancelled and called again.
    pub(super) async fn tend(&mut self) {
        loop {
            let free = self.own.is_none() && self.finishing.is_none();
            let serves = async {
                match (free, &self.data_dir, self.successor) {
                    (true, Some(folder), Some(successor)) => serves(folder, successor).await,
                    _ => std::future::pending().await,
                }
            };
            let own = async {
                match &mut self.own {
                    Some(own) => own.event().await,
                    None => std::future::pending().await,
                }
            };
            let finishing = async {
                match &mut self.finishing {
                    // It ends with its last connection, or its own limits.
                    Some(finishing) => finishing.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = serves => return,
                event = own => match event {
                    Event::TakenOver => {
                        if let Some(own) = self.own.take() {
                            self.finishing = Some(tokio::spawn((*own).drain_and_shutdown()));
                        }
                    }
                    Event::Withdraw(_done) => self.withdraw().await,
                    // It lives as long as the app.
                    Event::Stop => {}
                },
                _ended = finishing => self.finishing = None,
                () = at(self.again_at) => {
                    if !self.is_tended_by_others().await {
                        let how = self.last.map(|status| format!(" ({status})")).unwrap_or_default();
                        eprintln!("the sidecar has ended{how}; starting it again");
                        self.start_successor();
                    }
                    self.again_at = None;
                }
            }
        }
    }

    /// A child of this process has ended, which may have been one of the sidecars.
    pub(super) fn ended(&mut self, pid: Pid, status: ExitStatus) {
        let before = self.others.len();
        self.others.retain(|other| *other != pid);
        if self.others.len() == before {
            return;
        }
        if self.successor == Some(pid) {
            self.successor = None;
            eprintln!("the new sidecar did not take over ({status}); the present one goes on");
            notify::ready();
        }
        if self.own.is_none() {
            self.last = Some(status);
            self.again_at = Some(Instant::now() + AGAIN_AFTER);
        }
    }

    /// Another one may have taken over, or somebody else may have started the one that runs now.
    async fn is_tended_by_others(&self) -> bool {
        let Some(folder) = self.data_dir.clone() else { return false };
        let in_use = tokio::task::spawn_blocking(move || weft_core::fsio::is_in_use(&folder)).await;
        matches!(in_use, Ok(Ok(true)))
    }

    /// Takes the services out of the mesh, and serves on.
    pub(super) async fn withdraw(&mut self) {
        match (&mut self.own, &self.data_dir) {
            (Some(own), _) => own.withdraw().await,
            (None, Some(folder)) => {
                if let Err(error) = order(folder, Order::Withdraw, WITHDRAW_MAX).await {
                    eprintln!("the services may still be in the mesh: {error}");
                }
            }
            (None, None) => {}
        }
    }

    /// Drains it to its end.
    pub(super) async fn end(mut self, children: &mut Children) {
        if let Some(own) = self.own.take() {
            (*own).drain_and_shutdown().await;
        } else if let Some(folder) = &self.data_dir {
            if let Err(error) = order(folder, Order::Stop, STOP_MAX).await {
                eprintln!("the sidecar may still run: {error}");
            } else {
                let ended = async {
                    for other in &self.others {
                        children.wait(*other).await;
                    }
                };
                // They say themselves why they are late.
                let _ = tokio::time::timeout(END_MAX, ended).await;
            }
        }
        if let Some(finishing) = self.finishing.take() {
            // It was taken over from, and has its own limits.
            let _ = finishing.await;
        }
    }
}

/// Returns once a process has had the data folder for a while: one that fails to take over gives it back.
async fn serves(folder: &Path, process: Pid) {
    let mut seen = 0;
    while seen < SERVES_AFTER_LOOKS {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let owner = std::fs::read_to_string(folder.join("pid"));
        let is_it = owner.is_ok_and(|pid| pid.trim().parse() == Ok(process.as_raw_nonzero().get()));
        seen = if is_it { seen + 1 } else { 0 };
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Of the arguments of `weft run`, those that are for the sidecar.
pub(super) fn arguments(all: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut mine = Vec::new();
    let mut all = all.into_iter().skip_while(|argument| argument != "run").skip(1);
    while let Some(argument) = all.next() {
        match argument.to_str() {
            Some("--") => break,
            Some("--http-proxy") => {}
            Some("--start-timeout" | super::replace::FLAG) => {
                all.next();
            }
            Some(text) if text.starts_with("--start-timeout=") => {}
            _ => mine.push(argument),
        }
    }
    mine
}

/// Where a program is started from again: the file of this one, which may be another by then.
pub(in crate::cli) fn program() -> PathBuf {
    match std::env::current_exe() {
        Ok(path) => named(path),
        Err(_) => std::env::args_os().next().as_deref().unwrap_or(OsStr::new("weft")).into(),
    }
}

/// Where the file was that `/proc/self/exe` leads to: if another one has taken its name since, proc(5) adds a word.
fn named(path: PathBuf) -> PathBuf {
    let text = path.to_str().and_then(|path| path.strip_suffix(" (deleted)"));
    text.map(PathBuf::from).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_was_replaced_at_once_is_found_by_its_name() {
        assert_eq!(named("/usr/bin/weft (deleted)".into()), Path::new("/usr/bin/weft"));
        assert_eq!(named("/usr/bin/weft".into()), Path::new("/usr/bin/weft"));
    }

    #[test]
    fn the_sidecar_gets_its_own_arguments_and_the_app_none_of_them() {
        let all = "weft run --adopt {} --name a --start-timeout 3s --http-proxy --join h:1 --start-timeout=4s -- app run --name b";
        let mine = arguments(all.split(' ').map(OsString::from));
        assert_eq!(mine, ["--name", "a", "--join", "h:1"]);
    }
}
