//! Ten thousand watch streams on which nothing happens: a server holds them, tells each what is its own, and forgets them.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};
use weft_client::proto::etcd as pb;
use weft_tests::mesh::Mesh;
use weft_tests::{http_client, wait};

const STREAMS: usize = 10_000;
const CONNECTIONS: usize = 8;

/// The memory that one idle watch stream may cost a server, with its share of the connection, in bytes. It costs less than
/// a third of it; the bound is to notice that a buffer has become part of every stream.
const BYTES_PER_STREAM_MAX: u64 = 32 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_watch_streams_are_held_told_and_forgotten() {
    let mesh = Mesh::with_servers(1).await;
    let server = &mesh.servers[0];
    let idle = resident_bytes(server.process().pid());
    let mut opening = JoinSet::new();
    for first in 0..CONNECTIONS {
        let address = format!("http://{}", server.grpc());
        opening.spawn(async move {
            let channel =
                Endpoint::from_shared(address).expect("an address").connect().await.expect("connects");
            let mut streams = Vec::new();
            for number in (first..STREAMS).step_by(CONNECTIONS) {
                streams.push((number, watch(channel.clone(), key(number)).await));
            }
            streams
        });
    }
    let mut streams: Vec<_> = opening.join_all().await.into_iter().flatten().collect();
    streams.sort_by_key(|(number, _)| *number);
    assert_eq!(streams.len(), STREAMS);
    assert_eq!(watchers(server.http()).await, STREAMS as u64);
    let each = resident_bytes(server.process().pid()).saturating_sub(idle) / STREAMS as u64;
    println!("{each} bytes for each idle watch stream");
    assert!(each < BYTES_PER_STREAM_MAX, "{each} bytes for each stream");

    // A change is told to the one stream that watches its key.
    for number in [0, 4_711, STREAMS - 1] {
        let put = mesh.cli(server, &["kv", "put", &key(number), "changed"]).await;
        assert_eq!(put.code, 0, "{put:?}");
        let told = tokio::time::timeout(Duration::from_secs(10), streams[number].1.1.message());
        let told = told.await.expect("in time").expect("an answer").expect("the stream goes on");
        assert_eq!(told.events.len(), 1);
        assert_eq!(told.events[0].kv.as_ref().expect("a key").key, key(number).as_bytes());
    }
    let neighbour = tokio::time::timeout(Duration::from_millis(50), streams[1].1.1.message()).await;
    assert!(neighbour.is_err(), "told nothing: {neighbour:?}");

    drop(streams);
    wait::until("no watcher is left", Duration::from_secs(20), || async {
        match watchers(server.http()).await {
            0 => Ok(()),
            left => Err(format!("{left} watchers")),
        }
    })
    .await;
}

fn key(number: usize) -> String {
    format!("idle/{number:05}")
}

/// A stream with one watcher, created. It is open for as long as both halves are held.
async fn watch(
    channel: Channel,
    key: String,
) -> (mpsc::Sender<pb::WatchRequest>, Streaming<pb::WatchResponse>) {
    let create = pb::WatchCreateRequest { key: key.into_bytes().into(), ..Default::default() };
    let create =
        pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
    let (ask, asked) = mpsc::channel(1);
    ask.send(create).await.expect("has room");
    let mut answers = pb::watch_client::WatchClient::new(channel)
        .watch(ReceiverStream::new(asked))
        .await
        .expect("a stream opens")
        .into_inner();
    let created = answers.message().await.expect("an answer").expect("the stream goes on");
    assert!(created.created && !created.canceled, "{created:?}");
    (ask, answers)
}

/// As the server counts them.
async fn watchers(http: std::net::SocketAddr) -> u64 {
    let metrics = http_client::get(http, "weft", "/metrics").await.expect("answers").body;
    let line = metrics.lines().find(|line| line.starts_with("weft_watches_open "));
    let value = line.and_then(|line| line.split_ascii_whitespace().nth(1));
    value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no weft_watches_open in {metrics}"))
}

fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line of VmRSS");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") * 1024
}
