//! Without a leader, and in a group of two of which one is lost.

use std::time::Duration;

use tonic::Code;
use weft_control_plane::api::etcd::limits::Limits;
use weft_control_plane::raft::RaftTiming;
use weft_core::id::NodeId;
use weft_xds_proto::etcdserverpb as pb;

use super::server::{DEADLINE, ID, Launch, Server, one, put, refusal};
use super::watch::{Stream, everything};

const OTHER: NodeId = NodeId(2);

fn quick() -> Launch {
    let timing = RaftTiming {
        heartbeat_interval: Duration::from_millis(50),
        election_timeout_min: Duration::from_millis(250),
        election_timeout_max: Duration::from_millis(500),
        deadline: Duration::from_secs(1),
        ..RaftTiming::default()
    };
    let limits = Limits { no_leader_grace: Duration::from_millis(200), ..Limits::default() };
    Launch { timing, limits, ..Launch::default() }
}

fn needs_leader<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    request
}

pub async fn pair() -> (Server, Server) {
    let first = Server::launch(quick()).await;
    let second = Server::launch(Launch { id: OTHER, bootstrap: false, ..quick() }).await;
    let joined = async {
        while let Err(error) = second.coordinator.join_group(vec![first.peer_addr]).await {
            eprintln!("not in the group yet: {error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(DEADLINE, joined).await.expect("the second server is taken in");
    (first, second)
}

#[tokio::test]
async fn a_server_outside_a_group_answers_nothing() {
    let server = Server::launch(Launch { bootstrap: false, ..quick() }).await;
    let no_leader = (Code::Unavailable, "etcdserver: no leader".to_owned());
    assert_eq!(refusal(server.kv().range(one("a")).await), no_leader);
    let serializable = pb::RangeRequest { serializable: true, ..one("a") };
    assert_eq!(refusal(server.kv().range(serializable).await), no_leader);
    assert_eq!(refusal(server.kv().put(put("a", "1")).await), no_leader);
    let watch = server.watch().watch(tokio_stream::pending()).await;
    assert_eq!(watch.map(drop).expect_err("refused").message(), no_leader.1);
    server.stop().await;
}

/// A11: whichever server is asked, what was acknowledged by one is read on the other, and a watch on the
/// other sees it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_on_one_server_are_read_and_watched_on_the_other() {
    let (first, second) = pair().await;
    let mut stream = Stream::open(&second).await;
    let created = stream.create(everything()).await;
    let start = created.header.unwrap().revision;
    for n in 1..=20 {
        let (writer, reader) = if n % 2 == 0 { (&first, &second) } else { (&second, &first) };
        let revision = writer.put("a", &n.to_string()).await;
        assert_eq!(revision, start + n);
        let read = reader.kv().range(one("a")).await.unwrap().into_inner();
        assert_eq!(read.kvs[0].mod_revision, revision);
    }
    let events = stream.events(20).await;
    assert!(events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision).eq(start + 1..=start + 20));
    let hash = |server: &Server| {
        let mut maintenance = server.maintenance();
        async move { maintenance.hash_kv(pb::HashKvRequest { revision: 0 }).await.unwrap().into_inner() }
    };
    let (ours, theirs) = (hash(&first).await, hash(&second).await);
    assert_eq!((ours.hash, ours.hash_revision), (theirs.hash, theirs.hash_revision));
    second.stop().await;
    first.stop().await;
}

/// A01: without a majority nothing is written and nothing is read as if it were current; what is asked for
/// as possibly old is still answered, and those who asked to be told are told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_reads_and_writes_are_refused_and_streams_that_asked_are_cut() {
    let (first, second) = pair().await;
    first.put("a", "1").await;
    let mut patient = Stream::open(&first).await;
    patient.create(everything()).await;
    let mut impatient =
        first.watch().watch(needs_leader(tokio_stream::pending())).await.unwrap().into_inner();
    second.coordinator.shutdown().await;

    let cut = tokio::time::timeout(DEADLINE, impatient.message()).await.expect("cut in time").unwrap_err();
    assert_eq!((cut.code(), cut.message()), (Code::Unavailable, "etcdserver: no leader"));
    assert_eq!(refusal(first.kv().put(put("a", "2")).await).0, Code::Unavailable);
    assert_eq!(refusal(first.kv().range(one("a")).await).0, Code::Unavailable);
    assert_eq!(
        refusal(first.kv().range(needs_leader(one("a"))).await),
        (Code::Unavailable, "etcdserver: no leader".into())
    );
    let serializable = pb::RangeRequest { serializable: true, ..one("a") };
    let old = first.kv().range(serializable).await.unwrap().into_inner();
    assert_eq!(old.kvs[0].value, "1");
    patient.nothing_more().await;
    assert_eq!(first.coordinator.status().id, ID);
    first.stop().await;
}
