//! Puts through Weft's own pipelined stream.

use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weft_xds_proto::weft::{Put, Write, WriteRequest, kv_client::KvClient, write::Op};

use crate::{
    Target,
    connect::{self, Connection},
    cpu,
    report::Report,
};

/// Streams, spread over the servers.
const STREAMS: usize = 4;

/// Keys that are written, as in the other operations.
const KEYS: u64 = 1000;

const WARM_UP: Duration = Duration::from_secs(1);

/// Runs it and prints the line.
pub async fn run(
    target: &Target,
    in_flight: usize,
    per_message: usize,
    length: Duration,
) -> anyhow::Result<()> {
    let channels = connect::connect(target, STREAMS).await?;
    let count_from = Instant::now() + WARM_UP;
    let mut tasks = Vec::new();
    for (number, channel) in channels.into_iter().enumerate() {
        let messages = (in_flight / STREAMS / per_message).max(1);
        let seed = number as u64 * 7919;
        tasks.push(tokio::spawn(stream(channel, seed, messages, per_message, count_from, length)));
    }
    tokio::time::sleep_until(count_from.into()).await;
    let cpu_before = cpu::nanos(&target.pids)?;
    tokio::time::sleep(length).await;
    let cpu_nanos = cpu::nanos(&target.pids)? - cpu_before;
    let (mut took_micros, mut failures) = (Vec::new(), 0);
    for task in tasks {
        let (took, failed) = task.await??;
        took_micros.extend(took);
        failures += failed;
    }
    let what = format!("write-stream-c{in_flight}");
    let count = took_micros.len() as u64;
    Report { what, count, elapsed: length, took_micros, failures, cpu_nanos }.print();
    Ok(())
}

/// One stream with `messages` in flight; microseconds of each write that counted, and how many failed.
async fn stream(
    channel: Connection,
    seed: u64,
    messages: usize,
    per_message: usize,
    count_from: Instant,
    length: Duration,
) -> anyhow::Result<(Vec<u32>, u64)> {
    let value = Bytes::from(vec![b'v'; 256]);
    let message = |id: u64| {
        let write = |at: usize| {
            let number = (seed + id * per_message as u64 + at as u64) % KEYS;
            let key = Bytes::from(format!("bench/{number:06}"));
            Write { op: Some(Op::Put(Put { key, value: value.clone(), lease: 0 })) }
        };
        WriteRequest { id, writes: (0..per_message).map(write).collect(), ..Default::default() }
    };
    let (send, requests) = mpsc::channel(messages);
    let mut sent_at = Vec::new();
    for id in 0..messages as u64 {
        send.send(message(id)).await?;
        sent_at.push(Instant::now());
    }
    let mut answers = KvClient::new(channel).write(ReceiverStream::new(requests)).await?.into_inner();
    let (mut took, mut failures) = (Vec::new(), 0);
    let end = count_from + length;
    loop {
        let answer = answers.message().await?.context("the stream ended")?;
        let now = Instant::now();
        if now >= end {
            return Ok((took, failures));
        }
        let micros = now.duration_since(sent_at[answer.id as usize]).as_micros() as u32;
        for result in &answer.results {
            if result.code != 0 {
                failures += 1;
            } else if now >= count_from {
                took.push(micros);
            }
        }
        send.send(message(sent_at.len() as u64)).await?;
        sent_at.push(now);
    }
}
