use bytes::Bytes;
use weft_state::command::CompareOp;

use super::*;

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn put_op(key: &'static str) -> pb::RequestOp {
    let put = pb::PutRequest { key: bytes(key), ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) }
}

fn range_op(key: &'static str, serializable: bool) -> pb::RequestOp {
    let range = pb::RangeRequest { key: bytes(key), serializable, ..Default::default() };
    pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(range)) }
}

fn txn_of(success: Vec<pb::RequestOp>) -> pb::TxnRequest {
    pb::TxnRequest { success, ..Default::default() }
}

fn nested(txn: pb::TxnRequest) -> pb::RequestOp {
    pb::RequestOp { request: Some(pb::request_op::Request::RequestTxn(txn)) }
}

fn store_error<T>(result: Result<T, RequestError>) -> StoreError {
    match result.err().expect("refused") {
        RequestError::Store(error) => error,
        other => panic!("another refusal: {other}"),
    }
}

#[test]
fn empty_keys_are_refused_wherever_they_stand() {
    assert_eq!(store_error(range(pb::RangeRequest::default())), StoreError::EmptyKey);
    assert_eq!(store_error(put(pb::PutRequest::default())), StoreError::EmptyKey);
    assert_eq!(store_error(delete_range(pb::DeleteRangeRequest::default())), StoreError::EmptyKey);
    assert_eq!(store_error(txn(txn_of(vec![put_op("")]))), StoreError::EmptyKey);
    assert_eq!(
        store_error(txn(txn_of(vec![nested(txn_of(vec![range_op("", false)]))]))),
        StoreError::EmptyKey
    );
    let without_key = pb::TxnRequest { compare: vec![pb::Compare::default()], ..Default::default() };
    assert_eq!(store_error(txn(without_key)), StoreError::EmptyKey);
}

#[test]
fn a_put_that_ignores_a_part_may_not_give_it() {
    let request =
        pb::PutRequest { key: bytes("a"), value: bytes("1"), ignore_value: true, ..Default::default() };
    assert_eq!(store_error(put(request)), StoreError::ValueProvided);
    let request = pb::PutRequest { key: bytes("a"), lease: 1, ignore_lease: true, ..Default::default() };
    assert_eq!(store_error(put(request)), StoreError::LeaseProvided);
}

#[test]
fn a_sort_target_without_an_order_is_ascending_and_key_order_is_no_sort() {
    use pb::range_request::{SortOrder as Order, SortTarget as Target};
    let sorted = |order: i32, target: i32| {
        range(pb::RangeRequest {
            key: bytes("a"),
            sort_order: order,
            sort_target: target,
            ..Default::default()
        })
        .map(|range| range.sort)
    };
    assert_eq!(sorted(Order::None as i32, Target::Key as i32), Ok(None));
    assert_eq!(sorted(Order::Ascend as i32, Target::Key as i32), Ok(None));
    assert_eq!(
        sorted(Order::None as i32, Target::Mod as i32),
        Ok(Some((SortTarget::Mod, SortOrder::Ascend)))
    );
    assert_eq!(
        sorted(Order::Descend as i32, Target::Value as i32),
        Ok(Some((SortTarget::Value, SortOrder::Descend)))
    );
    assert_eq!(sorted(3, 0), Err(RequestError::InvalidSort { order: 3, target: 0 }));
    assert_eq!(sorted(0, -1), Err(RequestError::InvalidSort { order: 0, target: -1 }));
}

#[test]
fn negative_limits_and_revisions_mean_none() {
    let request = pb::RangeRequest { key: bytes("a"), limit: -5, revision: -1, ..Default::default() };
    let range = range(request).unwrap();
    assert_eq!((range.limit, range.revision), (0, 0));
}

#[test]
fn a_transaction_has_at_most_128_operations_and_nesting_spends_them() {
    let ranges = |n: usize| (0..n).map(|_| range_op("a", false)).collect::<Vec<_>>();
    assert!(txn(txn_of(ranges(128))).is_ok());
    assert_eq!(store_error(txn(txn_of(ranges(129)))), StoreError::TooManyOps { seen: 129, limit: 128 });
    assert!(txn(txn_of(vec![nested(txn_of(ranges(127)))])).is_ok());
    let deeper = txn_of(vec![nested(txn_of(ranges(128)))]);
    assert_eq!(store_error(txn(deeper)), StoreError::TooManyOps { seen: 129, limit: 128 });
    // Compares and both branches are counted one by one, not added up.
    let wide = pb::TxnRequest { success: ranges(128), failure: ranges(128), ..Default::default() };
    assert!(txn(wide).is_ok());
}

