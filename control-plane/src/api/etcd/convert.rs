//! Requests into commands, checked on the way, and answers into messages.
//!
//! Parse, don't validate: what comes out of here needs no further check before it is proposed. Keys and
//! values stay the `Bytes` of the received frame; nothing is copied.

use prost::Message;
use weft_state::command::{self, Compare, CompareOp, CompareTarget, SortOrder, SortTarget, TxnOp};
use weft_state::error::StoreError;
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::mvccpb;

use super::limits::{REQUEST_BYTES_MAX, TXN_OPS_MAX};
use super::status::RequestError;
use super::txn_keys;

/// Refuses a write request that is too large for the log.
pub fn check_size(request: &impl Message) -> Result<(), RequestError> {
    let seen = request.encoded_len();
    if seen > REQUEST_BYTES_MAX {
        return Err(RequestError::TooLarge { seen, limit: REQUEST_BYTES_MAX });
    }
    Ok(())
}

/// A range request. `serializable` is the caller's business: it says how to read, not what.
pub fn range(request: pb::RangeRequest) -> Result<command::Range, RequestError> {
    if request.key.is_empty() {
        return Err(StoreError::EmptyKey.into());
    }
    let sort = sort(request.sort_order, request.sort_target)?;
    Ok(command::Range {
        key: request.key,
        range_end: request.range_end,
        limit: request.limit.max(0),
        revision: request.revision.max(0),
        sort,
        keys_only: request.keys_only,
        count_only: request.count_only,
        min_mod_revision: request.min_mod_revision,
        max_mod_revision: request.max_mod_revision,
        min_create_revision: request.min_create_revision,
        max_create_revision: request.max_create_revision,
    })
}

/// Order NONE with a target other than the key means ascending, as in etcd. Ascending by key is the order
/// of the store itself, so it is no sort at all.
fn sort(order: i32, target: i32) -> Result<Option<(SortTarget, SortOrder)>, RequestError> {
    use pb::range_request::{SortOrder as Order, SortTarget as Target};
    let unknown = || RequestError::InvalidSort { order, target };
    let by = match Target::try_from(target).map_err(|_| unknown())? {
        Target::Key => SortTarget::Key,
        Target::Version => SortTarget::Version,
        Target::Create => SortTarget::Create,
        Target::Mod => SortTarget::Mod,
        Target::Value => SortTarget::Value,
    };
    let order = match Order::try_from(order).map_err(|_| unknown())? {
        Order::None | Order::Ascend => SortOrder::Ascend,
        Order::Descend => SortOrder::Descend,
    };
    Ok(match (by, order) {
        (SortTarget::Key, SortOrder::Ascend) => None,
        sort => Some(sort),
    })
}

/// A put request.
pub fn put(request: pb::PutRequest) -> Result<command::Put, RequestError> {
    if request.key.is_empty() {
        return Err(StoreError::EmptyKey.into());
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(StoreError::ValueProvided.into());
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(StoreError::LeaseProvided.into());
    }
    Ok(command::Put {
        key: request.key,
        value: request.value,
        lease: request.lease,
        prev_kv: request.prev_kv,
        ignore_value: request.ignore_value,
        ignore_lease: request.ignore_lease,
    })
}

/// A delete request.
pub fn delete_range(request: pb::DeleteRangeRequest) -> Result<command::DeleteRange, RequestError> {
    if request.key.is_empty() {
        return Err(StoreError::EmptyKey.into());
    }
    Ok(command::DeleteRange { key: request.key, range_end: request.range_end, prev_kv: request.prev_kv })
}

/// A transaction, with everything nested in it.
pub fn txn(request: pb::TxnRequest) -> Result<command::Txn, RequestError> {
    let txn = txn_within(request, TXN_OPS_MAX)?;
    txn_keys::check(&txn)?;
    Ok(txn)
}

/// A nested transaction has the budget that its surroundings leave: etcd counts the longest of the three
/// lists at each level.
fn txn_within(request: pb::TxnRequest, budget: usize) -> Result<command::Txn, RequestError> {
    let seen = request.compare.len().max(request.success.len()).max(request.failure.len());
    if seen > budget {
        let spent = TXN_OPS_MAX - budget;
        let (seen, limit) = ((seen + spent) as u64, TXN_OPS_MAX as u64);
        return Err(StoreError::TooManyOps { seen, limit }.into());
    }
    let left = budget - seen;
    let ops = |ops: Vec<pb::RequestOp>| -> Result<Vec<TxnOp>, RequestError> {
        ops.into_iter().map(|op| txn_op(op, left)).collect()
    };
    Ok(command::Txn {
        compare: request.compare.into_iter().map(compare).collect::<Result<_, _>>()?,
        success: ops(request.success)?,
        failure: ops(request.failure)?,
    })
}

fn txn_op(op: pb::RequestOp, budget: usize) -> Result<TxnOp, RequestError> {
    use pb::request_op::Request;
    Ok(match op.request {
        Some(Request::RequestRange(request)) => TxnOp::Range(range(request)?),
        Some(Request::RequestPut(request)) => TxnOp::Put(put(request)?),
        Some(Request::RequestDeleteRange(request)) => TxnOp::DeleteRange(delete_range(request)?),
        Some(Request::RequestTxn(request)) => TxnOp::Txn(txn_within(request, budget)?),
        // etcd's answer to an operation without content.
        None => return Err(StoreError::KeyNotFound.into()),
    })
}

