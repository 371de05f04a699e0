//! Many keys, as fast as they go in.

use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use weft_xds_proto::etcdserverpb::{PutRequest, kv_client::KvClient};

use crate::{Target, connect};

/// Writes on their way at one time.
const IN_FLIGHT: usize = 512;

/// Writes the keys, one after another and then again, and prints how long it took.
pub async fn run(target: &Target, keys: u64, times: u64) -> anyhow::Result<()> {
    let channels = connect::connect(target, connect::CONNECTIONS_MAX).await?;
    let started = Instant::now();
    let value = Bytes::from(vec![b'v'; 256]);
    futures::stream::iter(0..keys * times)
        .map(|number| {
            let mut kv = KvClient::new(channels[number as usize % channels.len()].clone());
            let key = Bytes::from(format!("fill/{:09}", number % keys));
            let put = PutRequest { key, value: value.clone(), ..Default::default() };
            async move { kv.put(put).await }
        })
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    println!("wrote {keys} keys {times} times in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}
