//! What a server does beside the load: compactions and snapshots, again and again.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use weft_xds_proto::etcdserverpb::{
    CompactionRequest, RangeRequest, SnapshotRequest, kv_client::KvClient,
    maintenance_client::MaintenanceClient,
};

use crate::connect;

/// Between the end of one and the begin of the next.
const PAUSE: Duration = Duration::from_millis(200);

/// Compacts all history and reads a whole snapshot, in turn, until it is aborted.
pub async fn compact_and_snapshot(endpoint: String) -> anyhow::Result<()> {
    let connection = connect::one(&endpoint).await?;
    let (mut kv, mut maintenance) = (KvClient::new(connection.clone()), MaintenanceClient::new(connection));
    loop {
        let now = RangeRequest { key: Bytes::from_static(b"disturb"), ..Default::default() };
        let header = kv.range(now).await?.into_inner().header.context("an answer without a header")?;
        // Nothing may have been written since the last time.
        match kv.compact(CompactionRequest { revision: header.revision, physical: false }).await {
            Err(status) if status.code() != tonic::Code::OutOfRange => return Err(status.into()),
            _ => {}
        }
        let mut parts = maintenance.snapshot(SnapshotRequest {}).await?.into_inner();
        while parts.message().await?.is_some() {}
        tokio::time::sleep(PAUSE).await;
    }
}
