//! One call to one server, and what its failure means.

use std::error::Error;

use tonic::{Code, ConnectError, Status};
use weft_control_plane::api::etcd::status::DETAIL;

use weft_tests::checker::kv::{Answer, Call, Expect, KeyValue, Op, Seen};
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::kv_client::KvClient;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nothing was done: the server says so, or was not reached.
    Refused,
    /// It may have been done, or be done yet.
    Unknown,
}

impl From<Status> for Failure {
    /// Takes the server at its word where it says that nothing was written: that is then checked as well.
    fn from(status: Status) -> Self {
        let mut source = status.source();
        while let Some(error) = source {
            if error.is::<ConnectError>() {
                return Failure::Refused;
            }
            source = error.source();
        }
        let detail = status.metadata().get(DETAIL).and_then(|text| text.to_str().ok()).unwrap_or_default();
        let untouched = detail.starts_with("no quorum") || detail.contains("nothing was written");
        match status.code() {
            Code::Unavailable | Code::ResourceExhausted if untouched => Failure::Refused,
            Code::InvalidArgument | Code::OutOfRange | Code::NotFound | Code::FailedPrecondition => {
                Failure::Refused
            }
            _ => Failure::Unknown,
        }
    }
}

/// Carries a call out through the etcd API: single operations by their own methods, the rest as transactions.
pub(crate) async fn carry_out(
    client: &mut KvClient<tonic::transport::Channel>,
    call: &Call,
) -> Result<Answer, Failure> {
    if let (true, [op]) = (call.compares.is_empty(), &call.then[..]) {
        return single(client, op).await;
    }
    let request = pb::TxnRequest {
        compare: call.compares.iter().map(|(key, expect)| compare(key, expect)).collect(),
        success: call.then.iter().map(request_op).collect(),
        failure: call.otherwise.iter().map(request_op).collect(),
    };
    let response = client.txn(request).await?.into_inner();
    let seen = response.responses.iter().map(seen).collect::<Option<Vec<_>>>().ok_or(Failure::Unknown)?;
    Ok(Answer { revision: revision(response.header), succeeded: Some(response.succeeded), seen: Some(seen) })
}

async fn single(client: &mut KvClient<tonic::transport::Channel>, op: &Op) -> Result<Answer, Failure> {
    let (header, seen) = match op {
        Op::Get(key) => {
            let response = client.range(get(key)).await?.into_inner();
            (response.header, Seen::Got(response.kvs.first().map(key_value)))
        }
        Op::Put(key, value) => (client.put(put(key, value)).await?.into_inner().header, Seen::Put),
        Op::Delete(key) => {
            let response = client.delete_range(delete(key)).await?.into_inner();
            (response.header, Seen::Deleted(response.deleted))
        }
    };
    Ok(Answer { revision: revision(header), succeeded: Some(true), seen: Some(vec![seen]) })
}

fn revision(header: Option<pb::ResponseHeader>) -> Option<i64> {
    header.map(|header| header.revision)
}

fn get(key: &str) -> pb::RangeRequest {
    pb::RangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn put(key: &str, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..Default::default() }
}

fn delete(key: &str) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: key.to_owned().into(), ..Default::default() }
}

fn key_value(kv: &weft_xds_proto::mvccpb::KeyValue) -> KeyValue {
    KeyValue {
        value: String::from_utf8_lossy(&kv.value).into(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
    }
}

fn compare(key: &str, expect: &Expect) -> pb::Compare {
    use pb::compare::{CompareResult, CompareTarget, TargetUnion};
    let (target, union) = match expect {
        Expect::Value(value) => (CompareTarget::Value, TargetUnion::Value(value.to_string().into())),
        Expect::Version(version) => (CompareTarget::Version, TargetUnion::Version(*version)),
        Expect::CreateRevision(at) => (CompareTarget::Create, TargetUnion::CreateRevision(*at)),
        Expect::ModRevision(at) => (CompareTarget::Mod, TargetUnion::ModRevision(*at)),
    };
    pb::Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key: key.to_owned().into(),
        target_union: Some(union),
        ..Default::default()
    }
}

fn request_op(op: &Op) -> pb::RequestOp {
    use pb::request_op::Request;
    let request = match op {
        Op::Get(key) => Request::RequestRange(get(key)),
        Op::Put(key, value) => Request::RequestPut(put(key, value)),
        Op::Delete(key) => Request::RequestDeleteRange(delete(key)),
    };
    pb::RequestOp { request: Some(request) }
}

fn seen(response: &pb::ResponseOp) -> Option<Seen> {
    use pb::response_op::Response;
    match response.response.as_ref()? {
        Response::ResponseRange(range) => Some(Seen::Got(range.kvs.first().map(key_value))),
        Response::ResponsePut(_) => Some(Seen::Put),
        Response::ResponseDeleteRange(deleted) => Some(Seen::Deleted(deleted.deleted)),
        Response::ResponseTxn(_) => None,
    }
}
