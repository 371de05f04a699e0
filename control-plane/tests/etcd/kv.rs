use futures::StreamExt;
use tonic::Code;
use weft_control_plane::api::etcd::limits::{Limits, REQUEST_BYTES_MAX};
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::range_request::{SortOrder, SortTarget};

use super::server::{ID, Server, one, put, range, refusal};

#[tokio::test]
async fn every_answer_has_a_full_header() {
    let server = Server::start().await;
    let header = server.kv().put(put("a", "1")).await.unwrap().into_inner().header.unwrap();
    assert_eq!((header.member_id, header.revision), (ID.0, 2));
    assert!(header.cluster_id > 0 && header.raft_term > 0);
    let read = server.kv().range(one("a")).await.unwrap().into_inner().header.unwrap();
    assert_eq!(read, header);
    server.stop().await;
}

#[tokio::test]
async fn revisions_and_versions_count_as_in_etcd() {
    let server = Server::start().await;
    let empty = server.kv().range(one("a")).await.unwrap().into_inner();
    assert_eq!((empty.header.unwrap().revision, empty.count), (1, 0));
    assert_eq!(server.put("a", "1").await, 2);
    assert_eq!(server.put("a", "2").await, 3);
    assert_eq!(server.delete("nothing").await, 3);
    assert_eq!(server.delete("a").await, 4);
    assert_eq!(server.put("a", "3").await, 5);
    let kv = server.kv().range(one("a")).await.unwrap().into_inner().kvs.remove(0);
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (5, 5, 1));
    let old = pb::RangeRequest { revision: 3, ..one("a") };
    let old = server.kv().range(old).await.unwrap().into_inner();
    assert_eq!((old.kvs[0].value.as_ref(), old.kvs[0].version), (&b"2"[..], 2));
    assert_eq!(old.header.unwrap().revision, 5);
    server.stop().await;
}

#[tokio::test]
async fn previous_values_are_answered_when_asked_for() {
    let server = Server::start().await;
    server.put("a", "1").await;
    let again = pb::PutRequest { prev_kv: true, ..put("a", "2") };
    let previous = server.kv().put(again).await.unwrap().into_inner().prev_kv.unwrap();
    assert_eq!(previous.value, "1");
    let delete = pb::DeleteRangeRequest { key: "a".into(), prev_kv: true, ..Default::default() };
    let deleted = server.kv().delete_range(delete).await.unwrap().into_inner();
    assert_eq!((deleted.deleted, deleted.prev_kvs[0].value.as_ref()), (1, &b"2"[..]));
    server.stop().await;
}

#[tokio::test]
async fn ranges_filter_sort_limit_and_count() {
    let server = Server::start().await;
    for (key, value) in [("a", "3"), ("b", "1"), ("c", "2"), ("b", "0")] {
        server.put(key, value).await;
    }
    let keys = |request: pb::RangeRequest| {
        let mut kv = server.kv();
        async move {
            let response = kv.range(request).await.unwrap().into_inner();
            let keys: Vec<_> =
                response.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()).collect();
            (keys.concat(), response.more, response.count)
        }
    };
    let all = || range("\0", "\0");
    assert_eq!(keys(all()).await, ("abc".into(), false, 3));
    assert_eq!(keys(range("b", "\0")).await, ("bc".into(), false, 2));
    assert_eq!(keys(range("c", "a")).await, ("".into(), false, 0));
    assert_eq!(keys(pb::RangeRequest { limit: 2, ..all() }).await, ("ab".into(), true, 3));
    let by_value = pb::RangeRequest { sort_target: SortTarget::Value as i32, limit: 2, ..all() };
    assert_eq!(keys(by_value).await, ("bc".into(), true, 3));
    let down = pb::RangeRequest { sort_order: SortOrder::Descend as i32, ..all() };
    assert_eq!(keys(down).await, ("cba".into(), false, 3));
    assert_eq!(keys(pb::RangeRequest { min_mod_revision: 4, ..all() }).await.0, "bc");
    assert_eq!(keys(pb::RangeRequest { max_create_revision: 3, ..all() }).await.0, "ab");
    assert_eq!(keys(pb::RangeRequest { count_only: true, ..all() }).await, ("".into(), false, 3));
    let keys_only = pb::RangeRequest { keys_only: true, ..one("a") };
    assert!(server.kv().range(keys_only).await.unwrap().into_inner().kvs[0].value.is_empty());
    server.stop().await;
}

