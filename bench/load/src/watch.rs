//! Watches on one key.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use futures::stream;
use parking_lot::Mutex;
use weft_xds_proto::etcdserverpb::{
    PutRequest, WatchCreateRequest, WatchRequest, kv_client::KvClient, watch_client::WatchClient,
    watch_request::RequestUnion,
};

use crate::{Target, connect, cpu, report::Report};

const STREAMS: usize = 10;

/// How long the last deliveries may take.
const DRAIN_MAX: Duration = Duration::from_secs(20);

#[derive(Default)]
struct Deliveries {
    counting: AtomicBool,
    count: AtomicU64,
    took_micros: Mutex<Vec<u32>>,
}

/// Opens the watches, writes, waits for the last delivery, prints the line. The latency is that from sending
/// a put to each delivery of it.
pub async fn run(target: &Target, watchers: usize, rate: u64, length: Duration) -> anyhow::Result<()> {
    let streams = STREAMS.min(watchers);
    let channels = connect::connect(target, streams).await?;
    let began = Instant::now();
    let key = Bytes::from(format!("watched/{}", std::process::id()));
    let all = Arc::new(Deliveries::default());
    let mut tasks = Vec::new();
    for number in 0..streams {
        let mine = watchers / streams + usize::from(number < watchers % streams);
        let create = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(WatchCreateRequest {
                key: key.clone(),
                ..Default::default()
            })),
        };
        let requests = stream::iter(std::iter::repeat_n(create, mine));
        let requests = futures::StreamExt::chain(requests, stream::pending());
        let mut client = WatchClient::new(channels[number % channels.len()].clone());
        let mut answers = client.watch(requests).await?.into_inner();
        let mut created = 0;
        while created < mine {
            let answer = answers.message().await?.context("the watch stream ended")?;
            anyhow::ensure!(!answer.canceled, "a watch was refused: {}", answer.cancel_reason);
            created += usize::from(answer.created);
        }
        let all = all.clone();
        tasks.push(tokio::spawn(async move {
            while let Ok(Some(answer)) = answers.message().await {
                let now = began.elapsed().as_micros() as u64;
                let counting = all.counting.load(Relaxed);
                let mut took = all.took_micros.lock();
                for event in &answer.events {
                    all.count.fetch_add(1, Relaxed);
                    let sent = event.kv.as_ref().and_then(|kv| kv.value[..8].try_into().ok());
                    if let (true, Some(sent)) = (counting, sent) {
                        took.push(now.saturating_sub(u64::from_le_bytes(sent)) as u32);
                    }
                }
            }
        }));
    }
    let mut kv = KvClient::new(connect::one(&target.endpoints[0]).await?);
    let mut value = vec![b'v'; 256];
    let mut put = async |counted: Duration| -> anyhow::Result<u64> {
        let (started, mut puts) = (Instant::now(), 0_u64);
        let pause = Duration::from_micros(1_000_000_u64.checked_div(rate).unwrap_or(0));
        while started.elapsed() < counted {
            value[..8].copy_from_slice(&(began.elapsed().as_micros() as u64).to_le_bytes());
            let put = PutRequest { key: key.clone(), value: value.clone().into(), ..Default::default() };
            kv.put(put).await?;
            puts += 1;
            if rate > 0 {
                tokio::time::sleep((pause * puts as u32).saturating_sub(started.elapsed())).await;
            }
        }
        Ok(puts)
    };
    let warm = put(Duration::from_secs(1)).await? * watchers as u64;
    delivered(&all, warm).await?;
    all.counting.store(true, Relaxed);
    let (started, cpu_before) = (Instant::now(), cpu::nanos(&target.pids)?);
    let due = put(length).await? * watchers as u64;
    delivered(&all, warm + due).await?;
    let (elapsed, cpu_after) = (started.elapsed(), cpu::nanos(&target.pids)?);
    for task in tasks {
        task.abort();
    }
    let pace = if rate == 0 { "max".to_owned() } else { format!("r{rate}") };
    Report {
        what: format!("watch-w{watchers}-{pace}"),
        count: due,
        elapsed,
        took_micros: std::mem::take(&mut *all.took_micros.lock()),
        failures: 0,
        cpu_nanos: cpu_after - cpu_before,
    }
    .print();
    Ok(())
}

/// Waits until all of `due` have come.
async fn delivered(all: &Deliveries, due: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + DRAIN_MAX;
    while all.count.load(Relaxed) < due {
        let seen = all.count.load(Relaxed);
        anyhow::ensure!(Instant::now() < deadline, "{seen} of {due} deliveries after {DRAIN_MAX:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    anyhow::ensure!(all.count.load(Relaxed) == due, "more deliveries than {due}");
    Ok(())
}
