//! One `weft` process: its ready line, its captured log, its guaranteed stop by pid.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;

/// How long a process may take until it prints its ready line. Generous: the machine may be busy.
const READY_LIMIT: Duration = Duration::from_secs(60);
/// How long a process may take to end after SIGTERM before the test gives up on it.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// The folder of the workspace that is tested. Asked for while the test runs: clones that share a build cache share its
/// binaries too, and these would remember the clone that they were built in.
pub fn workspace() -> PathBuf {
    let tests = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it for tests");
    PathBuf::from(tests).parent().expect("the workspace is one up").to_owned()
}

/// The binary under test.
pub fn weft_bin() -> PathBuf {
    if let Some(path) = std::env::var_os("WEFT_BIN") {
        return PathBuf::from(path);
    }
    // target/debug/deps/this-test → target/debug/weft
    let test = std::env::current_exe().expect("a running test has a path");
    let path =
        test.parent().and_then(|deps| deps.parent()).expect("tests run from target/*/deps").join("weft");
    assert!(path.exists(), "{} is missing: run `cargo build -p weft` first, or ./test", path.display());
    path
}

/// What a one-shot command printed and how it ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; 128 + n after signal n.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs `weft` with `args` to its end, at most 60 s.
pub async fn run(args: &[&str]) -> Finished {
    run_program(&weft_bin().to_string_lossy(), args, &[], "").await
}

/// Runs any program to its end, at most 60 s, with extra environment and standard input.
pub async fn run_program(program: &str, args: &[&str], env: &[(&str, &str)], stdin: &str) -> Finished {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true).envs(env.iter().copied());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
    let mut input = child.stdin.take().expect("stdin is piped");
    let text = stdin.to_owned();
    let feed = async move {
        // The program may end without reading all of it; that is its own affair.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut input, text.as_bytes()).await;
        drop(input);
    };
    let (_, output) =
        tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(feed, child.wait_with_output()) })
            .await
            .unwrap_or_else(|_| panic!("{program} {args:?} did not end within 60 s"));
    let output = output.expect("the child can be waited for");
    Finished {
        code: code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A running `weft` process. Dropping it kills it.
#[derive(Debug)]
pub struct WeftProcess {
    name: String,
    child: Child,
    log: Arc<Mutex<String>>,
    ready: serde_json::Value,
}

impl WeftProcess {
    /// Starts `weft ARGS` and waits for its `ready {…}` line.
    pub async fn start(name: &str, args: &[String]) -> Self {
        Self::start_under(name, &[], args).await
    }

    /// Like `start`, by way of a command that puts it somewhere and then becomes it, such as `nsenter …`.
    pub async fn start_under(name: &str, prefix: &[String], args: &[String]) -> Self {
        let weft = weft_bin().display().to_string();
        let command: Vec<_> = prefix.iter().cloned().chain([weft]).collect();
        match Self::spawn(name, &command, args, &[]).await {
            Ok(process) => process,
            Err(log) => panic!("{name} did not become ready: weft {}\n{log}", args.join(" ")),
        }
    }

    /// Like `start`, with another program than the one under test, such as a copy of it.
    pub async fn start_program(
        name: &str,
        program: &Path,
        args: &[String],
        env: &[(&str, &str)],
    ) -> Result<Self, String> {
        Self::spawn(name, &[program.display().to_string()], args, env).await
    }

    /// Like `start`, and answers what the process printed if it ended or stayed silent instead.
    pub async fn try_start(name: &str, args: &[String]) -> Result<Self, String> {
        Self::try_start_with_env(name, args, &[]).await
    }

    /// Like `try_start`, with further environment variables.
    pub async fn try_start_with_env(
        name: &str,
        args: &[String],
        env: &[(&str, &str)],
    ) -> Result<Self, String> {
        Self::start_program(name, &weft_bin(), args, env).await
    }

    async fn spawn(
        name: &str,
        command: &[String],
        args: &[String],
        env: &[(&str, &str)],
    ) -> Result<Self, String> {
        let mut command = command.iter().chain(args);
        let mut child = Command::new(command.next().expect("at least the binary"))
            .args(command)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary under test can be started");
        let log = Arc::new(Mutex::new(String::new()));
        let (ready_tx, ready_rx) = oneshot::channel();
        capture(child.stderr.take().expect("stderr is piped"), log.clone(), None);
        capture(child.stdout.take().expect("stdout is piped"), log.clone(), Some(ready_tx));
        let ready = tokio::select! {
            ready = tokio::time::timeout(READY_LIMIT, ready_rx) => ready.ok().and_then(Result::ok),
            _ = child.wait() => None,
        };
        match ready {
            Some(ready) => Ok(Self { name: name.to_owned(), child, log, ready }),
            None => {
                // The readers may still hold a last line.
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(log.lock().expect("no reader panics").clone())
            }
        }
    }

    /// The label given at start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id, while it runs.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("the process was not waited for")
    }

    /// The address printed under `key` in the ready line.
    pub fn addr(&self, key: &str) -> SocketAddr {
        self.ready[key]
            .as_str()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| panic!("no address {key} in the ready line of {}: {}", self.name, self.ready))
    }

    /// The whole ready line.
    pub fn ready(&self) -> &serde_json::Value {
        &self.ready
    }

    /// Everything printed so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("no reader panics").clone()
    }

    /// Resident memory now, in bytes.
    pub fn resident(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most that it was so far, in bytes.
    pub fn resident_most(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a size");
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number");
        kib * 1024
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid() as i32).expect("a pid is not zero");
        kill_process(pid, signal).expect("the process is ours and was not waited for");
    }

    /// SIGTERM, then waits for the end and answers the exit code.
    pub async fn stop(mut self) -> i32 {
        self.signal(Signal::TERM);
        match tokio::time::timeout(STOP_LIMIT, self.child.wait()).await {
            Ok(status) => code(status.expect("the child can be waited for")),
            Err(_) => panic!("{} did not end within {STOP_LIMIT:?} of SIGTERM\n{}", self.name, self.log()),
        }
    }

    /// SIGKILL, as a crash: nothing is flushed, nobody is told.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("the process is ours");
    }

    /// Waits until the process ends by itself.
    pub async fn wait(&mut self, limit: Duration) -> i32 {
        match tokio::time::timeout(limit, self.child.wait()).await {
            Ok(status) => code(status.expect("the child can be waited for")),
            Err(_) => panic!("{} did not end within {limit:?}\n{}", self.name, self.log()),
        }
    }
}

impl Drop for WeftProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.name, self.log());
        }
    }
}

fn capture(
    stream: impl AsyncRead + Unpin + Send + 'static,
    log: Arc<Mutex<String>>,
    mut ready: Option<oneshot::Sender<serde_json::Value>>,
) {
    tokio::spawn(async move {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(json) = line.strip_prefix("ready ")
                && let Ok(value) = serde_json::from_str(json)
                && let Some(ready) = ready.take()
            {
                // The test may have given up waiting.
                let _ = ready.send(value);
            }
            let mut log = log.lock().expect("no holder panics");
            log.push_str(&line);
            log.push('\n');
        }
    });
}
