//! What operators do to servers and their files: backups and restores, looking at a log, running out of disk.

use std::time::Duration;

use serde_json::Value;
use weft_client::Client;
use weft_client::proto::etcd as pb;
use weft_tests::http_client;
use weft_tests::mesh::{Mesh, strings};
use weft_tests::process::{WeftProcess, run};
use weft_tests::small_disk;
use weft_tests::wait::until;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

async fn revision(client: &Client) -> i64 {
    client.kv().put("probe", "x").await.expect("puts").revision
}

/// P17, L11: fill, save, go on, restore onto one server and then three. Keys are those of the file, and no
/// revision that a client has seen comes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_saved_state_starts_again_on_new_servers_and_no_revision_goes_backwards() {
    let mut mesh = Mesh::with_servers(1).await;
    let client = Client::connect([mesh.servers[0].grpc().to_string()]).expect("an address");
    for i in 0..50 {
        client.kv().put(format!("k{i:02}"), format!("{i}")).await.expect("puts");
    }
    let file = mesh.folder("saved.weft").display().to_string();
    let saved = mesh.cli(&mesh.servers[0], &["snapshot", "save", &file, "--output", "json"]).await;
    assert_eq!(saved.code, 0, "{saved:?}");
    assert_eq!(json(&saved.stdout)["keys"], 50, "{saved:?}");
    let verified = run(&["snapshot", "verify", &file]).await;
    assert!(verified.code == 0 && verified.stdout.contains("is whole"), "{verified:?}");
    for _ in 0..200 {
        client.kv().put("after", "the snapshot").await.expect("puts");
    }
    let seen = revision(&client).await;
    assert_eq!(mesh.servers[0].stop().await, 0);

    let mut restored = Mesh::empty();
    let data_dir = restored.folder("r1").display().to_string();
    let args = ["snapshot", "restore", &file, "--data-dir", &data_dir, "--name", "r1", "--output", "json"];
    let made = run(&args).await;
    assert_eq!(made.code, 0, "{made:?}");
    let again = run(&args).await;
    assert!(again.code == 1 && again.stderr.contains("exists and is not empty"), "{again:?}");
    restored.add_server("r1").await;
    restored.wait_for_voters(1).await;
    let client = Client::connect([restored.servers[0].grpc().to_string()]).expect("an address");
    let value = client.kv().get("k07").await.expect("reads").expect("is there").value;
    assert_eq!(&value[..], b"7");
    assert!(client.kv().get("after").await.expect("reads").is_none(), "written after the snapshot");
    let now = revision(&client).await;
    assert!(now > seen, "revision {now} after the restore, {seen} before it");

    // A watch from before hears that it has missed something, not silence.
    let options = weft_client::watch::WatchOptions {
        start_revision: seen,
        ..weft_client::watch::WatchOptions::new("k07")
    };
    let watched = async { client.watch(options).await?.next().await };
    let heard = tokio::time::timeout(Duration::from_secs(10), watched).await.expect("is told in time");
    assert!(matches!(heard, Err(weft_client::Error::Compacted { .. })), "{heard:?}");

    restored.add_server("r2").await;
    restored.add_server("r3").await;
    restored.wait_for_voters(3).await;
    restored.servers[0].kill().await;
    let others = [restored.servers[1].grpc().to_string(), restored.servers[2].grpc().to_string()];
    let client = Client::connect(others).expect("addresses");
    until("the others serve what was restored", Duration::from_secs(30), || async {
        match client.kv().get("k49").await {
            Ok(Some(kv)) if &kv.value[..] == b"49" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(revision(&client).await > now);
}

#[tokio::test]
async fn files_that_are_no_snapshot_are_refused_by_what_they_are() {
    let mesh = Mesh::with_servers(1).await;
    let file = mesh.folder("saved.weft");
    let path = file.display().to_string();
    let saved = mesh.cli(&mesh.servers[0], &["snapshot", "save", &path]).await;
    assert_eq!(saved.code, 0, "{saved:?}");
    let good = std::fs::read(&file).expect("reads");
    // Behind the image are zeros up to a multiple of 512, and a checksum over all of it.
    let padded = &good[..good.len() - 32];
    let image = padded.iter().rposition(|byte| *byte != 0).expect("an image is not all zeros") + 1;
    let changed = |at: usize, to: u8| {
        let mut bytes = good.clone();
        bytes[at] = to;
        bytes
    };
    let cases = [
        (b"SQLite format 3".to_vec(), "not a weft state image"),
        (good[..image / 2].to_vec(), "truncated"),
        (good[..good.len() - 40].to_vec(), "the SHA-256 at its end is not that of"),
        (changed(good.len() - 40, 1), "the SHA-256 at its end is not that of"),
        (changed(image / 2, good[image / 2] ^ 4), "damaged"),
        (changed(8, 9), "upgrade weft"),
    ];
    for (bytes, expected) in cases {
        std::fs::write(&file, bytes).expect("writes");
        let data_dir = mesh.folder("never").display().to_string();
        for args in [
            &["snapshot", "verify", &path][..],
            &["snapshot", "status", &path],
            &["snapshot", "restore", &path, "--data-dir", &data_dir],
        ] {
            let refused = run(args).await;
            assert!(refused.code == 1 && refused.stderr.contains(expected), "{expected}: {refused:?}");
        }
        assert!(!mesh.folder("never").exists(), "nothing was made");
    }
}

#[tokio::test]
async fn the_log_of_a_stopped_server_can_be_looked_at() {
    let mut mesh = Mesh::with_servers(1).await;
    let put = mesh.cli(&mesh.servers[0], &["kv", "put", "a", "1"]).await;
    assert_eq!(put.code, 0, "{put:?}");
    let data_dir = mesh.servers[0].data_dir().clone();
    let dir = data_dir.display().to_string();
    let refused = run(&["wal", "verify", &dir]).await;
    assert!(refused.code == 1 && refused.stderr.contains("in use by a server"), "{refused:?}");
    assert_eq!(mesh.servers[0].stop().await, 0);

    let verified = run(&["wal", "verify", &dir, "--output", "json"]).await;
    assert_eq!(verified.code, 0, "{verified:?}");
    assert_eq!(json(&verified.stdout)["state"], "whole");
    let dumped = run(&["wal", "dump", &dir]).await;
    assert!(dumped.code == 0 && dumped.stdout.contains("batch: 1 Put"), "{dumped:?}");

    let segment = data_dir.join("wal/0000000000000001.wal");
    let mut bytes = std::fs::read(&segment).expect("reads");
    bytes[60] ^= 1;
    std::fs::write(&segment, bytes).expect("writes");
    for verb in ["verify", "dump"] {
        let damaged = run(&["wal", verb, &dir]).await;
        assert!(damaged.code == 1 && damaged.stdout.contains("damaged: "), "{damaged:?}");
        assert!(damaged.stdout.contains("0000000000000001.wal at offset 32"), "{damaged:?}");
    }
}

#[tokio::test]
async fn backups_are_made_at_intervals_and_the_newest_are_kept() {
    let mesh = Mesh::empty();
    let folder = mesh.folder("backups");
    let mut args =
        strings(&["server", "--name", "b1", "--grpc-port", "0", "--http-port", "0", "--dns-port", "0"]);
    args.extend(strings(&[
        "--peer-port",
        "0",
        "--gossip-port",
        "0",
        "--backup-interval",
        "1s",
        "--backup-keep",
        "2",
    ]));
    args.extend(["--data-dir".to_owned(), mesh.folder("b1").display().to_string()]);
    args.extend(["--backup-dir".to_owned(), folder.display().to_string()]);
    let server = WeftProcess::start("b1", &args).await;
    let client = Client::connect([server.addr("grpc").to_string()]).expect("an address");
    let http = server.addr("http");
    for key in 0..4u64 {
        client.kv().put(format!("k{key}"), "v").await.expect("puts");
        until("a further backup", Duration::from_secs(20), || async {
            let text = http_client::get(http, "server", "/metrics").await.map_err(|e| e.to_string())?.body;
            let done = text.lines().find_map(|l| l.strip_prefix("weft_backups_total ")).map(str::to_owned);
            let done: u64 = done.and_then(|n| n.parse().ok()).ok_or("no number")?;
            if done > key { Ok(()) } else { Err(format!("{done} backups")) }
        })
        .await;
    }
    let mut names: Vec<_> = std::fs::read_dir(&folder)
        .expect("lists")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|e| e == "backup"))
        .collect();
    names.sort();
    assert!(names.len() <= 2, "{names:?}");
    let newest = names.last().expect("one").display().to_string();
    let verified = run(&["snapshot", "verify", &newest]).await;
    assert_eq!(verified.code, 0, "{verified:?}");
}

