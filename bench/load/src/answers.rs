//! When a server answers again.

use std::time::{Duration, Instant};

use bytes::Bytes;
use weft_xds_proto::etcdserverpb::{RangeRequest, kv_client::KvClient};

use crate::{Target, connect};

/// Between two attempts.
const PROBE_EVERY: Duration = Duration::from_millis(10);

const GIVE_UP: Duration = Duration::from_secs(120);

/// Returns as soon as the first endpoint answers a linearizable get: until then it refuses connections, or requests.
pub async fn wait(target: &Target) -> anyhow::Result<()> {
    let deadline = Instant::now() + GIVE_UP;
    while let Err(error) = get(&target.endpoints[0]).await {
        anyhow::ensure!(Instant::now() < deadline, "no answer within {GIVE_UP:?}; at last: {error:#}");
        tokio::time::sleep(PROBE_EVERY).await;
    }
    Ok(())
}

async fn get(endpoint: &str) -> anyhow::Result<()> {
    let range = RangeRequest { key: Bytes::from_static(b"answers"), ..Default::default() };
    // A server without a leader may hold a request for long.
    let asked = tokio::time::timeout(Duration::from_secs(1), async {
        KvClient::new(connect::one(endpoint).await?).range(range).await?;
        Ok(())
    });
    asked.await?
}
