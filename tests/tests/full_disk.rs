//! What is seen of a disk that is full, and what starts on one.

use std::time::Duration;

use serde_json::Value;
use weft_client::Client;
use weft_tests::mesh::{Mesh, join_token, strings};
use weft_tests::process::{WeftProcess, run_program, weft_bin};
use weft_tests::small_disk;

fn server_args(name: &str, data_dir: &str) -> Vec<String> {
    let mut args = strings(&["server", "--name", name, "--data-dir", data_dir]);
    for port in ["grpc", "http", "dns", "peer", "gossip"] {
        args.extend([format!("--{port}-port"), "0".to_owned()]);
    }
    args
}

/// P16: the disk of one follower does not hold up the others, and `weft status`, asked anywhere, says whose it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_followers_full_disk_is_shown_wherever_status_is_asked_and_the_group_goes_on() {
    let mesh = Mesh::with_servers(2).await;
    let disk = mesh.folder("d3");
    std::fs::create_dir(&disk).expect("makes a folder");
    let Some(prefix) = small_disk::prefix(&disk, "40m") else { return };
    let mut args = server_args("d3", &disk.display().to_string());
    args.extend(["--join".to_owned(), mesh.servers[0].gossip().to_string()]);
    args.extend(["--join-token-file".to_owned(), join_token(&disk).display().to_string()]);
    let third = WeftProcess::start_under("d3", &prefix, &args).await;
    mesh.wait_for_voters(3).await;

    let client = Client::connect([mesh.servers[0].grpc().to_string()]).expect("an address");
    let status = async |index: usize| -> Value {
        let answer = mesh.cli(&mesh.servers[index], &["status", "--output", "json"]).await;
        assert_eq!(answer.code, 0, "{answer:?}");
        serde_json::from_str(&answer.stdout).expect("JSON")
    };
    let disk_of = |status: &Value, name: &str| {
        let servers = status["servers"].as_array().expect("servers").clone();
        let server = servers.into_iter().find(|server| server["name"] == name);
        server.map(|server| server["own"]["disk"].clone()).unwrap_or_default()
    };
    assert_eq!(disk_of(&status(0).await, "d3"), "fine");
    let value = vec![7; 256 * 1024];
    let mut stored = 0;
    loop {
        for _ in 0..16 {
            client.kv().put(format!("big/{stored:04}"), value.clone()).await.expect("a majority has space");
            stored += 1;
        }
        let seen = disk_of(&status(0).await, "d3");
        if seen == "full" || seen == "stalled" {
            break;
        }
        assert!(stored < 400, "100 MiB were stored on a disk of 40: {seen}");
    }
    let text = mesh.cli(&mesh.servers[1], &["status"]).await.stdout;
    assert!(text.contains("d3: "), "it is said in words: {text}");
    let status = status(1).await;
    for name in [mesh.servers[0].name(), mesh.servers[1].name()] {
        assert_eq!(disk_of(&status, name), "fine", "{status}");
    }
    client.kv().put("after", "x").await.expect("the group goes on");
    // etcd's clients are told too, by the server itself.
    let at = format!("--endpoints={}", third.addr("grpc"));
    let alarms = run_program("etcdctl", &[&at, "alarm", "list"], &[("ETCDCTL_API", "3")], "").await;
    assert!(alarms.stdout.contains("NOSPACE"), "{alarms:?}");
}

/// Without one free byte a start says what to do, and doing it helps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_without_one_free_byte_says_what_to_do_and_that_helps() {
    let mesh = Mesh::empty();
    let disk = mesh.folder("d1");
    std::fs::create_dir(&disk).expect("makes a folder");
    let Some(prefix) = small_disk::prefix(&disk, "48m") else { return };
    let (disk, log) = (disk.display(), mesh.folder("log").display().to_string());
    let args = server_args("d1", &format!("{disk}/data")).join(" ");
    let weft = weft_bin().display().to_string();
    // One shell, since the disk lives as long as the processes that see it.
    let script = format!(
        r#"
        up() {{
            {weft} {args} >{log} 2>&1 & server=$!
            for i in $(seq 300); do grep -q '^ready ' {log} && break; sleep 0.1; done
            grpc=$(sed -n 's/.*"grpc":"\([^"]*\)".*/\1/p' {log})
        }}
        up
        {weft} kv put a 1 --endpoints $grpc || exit 10
        kill $server; wait $server
        dd if=/dev/zero of={disk}/filler bs=64k 2>/dev/null; dd if=/dev/zero of={disk}/rest bs=512 2>/dev/null
        timeout 30 {weft} {args}
        echo "code $?"
        rm {disk}/data/wal/*.spare
        up
        {weft} kv get a --endpoints $grpc || exit 11
        {weft} kv put a 2 --endpoints $grpc || exit 12
        rm {disk}/filler {disk}/rest
        kill $server; wait $server; echo "stopped $?"
        "#
    );
    let mut all: Vec<&str> = prefix[1..].iter().map(String::as_str).collect();
    all.extend(["sh", "-c", &script]);
    let done = tokio::time::timeout(Duration::from_secs(120), run_program(&prefix[0], &all, &[], "")).await;
    let done = done.expect("ends in time");
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.stdout.contains("code 1") && done.stdout.contains("stopped 0"), "{done:?}");
    let said = done.stderr.lines().find(|line| line.contains("does not start")).unwrap_or_default();
    assert!(
        said.contains("is full") && said.contains("free some space") && said.contains("*.spare"),
        "{done:?}"
    );
}