/// P01, P16: on a disk of its own that runs full, the server refuses what needs space, does not end,
/// lets deletes and compaction through, and accepts writes again by itself once those have made space.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_on_a_full_disk_refuses_puts_and_recovers_when_deletes_and_compaction_made_space() {
    let mesh = Mesh::empty();
    let data_dir = mesh.folder("d1");
    std::fs::create_dir(&data_dir).expect("makes a folder");
    let Some(prefix) = small_disk::prefix(&data_dir, "44m") else { return };
    let mut args =
        strings(&["server", "--name", "d1", "--grpc-port", "0", "--http-port", "0", "--dns-port", "0"]);
    args.extend(strings(&["--peer-port", "0", "--gossip-port", "0", "--data-dir"]));
    args.push(data_dir.display().to_string());
    let server = WeftProcess::start_under("d1", &prefix, &args).await;
    let client = Client::connect([server.addr("grpc").to_string()]).expect("an address");

    let value = vec![7; 256 * 1024];
    client.kv().put("last", "x").await.expect("there is room");
    let mut stored = 0;
    let refused = loop {
        match client.kv().put(format!("big/{stored:04}"), value.clone()).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 400, "100 MiB were stored on a disk of 44");
    };
    assert!(refused.to_string().contains("disk of the leader's log is full"), "{refused}");
    let kept = client.kv().get("big/0000").await.expect("reads go on");
    assert!(kept.is_some());

    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", server.addr("grpc")))
        .expect("an address")
        .connect_lazy();
    let mut etcd = pb::kv_client::KvClient::new(channel);
    let delete =
        pb::DeleteRangeRequest { key: "big/".into(), range_end: "big0".into(), ..Default::default() };
    let deleted = etcd.delete_range(delete).await.expect("deletes pass").into_inner();
    assert_eq!(deleted.deleted, stored);
    // What a revision deleted is kept for those who watch from it; so the compaction is to a later one.
    let delete = pb::DeleteRangeRequest { key: "last".into(), ..Default::default() };
    let deleted = etcd.delete_range(delete).await.expect("deletes pass").into_inner();
    let revision = deleted.header.expect("has a header").revision;
    let compact = pb::CompactionRequest { revision, physical: false };
    etcd.compact(compact).await.expect("compaction passes");

    let still = client.kv().get("big/0000").await.expect("reads go on");
    assert!(still.is_none());
    until("writes are accepted again", Duration::from_secs(60), || async {
        client.kv().put("small", "x").await.map(|_| ()).map_err(|e| e.to_string())
    })
    .await;
}

