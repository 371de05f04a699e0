use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use weft_control_plane::api::etcd::limits::Limits;
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::watch_create_request::FilterType;
use weft_xds_proto::etcdserverpb::watch_request::RequestUnion;
use weft_xds_proto::mvccpb::Event;
use weft_xds_proto::mvccpb::event::EventType;

use super::server::{DEADLINE, Server, one, put, range};

/// One watch stream as a client sees it.
pub struct Stream {
    pub requests: Option<mpsc::Sender<pb::WatchRequest>>,
    pub answers: Streaming<pb::WatchResponse>,
}

impl Stream {
    pub async fn open(server: &Server) -> Stream {
        let (requests, input) = mpsc::channel(16);
        let answers = server.watch().watch(ReceiverStream::new(input)).await.unwrap().into_inner();
        Stream { requests: Some(requests), answers }
    }

    pub async fn send(&self, request: RequestUnion) {
        let request = pb::WatchRequest { request_union: Some(request) };
        self.requests.as_ref().expect("still open").send(request).await.unwrap();
    }

    pub async fn next(&mut self) -> pb::WatchResponse {
        let answer = tokio::time::timeout(DEADLINE, self.answers.message()).await;
        answer.expect("an answer in time").expect("no error").expect("not the end")
    }

    /// Creates and takes the answer.
    pub async fn create(&mut self, request: pb::WatchCreateRequest) -> pb::WatchResponse {
        self.send(RequestUnion::CreateRequest(request)).await;
        let answer = self.next().await;
        assert!(answer.created, "{answer:?}");
        answer
    }

    /// The next `n` events, whatever answers they come in.
    pub async fn events(&mut self, n: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < n {
            let answer = self.next().await;
            assert!(!answer.canceled, "{answer:?}");
            events.extend(answer.events);
        }
        assert_eq!(events.len(), n);
        events
    }

    /// Everything that was owed has arrived when this one answer has: nothing may come before it.
    pub async fn nothing_more(&mut self) {
        self.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
        let answer = self.next().await;
        assert_eq!((answer.watch_id, answer.events.len()), (-1, 0), "{answer:?}");
    }
}

pub fn key(key: &str) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: key.to_owned().into(), ..Default::default() }
}

pub fn everything() -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() }
}

pub fn from(start_revision: i64) -> pb::WatchCreateRequest {
    pb::WatchCreateRequest { start_revision, ..everything() }
}

/// `put a@5` in short.
fn brief(event: &Event) -> String {
    let kv = event.kv.as_ref().unwrap();
    let kind = match event.r#type() {
        EventType::Put => "put",
        EventType::Delete => "delete",
    };
    format!("{kind} {}@{}", String::from_utf8_lossy(&kv.key), kv.mod_revision)
}

fn briefs(events: &[Event]) -> Vec<String> {
    events.iter().map(brief).collect()
}

/// W08: 0 is "from now", 1 is "all there ever was".
#[tokio::test]
async fn a_watch_from_now_sees_what_follows_and_one_from_revision_1_sees_all() {
    let server = Server::start().await;
    server.put("a", "1").await;
    let mut stream = Stream::open(&server).await;
    let now = stream.create(everything()).await;
    assert_eq!((now.watch_id, now.header.unwrap().revision), (0, 2));
    let header = now.header.unwrap();
    assert!(header.cluster_id > 0 && header.member_id > 0 && header.raft_term > 0);
    server.put("b", "2").await;
    assert_eq!(briefs(&stream.events(1).await), ["put b@3"]);

    let all = stream.create(from(1)).await;
    assert_eq!(all.watch_id, 1);
    assert_eq!(briefs(&stream.events(2).await), ["put a@2", "put b@3"]);
    stream.nothing_more().await;
    server.stop().await;
}

/// W04, W07: a start in the future, as after a reconnect to a server that lags, shows nothing older.
#[tokio::test]
async fn a_watch_from_the_future_waits_for_it() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    let created = stream.create(from(4)).await;
    assert_eq!(created.header.unwrap().revision, 1);
    for key in ["a", "b", "c", "d"] {
        server.put(key, "").await;
    }
    assert_eq!(briefs(&stream.events(2).await), ["put c@4", "put d@5"]);
    stream.nothing_more().await;
    server.stop().await;
}

