//! The stock `etcdctl` against Weft: what it prints is what it prints against etcd.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use weft_tests::mesh::{Mesh, strings};
use weft_tests::process::{Finished, WeftProcess, run, run_program, workspace};

const ENV: [(&str, &str); 1] = [("ETCDCTL_API", "3")];

async fn etcdctl(endpoint: SocketAddr, args: &[&str]) -> Finished {
    etcdctl_with_input(endpoint, args, "").await
}

async fn etcdctl_with_input(endpoint: SocketAddr, args: &[&str], stdin: &str) -> Finished {
    let flag = format!("--endpoints={endpoint}");
    // A login costs a password's hash, for which its 5 s may be too short on a loaded machine.
    let mut all = vec![flag.as_str(), "--command-timeout=20s", "--dial-timeout=20s"];
    all.extend(args);
    run_program("etcdctl", &all, &ENV, stdin).await
}

async fn ok(endpoint: SocketAddr, args: &[&str]) -> String {
    let done = etcdctl(endpoint, args).await;
    assert_eq!(done.code, 0, "{args:?}: {done:?}");
    done.stdout
}

/// A running `etcdctl watch`. Dropping it kills it.
struct Watch {
    _child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watch {
    fn start(endpoint: SocketAddr, args: &[&str]) -> Self {
        let mut child = Command::new("etcdctl")
            .arg(format!("--endpoints={endpoint}"))
            .args(args)
            .envs(ENV)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("etcdctl is installed");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { _child: child, lines }
    }

    /// The next lines are these.
    async fn expect(&mut self, lines: &[&str]) {
        for expected in lines {
            let line = tokio::time::timeout(Duration::from_secs(15), self.lines.next_line()).await;
            let line = line.unwrap_or_else(|_| panic!("no line in time; {expected:?} of {lines:?} expected"));
            assert_eq!(line.expect("readable").as_deref(), Some(*expected), "of {lines:?}");
        }
    }
}

/// put, get by key, prefix and revision, del: output and revisions as etcd's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn put_get_and_del_print_what_they_print_against_etcd() {
    let mesh = Mesh::with_servers(1).await;
    let at = mesh.servers[0].grpc();
    assert_eq!(ok(at, &["put", "a", "1"]).await, "OK\n");
    assert_eq!(ok(at, &["put", "a", "2"]).await, "OK\n");
    assert_eq!(ok(at, &["put", "b", "3"]).await, "OK\n");
    assert_eq!(ok(at, &["get", "a"]).await, "a\n2\n");
    assert_eq!(ok(at, &["get", "--prefix", ""]).await, "a\n2\nb\n3\n");
    assert_eq!(ok(at, &["get", "a", "--rev=2"]).await, "a\n1\n");
    assert_eq!(ok(at, &["get", "a", "c", "--order=DESCEND", "--keys-only"]).await, "b\n\na\n\n");
    assert_eq!(ok(at, &["get", "missing"]).await, "");
    let json: serde_json::Value =
        serde_json::from_str(&ok(at, &["get", "a", "-w", "json"]).await).expect("JSON");
    assert_eq!(json["header"]["revision"], 4, "revision 1 is the empty store, each write adds one: {json}");
    assert_eq!((&json["kvs"][0]["create_revision"], &json["kvs"][0]["mod_revision"]), (&2.into(), &3.into()));
    assert_eq!(json["kvs"][0]["version"], 2);
    assert!(json["header"]["cluster_id"].as_u64().is_some_and(|id| id > 0), "{json}");
    assert_eq!(ok(at, &["del", "a"]).await, "1\n");
    assert_eq!(ok(at, &["del", "a"]).await, "0\n");
    let future = etcdctl(at, &["get", "b", "--rev=99"]).await;
    assert!(future.stderr.contains("required revision is a future revision"), "{future:?}");
}

/// A third-party gRPC client through the data path: unary calls and a stream with events, over HTTP/2 on both sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_calls_and_streams_go_through_the_proxy() {
    let mesh = Mesh::with_servers(1).await;
    let config = mesh.folder("proxy.yaml");
    let yaml = format!(
        "admin: 127.0.0.1:0\nlisteners:\n  - name: store\n    address: 127.0.0.1:0\nroutes:\n  - cluster: store\nclusters:\n  - name: store\n    protocol: http2\n    endpoints:\n      - {}\n",
        mesh.servers[0].grpc()
    );
    std::fs::write(&config, yaml).expect("a temporary folder is writable");
    let args = strings(&["proxy", "--config", &config.display().to_string()]);
    let proxy = WeftProcess::start("store", &args).await;
    let through = proxy.addr("outbound");
    assert_eq!(ok(through, &["put", "a", "1"]).await, "OK\n");
    assert_eq!(ok(mesh.servers[0].grpc(), &["get", "a"]).await, "a\n1\n");
    let mut watch = Watch::start(through, &["watch", "a", "--rev=1"]);
    watch.expect(&["PUT", "a", "1"]).await;
    assert_eq!(ok(through, &["put", "a", "2"]).await, "OK\n");
    watch.expect(&["PUT", "a", "2"]).await;
    let refused = etcdctl(through, &["get", "a", "--rev=99"]).await;
    assert!(refused.stderr.contains("future revision"), "the status in the trailers arrives: {refused:?}");
}

