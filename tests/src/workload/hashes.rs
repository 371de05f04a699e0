//! What each server's store comes to, as one number (A09).

use std::time::Duration;

use weft_client::proto::etcd as pb;
use weft_client::proto::etcd::maintenance_client::MaintenanceClient;

use crate::wait::until;
use crate::workload::Run;

/// How long a server may take to have what the group has.
const LAG_MAX: Duration = Duration::from_secs(20);

/// Server `i`'s hash over all keys and their history at `revision`, and from where that history is kept.
pub async fn hash(run: &Run, i: usize, revision: i64) -> (u32, i64) {
    until(&format!("the hash of s{}", i + 1), LAG_MAX, || async {
        let connected = MaintenanceClient::connect(format!("http://{}", run.endpoints()[i])).await;
        let mut server = connected.map_err(|error| error.to_string())?;
        let answer = server.hash_kv(pb::HashKvRequest { revision }).await;
        let answer = answer.map_err(|status| status.to_string())?.into_inner();
        Ok((answer.hash, answer.compact_revision))
    })
    .await
}