fn compare(request: pb::Compare) -> Result<Compare, RequestError> {
    use pb::compare::{CompareResult, CompareTarget as Target, TargetUnion as Union};
    if request.key.is_empty() {
        return Err(StoreError::EmptyKey.into());
    }
    let op = match CompareResult::try_from(request.result) {
        Ok(CompareResult::Equal) => CompareOp::Equal,
        Ok(CompareResult::Greater) => CompareOp::Greater,
        Ok(CompareResult::Less) => CompareOp::Less,
        Ok(CompareResult::NotEqual) => CompareOp::NotEqual,
        Err(_) => {
            return Err(RequestError::UnknownValue {
                field: "compare result",
                seen: request.result,
                allowed: "0 EQUAL, 1 GREATER, 2 LESS, 3 NOT_EQUAL",
            });
        }
    };
    let target = Target::try_from(request.target).map_err(|_| RequestError::UnknownValue {
        field: "compare target",
        seen: request.target,
        allowed: "0 VERSION, 1 CREATE, 2 MOD, 3 VALUE, 4 LEASE",
    })?;
    // A union that is absent means zero, since proto3 clients may leave zeros out.
    let target = match (target, request.target_union) {
        (Target::Version, None) => CompareTarget::Version(0),
        (Target::Version, Some(Union::Version(n))) => CompareTarget::Version(n),
        (Target::Create, None) => CompareTarget::CreateRevision(0),
        (Target::Create, Some(Union::CreateRevision(n))) => CompareTarget::CreateRevision(n),
        (Target::Mod, None) => CompareTarget::ModRevision(0),
        (Target::Mod, Some(Union::ModRevision(n))) => CompareTarget::ModRevision(n),
        (Target::Value, None) => CompareTarget::Value(Default::default()),
        (Target::Value, Some(Union::Value(bytes))) => CompareTarget::Value(bytes),
        (Target::Lease, None) => CompareTarget::Lease(0),
        (Target::Lease, Some(Union::Lease(id))) => CompareTarget::Lease(id),
        (target, Some(union)) => {
            return Err(RequestError::CompareMismatch {
                target: target.as_str_name(),
                union: match union {
                    Union::Version(_) => "version",
                    Union::CreateRevision(_) => "create_revision",
                    Union::ModRevision(_) => "mod_revision",
                    Union::Value(_) => "value",
                    Union::Lease(_) => "lease",
                },
            });
        }
    };
    Ok(Compare { key: request.key, range_end: request.range_end, op, target })
}

/// Whether every range anywhere in a transaction may be served without asking the group. A transaction
/// without ranges is not: its compares are worth a linearizable read.
pub fn is_serializable(request: &pb::TxnRequest) -> bool {
    use pb::request_op::Request;
    let mut ranges = request.success.iter().chain(&request.failure).peekable();
    ranges.peek().is_some()
        && ranges.all(|op| match &op.request {
            Some(Request::RequestRange(range)) => range.serializable,
            Some(Request::RequestTxn(txn)) => is_serializable(txn),
            _ => false,
        })
}

/// A stored key as a message.
pub fn key_value(kv: command::KeyValue) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

/// Many stored keys.
pub fn key_values(kvs: Vec<command::KeyValue>) -> Vec<mvccpb::KeyValue> {
    kvs.into_iter().map(key_value).collect()
}

/// An event as a message. It has a previous value only if its receivers asked for one.
pub fn event(event: &command::Event) -> mvccpb::Event {
    let kind = match event.kind {
        command::EventKind::Put => mvccpb::event::EventType::Put,
        command::EventKind::Delete => mvccpb::event::EventType::Delete,
    };
    mvccpb::Event {
        r#type: kind as i32,
        kv: Some(key_value(event.kv.clone())),
        prev_kv: event.prev_kv.clone().map(key_value),
    }
}

/// The answer to a range.
pub fn range_response(
    response: command::RangeResponse,
    header: Option<pb::ResponseHeader>,
) -> pb::RangeResponse {
    pb::RangeResponse { header, kvs: key_values(response.kvs), more: response.more, count: response.count }
}

/// The answer to a transaction. etcd gives the answers inside it a header with the revision alone.
pub fn txn_response(response: command::TxnResponse, header: pb::ResponseHeader) -> pb::TxnResponse {
    let inner = || pb::ResponseHeader { revision: header.revision, ..Default::default() };
    pb::TxnResponse {
        succeeded: response.succeeded,
        responses: response.responses.into_iter().map(|op| op_response(op, inner())).collect(),
        header: Some(header),
    }
}

fn op_response(response: command::TxnOpResponse, header: pb::ResponseHeader) -> pb::ResponseOp {
    use command::TxnOpResponse as From;
    use pb::response_op::Response as To;
    let response = match response {
        From::Range(range) => To::ResponseRange(range_response(range, Some(header))),
        From::Put { prev_kv } => {
            To::ResponsePut(pb::PutResponse { header: Some(header), prev_kv: prev_kv.map(key_value) })
        }
        From::DeleteRange { deleted, prev_kvs } => To::ResponseDeleteRange(pb::DeleteRangeResponse {
            header: Some(header),
            deleted,
            prev_kvs: key_values(prev_kvs),
        }),
        From::Txn(txn) => To::ResponseTxn(txn_response(txn, header)),
    };
    pb::ResponseOp { response: Some(response) }
}

#[cfg(test)]
mod tests;
