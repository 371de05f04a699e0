//! Readers and writers of keys. Every written value is unique, so that whoever reads it tells who wrote it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use weft_client::kv::{
    Compare, CompareOp, CompareTarget, GetOptions, KeyRange, PutOptions, Txn, TxnOp, TxnResult,
};
use weft_client::{Client, Error, kv as api};

use crate::checker::kv::{Answer, Call, Expect, Key, KeyValue, Op, Seen};
use crate::history::{OpId, Process};
use crate::workload::Run;

/// First key and end of the range that this workload writes to.
pub const RANGE: (&str, &str) = ("check/", "check0");
/// Keys that are used one at a time. Few, so that clients meet on them.
const SINGLES: usize = 5;
/// Keys that transactions use together.
const PAIR: [&str; 2] = ["check/pair/0", "check/pair/1"];
/// Pause between two operations of one client, at most.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// A client that does one operation after another.
pub struct Worker {
    run: Run,
    client: Client,
    process: Process,
    rng: fastrand::Rng,
    written: u64,
    /// What the last answer told about each key.
    known: HashMap<Key, Option<KeyValue>>,
}

impl Worker {
    /// A worker on `client`.
    pub fn new(run: &Run, client: Client) -> Self {
        let (process, rng) = run.process();
        Self { run: run.clone(), client, process, rng, written: 0, known: HashMap::new() }
    }

    /// Works until the run is stopped.
    pub async fn work(mut self) {
        while !self.run.is_stopped() {
            let call = self.next_call();
            self.execute(call).await;
            let pause = PAUSE_MAX.mul_f64(self.rng.f64());
            tokio::time::sleep(pause).await;
        }
    }

    fn next_call(&mut self) -> Call {
        let key = single(&mut self.rng);
        match self.rng.u32(0..100) {
            0..30 => Call::get(key),
            30..55 => Call::put(key, self.value()),
            55..75 => {
                let expect = self.expect(&key);
                Call::cas(key, expect, self.value())
            }
            75..80 => Call::delete(key),
            80..90 => Call { then: PAIR.map(|key| Op::Get(key.into())).to_vec(), ..Call::default() },
            // Depends on both keys and writes one: two of these at once are a write skew if both are done.
            _ => {
                let compares = PAIR.map(Key::from).map(|key| (key.clone(), self.expect(&key)));
                let written = PAIR[self.rng.usize(0..2)];
                Call {
                    compares: compares.to_vec(),
                    then: vec![Op::Put(written.into(), self.value().into())],
                    otherwise: PAIR.map(|key| Op::Get(key.into())).to_vec(),
                }
            }
        }
    }

    /// A value that nobody has written.
    pub fn value(&mut self) -> String {
        self.written += 1;
        format!("{}.{}", self.process.0, self.written)
    }

    /// That the key is as it was last seen.
    fn expect(&self, key: &Key) -> Expect {
        Expect::ModRevision(self.known.get(key).cloned().flatten().map_or(0, |kv| kv.mod_revision))
    }

    /// Does one operation, and records it.
    pub async fn execute(&mut self, call: Call) -> Option<Answer> {
        let now = self.run.now();
        let id = self.run.keys().lock().invoke(self.process, now, call.clone());
        let answer = execute(&self.client, &call).await;
        if let Ok(answer) = &answer {
            self.remember(&call, answer);
        }
        let told = answer.as_ref().ok().cloned();
        end(&self.run, id, &call, answer);
        told
    }

    fn remember(&mut self, call: &Call, answer: &Answer) {
        let (Some(branch), Some(seen), Some(revision)) = (answer.succeeded, &answer.seen, answer.revision)
        else {
            return;
        };
        for (op, seen) in call.branch(branch).iter().zip(seen) {
            match (op, seen) {
                (Op::Get(key), Seen::Got(kv)) => _ = self.known.insert(key.clone(), kv.clone()),
                (Op::Put(key, value), _) => {
                    // Only the revision is used.
                    let kv = KeyValue {
                        value: value.clone(),
                        create_revision: 0,
                        mod_revision: revision,
                        version: 0,
                    };
                    self.known.insert(key.clone(), Some(kv));
                }
                (Op::Delete(key) | Op::Get(key), _) => _ = self.known.insert(key.clone(), None),
            }
        }
    }
}

