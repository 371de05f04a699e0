//! What happens at the bounds of a watch: slow readers, lost connections, too many watchers.

use tonic::transport::Channel;
use weft_control_plane::api::etcd::limits::Limits;
use weft_xds_proto::etcdserverpb as pb;

use super::server::{DEADLINE, Server, put};
use super::watch::{Stream, everything, from, key};

const VALUE_BYTES: usize = 100_000;
const WRITES: i64 = 150;

/// More than a connection's windows and a watcher's queue hold together.
async fn write_much(server: &Server) {
    let value = "v".repeat(VALUE_BYTES);
    for n in 0..WRITES {
        server.put(&format!("k{}", n % 7), &value).await;
    }
}

/// A stream on a connection of its own with a small window, so that what is not read stays at the server.
async fn slow_stream(server: &Server) -> Stream {
    let channel = Channel::from_shared(format!("http://{}", server.addr))
        .unwrap()
        .initial_stream_window_size(65_536)
        .initial_connection_window_size(65_536)
        .connect()
        .await
        .unwrap();
    let (requests, input) = tokio::sync::mpsc::channel(16);
    let input = tokio_stream::wrappers::ReceiverStream::new(input);
    let mut client = pb::watch_client::WatchClient::new(channel).max_decoding_message_size(usize::MAX);
    let answers = client.watch(input).await.unwrap().into_inner();
    Stream { requests: Some(requests), answers }
}

/// W09, W01: it reads nothing while far more is written than anyone holds for it, then everything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_was_away_gets_every_event_from_history() {
    let server = Server::start().await;
    let mut stream = slow_stream(&server).await;
    stream.create(everything()).await;
    write_much(&server).await;
    assert!(server.watches.overflows() > 0, "its queue is bounded and was given up");
    let events = stream.events(WRITES as usize).await;
    let revisions = events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision);
    assert!(revisions.eq(2..2 + WRITES));
    stream.nothing_more().await;
    server.stop().await;
}

/// W09: what it has not read is compacted meanwhile: it is told, after an unbroken run of events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_was_away_too_long_is_told_that_history_is_gone() {
    let server = Server::start().await;
    let mut stream = slow_stream(&server).await;
    let id = stream.create(everything()).await.watch_id;
    write_much(&server).await;
    server.compact(1 + WRITES).await;
    let mut next = 2;
    let canceled = loop {
        let answer = stream.next().await;
        if answer.canceled {
            break answer;
        }
        for event in answer.events {
            assert_eq!(event.kv.unwrap().mod_revision, next);
            next += 1;
        }
    };
    assert!(next < 1 + WRITES, "something was indeed compacted away");
    assert_eq!((canceled.watch_id, canceled.compact_revision), (id, 1 + WRITES));
    let resumed = stream.create(from(canceled.compact_revision)).await;
    assert!(!resumed.canceled);
    assert_eq!(stream.events(1).await[0].kv.as_ref().unwrap().mod_revision, 1 + WRITES);
    server.stop().await;
}

/// A busy watcher that is not read does not take the other watchers' turn on the same stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_of_one_stream_take_turns() {
    let limits = Limits { watch_response_bytes: 1000, ..Limits::default() };
    let server = Server::start_with(limits).await;
    for n in 0..500 {
        server.put("busy", &"v".repeat(100 + n % 2)).await;
    }
    server.put("rare", "1").await;
    let mut stream = Stream::open(&server).await;
    stream.create(pb::WatchCreateRequest { start_revision: 2, ..key("busy") }).await;
    let rare = stream.create_among(pb::WatchCreateRequest { start_revision: 2, ..key("rare") }).await;
    let mut answers = 0;
    while stream.next().await.watch_id != rare {
        answers += 1;
    }
    assert!(answers < 20, "{answers} answers of the busy watcher came first");
    server.stop().await;
}

impl Stream {
    /// As `create`, while other watchers' events come in between.
    async fn create_among(&mut self, request: pb::WatchCreateRequest) -> i64 {
        self.send(pb::watch_request::RequestUnion::CreateRequest(request)).await;
        loop {
            let answer = self.next().await;
            if answer.created {
                return answer.watch_id;
            }
        }
    }
}

/// W11: many clients vanish at once and come back from where they were; each sees all, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_mass_disconnect_watchers_resume_without_loss() {
    const CLIENTS: usize = 50;
    let server = Server::start().await;
    let mut streams = Vec::new();
    for _ in 0..CLIENTS {
        let mut stream = Stream::open(&server).await;
        stream.create(everything()).await;
        streams.push(stream);
    }
    server.put("a", "before").await;
    let mut resume_at = Vec::new();
    for stream in &mut streams {
        resume_at.push(stream.events(1).await[0].kv.as_ref().unwrap().mod_revision + 1);
    }
    let mut kv = server.kv();
    let writer = tokio::spawn(async move {
        for n in 0..40 {
            kv.put(put("a", &n.to_string())).await.unwrap();
        }
    });
    drop(streams);
    let mut resumed = Vec::new();
    for start in resume_at {
        let mut stream = Stream::open(&server).await;
        stream.create(from(start)).await;
        resumed.push(stream);
    }
    writer.await.unwrap();
    for stream in &mut resumed {
        let events = stream.events(40).await;
        assert!(events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision).eq(3..43));
    }
    // The server forgot the lost ones.
    let forgotten = async {
        while server.watches.count() > CLIENTS {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, forgotten).await.expect("watchers of lost connections are closed");
    server.stop().await;
}

#[tokio::test]
async fn one_watcher_too_many_is_refused_with_the_limit_and_the_others_go_on() {
    let limits = Limits { watchers_per_stream_max: 2, watchers_per_server_max: 3, ..Limits::default() };
    let server = Server::start_with(limits).await;
    let mut first = Stream::open(&server).await;
    first.create(everything()).await;
    first.create(everything()).await;
    let refused = first.create(everything()).await;
    assert_eq!((refused.watch_id, refused.canceled), (-1, true));
    assert_eq!(refused.cancel_reason, "etcdserver: too many requests: 2 watchers on this stream, limit 2");

    let mut second = Stream::open(&server).await;
    assert!(!second.create(everything()).await.canceled);
    let refused = second.create(everything()).await;
    assert_eq!(refused.cancel_reason, "etcdserver: too many requests: 3 watchers on this server, limit 3");

    drop(first);
    let freed = async {
        while server.watches.count() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, freed).await.unwrap();
    assert!(!second.create(everything()).await.canceled);
    server.stop().await;
}