/// `txn -i` reads compares, success and failure from standard input.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interactive_txn_runs_the_branch_that_the_compares_choose() {
    let mesh = Mesh::with_servers(1).await;
    let at = mesh.servers[0].grpc();
    ok(at, &["put", "a", "1"]).await;
    let input = "value(\"a\") = \"1\"\n\nput a 2\nget a\n\nput a wrong\n\n";
    let done = etcdctl_with_input(at, &["txn", "-i"], input).await;
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("SUCCESS"), "{done:?}");
    let done = etcdctl_with_input(at, &["txn", "-i"], input).await;
    assert!(done.stdout.contains("FAILURE"), "the value is 2 now: {done:?}");
    assert_eq!(ok(at, &["get", "a"]).await, "a\nwrong\n");
}

/// W01, W03, W06, W08: a watch from revision 1 replays everything in order, deletes too, then goes on live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_from_revision_one_replays_history_and_goes_on() {
    let mesh = Mesh::with_servers(1).await;
    let at = mesh.servers[0].grpc();
    ok(at, &["put", "a", "1"]).await;
    ok(at, &["put", "a", "2"]).await;
    ok(at, &["del", "a"]).await;
    let mut watch = Watch::start(at, &["watch", "a", "--rev=1"]);
    watch.expect(&["PUT", "a", "1", "PUT", "a", "2", "DELETE", "a", ""]).await;
    ok(at, &["put", "a", "live"]).await;
    watch.expect(&["PUT", "a", "live"]).await;
}

/// Leases: keys vanish on revoke and on expiry (S04), unknown leases answer as etcd's do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lease_takes_its_keys_with_it() {
    let mesh = Mesh::with_servers(1).await;
    let at = mesh.servers[0].grpc();
    let lease = |granted: &str| granted.split_whitespace().nth(1).expect("lease ID granted").to_owned();
    let revoked = lease(&ok(at, &["lease", "grant", "60"]).await);
    ok(at, &["put", "r", "1", &format!("--lease={revoked}")]).await;
    assert!(ok(at, &["lease", "timetolive", &revoked, "--keys"]).await.contains("attached keys([r])"));
    assert!(ok(at, &["lease", "keep-alive", "--once", &revoked]).await.contains("keepalived with TTL(60)"));
    ok(at, &["lease", "revoke", &revoked]).await;
    assert_eq!(ok(at, &["get", "r"]).await, "");
    let expired = lease(&ok(at, &["lease", "grant", "2"]).await);
    ok(at, &["put", "e", "1", &format!("--lease={expired}")]).await;
    assert_eq!(ok(at, &["get", "e"]).await, "e\n1\n");
    weft_tests::wait::until("the lease expires", Duration::from_secs(15), || async {
        let got = ok(at, &["get", "e"]).await;
        if got.is_empty() { Ok(()) } else { Err(got) }
    })
    .await;
    assert!(ok(at, &["lease", "timetolive", &expired]).await.contains("already expired"));
}