/// R02, R03: changing the group by name, over real processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_are_made_to_lead_removed_and_come_back_as_new_ones() {
    let mut mesh = Mesh::with_servers(3).await;
    for name in ["s2", "s1"] {
        let done = mesh.cli(&mesh.servers[2], &["server", "transfer", name]).await;
        assert!(done.code == 0 && done.stdout.contains(&format!("{name} (")), "{done:?}");
        let status = mesh.cli(&mesh.servers[2], &["status", "--output", "json"]).await;
        assert_eq!(json(&status.stdout)["leader"], *name, "{status:?}");
    }
    let unknown = mesh.cli(&mesh.servers[0], &["server", "remove", "s9"]).await;
    assert!(unknown.code == 1 && unknown.stderr.contains("its servers are s"), "{unknown:?}");

    let removed = mesh.cli(&mesh.servers[0], &["server", "remove", "s3", "--output", "json"]).await;
    assert_eq!((removed.code, &json(&removed.stdout)["done"]), (0, &Value::from("removed")), "{removed:?}");
    until("the removed server ends by itself", Duration::from_secs(20), || async {
        let log = mesh.servers[2].process().log();
        if log.contains("was removed from its group") { Ok(()) } else { Err("it runs".to_owned()) }
    })
    .await;
    let gone = mesh.servers.remove(2);
    let data_dir = gone.data_dir().display().to_string();
    drop(gone);
    let args = ["server", "--name", "s3", "--data-dir", &data_dir, "--grpc-port", "0", "--http-port", "0"];
    let again =
        run(&[&args[..], &["--dns-port", "0", "--peer-port", "0", "--gossip-port", "0"]].concat()).await;
    assert!(again.code == 1 && again.stderr.contains("start with an empty data folder"), "{again:?}");

    // With an empty folder it is a new server, and the group is three again.
    std::fs::remove_dir_all(&data_dir).expect("removed");
    mesh.add_server("s3").await;
    mesh.wait_for_voters(3).await;
}
