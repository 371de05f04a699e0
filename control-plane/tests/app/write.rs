//! Pipelined writes over real gRPC.

use std::time::Duration;

use bytes::Bytes;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};
use weft_state::{command::Range, machine::Machine};
use weft_xds_proto::{etcdserverpb as etcd, weft as pb};

use crate::harness::{PATIENCE, TestServer};

fn put(key: impl Into<Bytes>, value: &'static str) -> pb::Write {
    let put = pb::Put { key: key.into(), value: value.into(), lease: 0 };
    pb::Write { op: Some(pb::write::Op::Put(put)) }
}

fn delete(key: &'static str, range_end: &'static str) -> pb::Write {
    let delete = pb::Delete { key: key.into(), range_end: range_end.into() };
    pb::Write { op: Some(pb::write::Op::Delete(delete)) }
}

struct Stream {
    send: mpsc::Sender<pb::WriteRequest>,
    answers: Streaming<pb::WriteResponse>,
}

impl Stream {
    async fn open(server: &TestServer) -> Self {
        Self::over(server.channel().await).await
    }

    async fn over(channel: Channel) -> Self {
        let (send, requests) = mpsc::channel(64);
        let mut client = pb::kv_client::KvClient::new(channel);
        let answers = client.write(ReceiverStream::new(requests)).await.expect("opens").into_inner();
        Self { send, answers }
    }

    async fn send(&self, id: u64, writes: Vec<pb::Write>) {
        self.send
            .send(pb::WriteRequest { id, writes, ..Default::default() })
            .await
            .expect("the stream is open");
    }

    async fn next(&mut self) -> Result<Option<pb::WriteResponse>, tonic::Status> {
        timeout(PATIENCE, self.answers.message()).await.expect("an answer in time")
    }
}

