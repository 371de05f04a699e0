//! The stock `etcdctl` against our server.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use super::server::{DEADLINE, Server};

struct Output {
    ok: bool,
    stdout: String,
    stderr: String,
}

impl Server {
    fn etcdctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.addr))
            // A login costs a password's hash, for which its 5 s may be too short on a loaded machine.
            .args(["--command-timeout=20s", "--dial-timeout=20s"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, args: &[&str]) -> Output {
        let output = tokio::time::timeout(DEADLINE, self.etcdctl(args).output())
            .await
            .expect("etcdctl answers in time");
        let output = output.unwrap_or_else(|error| missing(&error));
        Output {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// What it prints; it must succeed.
    async fn ctl(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(output.ok, "etcdctl {args:?}: {}{}", output.stdout, output.stderr);
        output.stdout
    }

    /// What it complains about; it must fail.
    async fn ctl_fails(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(!output.ok, "etcdctl {args:?} succeeded: {}", output.stdout);
        output.stderr
    }

    /// With a text typed in.
    async fn ctl_typed(&self, args: &[&str], typed: &str) -> String {
        let mut child =
            self.etcdctl(args).stdin(Stdio::piped()).spawn().unwrap_or_else(|error| missing(&error));
        child.stdin.take().unwrap().write_all(typed.as_bytes()).await.unwrap();
        let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Runs on, to be read line by line.
    fn ctl_running(&self, args: &[&str]) -> Running {
        let mut child = self.etcdctl(args).spawn().unwrap_or_else(|error| missing(&error));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Running { _child: child, lines }
    }
}

fn missing<T>(error: &std::io::Error) -> T {
    panic!("etcdctl cannot be run ({error}); install it: apt-get install etcd-client")
}

struct Running {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(DEADLINE, self.lines.next_line()).await;
        line.expect("a line in time").unwrap().expect("not the end")
    }

    async fn lines(&mut self, n: usize) -> Vec<String> {
        let mut lines = Vec::new();
        for _ in 0..n {
            lines.push(self.line().await);
        }
        lines
    }
}

#[tokio::test]
async fn put_get_and_del() {
    let server = Server::start().await;
    assert_eq!(server.ctl(&["put", "a", "1"]).await, "OK\n");
    assert_eq!(server.ctl(&["put", "ab", "2"]).await, "OK\n");
    assert_eq!(server.ctl(&["put", "b", "3"]).await, "OK\n");
    assert_eq!(server.ctl(&["get", "a"]).await, "a\n1\n");
    assert_eq!(server.ctl(&["get", "--prefix", "a"]).await, "a\n1\nab\n2\n");
    assert_eq!(server.ctl(&["get", "--prefix", ""]).await, "a\n1\nab\n2\nb\n3\n");
    assert_eq!(server.ctl(&["get", "--from-key", "ab", "--print-value-only"]).await, "2\n3\n");
    assert_eq!(server.ctl(&["get", "a", "b", "--keys-only"]).await, "a\n\nab\n\n");
    assert_eq!(server.ctl(&["get", "--prefix", "", "--order=DESCEND", "--limit=1"]).await, "b\n3\n");
    assert_eq!(server.ctl(&["put", "a", "4", "--prev-kv"]).await, "OK\na\n1\n");
    assert_eq!(server.ctl(&["get", "a", "--rev=2"]).await, "a\n1\n");
    assert_eq!(server.ctl(&["get", "a", "--consistency=s"]).await, "a\n4\n");
    assert_eq!(server.ctl(&["del", "a", "--prev-kv"]).await, "1\na\n4\n");
    assert_eq!(server.ctl(&["del", "nothing"]).await, "0\n");
    assert_eq!(server.ctl(&["del", "--prefix", ""]).await, "2\n");
    assert_eq!(server.ctl(&["get", "--prefix", ""]).await, "");
    server.stop().await;
}

#[tokio::test]
async fn txn_compares_and_takes_a_branch() {
    let server = Server::start().await;
    server.ctl(&["put", "flag", "1"]).await;
    let typed = "value(\"flag\") = \"1\"\n\nput result true\nget flag\n\nput result false\n\n";
    let answer = server.ctl_typed(&["txn", "-i"], typed).await;
    assert!(answer.contains("SUCCESS") && answer.contains("OK") && answer.contains("flag\n1\n"), "{answer}");
    assert_eq!(server.ctl(&["get", "result"]).await, "result\ntrue\n");
    let typed = "mod(\"flag\") > \"100\"\nver(\"flag\") = \"1\"\n\nput result true\n\ndel result\n\n";
    let answer = server.ctl_typed(&["txn", "-i"], typed).await;
    assert!(answer.contains("FAILURE"), "{answer}");
    assert_eq!(server.ctl(&["get", "result"]).await, "");
    server.stop().await;
}

#[tokio::test]
async fn watch_follows_from_a_revision() {
    let server = Server::start().await;
    server.ctl(&["put", "a", "1"]).await;
    server.ctl(&["put", "a", "2"]).await;
    let mut from_start = server.ctl_running(&["watch", "a", "--rev=1"]);
    assert_eq!(from_start.lines(6).await, ["PUT", "a", "1", "PUT", "a", "2"]);
    let mut with_previous = server.ctl_running(&["watch", "--prefix", "", "--rev=3", "--prev-kv"]);
    assert_eq!(with_previous.lines(5).await, ["PUT", "a", "1", "a", "2"]);
    server.ctl(&["del", "a"]).await;
    assert_eq!(from_start.lines(3).await, ["DELETE", "a", ""]);
    assert_eq!(with_previous.lines(5).await, ["DELETE", "a", "2", "a", ""]);
    server.stop().await;
}

#[tokio::test]
async fn compaction_is_seen_by_get_and_watch() {
    let server = Server::start().await;
    for value in ["1", "2", "3"] {
        server.ctl(&["put", "a", value]).await;
    }
    assert_eq!(server.ctl(&["compact", "3"]).await, "compacted revision 3\n");
    let error = server.ctl_fails(&["get", "a", "--rev=2"]).await;
    assert!(error.contains("required revision has been compacted"), "{error}");
    let error = server.ctl_fails(&["get", "a", "--rev=99"]).await;
    assert!(error.contains("required revision is a future revision"), "{error}");
    let error = server.ctl_fails(&["watch", "a", "--rev=1"]).await;
    assert!(error.contains("compacted"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn leases_are_granted_kept_alive_and_revoked() {
    let server = Server::start().await;
    let granted = server.ctl(&["lease", "grant", "60"]).await;
    let id = granted.split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(granted, format!("lease {id} granted with TTL(60s)\n"));
    server.ctl(&["put", "a", "1", &format!("--lease={id}")]).await;
    let told = server.ctl(&["lease", "timetolive", &id, "--keys"]).await;
    assert!(told.contains("granted with TTL(60s)") && told.contains("attached keys([a])"), "{told}");
    let kept = server.ctl(&["lease", "keep-alive", "--once", &id]).await;
    assert_eq!(kept, format!("lease {id} keepalived with TTL(60)\n"));
    assert_eq!(server.ctl(&["lease", "list"]).await, format!("found 1 leases\n{id}\n"));
    assert_eq!(server.ctl(&["lease", "revoke", &id]).await, format!("lease {id} revoked\n"));
    assert_eq!(server.ctl(&["get", "a"]).await, "");
    let told = server.ctl(&["lease", "timetolive", &id]).await;
    assert_eq!(told, format!("lease {id} already expired\n"));
    let error = server.ctl_fails(&["lease", "revoke", &id]).await;
    assert!(error.contains("requested lease not found"), "{error}");
    server.stop().await;
}

#[tokio::test]
async fn its_own_lock_and_election_work_over_our_primitives() {
    let server = Server::start().await;
    assert_eq!(server.ctl(&["lock", "deploy", "echo", "inside"]).await, "inside\n");
    let mut leader = server.ctl_running(&["elect", "job", "me"]);
    assert!(leader.line().await.starts_with("job/"));
    assert_eq!(leader.line().await, "me");
    let mut observer = server.ctl_running(&["elect", "--listen", "job"]);
    assert!(observer.line().await.starts_with("job/"));
    assert_eq!(observer.line().await, "me");
    server.stop().await;
}

#[tokio::test]
async fn members_and_endpoints_report() {
    let server = Server::start().await;
    let members = server.ctl(&["member", "list"]).await;
    assert!(members.contains("started, one, http://127.0.0.1:"), "{members}");
    assert!(members.contains(&server.addr.to_string()), "{members}");
    let health = server.run(&["endpoint", "health"]).await;
    assert!(health.ok && (health.stdout + &health.stderr).contains("is healthy"));
    // Without a scheme: etcdctl 3.4 sends the whole URL as `:authority` here, which strict HTTP/2 refuses.
    let status = server.ctl(&["endpoint", "status", "-w", "table"]).await;
    assert!(status.contains("true") && status.contains(&server.addr.to_string()), "{status}");
    server.ctl(&["endpoint", "hashkv"]).await;
    assert_eq!(server.ctl(&["alarm", "list"]).await, "");
    server.ctl(&["defrag"]).await;
    let error = server.ctl_fails(&["member", "remove", "1"]).await;
    assert!(error.contains("member not found"), "{error}");
    server.stop().await;
}

/// A session of an administrator and of a user, as etcd's documentation has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_roles_and_permissions_are_administered_and_count() {
    let server = Server::start().await;
    assert_eq!(server.ctl(&["user", "add", "root:rootpw"]).await, "User root created\n");
    server.ctl(&["user", "grant-role", "root", "root"]).await;
    assert_eq!(server.ctl(&["auth", "enable"]).await, "Authentication Enabled\n");
    let error = server.ctl_fails(&["put", "a", "1"]).await;
    assert!(error.contains("user name is empty"), "{error}");
    let error = server.ctl_fails(&["--user=root:wrong", "put", "a", "1"]).await;
    assert!(error.contains("authentication failed, invalid user ID or password"), "{error}");
    let root = "--user=root:rootpw";
    assert_eq!(server.ctl(&[root, "put", "b", "1"]).await, "OK\n");
    server.ctl(&[root, "user", "add", "app:apppw"]).await;
    server.ctl(&[root, "role", "add", "app"]).await;
    server.ctl(&[root, "role", "grant-permission", "app", "readwrite", "app/", "--prefix"]).await;
    server.ctl(&[root, "role", "grant-permission", "app", "read", "x", "--from-key"]).await;
    server.ctl(&[root, "user", "grant-role", "app", "app"]).await;
    let told = server.ctl(&[root, "role", "get", "app"]).await;
    assert!(told.contains("[app/, app0) (prefix app/)") && told.contains("[x, <open ended>"), "{told}");
    assert_eq!(server.ctl(&[root, "user", "list"]).await, "app\nroot\n");
    assert_eq!(server.ctl(&[root, "user", "get", "app"]).await, "User: app\nRoles: app\n");

    let app = "--user=app:apppw";
    assert_eq!(server.ctl(&[app, "put", "app/a", "1"]).await, "OK\n");
    assert_eq!(server.ctl(&[app, "get", "--prefix", "app/"]).await, "app/a\n1\n");
    assert_eq!(server.ctl(&[app, "get", "--from-key", "y"]).await, "");
    for refused in [
        &["put", "b", "2"][..],
        &["get", "b"],
        &["get", "--prefix", ""],
        &["put", "x", "1"],
        &["user", "list"],
    ] {
        let error = server.ctl_fails(&[&[app], refused].concat()).await;
        assert!(error.contains("permission denied"), "{refused:?}: {error}");
    }
    let mut watch = server.ctl_running(&[app, "watch", "--prefix", "app/", "--rev=1"]);
    assert_eq!(watch.lines(3).await, ["PUT", "app/a", "1"]);

    server.ctl(&[root, "role", "revoke-permission", "app", "x", "--from-key"]).await;
    let error = server.ctl_fails(&[app, "get", "y"]).await;
    assert!(error.contains("permission denied"), "{error}");
    assert_eq!(server.ctl(&[root, "auth", "disable"]).await, "Authentication Disabled\n");
    assert_eq!(server.ctl(&["put", "a", "1"]).await, "OK\n");
    server.stop().await;
}

#[tokio::test]
async fn bad_input_is_answered_in_etcds_words() {
    let server = Server::start().await;
    let error = server.ctl_fails(&["put", "a", "1", "--lease=1234"]).await;
    assert!(error.contains("requested lease not found"), "{error}");
    let error = server.ctl_fails(&["put", "weft/lock/x", "1"]).await;
    assert!(error.contains("keys under weft/ are written by Weft's own APIs only"), "{error}");
    assert_eq!(server.ctl(&["get", "--prefix", ""]).await, "");
    server.stop().await;
}
