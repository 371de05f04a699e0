//! A writer on one stream of `weft.v1.Kv/Write`: several writes a message, each an operation of its own. Its writes have names:
//! what was not answered when a stream broke is sent again to the next server, and must happen once all the same (A06).

use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Endpoint;
use weft_client::proto::weft as pb;
use weft_client::proto::weft::kv_client::KvClient;

use crate::checker::kv::{Answer, Call, Op, Seen};
use crate::history::{OpId, Process};
use crate::workload::{Run, keys};

/// Writes in one message, at most.
const WRITES_MAX: usize = 4;
/// How long an answer is waited for.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Between two messages, at most, and before another connection.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Writes to the servers, from number `i` on, until the run is stopped.
pub async fn write(run: Run, i: usize) {
    // Each place in a message is a process: it has one write open at a time.
    let processes: Vec<_> = (0..WRITES_MAX).map(|_| run.process().0).collect();
    let (_, mut rng) = run.process();
    let name = format!("{:x}", rng.u64(1..));
    let mut writer = Writer { run, server: i, processes, rng, name, written: 0, open: None };
    while !writer.run.is_stopped() {
        if writer.stream().await.is_err() {
            writer.server += 1;
            tokio::time::sleep(PAUSE_MAX).await;
        }
    }
}

struct Writer {
    run: Run,
    server: usize,
    processes: Vec<Process>,
    rng: fastrand::Rng,
    name: String,
    /// Writes so far; the number of the last one.
    written: u64,
    /// What was sent and not answered.
    open: Option<Message>,
}

/// The number of its first write, and its operations.
#[derive(Clone)]
struct Message {
    first: u64,
    calls: Vec<(OpId, Call)>,
}

impl Writer {
    async fn stream(&mut self) -> Result<()> {
        let endpoints = self.run.endpoints();
        let server = Endpoint::from_shared(format!("http://{}", endpoints[self.server % endpoints.len()]))?;
        let channel = server.connect_timeout(ANSWER_MAX).connect().await?;
        let (messages, outgoing) = mpsc::channel(1);
        let mut client = KvClient::new(channel);
        let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
        request.metadata_mut().insert("weft-client-id", self.name.parse()?);
        let opened = client.write(request);
        let mut answers = timeout(ANSWER_MAX, opened).await??.into_inner();
        while !self.run.is_stopped() {
            let message = self.next_message();
            let writes = message.calls.iter().filter_map(|(_, call)| to_write(call)).collect();
            let (id, seq, answered) = (message.first, message.first, message.first);
            messages.send(pb::WriteRequest { id, writes, seq, answered }).await?;
            let answer = timeout(ANSWER_MAX, answers.message()).await??.context("the stream ended")?;
            self.answered(message, answer)?;
            tokio::time::sleep(PAUSE_MAX.mul_f64(self.rng.f64())).await;
        }
        Ok(())
    }

    /// The one that is open, or another.
    fn next_message(&mut self) -> Message {
        if let Some(open) = &self.open {
            return open.clone();
        }
        let count = self.rng.usize(1..=WRITES_MAX);
        let first = self.written + 1;
        let calls: Vec<Call> = (0..count).map(|place| self.next_call(place)).collect();
        let now = self.run.now();
        let invoke = |(process, call): (&Process, Call)| {
            (self.run.keys().lock().invoke(*process, now, call.clone()), call)
        };
        let message = Message { first, calls: self.processes.iter().zip(calls).map(invoke).collect() };
        self.open = Some(message.clone());
        message
    }

    fn answered(&mut self, message: Message, answer: pb::WriteResponse) -> Result<()> {
        if answer.id != message.first || answer.results.len() != message.calls.len() {
            bail!("an answer to something else: {answer:?}");
        }
        let is_open = |result: &pb::WriteResult| Code::from(result.code) == Code::DeadlineExceeded;
        if answer.results.iter().any(is_open) {
            bail!("some of it may yet happen: ask again");
        }
        self.open = None;
        let now = self.run.now();
        for ((id, call), result) in message.calls.into_iter().zip(answer.results) {
            let mut history = self.run.keys().lock();
            match (Code::from(result.code), call.then.as_slice()) {
                (Code::Ok, [Op::Delete(_)]) => {
                    history.ok(id, now, Answer::of(result.revision, Seen::Deleted(result.deleted)));
                }
                (Code::Ok, _) => history.ok(id, now, Answer::of(result.revision, Seen::Put)),
                // Nothing was done by this request, but an earlier one may have been lost.
                _ => {}
            }
        }
        Ok(())
    }

    fn next_call(&mut self, place: usize) -> Call {
        let key = keys::single(&mut self.rng);
        self.written += 1;
        if self.rng.u32(0..10) == 0 {
            return Call::delete(key);
        }
        Call::put(key, format!("{}.{}", self.processes[place].0, self.written))
    }
}

fn to_write(call: &Call) -> Option<pb::Write> {
    let bytes = |text: &str| bytes::Bytes::copy_from_slice(text.as_bytes());
    let op = match call.then.as_slice() {
        [Op::Put(key, value)] => {
            pb::write::Op::Put(pb::Put { key: bytes(key), value: bytes(value), lease: 0 })
        }
        [Op::Delete(key)] => {
            pb::write::Op::Delete(pb::Delete { key: bytes(key), range_end: bytes::Bytes::new() })
        }
        _ => return None,
    };
    Some(pb::Write { op: Some(op) })
}
