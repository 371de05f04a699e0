use tonic::Code;
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use weft_xds_proto::etcdserverpb::request_op::Request as Op;
use weft_xds_proto::etcdserverpb::response_op::Response as Reply;

use super::server::{Server, one, put, range, refusal};

fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn put_op(key: &str, value: &str) -> pb::RequestOp {
    op(Op::RequestPut(put(key, value)))
}

fn range_op(key: &str) -> pb::RequestOp {
    op(Op::RequestRange(one(key)))
}

fn delete_op(key: &str, end: &str) -> pb::RequestOp {
    let (key, range_end) = (key.to_owned().into(), end.to_owned().into());
    op(Op::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end, ..Default::default() }))
}

fn absent(key: &str) -> pb::Compare {
    pb::Compare {
        key: key.to_owned().into(),
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        target_union: Some(TargetUnion::CreateRevision(0)),
        ..Default::default()
    }
}

#[tokio::test]
async fn later_operations_see_earlier_ones_and_all_are_one_revision() {
    let server = Server::start().await;
    let request = pb::TxnRequest {
        compare: vec![absent("a")],
        success: vec![put_op("a", "1"), range_op("a"), put_op("b", "2"), delete_op("zzz", "")],
        failure: vec![],
    };
    let response = server.kv().txn(request.clone()).await.unwrap().into_inner();
    assert!(response.succeeded);
    assert_eq!(response.header.unwrap().revision, 2);
    let Some(Reply::ResponseRange(seen)) = &response.responses[1].response else { panic!() };
    assert_eq!((seen.kvs[0].value.as_ref(), seen.kvs[0].mod_revision), (&b"1"[..], 2));
    let both = server.kv().range(range("\0", "\0")).await.unwrap().into_inner();
    assert!(both.kvs.iter().all(|kv| kv.mod_revision == 2));
    let again = server.kv().txn(request).await.unwrap().into_inner();
    assert!(!again.succeeded && again.responses.is_empty());
    assert_eq!(again.header.unwrap().revision, 2);
    server.stop().await;
}

#[tokio::test]
async fn nested_transactions_run_where_they_stand() {
    let server = Server::start().await;
    let inner = pb::TxnRequest {
        compare: vec![absent("b")],
        success: vec![put_op("b", "inner")],
        failure: vec![put_op("c", "never")],
    };
    let request = pb::TxnRequest {
        success: vec![put_op("a", "outer"), op(Op::RequestTxn(inner))],
        ..Default::default()
    };
    let response = server.kv().txn(request).await.unwrap().into_inner();
    let Some(Reply::ResponseTxn(inner)) = &response.responses[1].response else { panic!() };
    assert!(inner.succeeded);
    let all = server.kv().range(range("\0", "\0")).await.unwrap().into_inner();
    assert_eq!(all.kvs.iter().map(|kv| kv.key.clone()).collect::<Vec<_>>(), ["a", "b"]);
    server.stop().await;
}

#[tokio::test]
async fn a_read_only_transaction_adds_nothing_to_the_log() {
    let server = Server::start().await;
    server.put("a", "1").await;
    let request = pb::TxnRequest {
        compare: vec![absent("a")],
        success: vec![],
        failure: vec![range_op("a"), op(Op::RequestTxn(pb::TxnRequest::default()))],
    };
    let before = server.coordinator.status().last_log;
    let response = server.kv().txn(request).await.unwrap().into_inner();
    assert!(!response.succeeded);
    assert_eq!((response.header.unwrap().revision, response.responses.len()), (2, 2));
    assert_eq!(server.coordinator.status().last_log, before);
    server.stop().await;
}

#[tokio::test]
async fn refused_transactions_change_nothing() {
    let server = Server::start().await;
    let txn = |success| pb::TxnRequest { success, ..Default::default() };
    let invalid = |text: &str| (Code::InvalidArgument, format!("etcdserver: {text}"));
    let mut kv = server.kv();
    assert_eq!(
        refusal(kv.txn(txn(vec![put_op("a", "1"), put_op("a", "2")])).await),
        invalid("duplicate key given in txn request")
    );
    assert_eq!(
        refusal(kv.txn(txn(vec![put_op("b", "1"), delete_op("a", "c")])).await),
        invalid("duplicate key given in txn request")
    );
    assert_eq!(
        refusal(kv.txn(txn((0..129).map(|n| put_op(&n.to_string(), "")).collect())).await),
        invalid("too many operations in txn request")
    );
    // Refused while it runs: the first put is undone, that is, never done.
    let future = op(Op::RequestRange(pb::RangeRequest { revision: 99, ..one("a") }));
    assert_eq!(refusal(kv.txn(txn(vec![put_op("a", "1"), future])).await).0, Code::OutOfRange);
    let leased = op(Op::RequestPut(pb::PutRequest { lease: 5, ..put("b", "1") }));
    assert_eq!(refusal(kv.txn(txn(vec![put_op("a", "1"), leased])).await).0, Code::NotFound);
    assert_eq!(refusal(kv.txn(txn(vec![put_op("weft/x", "1")])).await).0, Code::PermissionDenied);
    let all = kv.range(range("\0", "\0")).await.unwrap().into_inner();
    assert_eq!((all.count, all.header.unwrap().revision), (0, 1));
    server.stop().await;
}
