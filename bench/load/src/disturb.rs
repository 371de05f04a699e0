//! What a server does beside the load: compactions and snapshots, again and again.

use std::{thread::JoinHandle, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use weft_xds_proto::etcdserverpb::{
    CompactionRequest, RangeRequest, SnapshotRequest, kv_client::KvClient,
    maintenance_client::MaintenanceClient,
};

use crate::connect;

/// Between the end of one and the begin of the next.
const PAUSE: Duration = Duration::from_millis(200);

/// On a thread of its own: what is read would else delay the answers that are measured.
pub struct Disturbing {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: JoinHandle<anyhow::Result<()>>,
}

/// Begins to compact all history and read a whole snapshot of one server, in turn.
pub fn start(endpoint: String) -> Disturbing {
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            tokio::select! {
                ended = compact_and_snapshot(endpoint) => ended,
                _ = stopped => Ok(()),
            }
        })
    };
    Disturbing { stop, thread: std::thread::spawn(run) }
}

impl Disturbing {
    /// Ends it. One that ended by itself has failed: then nothing was disturbed.
    pub fn stop(self) -> anyhow::Result<()> {
        let _ = self.stop.send(());
        self.thread.join().map_err(|_| anyhow::anyhow!("panicked"))?
    }
}

async fn compact_and_snapshot(endpoint: String) -> anyhow::Result<()> {
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
