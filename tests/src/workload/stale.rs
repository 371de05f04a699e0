//! Serializable reads at one server: they may be old, but never older than what the same reader saw before (A11), and
//! always as the store was at the revision they tell.

use std::time::Duration;

use weft_client::kv::{GetOptions, KeyRange};

use crate::checker::kv::{Key, Value};
use crate::checker::revision::Reading;
use crate::workload::{Run, keys};

/// Pause between two reads.
const PAUSE: Duration = Duration::from_millis(25);

/// Everything in the range at one revision, as one server has it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Who read, when, and which revision was told.
    pub reading: Reading,
    /// What was there.
    pub pairs: Vec<(Key, Value)>,
}

/// Reads the whole range at server `i` until the run is stopped.
pub async fn read(run: Run, i: usize) -> Vec<Snapshot> {
    let (process, _) = run.process();
    let client = run.client(i, true);
    let mut snapshots = Vec::new();
    while !run.is_stopped() {
        let invoked = run.moment();
        let options = GetOptions { serializable: true, ..GetOptions::default() };
        if let Ok(answer) = client.kv().range(KeyRange::between(keys::RANGE.0, keys::RANGE.1), options).await
        {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).as_ref().into();
            let pairs = answer.kvs.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect();
            let reading =
                Reading { process, invoked, ended: run.moment(), revision: answer.revision, wrote: false };
            snapshots.push(Snapshot { reading, pairs });
        }
        tokio::time::sleep(PAUSE).await;
    }
    snapshots
}