fn count(server: &TestServer, prefix: &'static str, end: &'static str) -> i64 {
    let range = Range { key: prefix.into(), range_end: end.into(), count_only: true, ..Range::default() };
    let read = |machine: &Machine| machine.range(&range).expect("reads").count;
    server.server().coordinator().read(read)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_answered_once_and_its_writes_are_there() {
    let server = TestServer::start().await;
    let mut stream = Stream::open(&server).await;
    for id in 0..20 {
        stream.send(id, (0..50).map(|at| put(format!("w/{id}/{at}"), "v")).collect()).await;
    }
    let mut answered = Vec::new();
    for _ in 0..20 {
        let answer = stream.next().await.expect("no refusal").expect("goes on");
        assert_eq!(answer.results.len(), 50);
        assert!(answer.results.iter().all(|r| r.code == 0 && r.revision > 0), "{answer:?}");
        answered.push(answer.id);
    }
    answered.sort_unstable();
    assert_eq!(answered, (0..20).collect::<Vec<_>>());
    assert_eq!(count(&server, "w/", "w0"), 1000);
    drop(stream.send);
    assert!(stream.answers.message().await.expect("a clean end").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_write_says_why_and_the_others_of_its_message_are_carried_out() {
    let server = TestServer::start().await;
    let mut stream = Stream::open(&server).await;
    let unleased = pb::Put { key: "l".into(), value: "v".into(), lease: 77 };
    let unleased = pb::Write { op: Some(pb::write::Op::Put(unleased)) };
    stream.send(1, vec![put("a", "1"), unleased, put("weft/x", "1"), put("b", "1")]).await;
    let results = stream.next().await.expect("no refusal").expect("goes on").results;
    let codes: Vec<i32> = results.iter().map(|r| r.code).collect();
    assert_eq!(codes[0], 0);
    assert_eq!(codes[1], Code::FailedPrecondition as i32, "{results:?}");
    assert_eq!(codes[2], Code::InvalidArgument as i32, "{results:?}");
    assert_eq!(codes[3], 0);
    stream.send(2, vec![delete("a", "c")]).await;
    let results = stream.next().await.expect("no refusal").expect("goes on").results;
    assert_eq!(results[0].deleted, 2);
    assert_eq!(count(&server, "a", "z"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_over_a_limit_ends_the_stream_and_those_before_it_are_decided() {
    let server = TestServer::start().await;
    let mut stream = Stream::open(&server).await;
    stream.send(1, vec![put("kept", "1")]).await;
    stream.next().await.expect("no refusal").expect("goes on");
    stream.send(2, (0..513).map(|at| put(format!("lost/{at}"), "v")).collect()).await;
    let refusal = stream.next().await.expect_err("is refused");
    assert_eq!(refusal.code(), Code::InvalidArgument);
    assert!(refusal.message().contains("513 writes, allowed are 1 to 512"), "{}", refusal.message());
    assert_eq!((count(&server, "kept", ""), count(&server, "lost/", "lost0")), (1, 0));
}

/// A writer that reads no answers is not read either, so what it can make the server hold is bounded; nothing
/// that was accepted is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_reads_nothing_is_slowed_down_and_loses_nothing() {
    let server = TestServer::start().await;
    // With the usual windows a client takes megabytes of answers before it has to read one.
    let uri = format!("http://{}", server.server().addrs().grpc);
    let channel = Channel::from_shared(uri).expect("a URI");
    let channel = channel.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
    let mut stream = Stream::over(channel.connect().await.expect("it listens")).await;
    let mut sent = 0;
    while sent < 600 {
        let writes = (0..500).map(|at| put(format!("slow/{at}"), "v")).collect();
        let message = pb::WriteRequest { id: sent, writes, ..Default::default() };
        match timeout(Duration::from_millis(300), stream.send.send(message)).await {
            Ok(result) => result.expect("the stream is open"),
            Err(_) => break,
        }
        sent += 1;
    }
    assert!(sent < 600, "the server reads on though nobody takes its answers");
    for _ in 0..sent {
        let answer = stream.next().await.expect("no refusal").expect("goes on");
        assert!(answer.results.iter().all(|r| r.code == 0), "{answer:?}");
    }
}

/// P14: a message whose answer was lost is sent again on another stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_come_again_under_their_numbers_are_answered_and_not_done_again() {
    let server = TestServer::start().await;
    let write = async |seq: u64, writes: Vec<pb::Write>| {
        let message = pb::WriteRequest { id: 1, writes, seq, answered: seq };
        let mut request = tonic::Request::new(tokio_stream::once(message));
        request.metadata_mut().insert("weft-client-id", "a1".parse().expect("ASCII"));
        let mut client = pb::kv_client::KvClient::new(server.channel().await);
        let mut answers = client.write(request).await.expect("opens").into_inner();
        timeout(PATIENCE, answers.message()).await.expect("in time").expect("answers").expect("one").results
    };
    let writes = || (0..200).map(|at| put(format!("n/{at}"), "v")).collect::<Vec<_>>();
    let first = write(1, writes()).await;
    assert!(first.iter().all(|result| result.code == 0 && result.revision > 0), "{first:?}");
    assert_eq!(write(1, writes()).await, first);
    let changed = |machine: &Machine| machine.revision();
    let revision = server.server().coordinator().read(changed);
    assert_eq!(write(201, vec![put("n/0", "w")]).await[0].revision, revision + 1);
    // The first message was answered, as the client said with the second.
    let late = write(1, writes()).await;
    assert!(late.iter().all(|result| result.code == i32::from(Code::Aborted)), "{late:?}");
    assert_eq!(server.server().coordinator().read(changed), revision + 1);
}

/// P01, over the wire: the etcd API says it in etcd's words, and deleting is all that it takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_quota_refuses_growth_in_each_api_and_is_free_again_after_a_delete() {
    let server = TestServer::start().await;
    let mut kv = pb::kv_client::KvClient::new(server.channel().await);
    let quota = Some(pb::Quota { soft_bytes: 10, hard_bytes: 20 });
    kv.set_quota(pb::SetQuotaRequest { prefix: "q/".into(), quota }).await.expect("sets");
    let wrong = Some(pb::Quota { soft_bytes: 2, hard_bytes: 1 });
    let refused = kv.set_quota(pb::SetQuotaRequest { prefix: "q/".into(), quota: wrong }).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);

    let mut stream = Stream::open(&server).await;
    stream.send(1, vec![put("q/a", "0123456789"), put("q/b", "0123456789"), put("r", "0123456789")]).await;
    let results = stream.next().await.expect("no refusal").expect("goes on").results;
    let full: Vec<_> = results.iter().filter(|r| r.code != 0).collect();
    assert_eq!(full.len(), 1, "one of the two fits: {results:?}");
    assert_eq!(full[0].code, Code::ResourceExhausted as i32);

    let mut etcd = etcd::kv_client::KvClient::new(server.channel().await);
    let request = etcd::PutRequest { key: "q/c".into(), value: "0123456789".into(), ..Default::default() };
    let refused = etcd.put(request.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(refused.message(), "etcdserver: mvcc: database space exceeded");
    let used = kv.quotas(pb::QuotasRequest {}).await.expect("lists").into_inner().quotas;
    assert_eq!((used.len(), used[0].used_bytes), (1, 13));
    let all = etcd::DeleteRangeRequest { key: "q/".into(), range_end: "q0".into(), ..Default::default() };
    etcd.delete_range(all).await.expect("deletes");
    etcd.put(request).await.expect("there is room again");
}