/// W01, W02, W03: while writers write, watchers that started at different times see each event once, in
/// order, and those of one transaction together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writes_reach_every_watcher_once_and_in_order() {
    const WRITERS: usize = 4;
    const WRITES: usize = 50;
    let server = Server::start().await;
    let mut early = Stream::open(&server).await;
    early.create(from(2)).await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let mut kv = server.kv();
            tokio::spawn(async move {
                for n in 0..WRITES {
                    let puts = ["x", "y"].map(|part| pb::RequestOp {
                        request: Some(pb::request_op::Request::RequestPut(put(
                            &format!("{part}{writer}"),
                            &n.to_string(),
                        ))),
                    });
                    let txn = pb::TxnRequest { success: puts.to_vec(), ..Default::default() };
                    kv.txn(txn).await.unwrap();
                }
            })
        })
        .collect();
    let mut middle = Stream::open(&server).await;
    middle.create(from(20)).await;
    for writer in writers {
        writer.await.unwrap();
    }
    let mut late = Stream::open(&server).await;
    late.create(from(2)).await;

    let total = WRITERS * WRITES * 2;
    let seen = early.events(total).await;
    let mut versions = BTreeMap::new();
    for pair in seen.chunks(2) {
        let kvs: Vec<_> = pair.iter().map(|event| event.kv.clone().unwrap()).collect();
        assert_eq!(kvs[0].mod_revision, kvs[1].mod_revision, "a transaction is one revision");
        assert_eq!((kvs[0].key[0], kvs[1].key[0]), (b'x', b'y'), "in the order of its operations");
        for kv in kvs {
            let version = versions.entry(kv.key).or_insert(0);
            *version += 1;
            assert_eq!(kv.version, *version, "no gap, no repetition");
        }
    }
    let revisions: Vec<_> = seen.iter().map(|event| event.kv.as_ref().unwrap().mod_revision).collect();
    assert_eq!(revisions[..2], [2, 2]);
    assert!(revisions.chunks(2).zip(revisions.chunks(2).skip(1)).all(|(a, b)| a[0] + 1 == b[0]));
    assert_eq!(late.events(total).await, seen);
    assert_eq!(middle.events(total - 2 * 18).await, seen[2 * 18..]);
    for stream in [&mut early, &mut middle, &mut late] {
        stream.nothing_more().await;
    }
    server.stop().await;
}

/// W10
#[tokio::test]
async fn an_event_that_was_seen_can_be_read() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    stream.create(key("a")).await;
    let mut kv = server.kv();
    let writer = tokio::spawn(async move {
        for n in 0..100 {
            kv.put(put("a", &n.to_string())).await.unwrap();
        }
    });
    for _ in 0..100 {
        let event = stream.events(1).await.remove(0).kv.unwrap();
        let serializable = pb::RangeRequest { serializable: true, ..one("a") };
        let read = server.kv().range(serializable).await.unwrap().into_inner();
        assert!(read.kvs[0].mod_revision >= event.mod_revision);
    }
    writer.await.unwrap();
    server.stop().await;
}

/// W06, and the boundary itself: the compacted revision can still be watched from, below it cannot.
#[tokio::test]
async fn history_below_a_compaction_is_refused_and_at_it_is_complete() {
    let server = Server::start().await;
    server.put("a", "1").await;
    server.put("a", "2").await;
    assert_eq!(server.delete("a").await, 4);
    server.put("b", "1").await;
    server.compact(4).await;
    let mut stream = Stream::open(&server).await;
    stream.create(from(4)).await;
    assert_eq!(briefs(&stream.events(2).await), ["delete a@4", "put b@5"]);

    let created = stream.create(from(3)).await;
    assert!(!created.canceled);
    let canceled = stream.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled, canceled.created), (created.watch_id, true, false));
    assert_eq!(canceled.compact_revision, 4);
    assert_eq!(canceled.cancel_reason, "etcdserver: mvcc: required revision has been compacted");
    server.put("c", "1").await;
    assert_eq!(briefs(&stream.events(1).await), ["put c@6"], "the other watcher goes on");
    server.stop().await;
}

