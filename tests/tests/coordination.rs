//! Locks, semaphores and elections as people use them: several `weft` commands at once.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use weft_tests::mesh::Mesh;
use weft_tests::process::weft_bin;
use weft_tests::wait::until;

/// One shell with a `weft lock|semaphore|elect … -- sh -c SCRIPT` in it. Dropping it kills it.
struct Shell {
    child: Child,
}

impl Shell {
    fn start(mesh: &Mesh, args: &[&str], script: &str) -> Self {
        let child = Command::new(weft_bin())
            .args(args)
            .args(["--endpoints", &endpoints(mesh)])
            .args(["--", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("the binary under test can be started");
        Self { child }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().expect("not waited for") as i32).expect("not zero");
        kill_process(pid, signal).expect("the process is ours");
    }

    async fn wait(&mut self) -> i32 {
        let ended = tokio::time::timeout(Duration::from_secs(40), self.child.wait()).await;
        ended.expect("it ends").expect("it can be waited for").code().unwrap_or(-1)
    }
}

fn endpoints(mesh: &Mesh) -> String {
    mesh.servers.iter().filter(|s| s.runs()).map(|s| s.grpc().to_string()).collect::<Vec<_>>().join(",")
}

/// Lines of a file that the shells append to; each line is written by one `echo`.
fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

async fn wait_for_lines(path: &Path, count: usize) -> Vec<String> {
    until(&format!("{count} lines"), Duration::from_secs(40), || async {
        let seen = lines(path);
        if seen.len() >= count { Ok(seen) } else { Err(format!("{seen:?}")) }
    })
    .await
}

fn fence(line: &str) -> i64 {
    line.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no token in {line:?}"))
}

/// L01, L04, L11: the second starts when the first ends, with a larger fencing token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_lock_starts_when_the_first_ends_with_a_larger_token() {
    let mesh = Mesh::with_servers(1).await;
    let log = mesh.folder("log");
    let script =
        format!("echo start $WEFT_FENCE >> {0}; sleep 1; echo end $WEFT_FENCE >> {0}", log.display());
    let mut first = Shell::start(&mesh, &["lock", "deploy"], &script);
    wait_for_lines(&log, 1).await;
    let mut second = Shell::start(&mesh, &["lock", "deploy"], &script);
    assert_eq!((first.wait().await, second.wait().await), (0, 0));
    let seen = lines(&log);
    let (a, b) = (fence(&seen[0]), fence(&seen[2]));
    assert_eq!(
        seen,
        [format!("start {a}"), format!("end {a}"), format!("start {b}"), format!("end {b}")],
        "the two never overlap"
    );
    assert!(b > a, "tokens only grow: {a}, {b}");
}

/// The child's exit code is the command's exit code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lock_exits_with_the_code_of_its_command() {
    let mesh = Mesh::with_servers(1).await;
    assert_eq!(Shell::start(&mesh, &["lock", "x"], "exit 7").wait().await, 7);
}

/// L03: a holder that is told to stop ends its session, so the next starts at once, long before the TTL.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_holder_frees_the_lock_at_once() {
    let mesh = Mesh::with_servers(1).await;
    let log = mesh.folder("log");
    let script = format!("echo start $WEFT_FENCE >> {}; exec sleep 30", log.display());
    let mut first = Shell::start(&mesh, &["lock", "deploy", "--ttl", "60s"], &script);
    wait_for_lines(&log, 1).await;
    let script = format!("echo start $WEFT_FENCE >> {}", log.display());
    let mut second = Shell::start(&mesh, &["lock", "deploy"], &script);
    first.signal(Signal::TERM);
    first.wait().await;
    let seen = wait_for_lines(&log, 2).await;
    assert!(fence(&seen[1]) > fence(&seen[0]), "{seen:?}");
    assert_eq!(second.wait().await, 0);
}

/// L02, S04: a holder killed without a word loses the lock at its TTL, not before and not never.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_holder_loses_the_lock_at_its_ttl() {
    let mesh = Mesh::with_servers(1).await;
    let log = mesh.folder("log");
    let script = format!("echo start $WEFT_FENCE >> {}; exec sleep 30", log.display());
    let mut first = Shell::start(&mesh, &["lock", "deploy", "--ttl", "4s"], &script);
    wait_for_lines(&log, 1).await;
    let script = format!("echo start $WEFT_FENCE >> {}", log.display());
    let mut second = Shell::start(&mesh, &["lock", "deploy", "--ttl", "4s"], &script);
    let killed = std::time::Instant::now();
    first.signal(Signal::KILL);
    first.wait().await;
    wait_for_lines(&log, 2).await;
    let waited = killed.elapsed();
    // The last renewal was at most a third of the TTL ago when it died.
    assert!(waited > Duration::from_millis(2000), "freed after {waited:?}, before the TTL could have passed");
    assert_eq!(second.wait().await, 0);
}

