//! `KV`: ranges, writes and transactions.

use std::collections::VecDeque;

use futures::stream::{self, BoxStream, StreamExt};
use tonic::{Request, Status};
use weft_state::auth::{Access, Caller};
use weft_state::command::{self, Command, KeyValue, Range, RangeResponse, Response as Outcome};
use weft_state::error::StoreError;
use weft_state::machine::Machine;
use weft_xds_proto::etcdserverpb as pb;

use super::pager::Pager;
use super::{Answer, Api, convert, read_txn, status, unexpected};

#[tonic::async_trait]
impl pb::kv_server::Kv for Api {
    async fn range(&self, request: Request<pb::RangeRequest>) -> Answer<pb::RangeResponse> {
        self.admit(request.metadata())?;
        let asking = self.asking(request.metadata()).await?;
        let request = request.into_inner();
        let serializable = request.serializable;
        let range = convert::range(request).map_err(|error| status::request(&error))?;
        self.before_read(serializable).await?;
        let (revision, response) = self
            .coordinator
            .read(|machine| (machine.revision(), permitted_range(machine, &asking.caller, &range)));
        let response = response.map_err(|error| status::store(&error))?;
        Ok(convert::range_response(response, Some(self.header_at(revision))).into())
    }

    type RangeStreamStream = BoxStream<'static, Result<pb::RangeStreamResponse, Status>>;

    async fn range_stream(&self, request: Request<pb::RangeRequest>) -> Answer<Self::RangeStreamStream> {
        self.admit(request.metadata())?;
        let asking = self.asking(request.metadata()).await?;
        let request = request.into_inner();
        let serializable = request.serializable;
        let range = convert::range(request).map_err(|error| status::request(&error))?;
        self.before_read(serializable).await?;
        let mut chunks = Chunks {
            api: self.clone(),
            caller: asking.caller,
            pager: Pager::new(range, self.options.limits.range_page_keys),
            read: VecDeque::new(),
            finished: false,
        };
        // The first page is read before the stream starts, so that a refusal is the call's own status.
        chunks.read_page()?;
        let stream = stream::unfold(chunks, |mut chunks| async move {
            let chunk = chunks.next()?;
            Some((chunk, chunks))
        });
        Ok(stream.boxed().into())
    }

