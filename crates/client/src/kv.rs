//! Keys and values: get and range, put, delete, transactions.

use bytes::Bytes;
use weft_xds_proto::etcdserverpb as pb;
use weft_xds_proto::etcdserverpb::kv_client::KvClient;
use weft_xds_proto::mvccpb;

use crate::client::{Client, Repeat};
use crate::endpoint::MESSAGE_BYTES_MAX;
use crate::error::Error;

/// A stored key with its value.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeyValue {
    /// 1 byte or more.
    pub key: Bytes,
    /// Any bytes; empty when only keys were asked for.
    pub value: Bytes,
    /// Revision of the put that created it.
    pub create_revision: i64,
    /// Revision of the last put.
    pub mod_revision: i64,
    /// Puts since it was created, from 1.
    pub version: i64,
    /// The lease it is attached to; 0 if none.
    pub lease: i64,
}

impl From<mvccpb::KeyValue> for KeyValue {
    fn from(kv: mvccpb::KeyValue) -> Self {
        Self {
            key: kv.key,
            value: kv.value,
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
        }
    }
}

/// Which keys are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRange {
    /// First key.
    pub(crate) key: Bytes,
    /// End, exclusive, in etcd's conventions; empty for one key.
    pub(crate) end: Bytes,
}

impl KeyRange {
    /// One key.
    pub fn key(key: impl Into<Bytes>) -> Self {
        Self { key: key.into(), end: Bytes::new() }
    }

    /// `[start, end)`.
    pub fn between(start: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self { key: first(start.into()), end: end.into() }
    }

    /// All keys from `start` on.
    pub fn from(start: impl Into<Bytes>) -> Self {
        Self { key: first(start.into()), end: Bytes::from_static(b"\0") }
    }

    /// All keys that begin with `prefix`; an empty one means all keys.
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let prefix: Bytes = prefix.into();
        let mut end = prefix.to_vec();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return Self { key: first(prefix), end: end.into() };
            }
        }
        // Empty, or all bytes 0xff: nothing sorts after the prefix's keys.
        Self::from(prefix)
    }

    /// Whether it can only match one key.
    pub fn is_single(&self) -> bool {
        self.end.is_empty()
    }
}

impl<T: Into<Bytes>> From<T> for KeyRange {
    fn from(key: T) -> Self {
        Self::key(key)
    }
}

/// On the wire an empty first key would be "no key"; the smallest key is one zero byte.
fn first(key: Bytes) -> Bytes {
    if key.is_empty() { Bytes::from_static(b"\0") } else { key }
}

/// What a range is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum SortBy {
    #[default]
    Key,
    Version,
    Create,
    Mod,
    Value,
}

/// How to read a range. The default is a linearizable read of the present values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GetOptions {
    /// Read as of this revision; 0 is the current one.
    pub revision: i64,
    /// Most key-values to answer; 0 is no limit.
    pub limit: i64,
    /// None keeps key order.
    pub sort_by: Option<SortBy>,
    /// Largest first.
    pub descending: bool,
    /// Leave values out.
    pub keys_only: bool,
    /// Answer only how many match.
    pub count_only: bool,
    /// Let the asked server answer from what it has, which may be stale; works without a quorum.
    pub serializable: bool,
}

/// Answer to a get.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GetResponse {
    /// The store's revision when it was read. A watch from `revision + 1` misses nothing.
    pub revision: i64,
    /// What was found, sorted as asked.
    pub kvs: Vec<KeyValue>,
    /// How many keys are in the range, whatever the limit.
    pub count: i64,
    /// More matched than the limit.
    pub more: bool,
}

/// How to put.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutOptions {
    /// Attach to this lease; 0 for none.
    pub lease: i64,
    /// Answer the previous key-value.
    pub prev_kv: bool,
}

/// Answer to a put.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutResponse {
    /// Revision of this put.
    pub revision: i64,
    /// If asked for and there was one.
    pub prev_kv: Option<KeyValue>,
}

/// Answer to a delete.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeleteResponse {
    /// The store's revision after it.
    pub revision: i64,
    /// Keys removed.
    pub deleted: i64,
    /// If asked for.
    pub prev_kvs: Vec<KeyValue>,
}

/// How a stored property relates to the given one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CompareOp {
    Equal,
    NotEqual,
    Greater,
    Less,
}

/// The property compared, with what it is compared to. A missing key has zeros and no value.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CompareTarget {
    Version(i64),
    CreateRevision(i64),
    ModRevision(i64),
    Value(Bytes),
    Lease(i64),
}

/// One condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key, or keys of which each must satisfy it.
    pub range: KeyRange,
    /// `stored <op> given`.
    pub op: CompareOp,
    /// What is compared.
    pub target: CompareTarget,
}

/// One operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOp {
    /// Read.
    Get(KeyRange, GetOptions),
    /// Store `(key, value)`.
    Put(Bytes, Bytes, PutOptions),
    /// Delete; `true` answers what was deleted.
    Delete(KeyRange, bool),
}