/// S05: a holder whose process did not run while its session ended (SIGSTOP here, a suspended machine elsewhere) stops its
/// command at the moment it runs again, before it asks anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_slept_through_its_end_stops_its_command_when_it_wakes() {
    let mesh = Mesh::with_servers(1).await;
    let (log, ticks) = (mesh.folder("log"), mesh.folder("ticks"));
    let script = format!(
        "echo start $WEFT_FENCE >> {}; while :; do echo tick >> {}; sleep 0.05; done",
        log.display(),
        ticks.display()
    );
    let mut first = Shell::start(&mesh, &["lock", "deploy", "--ttl", "2s"], &script);
    wait_for_lines(&log, 1).await;
    first.signal(Signal::STOP);
    let script = format!("echo start $WEFT_FENCE >> {}", log.display());
    let mut second = Shell::start(&mesh, &["lock", "deploy", "--ttl", "2s"], &script);
    let seen = wait_for_lines(&log, 2).await;
    assert!(fence(&seen[1]) > fence(&seen[0]), "{seen:?}");
    assert_eq!(second.wait().await, 0);

    first.signal(Signal::CONT);
    assert_ne!(first.wait().await, 0, "it must not say that all went well");
    let at_its_end = lines(&ticks).len();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(lines(&ticks).len(), at_its_end, "its command goes on");
}

/// L05, L07: two at a time, in the order of arrival, and tokens only grow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn semaphore_of_two_admits_five_shells_two_at_a_time_in_order() {
    let mesh = Mesh::with_servers(1).await;
    let log = mesh.folder("log");
    let mut shells = Vec::new();
    for i in 1..=5 {
        let script = format!(
            "echo start {i} $WEFT_FENCE >> {0}; sleep 1; echo end {i} $WEFT_FENCE >> {0}",
            log.display()
        );
        shells.push(Shell::start(&mesh, &["semaphore", "db", "--limit", "2"], &script));
        // The next shell arrives when this one holds or waits, so that "in order" has a meaning.
        until(&format!("shell {i} is known"), Duration::from_secs(20), || async {
            let known = mesh
                .cli(&mesh.servers[0], &["kv", "get", "--prefix", "weft/semaphore/", "--output", "json"])
                .await;
            let json: serde_json::Value =
                serde_json::from_str(&known.stdout).map_err(|e| format!("{e}: {known:?}"))?;
            let kvs = json["kvs"].as_array().cloned().unwrap_or_default();
            let count = kvs
                .iter()
                .filter_map(|kv| kv["key"].as_str())
                .filter(|key| key.contains("/holder/") || key.contains("/waiter/"))
                .count();
            let over = lines(&log).iter().filter(|l| l.starts_with("end")).count();
            if count + over >= i { Ok(()) } else { Err(known.stdout) }
        })
        .await;
    }
    for shell in &mut shells {
        assert_eq!(shell.wait().await, 0);
    }
    let seen = lines(&log);
    let (mut inside, mut order, mut tokens) = (0, Vec::new(), Vec::new());
    for line in &seen {
        if let Some(rest) = line.strip_prefix("start ") {
            inside += 1;
            order.push(rest.split(' ').next().unwrap_or_default().to_owned());
            tokens.push(fence(line));
        } else {
            inside -= 1;
        }
        assert!(inside <= 2, "three at once: {seen:?}");
    }
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 5, "every grant has its own token: {seen:?}");
    // The first two may print in either order; each later one is admitted in turn.
    order[..2].sort();
    let mut pairs = order.clone();
    pairs[2..4].sort();
    assert_eq!(pairs, ["1", "2", "3", "4", "5"], "order of arrival: {seen:?}");
}

/// Leadership moves on when the leader is killed, and the token grows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn election_moves_on_when_the_leader_is_killed() {
    let mesh = Mesh::with_servers(1).await;
    let log = mesh.folder("log");
    let script = |who: &str| format!("echo {who} leads $WEFT_FENCE >> {}; exec sleep 30", log.display());
    let first = Shell::start(&mesh, &["elect", "job", "--ttl", "4s"], &script("a"));
    wait_for_lines(&log, 1).await;
    let second = Shell::start(&mesh, &["elect", "job", "--ttl", "4s"], &script("b"));
    first.signal(Signal::KILL);
    let seen = wait_for_lines(&log, 2).await;
    assert!(seen[0].starts_with("a leads") && seen[1].starts_with("b leads"), "{seen:?}");
    assert!(fence(&seen[1]) > fence(&seen[0]), "tokens only grow: {seen:?}");
    second.signal(Signal::TERM);
}

/// L11: the server that granted dies; the lock stays held and the next token is larger.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lock_is_kept_and_tokens_grow_when_the_leader_dies() {
    let mut mesh = Mesh::with_servers(3).await;
    let log = mesh.folder("log");
    let script =
        format!("echo start $WEFT_FENCE >> {0}; sleep 6; echo end $WEFT_FENCE >> {0}", log.display());
    let mut first = Shell::start(&mesh, &["lock", "deploy", "--ttl", "10s"], &script);
    wait_for_lines(&log, 1).await;
    let mut second = Shell::start(&mesh, &["lock", "deploy", "--ttl", "10s"], &script);
    let leader = mesh.leader().await;
    mesh.servers[leader].kill().await;
    assert_eq!(first.wait().await, 0, "the holder's session survives the leader");
    assert_eq!(second.wait().await, 0);
    let seen = lines(&log);
    let (a, b) = (fence(&seen[0]), fence(&seen[2]));
    assert_eq!(seen, [format!("start {a}"), format!("end {a}"), format!("start {b}"), format!("end {b}")]);
    assert!(b > a);
}
