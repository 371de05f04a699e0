//! Owners of leases with a key each, which they keep alive for a while, then leave, and look at until it is gone.

use std::time::Duration;

use tokio::time::Instant;
use weft_client::Client;
use weft_client::kv::PutOptions;

use crate::checker::lease::{Fact, Note};
use crate::workload::Run;

/// Asked for; a server may grant more.
const TTL: Duration = Duration::from_secs(2);
/// Between two renewals or looks.
const PAUSE: Duration = Duration::from_millis(300);
/// A key that is still there after so long is left alone: then it is noted that it was there.
const PATIENCE: Duration = Duration::from_secs(40);

/// Makes one lease after another until the run is stopped.
pub async fn own(run: Run, client: Client) {
    let (process, mut rng) = run.process();
    let mut number = 0;
    while !run.is_stopped() {
        number += 1;
        let key = format!("lease/{process}/{number}");
        let kept = rng.u32(0..8);
        // A lease whose grant or put has no answer is left to itself.
        let _ = one(&run, &client, &key, kept).await;
    }
}

async fn one(run: &Run, client: &Client, key: &str, kept: u32) -> Result<(), weft_client::Error> {
    let before = run.moment();
    let granted = match client.leases().grant(TTL).await {
        Ok(granted) => granted,
        Err(error) => {
            tokio::time::sleep(PAUSE).await;
            return Err(error);
        }
    };
    let note = |fact, sent, answered| run.note(Note { lease: granted.id, fact, sent, answered });
    let sent = crate::history::Moment { at: run.at(granted.sent), ..before };
    note(Fact::Renewed(granted.ttl), sent, Some(run.moment()));
    client.kv().put_with(key.to_owned(), "", PutOptions { lease: granted.id, prev_kv: false }).await?;
    for _ in 0..kept {
        tokio::time::sleep(PAUSE).await;
        let before = run.moment();
        match client.leases().keep_alive(granted.id).await {
            Ok((_, ttl)) if ttl.is_zero() => note(Fact::Gone, before, Some(run.moment())),
            Ok((sent, ttl)) => {
                let sent = crate::history::Moment { at: run.at(sent), ..before };
                note(Fact::Renewed(ttl), sent, Some(run.moment()));
            }
            Err(_) => note(Fact::Renewed(granted.ttl), before, None),
        }
        look(run, client, key, granted.id).await;
    }
    let left = Instant::now();
    while look(run, client, key, granted.id).await != Some(false) && left.elapsed() < PATIENCE {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Whether the key is there, if that could be read.
async fn look(run: &Run, client: &Client, key: &str, lease: i64) -> Option<bool> {
    let sent = run.moment();
    let found = client.kv().get(key.to_owned()).await.ok()?;
    let fact = if found.is_some() { Fact::KeyThere } else { Fact::KeyGone };
    run.note(Note { lease, fact, sent, answered: Some(run.moment()) });
    Some(found.is_some())
}