/// W12
#[tokio::test]
async fn previous_values_are_those_before_the_change() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    stream.create(pb::WatchCreateRequest { prev_kv: true, ..everything() }).await;
    server.put("a", "1").await;
    server.put("a", "2").await;
    server.delete("a").await;
    server.put("a", "3").await;
    let live = stream.events(4).await;
    let previous = |events: &[Event]| -> Vec<Option<String>> {
        let value =
            |event: &Event| event.prev_kv.as_ref().map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
        events.iter().map(value).collect()
    };
    assert_eq!(previous(&live), [None, Some("1".into()), Some("2".into()), None]);
    stream.create(pb::WatchCreateRequest { prev_kv: true, ..from(2) }).await;
    assert_eq!(stream.events(4).await, live, "from history as when it happened");
    stream.create(from(2)).await;
    assert_eq!(previous(&stream.events(4).await), [None, None, None, None]);
    server.stop().await;
}

#[tokio::test]
async fn filters_leave_kinds_of_events_out() {
    let server = Server::start().await;
    let mut puts = Stream::open(&server).await;
    puts.create(pb::WatchCreateRequest { filters: vec![FilterType::Nodelete as i32], ..everything() }).await;
    let mut deletes = Stream::open(&server).await;
    deletes.create(pb::WatchCreateRequest { filters: vec![FilterType::Noput as i32], ..everything() }).await;
    server.put("a", "1").await;
    server.delete("a").await;
    server.put("b", "1").await;
    assert_eq!(briefs(&puts.events(2).await), ["put a@2", "put b@4"]);
    assert_eq!(briefs(&deletes.events(1).await), ["delete a@3"]);
    deletes.nothing_more().await;
    server.stop().await;
}

#[tokio::test]
async fn ranges_are_those_of_the_request() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    let prefix = pb::WatchCreateRequest { range_end: "b".into(), ..key("a") };
    let id = stream.create(prefix).await.watch_id;
    for key in ["a", "aa", "b", "A", "az"] {
        server.put(key, "").await;
    }
    assert_eq!(briefs(&stream.events(3).await), ["put a@2", "put aa@3", "put az@6"]);
    // An empty key is the smallest one, so this is everything.
    stream.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: id })).await;
    assert!(stream.next().await.canceled);
    stream.create(pb::WatchCreateRequest { range_end: "\0".into(), start_revision: 2, ..key("") }).await;
    assert_eq!(stream.events(5).await.len(), 5);
    server.stop().await;
}

#[tokio::test]
async fn cancel_is_confirmed_and_nothing_follows_it() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    let id = stream.create(everything()).await.watch_id;
    stream.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: 99 })).await;
    stream.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: id })).await;
    let canceled = stream.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled, canceled.created), (id, true, false));
    assert_eq!((canceled.compact_revision, canceled.cancel_reason.as_str()), (0, ""));
    server.put("a", "1").await;
    stream.nothing_more().await;
    assert_eq!(server.watches.count(), 0);
    server.stop().await;
}

#[tokio::test]
async fn ids_are_the_clients_choice_or_counted_from_0_and_never_shared() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    let with_id = |watch_id| pb::WatchCreateRequest { watch_id, ..everything() };
    assert_eq!(stream.create(with_id(1)).await.watch_id, 1);
    assert_eq!(stream.create(with_id(0)).await.watch_id, 0);
    assert_eq!(stream.create(with_id(0)).await.watch_id, 2);
    for (id, reason) in [
        (1, "mvcc: duplicate watch ID provided on the WatchStream"),
        (-7, "etcdserver: watch_id -7 is negative; 0 lets the server choose"),
    ] {
        let refused = stream.create(with_id(id)).await;
        assert_eq!((refused.watch_id, refused.canceled, refused.cancel_reason.as_str()), (-1, true, reason));
    }
    server.put("a", "1").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let answer = stream.next().await;
        assert_eq!(answer.events.len(), 1);
        ids.push(answer.watch_id);
    }
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2]);
    server.stop().await;
}