/// One of the keys that are used one at a time.
pub(crate) fn single(rng: &mut fastrand::Rng) -> Key {
    format!("check/{}", rng.usize(0..SINGLES)).into()
}

/// Records how an operation ended. An error that says that nothing was done is taken at its word.
fn end(run: &Run, id: OpId, call: &Call, answer: Result<Answer, Error>) {
    let now = run.now();
    match answer {
        Ok(answer) => run.keys().lock().ok(id, now, answer),
        Err(_) if call.is_read() => run.keys().lock().fail(id, now),
        Err(Error::Unreachable { .. } | Error::Unavailable { .. } | Error::Refused { .. }) => {
            run.keys().lock().fail(id, now);
        }
        Err(_) => {}
    }
}

/// Runs a call. Those of one operation go by the plain requests, all others as transactions.
///
/// # Errors
/// Those of the client.
pub async fn execute(client: &Client, call: &Call) -> Result<Answer, Error> {
    let kv = client.kv();
    match (call.compares.as_slice(), call.then.as_slice()) {
        ([], [Op::Get(key)]) => {
            let answer = kv.range(KeyRange::key(bytes(key)), GetOptions::default()).await?;
            Ok(Answer::of(answer.revision, Seen::Got(answer.kvs.into_iter().next().map(key_value))))
        }
        ([], [Op::Put(key, value)]) => {
            let answer = kv.put(bytes(key), bytes(value)).await?;
            Ok(Answer::of(answer.revision, Seen::Put))
        }
        ([], [Op::Delete(key)]) => {
            let answer = kv.delete(KeyRange::key(bytes(key)), false).await?;
            Ok(Answer::of(answer.revision, Seen::Deleted(answer.deleted)))
        }
        _ => {
            let answer = kv.txn(txn(call)).await?;
            let seen = answer.results.into_iter().map(|result| match result {
                TxnResult::Get(got) => Seen::Got(got.kvs.into_iter().next().map(key_value)),
                TxnResult::Put(_) => Seen::Put,
                TxnResult::Delete(deleted) => Seen::Deleted(deleted.deleted),
            });
            let (revision, succeeded) = (Some(answer.revision), Some(answer.succeeded));
            Ok(Answer { revision, succeeded, seen: Some(seen.collect()) })
        }
    }
}

fn txn(call: &Call) -> Txn {
    let compare = |(key, expect): &(Key, Expect)| Compare {
        range: KeyRange::key(bytes(key)),
        op: CompareOp::Equal,
        target: match expect {
            Expect::Value(value) => CompareTarget::Value(bytes(value)),
            Expect::Version(version) => CompareTarget::Version(*version),
            Expect::CreateRevision(revision) => CompareTarget::CreateRevision(*revision),
            Expect::ModRevision(revision) => CompareTarget::ModRevision(*revision),
        },
    };
    let op = |op: &Op| match op {
        Op::Get(key) => TxnOp::Get(KeyRange::key(bytes(key)), GetOptions::default()),
        Op::Put(key, value) => TxnOp::Put(bytes(key), bytes(value), PutOptions::default()),
        Op::Delete(key) => TxnOp::Delete(KeyRange::key(bytes(key)), false),
    };
    Txn {
        compares: call.compares.iter().map(compare).collect(),
        success: call.then.iter().map(op).collect(),
        failure: call.otherwise.iter().map(op).collect(),
    }
}

fn bytes(text: &Arc<str>) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(text.as_bytes())
}

/// As the checkers have it.
pub(crate) fn key_value(kv: api::KeyValue) -> KeyValue {
    KeyValue {
        value: String::from_utf8_lossy(&kv.value).into(),
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
    }
}
