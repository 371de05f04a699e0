//! The supervisor of an app becomes the program that is now in its place (`execve`): the same process, whose child the app
//! stays.
//!
//! ```text
//! old: lets signals wait, and starts the new program with `--adopt {rehearsal}`: it reads all that it would have to, and ends
//! old: becomes the new program with `--adopt {…}`
//! new: listens for signals, and lets in those that have waited
//! ```
//! No descriptor is handed over but the standard ones: children are waited for by their pids, which are nobody else's until
//! then. What fails before the second step leaves the old program as it was.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde::{Deserialize, Serialize};

use crate::cli::children::Children;

/// Version of [`Handed`]. Programs of different versions refuse each other, in the rehearsal.
const PROTOCOL: u32 = 1;

/// For the rehearsal, which takes milliseconds.
const REHEARSAL_MAX: Duration = Duration::from_secs(10);

/// Of what a program says that refuses.
const REASON_BYTES_MAX: u64 = 4096;

/// What the next program has to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Handed {
    protocol: u32,
    /// Only read it, and end.
    pub(super) rehearsal: bool,
    app: i32,
    /// Whether the app leads a process group.
    pub(super) own_group: bool,
    /// Of the sidecar.
    pub(super) data_dir: PathBuf,
    sidecars: Vec<i32>,
}

impl Handed {
    pub(super) fn new((app, own_group): (Pid, bool), data_dir: PathBuf, sidecars: &[Pid]) -> Self {
        let sidecars = sidecars.iter().map(|pid| pid.as_raw_pid()).collect();
        Self { protocol: PROTOCOL, rehearsal: false, app: app.as_raw_pid(), own_group, data_dir, sidecars }
    }

    /// The app, if it is a child of this process, be it that it has ended.
    pub(super) fn app(&self) -> Result<Pid, String> {
        let app = Pid::from_raw(self.app).filter(|pid| {
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            waitid(WaitId::Pid(*pid), look).is_ok()
        });
        app.ok_or_else(|| format!("--adopt: process {} is no child of this one", self.app))
    }

    /// The sidecars that were started in this process.
    pub(super) fn sidecars(&self) -> Vec<Pid> {
        self.sidecars.iter().copied().filter_map(Pid::from_raw).collect()
    }
}

impl FromStr for Handed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let value: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match value["protocol"].as_u64() {
            Some(protocol) if protocol == u64::from(PROTOCOL) => {
                serde_json::from_value(value).map_err(|error| error.to_string())
            }
            protocol => Err(format!(
                "a supervisor that hands its app over by protocol {}, weft {} by {PROTOCOL}: restart it instead",
                protocol.map_or_else(|| "unknown".to_owned(), |protocol| protocol.to_string()),
                env!("CARGO_PKG_VERSION"),
            )),
        }
    }
}

/// Has `program` go through its start, as far as nothing is changed by it. Answers why it would not do.
pub(super) async fn rehearse(program: &Path, handed: &Handed, children: &mut Children) -> Result<(), String> {
    let mut command = command(program, &Handed { rehearsal: true, ..handed.clone() })
        .map_err(|error| format!("what is handed over cannot be written down: {error}"))?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    let pid = Pid::from_child(&child);
    let Ok(status) = tokio::time::timeout(REHEARSAL_MAX, children.wait(pid)).await else {
        // It is waited for as all children are.
        let _ = kill_process(pid, Signal::KILL);
        return Err(format!("it did not answer within {REHEARSAL_MAX:?}"));
    };
    if status.is_some_and(|status| status.success()) {
        return Ok(());
    }
    let mut why = Vec::new();
    if let Some(said) = &mut child.stderr {
        // What it wrote is there, since it has ended; a child that it has left behind may keep its end open.
        if rustix::io::ioctl_fionbio(&*said, true).is_ok() {
            let _ = said.take(REASON_BYTES_MAX).read_to_end(&mut why);
        }
    }
    let status = status.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
    Err(format!("{status}: {}", String::from_utf8_lossy(&why).trim_end()))
}

/// Becomes `program`. Returns only if that fails.
#[allow(unsafe_code)]
pub(super) fn replace(program: &Path, handed: &Handed) -> std::io::Error {
    let error = match command(program, handed) {
        Ok(mut command) => command.exec(),
        Err(error) => return error,
    };
    // SAFETY: no handler is involved. The standard library has reset what it ignores, for the next program.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    error
}

fn command(program: &Path, handed: &Handed) -> std::io::Result<Command> {
    let mut all = std::env::args_os();
    let mut command = Command::new(program);
    command.arg0(all.next().unwrap_or_else(|| program.into()));
    command.args(arguments(all, handed)?);
    Ok(command)
}

/// Those of this process, with what is handed over in place of what was handed over to it.
///
/// # Errors
/// If the folder's name is no UTF-8.
fn arguments(all: impl IntoIterator<Item = OsString>, handed: &Handed) -> std::io::Result<Vec<OsString>> {
    let mut all = all.into_iter().peekable();
    let mut next: Vec<OsString> = all.by_ref().take(1).collect();
    next.push(FLAG.into());
    next.push(serde_json::to_string(handed)?.into());
    if all.next_if(|argument| argument == FLAG).is_some() {
        all.next();
    }
    next.extend(all);
    Ok(next)
}

/// Stands behind the name of the command.
pub(super) const FLAG: &str = "--adopt";

#[cfg(test)]
mod tests {
    use super::*;

    fn handed() -> Handed {
        let pid = |raw| Pid::from_raw(raw).unwrap();
        Handed::new((pid(7), true), "/data".into(), &[pid(8), pid(9)])
    }

    #[test]
    fn what_is_handed_over_is_read_back_and_replaces_what_was_handed_over_before() {
        let arguments =
            arguments(["run", "--name", "a", "--", "app", "--adopt"].map(OsString::from), &handed()).unwrap();
        assert_eq!(arguments[..2], ["run", "--adopt"]);
        assert_eq!(arguments[3..], ["--name", "a", "--", "app", "--adopt"]);
        assert_eq!(arguments[2].to_str().unwrap().parse(), Ok(handed()));
        let again = super::arguments(arguments.clone(), &handed()).unwrap();
        assert_eq!(again, arguments);
    }

    #[test]
    fn a_folder_that_cannot_be_written_down_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let folder = OsString::from_vec(vec![b'/', 0xff]);
        let handed = Handed::new((Pid::INIT, true), folder.into(), &[]);
        let refused = arguments(["run"].map(OsString::from), &handed).unwrap_err().to_string();
        assert!(refused.contains("UTF-8"), "{refused}");
    }

    #[test]
    fn another_version_is_refused_whatever_else_it_says() {
        let refused = r#"{"protocol":2,"apps":[7]}"#.parse::<Handed>().unwrap_err();
        assert!(refused.contains("by protocol 2") && refused.contains("restart it instead"), "{refused}");
        assert!("{}".parse::<Handed>().unwrap_err().contains("protocol unknown"));
        assert!(r#"{"protocol":1}"#.parse::<Handed>().unwrap_err().contains("missing field"));
    }

    #[test]
    fn an_app_of_somebody_else_is_not_adopted() {
        let refused = Handed::new((Pid::INIT, true), "/data".into(), &[]).app().unwrap_err();
        assert!(refused.contains("process 1 is no child"), "{refused}");
    }
}