/// If all compares hold, the success operations, else the failure operations, in one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// All must hold; an empty list holds.
    pub compares: Vec<Compare>,
    /// Run in order.
    pub success: Vec<TxnOp>,
    /// Run in order.
    pub failure: Vec<TxnOp>,
}

impl Txn {
    fn is_read_only(&self) -> bool {
        self.success.iter().chain(&self.failure).all(|op| matches!(op, TxnOp::Get(..)))
    }
}

/// Answer to one operation of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TxnResult {
    Get(GetResponse),
    Put(PutResponse),
    Delete(DeleteResponse),
}

/// Answer to a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnResponse {
    /// Whether all compares held.
    pub succeeded: bool,
    /// The store's revision after it.
    pub revision: i64,
    /// One for each operation that ran.
    pub results: Vec<TxnResult>,
}

/// The key-value store.
#[derive(Debug, Clone)]
pub struct Kv {
    client: Client,
}

impl Client {
    /// The key-value store.
    pub fn kv(&self) -> Kv {
        Kv { client: self.clone() }
    }
}

impl Kv {
    /// The key's value, if it exists.
    ///
    /// # Errors
    /// Those of [`Client`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<KeyValue>, Error> {
        Ok(self.range(KeyRange::key(key), GetOptions::default()).await?.kvs.pop())
    }

    /// All keys of a range.
    ///
    /// # Errors
    /// Those of [`Client`]; `Refused` for a revision that is compacted or in the future.
    pub async fn range(&self, range: impl Into<KeyRange>, options: GetOptions) -> Result<GetResponse, Error> {
        let request = range_request(range.into(), &options);
        let answer = self
            .client
            .call("get", Repeat::Safe, |channel| {
                let request = request.clone();
                async move {
                    let mut client = KvClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
                    Ok(client.range(request).await?.into_inner())
                }
            })
            .await?;
        Ok(answer.into())
    }

    /// Stores `value` under `key`.
    ///
    /// # Errors
    /// Those of [`Client`]; `OutcomeUnknown` if nobody could say in time what became of it.
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<PutResponse, Error> {
        self.put_with(key, value, PutOptions::default()).await
    }

    /// As [`Kv::put`], with options.
    ///
    /// # Errors
    /// As [`Kv::put`]; `Refused` if the lease does not exist.
    pub async fn put_with(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: PutOptions,
    ) -> Result<PutResponse, Error> {
        let request = put_request(key.into(), value.into(), &options);
        let answer = self
            .client
            .call("put", Repeat::Named, |channel| {
                let request = request.clone();
                async move { Ok(KvClient::new(channel).put(request).await?.into_inner()) }
            })
            .await?;
        Ok(answer.into())
    }

    /// Deletes a key or a range. With `prev_kv` the answer holds what was deleted.
    ///
    /// # Errors
    /// As [`Kv::put`].
    pub async fn delete(&self, range: impl Into<KeyRange>, prev_kv: bool) -> Result<DeleteResponse, Error> {
        let request = delete_request(range.into(), prev_kv);
        let answer = self
            .client
            .call("delete", Repeat::Named, |channel| {
                let request = request.clone();
                async move {
                    let mut client = KvClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
                    Ok(client.delete_range(request).await?.into_inner())
                }
            })
            .await?;
        Ok(answer.into())
    }

    /// Runs a transaction.
    ///
    /// # Errors
    /// As [`Kv::put`].
    pub async fn txn(&self, txn: Txn) -> Result<TxnResponse, Error> {
        let repeat = if txn.is_read_only() { Repeat::Safe } else { Repeat::Named };
        let request = pb::TxnRequest {
            compare: txn.compares.into_iter().map(compare).collect(),
            success: txn.success.into_iter().map(request_op).collect(),
            failure: txn.failure.into_iter().map(request_op).collect(),
        };
        let answer = self
            .client
            .call("txn", repeat, |channel| {
                let request = request.clone();
                async move {
                    let mut client = KvClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
                    Ok(client.txn(request).await?.into_inner())
                }
            })
            .await?;
        Ok(TxnResponse {
            succeeded: answer.succeeded,
            revision: revision(&answer.header),
            results: answer.responses.into_iter().filter_map(|op| op.response).filter_map(result).collect(),
        })
    }
}

pub(crate) fn revision(header: &Option<pb::ResponseHeader>) -> i64 {
    header.as_ref().map_or(0, |header| header.revision)
}

