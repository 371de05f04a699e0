//! `weft.v1.Kv/Write`: pipelined writes on one stream.
//!
//! ```text
//! message ──► checked, each write a command ──► proposed together ──► decided ──► one answer
//! ```
//! Messages overtake each other: a large one does not hold up the next. At most [`MESSAGES_IN_FLIGHT_MAX`] of a stream
//! are under way, and [`WRITES_IN_FLIGHT_MAX`] writes of all streams; then streams are not read, and HTTP/2's flow control
//! slows the writers down.

use std::sync::Arc;

use futures::{
    StreamExt,
    future::{self, Either},
    stream::{self, BoxStream},
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};
use weft_state::auth::Caller;
use weft_state::command::{Command, DeleteRange, Put, Response as Outcome};
use weft_state::requests::RequestId;
use weft_xds_proto::weft as pb;

use super::{WeftApi, quota, unexpected};
use crate::{
    api::{
        caller::{Asking, CallerError, permitted},
        etcd::limits::REQUEST_BYTES_MAX,
        status,
    },
    raft::{Coordinator, PROPOSALS_MAX, ProposeError, Proposed},
};

/// Writes in one message: as many as one log entry takes.
const WRITES_MAX: usize = 512;

/// Messages of one stream that are under way at one time.
const MESSAGES_IN_FLIGHT_MAX: usize = 32;

/// Writes of all streams that are proposed at one time: half of what may wait, so that streams, which can be slowed
/// down, never have a call refused, nor a write of their own.
const WRITES_IN_FLIGHT_MAX: usize = PROPOSALS_MAX / 2;

/// Room for [`WRITES_IN_FLIGHT_MAX`].
pub(super) fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(WRITES_IN_FLIGHT_MAX))
}

#[tonic::async_trait]
impl pb::kv_server::Kv for WeftApi {
    type WriteStream = BoxStream<'static, Result<pb::WriteResponse, Status>>;

    async fn write(
        &self,
        request: Request<Streaming<pb::WriteRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let (caller, client) = Asking::of_stream(&self.coordinator, request.metadata().as_ref()).await?;
        let (coordinator, room) = (self.coordinator.clone(), self.write_room.clone());
        let messages = request.into_inner().map(move |message| {
            let (coordinator, caller, room) = (coordinator.clone(), caller.clone(), room.clone());
            let message = match message.and_then(|message| checked(message, client)) {
                Ok(message) => message,
                Err(refusal) => return Either::Left(future::ready(Err(refusal))),
            };
            Either::Right(async move {
                let id = message.id;
                // First come, first served; nobody closes it.
                let _room = room.acquire_many(message.commands.len() as u32).await;
                let results = write_all(&coordinator, &caller, message.commands).await?;
                Ok(pb::WriteResponse { id, results })
            })
        });
        // The refusal of a message is the last answer: nothing behind it is read.
        let answers = messages.buffer_unordered(MESSAGES_IN_FLIGHT_MAX);
        let answers = stream::unfold(Some(Box::pin(answers)), |answers| async {
            let mut answers = answers?;
            let answer = answers.next().await?;
            let goes_on = answer.is_ok();
            Some((answer, goes_on.then_some(answers)))
        });
        let stop = self.stop.clone();
        Ok(Response::new(answers.take_until(stop.cancelled_owned()).boxed()))
    }

    async fn set_quota(
        &self,
        request: Request<pb::SetQuotaRequest>,
    ) -> Result<Response<pb::SetQuotaResponse>, Status> {
        quota::set(self, request).await.map(Response::new)
    }

    async fn quotas(
        &self,
        request: Request<pb::QuotasRequest>,
    ) -> Result<Response<pb::QuotasResponse>, Status> {
        quota::all(self, request).await.map(Response::new)
    }
}

/// Carries out what the caller may; the rest is refused, each for itself.
async fn write_all(
    coordinator: &Coordinator,
    caller: &Caller,
    commands: Vec<(Command, Option<RequestId>)>,
) -> Result<Vec<pb::WriteResult>, Status> {
    if !coordinator.auth().is_enabled() {
        let enclosed = |(command, name): (Command, _)| command.enclosed(caller.clone(), name);
        let proposed = coordinator.propose_all(commands.into_iter().map(enclosed).collect()).await;
        return Ok(proposed.into_iter().map(result).collect());
    }
    let mut results = Vec::with_capacity(commands.len());
    let mut allowed = Vec::with_capacity(commands.len());
    for (command, name) in commands {
        match permitted(coordinator, |machine| machine.permits(caller, &command)).await {
            Ok(()) => {
                results.push(None);
                allowed.push(command.enclosed(caller.clone(), name));
            }
            Err(CallerError::Auth(error)) => results.push(Some(refused(status::auth(&error)))),
            Err(error) => return Err(error.into()),
        }
    }
    let mut proposed = coordinator.propose_all(allowed).await.into_iter().map(result);
    let unanswered = || refused(Status::internal("a write was not answered"));
    Ok(results
        .into_iter()
        .map(|known| known.or_else(|| proposed.next()).unwrap_or_else(unanswered))
        .collect())
}

/// A message whose writes may be proposed.
#[derive(Debug)]
struct Checked {
    id: u64,
    commands: Vec<(Command, Option<RequestId>)>,
}