#[tokio::test]
async fn impossible_watches_are_refused_with_a_reason_and_the_stream_goes_on() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    let refused = [
        (from(-1), "etcdserver: mvcc: required revision has been compacted"),
        (pb::WatchCreateRequest { range_end: "a".into(), ..key("b") }, "mvcc: watcher range is empty"),
        (
            pb::WatchCreateRequest { filters: vec![5], ..everything() },
            "etcdserver: watch filter 5 is unknown: allowed are 0 NOPUT, 1 NODELETE",
        ),
    ];
    for (request, reason) in refused {
        let answer = stream.create(request).await;
        assert_eq!((answer.watch_id, answer.canceled, answer.cancel_reason.as_str()), (-1, true, reason));
    }
    assert_eq!(stream.create(everything()).await.watch_id, 0);
    server.put("a", "1").await;
    assert_eq!(stream.events(1).await.len(), 1);
    server.stop().await;
}

/// W05: the revision in the answer is one whose events have all been sent before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_progress_answer_never_runs_ahead_of_the_events() {
    tokio::time::timeout(DEADLINE, progress_answers_follow_events()).await.expect("it gets there");
}

async fn progress_answers_follow_events() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    stream.create(everything()).await;
    stream.create(key("never")).await;
    let mut kv = server.kv();
    let writer = tokio::spawn(async move {
        for n in 0..200 {
            kv.put(put("a", &n.to_string())).await.unwrap();
        }
    });
    let (mut last, mut progressed) = (1, 1);
    while last < 201 {
        stream.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
        loop {
            let answer = stream.next().await;
            let revision = answer.header.unwrap().revision;
            if answer.events.is_empty() {
                assert_eq!(answer.watch_id, -1);
                assert_eq!(revision, last, "all events up to it are here, and it is not behind them");
                progressed = revision;
                break;
            }
            for event in &answer.events {
                let revision = event.kv.as_ref().unwrap().mod_revision;
                assert!(revision > progressed && revision == last + 1);
                last = revision;
            }
        }
    }
    writer.await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_stream_without_watchers_answers_progress_with_the_current_revision() {
    let server = Server::start().await;
    server.put("a", "1").await;
    let mut stream = Stream::open(&server).await;
    stream.send(RequestUnion::ProgressRequest(pb::WatchProgressRequest {})).await;
    let answer = stream.next().await;
    assert_eq!((answer.watch_id, answer.header.unwrap().revision), (-1, 2));
    server.stop().await;
}

#[tokio::test]
async fn an_idle_watcher_that_asked_for_it_is_told_its_progress() {
    let limits =
        Limits { progress_notify_interval: std::time::Duration::from_millis(100), ..Limits::default() };
    let server = Server::start_with(limits).await;
    let mut stream = Stream::open(&server).await;
    stream.create(key("other")).await;
    let id = stream.create(pb::WatchCreateRequest { progress_notify: true, ..key("a") }).await.watch_id;
    for round in 2..4 {
        server.put("b", "of no interest").await;
        loop {
            let answer = stream.next().await;
            assert_eq!((answer.watch_id, answer.events.len(), answer.created), (id, 0, false));
            if answer.header.unwrap().revision == round {
                break;
            }
        }
    }
    server.put("a", "1").await;
    loop {
        let answer = stream.next().await;
        if let [event] = &answer.events[..] {
            assert_eq!(brief(event), "put a@4");
            break;
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_large_revision_comes_whole_or_in_fragments_as_asked() {
    let limits = Limits { watch_fragment_bytes: 1000, watch_response_bytes: 500, ..Limits::default() };
    let server = Server::start_with(limits).await;
    let mut whole = Stream::open(&server).await;
    whole.create(everything()).await;
    let mut parts = Stream::open(&server).await;
    parts.create(pb::WatchCreateRequest { fragment: true, ..everything() }).await;
    let value = "v".repeat(200);
    let success = (0..20).map(|n| pb::RequestOp {
        request: Some(pb::request_op::Request::RequestPut(put(&format!("k{n:02}"), &value))),
    });
    let txn = pb::TxnRequest { success: success.collect(), ..Default::default() };
    server.kv().txn(txn).await.unwrap();

    let at_once = whole.next().await;
    assert_eq!((at_once.events.len(), at_once.fragment), (20, false));
    let mut events = Vec::new();
    let mut fragments = 0;
    loop {
        let answer = parts.next().await;
        fragments += 1;
        assert!(answer.events.len() < 20);
        events.extend(answer.events);
        if !answer.fragment {
            break;
        }
    }
    assert!(fragments > 2);
    assert_eq!(events, at_once.events);
    server.stop().await;
}

#[tokio::test]
async fn a_half_closed_stream_keeps_its_watchers_and_ends_with_the_last() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    stream.create(everything()).await;
    stream.requests = None;
    server.put("a", "1").await;
    assert_eq!(stream.events(1).await.len(), 1);

    let mut empty = Stream::open(&server).await;
    let id = empty.create(everything()).await.watch_id;
    empty.send(RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: id })).await;
    assert!(empty.next().await.canceled);
    empty.requests = None;
    assert!(tokio::time::timeout(DEADLINE, empty.answers.message()).await.unwrap().unwrap().is_none());
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_drains_ends_its_streams_so_that_clients_go_elsewhere() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    stream.create(everything()).await;
    server.begin_drain();
    let status = tokio::time::timeout(DEADLINE, stream.answers.message()).await.unwrap().unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: server stopped"));
    assert_eq!(server.watches.count(), 0);
    server.stop().await;
}