#[tokio::test]
async fn refusals_have_etcds_codes_and_texts() {
    let server = Server::start().await;
    server.put("a", "1").await;
    server.put("a", "2").await;
    server.compact(3).await;
    let invalid = |text: &str| (Code::InvalidArgument, format!("etcdserver: {text}"));
    let mut kv = server.kv();
    assert_eq!(refusal(kv.put(put("", "1")).await), invalid("key is not provided"));
    assert_eq!(refusal(kv.range(one("")).await), invalid("key is not provided"));
    assert_eq!(
        refusal(kv.range(pb::RangeRequest { sort_order: 7, ..one("a") }).await),
        invalid("invalid sort option")
    );
    assert_eq!(
        refusal(kv.range(pb::RangeRequest { revision: 2, ..one("a") }).await),
        (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted".into())
    );
    assert_eq!(
        refusal(kv.range(pb::RangeRequest { revision: 4, ..one("a") }).await),
        (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision".into())
    );
    assert_eq!(
        refusal(kv.compact(pb::CompactionRequest { revision: 3, physical: false }).await),
        (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted".into())
    );
    assert_eq!(
        refusal(kv.compact(pb::CompactionRequest { revision: 9, physical: false }).await),
        (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision".into())
    );
    assert_eq!(
        refusal(kv.put(pb::PutRequest { lease: 77, ..put("a", "1") }).await),
        (Code::NotFound, "etcdserver: requested lease not found".into())
    );
    let ignoring = pb::PutRequest { key: "new".into(), ignore_value: true, ..Default::default() };
    assert_eq!(refusal(kv.put(ignoring).await), invalid("key not found"));
    assert_eq!(
        refusal(kv.put(put("weft/lock/x", "mine")).await),
        (
            Code::PermissionDenied,
            "etcdserver: permission denied: keys under weft/ are written by Weft's own APIs only".into()
        )
    );
    let large = put("a", &"x".repeat(REQUEST_BYTES_MAX));
    assert_eq!(refusal(kv.put(large).await), invalid("request is too large"));
    let unchanged = kv.range(one("a")).await.unwrap().into_inner();
    assert_eq!((unchanged.header.unwrap().revision, unchanged.kvs[0].value.as_ref()), (3, &b"2"[..]));
    server.stop().await;
}

/// A11 and A10 seen from one client: what it has read once it never unreads.
#[tokio::test]
async fn a_read_after_an_acknowledged_write_shows_it() {
    let server = Server::start().await;
    for n in 0..50 {
        let revision = server.put("a", &n.to_string()).await;
        let read = server.kv().range(one("a")).await.unwrap().into_inner();
        assert_eq!(read.kvs[0].mod_revision, revision);
        let serializable = pb::RangeRequest { serializable: true, ..one("a") };
        let read = server.kv().range(serializable).await.unwrap().into_inner();
        assert_eq!(read.kvs[0].mod_revision, revision);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_streamed_range_put_together_is_the_range() {
    let limits = Limits { range_chunk_bytes: 64, range_page_keys: 7, ..Limits::default() };
    let server = Server::start_with(limits).await;
    for n in 0..40 {
        server.put(&format!("k{n:02}"), "0123456789").await;
    }
    let requests = [
        range("k", "l"),
        pb::RangeRequest { limit: 11, ..range("k", "l") },
        pb::RangeRequest { sort_order: SortOrder::Descend as i32, ..range("k", "l") },
        pb::RangeRequest { count_only: true, ..range("k", "l") },
        one("nothing"),
    ];
    for request in requests {
        let whole = server.kv().range(request.clone()).await.unwrap().into_inner();
        let chunks: Vec<_> = server.kv().range_stream(request).await.unwrap().into_inner().collect().await;
        let chunks: Vec<_> = chunks.into_iter().map(|chunk| chunk.unwrap().range_response.unwrap()).collect();
        let (last, before) = chunks.split_last().unwrap();
        for chunk in before {
            assert!(chunk.header.is_none() && !chunk.more && chunk.count == 0);
            let bytes: usize = chunk.kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
            assert!((64..80).contains(&bytes), "{bytes} bytes in a chunk of 64");
        }
        assert_eq!((last.header, last.more, last.count), (whole.header, whole.more, whole.count));
        let kvs: Vec<_> = chunks.iter().flat_map(|chunk| chunk.kvs.clone()).collect();
        assert_eq!(kvs, whole.kvs);
    }
    let refused = server.kv().range_stream(pb::RangeRequest { revision: 999, ..range("k", "l") }).await;
    assert_eq!(refused.expect_err("refused before the stream starts").code(), Code::OutOfRange);
    server.stop().await;
}

#[tokio::test]
async fn a_request_that_needs_a_leader_is_served_when_there_is_one() {
    let server = Server::start().await;
    let mut request = tonic::Request::new(one("a"));
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    assert!(server.kv().range(request).await.is_ok());
    server.stop().await;
}