#[test]
fn a_key_may_be_changed_once_in_a_transaction() {
    assert_eq!(store_error(txn(txn_of(vec![put_op("a"), put_op("a")]))), StoreError::DuplicateKey);
    let both =
        pb::TxnRequest { success: vec![put_op("a")], failure: vec![put_op("a")], ..Default::default() };
    assert!(txn(both).is_ok());
}

#[test]
fn an_operation_without_content_is_refused_as_etcd_does() {
    assert_eq!(store_error(txn(txn_of(vec![pb::RequestOp::default()]))), StoreError::KeyNotFound);
}

#[test]
fn compares_are_read_by_target_and_an_absent_value_is_zero() {
    use pb::compare::{CompareResult, CompareTarget as Target, TargetUnion as Union};
    let read = |result: i32, target: i32, target_union: Option<Union>| {
        compare(pb::Compare { key: bytes("a"), result, target, target_union, ..Default::default() })
            .map(|compare| (compare.op, compare.target))
    };
    assert_eq!(
        read(CompareResult::Less as i32, Target::Mod as i32, Some(Union::ModRevision(7))),
        Ok((CompareOp::Less, CompareTarget::ModRevision(7)))
    );
    assert_eq!(
        read(CompareResult::Equal as i32, Target::Create as i32, None),
        Ok((CompareOp::Equal, CompareTarget::CreateRevision(0)))
    );
    assert_eq!(
        read(0, Target::Version as i32, Some(Union::Lease(1))),
        Err(RequestError::CompareMismatch { target: "VERSION", union: "lease" })
    );
    assert!(matches!(read(9, 0, None), Err(RequestError::UnknownValue { seen: 9, .. })));
    assert!(matches!(read(0, 9, None), Err(RequestError::UnknownValue { seen: 9, .. })));
}

#[test]
fn a_write_is_refused_just_above_the_limit() {
    let sized =
        |value: usize| pb::PutRequest { key: bytes("a"), value: vec![0; value].into(), ..Default::default() };
    let overhead = sized(REQUEST_BYTES_MAX / 2).encoded_len() - REQUEST_BYTES_MAX / 2;
    assert_eq!(check_size(&sized(REQUEST_BYTES_MAX - overhead)), Ok(()));
    let refused = RequestError::TooLarge { seen: REQUEST_BYTES_MAX + 1, limit: REQUEST_BYTES_MAX };
    assert_eq!(check_size(&sized(REQUEST_BYTES_MAX - overhead + 1)), Err(refused));
}

#[test]
fn a_transaction_is_serializable_only_if_every_range_in_it_is() {
    assert!(is_serializable(&txn_of(vec![range_op("a", true), nested(txn_of(vec![range_op("b", true)]))])));
    assert!(!is_serializable(&txn_of(vec![range_op("a", true), range_op("b", false)])));
    assert!(!is_serializable(&txn_of(vec![nested(txn_of(vec![]))])));
    assert!(!is_serializable(&pb::TxnRequest::default()));
}

#[test]
fn a_delete_event_carries_key_and_revision_alone() {
    let kv = command::KeyValue { key: bytes("a"), mod_revision: 9, ..Default::default() };
    let before =
        command::KeyValue { key: bytes("a"), value: bytes("1"), mod_revision: 8, ..Default::default() };
    let deleted = command::Event { kind: command::EventKind::Delete, kv, prev_kv: Some(before) };
    let message = event(&deleted);
    assert_eq!(message.r#type(), mvccpb::event::EventType::Delete);
    assert_eq!(message.kv, Some(mvccpb::KeyValue { key: bytes("a"), mod_revision: 9, ..Default::default() }));
    assert_eq!(message.prev_kv.unwrap().value, "1");
}

#[test]
fn answers_inside_a_transaction_carry_its_revision() {
    let response = command::TxnResponse {
        succeeded: true,
        responses: vec![command::TxnOpResponse::Txn(command::TxnResponse {
            succeeded: false,
            responses: vec![command::TxnOpResponse::Put { prev_kv: None }],
        })],
    };
    let header = pb::ResponseHeader { cluster_id: 1, member_id: 2, revision: 3, raft_term: 4 };
    let message = txn_response(response, header);
    assert_eq!(message.header, Some(header));
    let Some(pb::response_op::Response::ResponseTxn(inner)) = &message.responses[0].response else {
        panic!()
    };
    assert_eq!(inner.header.map(|header| (header.revision, header.raft_term)), Some((3, 0)));
    assert!(!inner.succeeded);
}