/// `client` is the name under which the stream's writes are counted, if it has one.
fn checked(message: pb::WriteRequest, client: Option<RequestId>) -> Result<Checked, Status> {
    let (id, seen) = (message.id, message.writes.len());
    if !(1..=WRITES_MAX).contains(&seen) {
        return Err(Status::invalid_argument(format!(
            "message {id} has {seen} writes, allowed are 1 to {WRITES_MAX}"
        )));
    }
    let bytes = prost::Message::encoded_len(&message);
    if bytes > REQUEST_BYTES_MAX {
        return Err(Status::invalid_argument(format!(
            "message {id} is {bytes} bytes long, allowed are {REQUEST_BYTES_MAX}"
        )));
    }
    let (seq, answered) = (message.seq, message.answered);
    if seq != 0 && client.is_none() {
        return Err(Status::invalid_argument(format!(
            "message {id} numbers its writes from {seq}, but the stream's metadata has no weft-client-id"
        )));
    }
    if seq.checked_add(seen as u64).is_none() {
        return Err(Status::invalid_argument(format!(
            "message {id} numbers its {seen} writes from {seq}, allowed are numbers up to 2^64 - 1"
        )));
    }
    let name = |at: usize| {
        client.filter(|_| seq != 0).map(|client| RequestId { seq: seq + at as u64, answered, ..client })
    };
    let commands = message.writes.into_iter().enumerate().map(|(at, write)| {
        let command = command(write)
            .map_err(|reason| Status::invalid_argument(format!("message {id}, write {at}: {reason}")))?;
        Ok::<_, Status>((command, name(at)))
    });
    Ok(Checked { id, commands: commands.collect::<Result<_, _>>()? })
}

fn command(write: pb::Write) -> Result<Command, &'static str> {
    let (key, command) = match write.op.ok_or("is neither a put nor a delete")? {
        pb::write::Op::Put(put) => {
            let key = put.key.clone();
            (key, Command::Put(Put { key: put.key, value: put.value, lease: put.lease, ..Put::default() }))
        }
        pb::write::Op::Delete(delete) => {
            let key = delete.key.clone();
            let (range_end, prev_kv) = (delete.range_end, false);
            (key, Command::DeleteRange(DeleteRange { key: delete.key, range_end, prev_kv }))
        }
    };
    if key.is_empty() { Err("has no key") } else { Ok(command) }
}

fn refused(status: Status) -> pb::WriteResult {
    pb::WriteResult { code: status.code().into(), message: status.message().to_owned(), ..Default::default() }
}

fn result(proposed: Result<Proposed, ProposeError>) -> pb::WriteResult {
    let proposed = match proposed {
        Ok(proposed) => proposed,
        Err(error) => return refused(status::propose(&error)),
    };
    let revision = proposed.revision;
    match proposed.response {
        Ok(Outcome::Put { .. }) => pb::WriteResult { revision, ..Default::default() },
        Ok(Outcome::DeleteRange { deleted, .. }) => {
            pb::WriteResult { revision, deleted, ..Default::default() }
        }
        Ok(other) => refused(unexpected(&other)),
        Err(error) => refused(status::store(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str) -> pb::Write {
        let put = pb::Put { key: key.into(), value: "v".into(), lease: 0 };
        pb::Write { op: Some(pb::write::Op::Put(put)) }
    }

    #[test]
    fn a_message_that_is_empty_too_long_or_too_large_is_refused_with_the_limit() {
        let refusal = |writes| {
            checked(pb::WriteRequest { id: 7, writes, ..Default::default() }, None).expect_err("is refused")
        };
        assert!(refusal(Vec::new()).message().contains("message 7 has 0 writes, allowed are 1 to 512"));
        assert!(refusal(vec![put("a"); 513]).message().contains("513 writes"));
        let large = pb::Put { key: "a".into(), value: vec![0; REQUEST_BYTES_MAX].into(), lease: 0 };
        let large = pb::Write { op: Some(pb::write::Op::Put(large)) };
        assert!(refusal(vec![large]).message().contains("bytes long"));
    }

    #[test]
    fn writes_are_numbered_from_the_messages_number_under_the_streams_client() {
        let client = RequestId { client: 1, seq: 0, after: 9, answered: 0 };
        let message = |seq| pb::WriteRequest { id: 7, writes: vec![put("a"), put("b")], seq, answered: 4 };
        let names = |message, client| {
            checked(message, client)
                .map(|checked| checked.commands.into_iter().map(|(_, name)| name).collect::<Vec<_>>())
        };
        let name = |seq| Some(RequestId { client: 1, seq, after: 9, answered: 4 });
        assert_eq!(names(message(5), Some(client)).expect("is taken"), [name(5), name(6)]);
        assert_eq!(names(message(0), Some(client)).expect("is taken"), [None, None]);
        assert!(names(message(5), None).expect_err("is refused").message().contains("no weft-client-id"));
        let last = names(message(u64::MAX), Some(client)).expect_err("is refused");
        assert!(last.message().contains("up to 2^64 - 1"));
    }

    #[test]
    fn a_write_without_key_or_operation_is_named_by_its_place() {
        let refusal = |write| {
            let writes = vec![put("a"), write];
            checked(pb::WriteRequest { id: 7, writes, ..Default::default() }, None)
                .expect_err("is refused")
                .message()
                .to_owned()
        };
        assert_eq!(refusal(put("")), "message 7, write 1: has no key");
        assert_eq!(refusal(pb::Write { op: None }), "message 7, write 1: is neither a put nor a delete");
    }
}
