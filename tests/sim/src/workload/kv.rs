//! Reads, writes, deletes and transactions on a few keys. Every written value is unique.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use weft_xds_proto::etcdserverpb::kv_client::KvClient;

use super::call::{Failure, carry_out};
use super::{ANSWER_MAX, Client};
use crate::rng::Rng;
use weft_tests::checker::kv::{Answer, Call, Expect, Key, Op, Seen};
use weft_tests::history::{Process, Recorder};

/// Keys that this workload writes begin with this, and no others do.
pub(crate) const PREFIX: &str = "k";

/// Few, so that clients meet.
const KEYS: u64 = 5;

/// All of them.
pub(crate) fn keys() -> impl Iterator<Item = Key> {
    (0..KEYS).map(|number| Key::from(format!("{PREFIX}{number}")))
}

/// Longest pause between two calls of a client.
const THINK_MS_MAX: u64 = 160;

/// One client, until it is stopped.
pub(crate) async fn run(client: Client, process: Process, mut rng: Rng, recorder: Recorder<Call, Answer>) {
    let mut seen: HashMap<Key, i64> = HashMap::new();
    let mut number = 0;
    // A client stays at its server until that one fails it: then it asks another.
    let mut server = client.any(&mut rng);
    while !client.stopped() {
        number += 1;
        let call = choose(&mut rng, &seen, &format!("{process}.{number}"));
        let id = recorder.lock().invoke(process, client.at(), call.clone());
        let mut kv = KvClient::new(server.clone());
        let result = timeout(ANSWER_MAX, carry_out(&mut kv, &call)).await.unwrap_or(Err(Failure::Unknown));
        match result {
            Ok(answer) => {
                learn(&mut seen, &call, &answer);
                recorder.lock().ok(id, client.at(), answer);
            }
            Err(failure) => {
                if failure == Failure::Refused || call.is_read() {
                    recorder.lock().fail(id, client.at());
                }
                server = client.any(&mut rng);
            }
        }
        sleep(Duration::from_millis(rng.below(THINK_MS_MAX))).await;
    }
}

/// Revisions of the keys that an answer shows, to compare with later on.
fn learn(seen: &mut HashMap<Key, i64>, call: &Call, answer: &Answer) {
    let branch = call.branch(answer.succeeded.unwrap_or(true));
    for (op, shown) in branch.iter().zip(answer.seen.iter().flatten()) {
        if let (Op::Get(key), Seen::Got(found)) = (op, shown) {
            seen.insert(key.clone(), found.as_ref().map_or(0, |kv| kv.mod_revision));
        }
    }
}

fn choose(rng: &mut Rng, seen: &HashMap<Key, i64>, value: &str) -> Call {
    let mut key = || Key::from(format!("{PREFIX}{}", rng.below(KEYS)));
    let (one, other) = (key(), key());
    match rng.below(100) {
        0..35 => Call::get(one),
        35..60 => Call::put(one, value),
        60..70 => Call::delete(one),
        70..90 => {
            let revision = seen.get(&one).copied().unwrap_or_default();
            Call::cas(one, Expect::ModRevision(revision), value)
        }
        // Reads one key and writes another in one step.
        _ if one != other => {
            Call { then: vec![Op::Get(one), Op::Put(other, value.into())], ..Call::default() }
        }
        _ => Call::get(one),
    }
}