/// Users and roles on a group of three: administered through one server, they count on every other at once (A12), for
/// `etcdctl` and `weft` alike, and survive a restart of all servers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_roles_count_on_every_server_and_after_a_restart() {
    let mut mesh = Mesh::with_servers(3).await;
    let at = |mesh: &Mesh, index: usize| mesh.servers[index].grpc();
    ok(at(&mesh, 0), &["user", "add", "root:rootpw"]).await;
    ok(at(&mesh, 1), &["user", "grant-role", "root", "root"]).await;
    ok(at(&mesh, 2), &["auth", "enable"]).await;
    let root = "--user=root:rootpw";
    ok(at(&mesh, 0), &[root, "user", "add", "app:apppw"]).await;
    ok(at(&mesh, 1), &[root, "role", "add", "app"]).await;
    ok(at(&mesh, 2), &[root, "role", "grant-permission", "app", "readwrite", "app/", "--prefix"]).await;
    ok(at(&mesh, 0), &[root, "user", "grant-role", "app", "app"]).await;

    let app = "--user=app:apppw";
    for round in 0..2 {
        for index in 0..3 {
            let server = at(&mesh, index);
            assert_eq!(ok(server, &[app, "put", "app/a", "1"]).await, "OK\n");
            let denied = etcdctl(server, &[app, "put", "b", "1"]).await;
            assert!(denied.stderr.contains("etcdserver: permission denied"), "{denied:?}");
            let nobody = etcdctl(server, &["get", "app/a"]).await;
            assert!(nobody.stderr.contains("etcdserver: user name is empty"), "{nobody:?}");
        }
        let server = &mesh.servers[1];
        let got = mesh.cli(server, &["kv", "get", "app/a", "--user", "app:apppw"]).await;
        assert!(got.code == 0 && got.stdout.contains("app/a"), "{got:?}");
        let refused = mesh.cli(server, &["kv", "get", "b", "--user", "app", "--password", "apppw"]).await;
        assert!(refused.code != 0 && refused.stderr.contains("permission denied"), "{refused:?}");
        let nobody = mesh.cli(server, &["kv", "get", "app/a"]).await;
        assert!(nobody.code != 0 && nobody.stderr.contains("carries no token"), "{nobody:?}");
        let locked = mesh.cli(server, &["lock", "deploy", "--user", "root:rootpw", "--", "true"]).await;
        assert_eq!(locked.code, 0, "{locked:?}");
        let locked = mesh.cli(server, &["lock", "deploy", "--user", "app:apppw", "--", "true"]).await;
        assert!(locked.code != 0 && locked.stderr.contains("permission denied"), "{locked:?}");
        if round == 0 {
            for server in &mut mesh.servers {
                server.stop().await;
            }
            for server in &mut mesh.servers {
                server.start().await;
            }
            weft_tests::wait::until("the group is back", Duration::from_secs(30), || async {
                let got = etcdctl(at(&mesh, 0), &[app, "get", "app/a"]).await;
                if got.code == 0 { Ok(()) } else { Err(format!("{got:?}")) }
            })
            .await;
        }
    }
}

/// Any server answers for the group: a write through one is read through another at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_through_another_server_sees_the_write_at_once() {
    let mesh = Mesh::with_servers(3).await;
    for round in 0..10 {
        let (from, to) = (&mesh.servers[round % 3], &mesh.servers[(round + 1) % 3]);
        let value = round.to_string();
        ok(from.grpc(), &["put", "k", &value]).await;
        assert_eq!(ok(to.grpc(), &["get", "k"]).await, format!("k\n{value}\n"));
    }
    let members = ok(mesh.servers[0].grpc(), &["member", "list"]).await;
    assert_eq!(members.lines().count(), 3, "{members}");
    let health = etcdctl(mesh.servers[0].grpc(), &["endpoint", "health"]).await;
    assert!(health.stderr.contains("is healthy") || health.stdout.contains("is healthy"), "{health:?}");
}

/// What remains of `etcdctl`: each command works, or says what to do instead. docs/etcd.md has them all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maintenance_snapshots_and_mirrors_work_or_say_what_to_do() {
    let mut mesh = Mesh::with_servers(1).await;
    let at = mesh.servers[0].grpc();
    ok(at, &["put", "a", "1"]).await;
    assert_eq!(ok(at, &["alarm", "list"]).await, "");
    assert_eq!(ok(at, &["alarm", "disarm"]).await, "");
    assert!(ok(at, &["defrag"]).await.contains("Finished defragmenting etcd member"));
    assert!(
        mesh.servers[0].process().log().contains("there is nothing to do"),
        "{}",
        mesh.servers[0].process().log()
    );
    let status: serde_json::Value =
        serde_json::from_str(&ok(at, &["endpoint", "status", "-w", "json"]).await).expect("JSON");
    assert!(status[0]["Status"]["raftAppliedIndex"].as_u64().is_some_and(|index| index > 0), "{status}");
    let hashed: serde_json::Value =
        serde_json::from_str(&ok(at, &["endpoint", "hashkv", "-w", "json"]).await).expect("JSON");
    assert!(hashed[0]["HashKV"]["hash"].as_u64().is_some_and(|hash| hash > 0), "{hashed}");
    assert!(ok(at, &["compaction", "2"]).await.contains("compacted revision 2"));

    // The file is ours; etcdctl finds its checksum and is content. What reads etcd's own format is not.
    let file = mesh.folder("saved").display().to_string();
    assert!(ok(at, &["snapshot", "save", &file]).await.contains("Snapshot saved"));
    let bytes = std::fs::metadata(&file).expect("was saved").len();
    assert_eq!(bytes % 512, 32, "by which etcdctl knows that there is a checksum");
    let verified = run(&["snapshot", "verify", &file]).await;
    assert!(verified.code == 0 && verified.stdout.contains("is whole"), "{verified:?}");
    let foreign = etcdctl(at, &["snapshot", "status", &file]).await;
    assert!(foreign.code != 0, "{foreign:?}");
    let target = mesh.folder("restored").display().to_string();
    let foreign = etcdctl(at, &["snapshot", "restore", &file, "--data-dir", &target]).await;
    assert!(foreign.code != 0, "{foreign:?}");

    let id = status[0]["Status"]["header"]["member_id"].as_u64().expect("an id");
    let id = format!("{id:x}");
    assert!(ok(at, &["move-leader", &id]).await.contains("Leadership transferred"));
    let refused = etcdctl(at, &["member", "remove", &id]).await;
    assert!(refused.code != 0 && refused.stderr.contains("not enough started members"), "{refused:?}");
    let refused = etcdctl(at, &["member", "remove", "1"]).await;
    assert!(refused.code != 0 && refused.stderr.contains("member not found"), "{refused:?}");

    // A mirror onto a second group.
    let other = Mesh::with_servers(1).await;
    let to = other.servers[0].grpc();
    let _mirror = Watch::start(at, &["make-mirror", &to.to_string()]);
    ok(at, &["put", "b", "2"]).await;
    weft_tests::wait::until("both keys are mirrored", Duration::from_secs(30), || async {
        let got = ok(to, &["get", "--prefix", ""]).await;
        if got == "a\n1\nb\n2\n" { Ok(()) } else { Err(got) }
    })
    .await;
    assert_eq!(mesh.servers[0].stop().await, 0);
}

