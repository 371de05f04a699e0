//! A group that has lost its quorum for good goes on from one survivor.

use std::time::Duration;

use serde_json::Value;
use weft_client::Client;
use weft_tests::mesh::Mesh;
use weft_tests::process::{Finished, run};
use weft_tests::wait::until;

struct Survivor {
    data_dir: String,
    token: String,
}

impl Survivor {
    async fn recover(&self, more: &[&str]) -> Finished {
        let args = ["server", "--join-token-file", &self.token, "recover", "--data-dir", &self.data_dir];
        run(&[&args[..], more].concat()).await
    }

    async fn is_refused(&self, more: &[&str], why: &str) {
        let refused = self.recover(more).await;
        let says = refused.stderr.contains(why) && refused.stderr.contains("nothing was changed");
        assert!(refused.code == 1 && says, "{why}: {refused:?}");
    }
}

/// P15, R02: what the survivor had is there, no revision comes twice, and the former group's servers are strangers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_goes_on_alone_once_the_others_are_lost_and_not_before() {
    let mut mesh = Mesh::with_servers(3).await;
    let client = Client::connect([mesh.servers[0].grpc().to_string()]).expect("an address");
    for i in 0..100 {
        client.kv().put(format!("k{i:02}"), "of the former group").await.expect("puts");
    }
    let seen = client.kv().put("k00", "last").await.expect("puts").revision;
    let (data_dir, token) = (mesh.servers[0].data_dir(), mesh.folder("join-token"));
    let survivor = Survivor { data_dir: data_dir.display().to_string(), token: token.display().to_string() };

    survivor.is_refused(&["--yes"], "in use by another process").await;
    assert_eq!(mesh.servers[0].stop().await, 0);
    until("the others have a leader", Duration::from_secs(30), || async {
        match survivor.recover(&["--yes"]).await {
            refused if refused.code == 1 && refused.stderr.contains("has a leader") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    mesh.servers[1].kill().await;
    until("the third server misses its leader", Duration::from_secs(30), || async {
        match survivor.recover(&["--yes"]).await {
            refused if refused.code == 1 && refused.stderr.contains("are a majority") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    mesh.servers[2].kill().await;
    survivor.is_refused(&[], "say --yes").await;

    let recovered = survivor.recover(&["--yes", "--output", "json"]).await;
    assert_eq!(recovered.code, 0, "{recovered:?}");
    let report: Value = serde_json::from_str(&recovered.stdout).expect("JSON");
    assert_eq!(report["keys"], 100, "{report}");
    assert_ne!(report["cluster"], report["former_cluster"], "{report}");
    assert_eq!(report["servers"].as_array().map(Vec::len), Some(3), "{report}");
    assert!(report["servers"][0]["last_index"].as_u64().is_some_and(|index| index > 0), "{report}");

    mesh.servers[0].start().await;
    mesh.wait_for_voters(1).await;
    let value = client.kv().get("k00").await.expect("reads").expect("is there").value;
    assert_eq!(&value[..], b"last");
    let now = client.kv().put("k00", "of the new group").await.expect("puts").revision;
    assert!(now > seen + 1_000_000, "revision {now}, and {seen} before");

    // One of the lost machines comes back as it was: it is nobody's, and changes nothing.
    mesh.servers[2].start().await;
    let stranger = Client::connect([mesh.servers[2].grpc().to_string()]).expect("an address");
    let put = stranger.kv().put("k00", "of a stranger").await;
    assert!(put.is_err(), "{put:?}");
    mesh.servers[2].kill().await;
    let value = client.kv().get("k00").await.expect("reads").expect("is there").value;
    assert_eq!(&value[..], b"of the new group");

    // With an empty folder it is welcome.
    std::fs::remove_dir_all(mesh.servers[2].data_dir()).expect("its folder goes");
    mesh.servers[2].start().await;
    mesh.wait_for_voters(2).await;
}

#[tokio::test]
async fn what_is_no_survivor_is_refused_by_what_it_is() {
    let mut mesh = Mesh::with_servers(1).await;
    let empty = mesh.folder("empty");
    std::fs::create_dir(&empty).expect("a folder");
    let data_dir = mesh.servers[0].data_dir().clone();
    let token = mesh.folder("join-token").display().to_string();
    for folder in [mesh.folder("absent"), empty.clone()] {
        let none = Survivor { data_dir: folder.display().to_string(), token: token.clone() };
        none.is_refused(&["--yes"], "holds no server of a group").await;
    }
    assert!(std::fs::read_dir(&empty).expect("is there").next().is_none(), "nothing was made");
    assert_eq!(mesh.servers[0].stop().await, 0);
    let stopped = Survivor { data_dir: data_dir.display().to_string(), token };
    // A group of one has its majority as soon as it starts.
    stopped.is_refused(&["--yes"], "a majority").await;
    let wal = data_dir.join("wal");
    let segment = std::fs::read_dir(&wal)
        .expect("is there")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "wal"))
        .expect("a segment");
    let mut bytes = std::fs::read(&segment).expect("reads");
    bytes[100] ^= 1;
    std::fs::write(&segment, bytes).expect("writes");
    stopped.is_refused(&["--yes", "--force"], "damaged").await;
}