    async fn put(&self, request: Request<pb::PutRequest>) -> Answer<pb::PutResponse> {
        self.admit(request.metadata())?;
        let asking = self.asking(request.metadata()).await?;
        let request = request.into_inner();
        let put = convert::check_size(&request).and_then(|()| convert::put(request));
        let put = put.map_err(|error| status::request(&error))?;
        let (proposed, header) = self.propose(&asking, Command::Put(put)).await?;
        match proposed.response.map_err(|error| status::store(&error))? {
            Outcome::Put { prev_kv } => {
                let prev_kv = prev_kv.map(convert::key_value);
                Ok(pb::PutResponse { header: Some(header), prev_kv }.into())
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn delete_range(
        &self,
        request: Request<pb::DeleteRangeRequest>,
    ) -> Answer<pb::DeleteRangeResponse> {
        self.admit(request.metadata())?;
        let asking = self.asking(request.metadata()).await?;
        let request = request.into_inner();
        let delete = convert::check_size(&request).and_then(|()| convert::delete_range(request));
        let delete = delete.map_err(|error| status::request(&error))?;
        let (proposed, header) = self.propose(&asking, Command::DeleteRange(delete)).await?;
        match proposed.response.map_err(|error| status::store(&error))? {
            Outcome::DeleteRange { deleted, prev_kvs } => {
                let prev_kvs = convert::key_values(prev_kvs);
                Ok(pb::DeleteRangeResponse { header: Some(header), deleted, prev_kvs }.into())
            }
            other => Err(unexpected(&other)),
        }
    }

    async fn txn(&self, request: Request<pb::TxnRequest>) -> Answer<pb::TxnResponse> {
        self.admit(request.metadata())?;
        let asking = self.asking(request.metadata()).await?;
        let request = request.into_inner();
        let serializable = convert::is_serializable(&request);
        let txn = convert::check_size(&request).and_then(|()| convert::txn(request));
        let txn = txn.map_err(|error| status::request(&error))?;
        if read_txn::is_read_only(&txn) {
            self.before_read(serializable).await?;
            return self.read_txn(&asking.caller, txn);
        }
        let (proposed, header) = self.propose(&asking, Command::Txn(txn)).await?;
        match proposed.response.map_err(|error| status::store(&error))? {
            Outcome::Txn(response) => Ok(convert::txn_response(response, header).into()),
            other => Err(unexpected(&other)),
        }
    }

    async fn compact(&self, request: Request<pb::CompactionRequest>) -> Answer<pb::CompactionResponse> {
        self.admit(request.metadata())?;
        let asking = self.asking(request.metadata()).await?;
        // `physical` asks to wait until space is freed; that is part of applying it here.
        let revision = request.into_inner().revision;
        let (proposed, header) = self.propose(&asking, Command::Compact { revision }).await?;
        match proposed.response.map_err(|error| status::store(&error))? {
            Outcome::Compact => Ok(pb::CompactionResponse { header: Some(header) }.into()),
            other => Err(unexpected(&other)),
        }
    }
}

impl Api {
    fn read_txn(&self, caller: &Caller, txn: command::Txn) -> Answer<pb::TxnResponse> {
        let command = Command::Txn(txn);
        let (revision, response) = self.coordinator.read(|machine| {
            let permitted = machine.permits(caller, &command).map_err(StoreError::from);
            let Command::Txn(txn) = &command else { unreachable!("made as one right here") };
            (machine.revision(), permitted.and_then(|()| read_txn::evaluate(machine, txn)))
        });
        let response = response.map_err(|error| status::store(&error))?;
        Ok(convert::txn_response(response, self.header_at(revision)).into())
    }
}

/// Reads a range if the caller may, as of one moment.
fn permitted_range(machine: &Machine, caller: &Caller, range: &Range) -> Result<RangeResponse, StoreError> {
    machine.auth().check_range(caller, Access::Read, &range.key, &range.range_end)?;
    machine.range(range)
}

/// A streamed range: pages as the state gives them, cut into chunks of bytes as the wire wants them. Only
/// polled when the client has room, so at most a page is held.
struct Chunks {
    api: Api,
    caller: Caller,
    pager: Pager,
    read: VecDeque<KeyValue>,
    finished: bool,
}

impl Chunks {
    /// False when there is nothing more to read.
    fn read_page(&mut self) -> Result<bool, Status> {
        let page = self.api.coordinator.read(|machine| {
            let Range { key, range_end, .. } = self.pager.range();
            machine.auth().check_range(&self.caller, Access::Read, key, range_end)?;
            self.pager.page(machine)
        });
        match page.map_err(|error| status::store(&error))? {
            Some(kvs) => {
                self.read.extend(kvs);
                Ok(true)
            }
            None => Ok(false),
        }
    }

    fn next(&mut self) -> Option<Result<pb::RangeStreamResponse, Status>> {
        if self.finished {
            return None;
        }
        let chunk = self.chunk();
        self.finished |= chunk.is_err();
        Some(chunk.map(|range| pb::RangeStreamResponse { range_response: Some(range) }))
    }

    /// Header, count and `more` come with the last chunk alone, as the protocol has it.
    fn chunk(&mut self) -> Result<pb::RangeResponse, Status> {
        let mut kvs = Vec::new();
        let mut bytes = 0;
        loop {
            let Some(kv) = self.read.pop_front() else {
                if self.read_page()? {
                    continue;
                }
                break;
            };
            bytes += kv.key.len() + kv.value.len();
            kvs.push(convert::key_value(kv));
            if bytes >= self.api.options.limits.range_chunk_bytes {
                return Ok(pb::RangeResponse { kvs, ..Default::default() });
            }
        }
        self.finished = true;
        // The first page was read before the stream was made.
        let summary = self.pager.summary().expect("a page has been read");
        Ok(pb::RangeResponse {
            header: Some(self.api.header_at(summary.current)),
            kvs,
            more: summary.more,
            count: summary.count,
        })
    }
}