/// Every command for users and roles that the test above leaves out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_roles_are_listed_changed_and_taken_away() {
    let mesh = Mesh::with_servers(1).await;
    let at = mesh.servers[0].grpc();
    for args in [
        &["user", "add", "root:rootpw"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "app:apppw"],
        &["role", "add", "app"],
        &["role", "grant-permission", "app", "readwrite", "app/", "--prefix"],
        &["user", "grant-role", "app", "app"],
        &["auth", "enable"],
    ] {
        ok(at, args).await;
    }
    let root = "--user=root:rootpw";
    assert_eq!(ok(at, &[root, "user", "list"]).await, "app\nroot\n");
    assert_eq!(ok(at, &[root, "role", "list"]).await, "app\n");
    assert!(ok(at, &[root, "role", "get", "app"]).await.contains("[app/, app0) (prefix app/)"));
    let changed =
        etcdctl_with_input(at, &[root, "user", "passwd", "app", "--interactive=false"], "newpw\n").await;
    assert_eq!(changed.code, 0, "{changed:?}");
    let old = etcdctl(at, &["--user=app:apppw", "get", "app/a"]).await;
    assert!(old.stderr.contains("authentication failed, invalid user ID or password"), "{old:?}");
    assert_eq!(ok(at, &["--user=app:newpw", "put", "app/a", "1"]).await, "OK\n");
    ok(at, &[root, "role", "revoke-permission", "app", "app/", "--prefix"]).await;
    let denied = etcdctl(at, &["--user=app:newpw", "get", "app/a"]).await;
    assert!(denied.stderr.contains("permission denied"), "{denied:?}");
    let denied = etcdctl(at, &["--user=app:newpw", "defrag"]).await;
    assert!(denied.code != 0 && denied.stderr.contains("permission denied"), "{denied:?}");
    ok(at, &[root, "user", "revoke-role", "app", "app"]).await;
    ok(at, &[root, "role", "delete", "app"]).await;
    ok(at, &[root, "user", "delete", "app"]).await;
    assert_eq!(ok(at, &[root, "user", "list"]).await, "root\n");
    assert_eq!(ok(at, &[root, "auth", "disable"]).await, "Authentication Disabled\n");
}

/// The table in the documentation leaves out no command of the `etcdctl` that is installed.
#[tokio::test]
async fn the_documentation_says_of_every_command_how_it_is_on_weft() {
    let help = run_program("etcdctl", &["--help"], &ENV, "").await.stdout;
    let docs = std::fs::read_to_string(workspace().join("docs/etcd.md")).expect("is there");
    let commands =
        help.split("COMMANDS:").nth(1).and_then(|rest| rest.split("OPTIONS:").next()).expect("a list");
    let commands: Vec<&str> = commands
        .lines()
        .filter_map(|line| line.trim().split('\t').next())
        .filter(|name| !name.is_empty())
        .collect();
    assert!(commands.len() > 30, "{commands:?}");
    for command in commands {
        assert!(docs.contains(&format!("`{command}`")), "docs/etcd.md does not name `{command}`");
    }
}