fn range_request(range: KeyRange, options: &GetOptions) -> pb::RangeRequest {
    use pb::range_request::{SortOrder, SortTarget};
    let order = match (options.sort_by, options.descending) {
        (None, false) => SortOrder::None,
        (Some(_), false) => SortOrder::Ascend,
        (_, true) => SortOrder::Descend,
    };
    let target = match options.sort_by.unwrap_or_default() {
        SortBy::Key => SortTarget::Key,
        SortBy::Version => SortTarget::Version,
        SortBy::Create => SortTarget::Create,
        SortBy::Mod => SortTarget::Mod,
        SortBy::Value => SortTarget::Value,
    };
    pb::RangeRequest {
        key: range.key,
        range_end: range.end,
        limit: options.limit,
        revision: options.revision,
        sort_order: order.into(),
        sort_target: target.into(),
        serializable: options.serializable,
        keys_only: options.keys_only,
        count_only: options.count_only,
        ..Default::default()
    }
}

fn put_request(key: Bytes, value: Bytes, options: &PutOptions) -> pb::PutRequest {
    pb::PutRequest { key, value, lease: options.lease, prev_kv: options.prev_kv, ..Default::default() }
}

fn delete_request(range: KeyRange, prev_kv: bool) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest { key: range.key, range_end: range.end, prev_kv }
}

fn compare(compare: Compare) -> pb::Compare {
    use pb::compare::{CompareResult, CompareTarget as Target, TargetUnion};
    let result = match compare.op {
        CompareOp::Equal => CompareResult::Equal,
        CompareOp::NotEqual => CompareResult::NotEqual,
        CompareOp::Greater => CompareResult::Greater,
        CompareOp::Less => CompareResult::Less,
    };
    let (target, given) = match compare.target {
        CompareTarget::Version(given) => (Target::Version, TargetUnion::Version(given)),
        CompareTarget::CreateRevision(given) => (Target::Create, TargetUnion::CreateRevision(given)),
        CompareTarget::ModRevision(given) => (Target::Mod, TargetUnion::ModRevision(given)),
        CompareTarget::Value(given) => (Target::Value, TargetUnion::Value(given)),
        CompareTarget::Lease(given) => (Target::Lease, TargetUnion::Lease(given)),
    };
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key: compare.range.key,
        range_end: compare.range.end,
        target_union: Some(given),
    }
}

fn request_op(op: TxnOp) -> pb::RequestOp {
    use pb::request_op::Request;
    let request = match op {
        TxnOp::Get(range, options) => Request::RequestRange(range_request(range, &options)),
        TxnOp::Put(key, value, options) => Request::RequestPut(put_request(key, value, &options)),
        TxnOp::Delete(range, prev_kv) => Request::RequestDeleteRange(delete_request(range, prev_kv)),
    };
    pb::RequestOp { request: Some(request) }
}

fn result(op: pb::response_op::Response) -> Option<TxnResult> {
    use pb::response_op::Response;
    match op {
        Response::ResponseRange(answer) => Some(TxnResult::Get(answer.into())),
        Response::ResponsePut(answer) => Some(TxnResult::Put(answer.into())),
        Response::ResponseDeleteRange(answer) => Some(TxnResult::Delete(answer.into())),
        // Nested transactions cannot be asked for with these types.
        Response::ResponseTxn(_) => None,
    }
}

impl From<pb::RangeResponse> for GetResponse {
    fn from(answer: pb::RangeResponse) -> Self {
        Self {
            revision: revision(&answer.header),
            kvs: answer.kvs.into_iter().map(KeyValue::from).collect(),
            count: answer.count,
            more: answer.more,
        }
    }
}

impl From<pb::PutResponse> for PutResponse {
    fn from(answer: pb::PutResponse) -> Self {
        Self { revision: revision(&answer.header), prev_kv: answer.prev_kv.map(KeyValue::from) }
    }
}

impl From<pb::DeleteRangeResponse> for DeleteResponse {
    fn from(answer: pb::DeleteRangeResponse) -> Self {
        Self {
            revision: revision(&answer.header),
            deleted: answer.deleted,
            prev_kvs: answer.prev_kvs.into_iter().map(KeyValue::from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_the_next_prefix() {
        assert_eq!(KeyRange::prefix("ab"), KeyRange { key: "ab".into(), end: "ac".into() });
        assert_eq!(
            KeyRange::prefix(&b"a\xff"[..]),
            KeyRange { key: Bytes::from_static(b"a\xff"), end: "b".into() }
        );
    }

    #[test]
    fn a_prefix_without_a_successor_runs_to_the_end() {
        assert_eq!(KeyRange::prefix(""), KeyRange { key: "\0".into(), end: "\0".into() });
        assert_eq!(
            KeyRange::prefix(&b"\xff\xff"[..]),
            KeyRange { key: Bytes::from_static(b"\xff\xff"), end: "\0".into() }
        );
    }

    #[test]
    fn a_transaction_that_only_reads_may_be_repeated() {
        let read = TxnOp::Get("a".into(), GetOptions::default());
        let write = TxnOp::Delete("a".into(), false);
        assert!(Txn { success: vec![read.clone()], ..Txn::default() }.is_read_only());
        assert!(!Txn { success: vec![read], failure: vec![write], ..Txn::default() }.is_read_only());
    }
}
