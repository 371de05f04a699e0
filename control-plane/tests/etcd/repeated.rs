//! Requests that are sent again under their name (P14, A06).

use tonic::{Code, Request};
use weft_xds_proto::etcdserverpb as pb;

use super::group::pair;
use super::server::{Server, one, put, refusal};

/// A request with its name.
fn named<T>(client: &str, seq: u64, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("weft-client-id", client.parse().unwrap());
    request.metadata_mut().insert("weft-seq", seq.into());
    request
}

async fn version(server: &Server, key: &str) -> i64 {
    server.kv().range(one(key)).await.unwrap().into_inner().kvs.first().map_or(0, |kv| kv.version)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_comes_again_is_answered_and_not_done_again() {
    let server = Server::start().await;
    let first = server.kv().put(named("a1", 1, put("k", "1"))).await.unwrap().into_inner();
    server.put("k", "2").await;
    let again = server.kv().put(named("a1", 1, put("k", "1"))).await.unwrap().into_inner();
    assert_eq!(again.header.unwrap().revision, first.header.unwrap().revision);
    assert_eq!(version(&server, "k").await, 2);

    let delete = pb::DeleteRangeRequest { key: "k".into(), prev_kv: true, ..Default::default() };
    let deleted = server.kv().delete_range(named("a1", 2, delete.clone())).await.unwrap().into_inner();
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (1, 1));
    let again = server.kv().delete_range(named("a1", 2, delete)).await.unwrap().into_inner();
    assert_eq!(again, deleted, "as it was answered first");

    let grant = pb::LeaseGrantRequest { ttl: 60, id: 7 };
    server.lease().lease_grant(named("a1", 3, grant)).await.unwrap();
    server.lease().lease_grant(named("a1", 3, grant)).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_refused_may_be_asked_again_under_its_name() {
    let server = Server::start().await;
    let leased = pb::PutRequest { lease: 7, ..put("k", "1") };
    let refused = refusal(server.kv().put(named("a1", 1, leased.clone())).await);
    assert_eq!(refused.0, Code::NotFound);
    server.lease().lease_grant(pb::LeaseGrantRequest { ttl: 60, id: 7 }).await.unwrap();
    server.kv().put(named("a1", 1, leased)).await.unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_requests_under_one_name_and_names_that_are_none_are_refused() {
    let server = Server::start().await;
    server.kv().put(named("a1", 1, put("k", "1"))).await.unwrap();
    let (code, text) = refusal(server.kv().put(named("a1", 1, put("k", "2"))).await);
    assert!(
        code == Code::InvalidArgument && text.contains("request 1 of client a1 was another one"),
        "{text}"
    );
    let (code, text) = refusal(server.kv().put(named("xyz", 1, put("k", "2"))).await);
    assert!(code == Code::InvalidArgument && text.contains("expected 1 to 16 hex digits"), "{text}");
    assert_eq!(version(&server, "k").await, 1);
    server.stop().await;
}

/// Whichever server hears it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repetition_is_recognised_on_every_server() {
    let (first, second) = pair().await;
    for seq in 1..=10 {
        let one = first.kv().put(named("a1", seq, put("k", "1"))).await.unwrap().into_inner();
        let two = second.kv().put(named("a1", seq, put("k", "1"))).await.unwrap().into_inner();
        assert_eq!(one.header.unwrap().revision, two.header.unwrap().revision);
    }
    assert_eq!(version(&first, "k").await, 10);
    second.stop().await;
    first.stop().await;
}
