//! Very many leases: granted, kept alive, and left to expire.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use weft_xds_proto::{
    etcdserverpb::{
        LeaseGrantRequest, LeaseKeepAliveRequest, PutRequest, WatchCreateRequest, WatchRequest,
        kv_client::KvClient, lease_client::LeaseClient, watch_client::WatchClient,
        watch_request::RequestUnion,
    },
    mvccpb::event::EventType,
};

use crate::{
    Target,
    connect::{self, Connection},
};

/// Requests on their way at one time.
const IN_FLIGHT: usize = 512;

/// One lease in so many has a key, whose deletion shows when the lease ended.
const KEY_EVERY: u64 = 100;

/// Keep-alives that are sent on a stream before their answers are read.
const KEEP_ALIVE_BURST: usize = 256;

/// How long after its time the last lease may end.
const OVERDUE_MAX: Duration = Duration::from_secs(60);

/// Grants the leases, keeps each alive once, and prints how much later than promised those with a key ended.
pub async fn run(target: &Target, leases: u64, ttl: i64) -> anyhow::Result<()> {
    let channels = connect::connect(target, connect::CONNECTIONS_MAX).await?;
    let began = Instant::now();
    let of = |number: u64| channels[number as usize % channels.len()].clone();
    stream::iter(1..=leases)
        .map(|id| grant(of(id), id, ttl))
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(|()| async { Ok(()) })
        .await?;
    let granted = began.elapsed();
    let mut endings = watch(&channels[0]).await?;
    let kept_from = Instant::now();
    let mut tasks = Vec::new();
    for (number, channel) in channels.iter().enumerate() {
        let ids: Vec<i64> =
            (1..=leases).filter(|id| *id as usize % channels.len() == number).map(|id| id as i64).collect();
        tasks.push(tokio::spawn(keep_alive(channel.clone(), ids, began)));
    }
    let mut answered = std::collections::HashMap::new();
    for task in tasks {
        answered.extend(task.await??);
    }
    let kept = kept_from.elapsed();
    let ttl = Duration::from_secs(ttl as u64);
    anyhow::ensure!(began.elapsed() < ttl, "the time to live of {ttl:?} is over before all are kept alive");
    let (mut late, due) = (Vec::new(), leases / KEY_EVERY);
    while (late.len() as u64) < due {
        let left = (ttl + kept + OVERDUE_MAX).saturating_sub(kept_from.elapsed());
        let (ended, seen) = (late.len(), tokio::time::timeout(left, endings.message()).await);
        let answer = seen
            .with_context(|| format!("{ended} of {due} leases with a key ended in time"))??
            .context("the watch stream ended")?;
        let now = began.elapsed();
        for event in answer.events.iter().filter(|event| event.r#type() == EventType::Delete) {
            let key = &event.kv.as_ref().context("an event without a key")?.key;
            let id: i64 = std::str::from_utf8(&key["leased/".len()..])?.parse()?;
            let promised = answered.get(&id).context("a lease that was not kept alive")?;
            // The server counts from when it answered; what the client sees of it comes a little later.
            late.push((now.as_secs_f64() - (*promised + ttl).as_secs_f64()).max(0.0) * 1000.0);
        }
    }
    late.sort_by(f64::total_cmp);
    println!(
        "leases {leases} grant_per_s {:.0} keepalive_per_s {:.0} late_p50_ms {:.0} late_p99_ms {:.0} late_max_ms {:.0}",
        leases as f64 / granted.as_secs_f64(),
        leases as f64 / kept.as_secs_f64(),
        late[late.len() / 2],
        late[late.len() * 99 / 100],
        late[late.len() - 1],
    );
    Ok(())
}

async fn grant(channel: Connection, id: u64, ttl: i64) -> anyhow::Result<()> {
    LeaseClient::new(channel.clone()).lease_grant(LeaseGrantRequest { ttl, id: id as i64 }).await?;
    if id.is_multiple_of(KEY_EVERY) {
        let key = Bytes::from(format!("leased/{id}"));
        KvClient::new(channel).put(PutRequest { key, lease: id as i64, ..Default::default() }).await?;
    }
    Ok(())
}

async fn watch(
    channel: &Connection,
) -> anyhow::Result<tonic::Streaming<weft_xds_proto::etcdserverpb::WatchResponse>> {
    let create = WatchCreateRequest {
        key: Bytes::from_static(b"leased/"),
        range_end: Bytes::from_static(b"leased0"),
        ..Default::default()
    };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let requests = stream::iter([create]).chain(stream::pending());
    let mut answers = WatchClient::new(channel.clone()).watch(requests).await?.into_inner();
    let created = answers.message().await?.context("the watch stream ended")?;
    anyhow::ensure!(created.created, "the watch was refused: {}", created.cancel_reason);
    Ok(answers)
}

/// When each was answered, since `began`.
async fn keep_alive(
    channel: Connection,
    ids: Vec<i64>,
    began: Instant,
) -> anyhow::Result<Vec<(i64, Duration)>> {
    let room = Arc::new(tokio::sync::Semaphore::new(KEEP_ALIVE_BURST));
    let asks = {
        let room = room.clone();
        stream::iter(ids.clone()).then(move |id| {
            let room = room.clone();
            async move {
                if let Ok(permit) = room.acquire().await {
                    permit.forget();
                }
                LeaseKeepAliveRequest { id }
            }
        })
    };
    let mut answers = LeaseClient::new(channel).lease_keep_alive(asks).await?.into_inner();
    let mut answered = Vec::with_capacity(ids.len());
    while answered.len() < ids.len() {
        let answer = answers.message().await?.context("the keep-alive stream ended")?;
        anyhow::ensure!(answer.ttl > 0, "lease {} has ended", answer.id);
        room.add_permits(1);
        answered.push((answer.id, began.elapsed()));
    }
    Ok(answered)
}