#[tokio::test]
async fn events_of_weft_itself_can_be_watched_like_any_other() {
    let server = Server::start().await;
    let mut stream = Stream::open(&server).await;
    stream.create(pb::WatchCreateRequest { range_end: "weft0".into(), ..key("weft/") }).await;
    let register =
        weft_state::command::Command::SetLoadBalancing { service: "hello".into(), policy: "random".into() };
    server.coordinator.propose(register).await.unwrap().response.unwrap();
    let event = stream.events(1).await.remove(0);
    let read = server.kv().range(range("weft/", "weft0")).await.unwrap().into_inner();
    assert_eq!(event.kv.as_ref(), read.kvs.first());
    server.stop().await;
}

/// W12: on one stream, from the queue and from history.
#[tokio::test]
async fn only_watchers_that_asked_get_previous_values() {
    let server = Server::start().await;
    server.put("a", "1").await;
    for start_revision in [0, 3] {
        let mut stream = Stream::open(&server).await;
        for (watch_id, prev_kv) in [(1, true), (2, false)] {
            let create = pb::WatchCreateRequest { watch_id, prev_kv, start_revision, ..key("a") };
            stream.send(RequestUnion::CreateRequest(create)).await;
        }
        let mut answers = vec![stream.next().await, stream.next().await];
        if start_revision == 0 {
            server.put("a", "2").await;
        }
        answers.extend([stream.next().await, stream.next().await]);
        let mut told: Vec<(i64, bool)> =
            answers.iter().flat_map(|a| a.events.iter().map(|e| (a.watch_id, e.prev_kv.is_some()))).collect();
        told.sort_unstable();
        assert_eq!(told, [(1, true), (2, false)]);
        stream.nothing_more().await;
    }
    server.stop().await;
}

/// What the service refuses by itself, being no generated one.
#[tokio::test]
async fn what_is_no_watch_is_refused_as_elsewhere_in_the_api() {
    use tonic::client::Grpc;
    use tonic::codegen::http::uri::PathAndQuery;
    use tonic_prost::ProstCodec;

    let server = Server::start().await;
    let mut grpc = Grpc::new(server.channel.clone());
    grpc.ready().await.unwrap();
    let unknown = PathAndQuery::from_static("/etcdserverpb.Watch/Look");
    let codec = ProstCodec::<pb::WatchRequest, pb::WatchResponse>::default();
    let refused =
        grpc.unary(tonic::Request::new(pb::WatchRequest::default()), unknown, codec).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused:?}");

    // A message of another service is no watch request: its first field is not a message.
    grpc.ready().await.unwrap();
    let watch = PathAndQuery::from_static("/etcdserverpb.Watch/Watch");
    let codec = ProstCodec::<pb::RangeRequest, pb::WatchResponse>::default();
    let garbage = pb::RangeRequest { key: "\u{7f}\u{7f}".into(), ..Default::default() };
    let requests = tokio_stream::iter([garbage]);
    let mut answers = grpc.streaming(tonic::Request::new(requests), watch, codec).await.unwrap().into_inner();
    let refused = answers.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal, "{refused:?}");

    let mut compressed = tonic::Request::new(tokio_stream::pending());
    compressed.metadata_mut().insert("grpc-encoding", "gzip".parse().unwrap());
    let refused = server.watch().watch(compressed).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused:?}");
    assert!(refused.message().contains("gzip"), "{refused:?}");
    server.stop().await;
}
