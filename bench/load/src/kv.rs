//! One operation of the etcd v3 API, again and again.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use tonic::Streaming;
use weft_xds_proto::etcdserverpb::{
    Compare, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, PutRequest, RangeRequest,
    RequestOp, TxnRequest, compare, kv_client::KvClient, lease_client::LeaseClient, request_op,
};

use crate::{
    Target,
    connect::{self, Connection},
    cpu, disturb,
    report::Report,
};

/// Keys that all clients together write and read.
const KEYS: u64 = 1000;

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Op {
    /// A put of one of 1,000 keys.
    Put,
    /// A linearizable get of one of 1,000 keys.
    Get,
    /// A serializable get of one of 1,000 keys.
    GetSerializable,
    /// A transaction that puts a key of its own if its revision is the expected one.
    Cas,
    /// A grant of a lease of an hour.
    LeaseGrant,
    /// A keep-alive of one lease of its own, on one stream.
    LeaseKeepalive,
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Op::Put => "put",
            Op::Get => "get",
            Op::GetSerializable => "get-serializable",
            Op::Cas => "cas",
            Op::LeaseGrant => "lease-grant",
            Op::LeaseKeepalive => "lease-keepalive",
        }
    }
}

/// Runs it and prints the line.
pub async fn run(
    target: &Target,
    op: Op,
    clients: usize,
    length: Duration,
    value_bytes: usize,
    disturb: bool,
) -> anyhow::Result<()> {
    let channels = connect::connect(target, clients).await?;
    let value = Bytes::from(vec![b'v'; value_bytes]);
    if matches!(op, Op::Get | Op::GetSerializable) {
        let mut kv = KvClient::new(channels[0].clone());
        for number in 0..KEYS {
            kv.put(PutRequest { key: key(number), value: value.clone(), ..Default::default() }).await?;
        }
    }
    let phase = Arc::new(Phase::default());
    let mut tasks = Vec::new();
    for number in 0..clients {
        let channel = channels[number % channels.len()].clone();
        let client = Client::new(op, number as u64, channel, value.clone()).await?;
        tasks.push(tokio::spawn(client.run(phase.clone())));
    }
    let disturbing = disturb.then(|| disturb::start(target.endpoints[0].clone()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    phase.counting.store(true, Relaxed);
    let (started, cpu_before) = (Instant::now(), cpu::nanos(&target.pids)?);
    tokio::time::sleep(length).await;
    let (elapsed, cpu_after) = (started.elapsed(), cpu::nanos(&target.pids)?);
    phase.stop.store(true, Relaxed);
    if let Some(disturbing) = disturbing {
        disturbing.stop().context("compactions and snapshots")?;
    }
    let mut took_micros = Vec::new();
    for task in tasks {
        took_micros.extend(task.await?);
    }
    Report {
        what: format!("{}-c{clients}{}", op.name(), if disturb { "-disturbed" } else { "" }),
        count: took_micros.len() as u64,
        elapsed,
        took_micros,
        failures: phase.failures.load(Relaxed),
        cpu_nanos: cpu_after - cpu_before,
    }
    .print();
    Ok(())
}

/// Told to all clients.
#[derive(Default)]
struct Phase {
    counting: AtomicBool,
    stop: AtomicBool,
    failures: AtomicU64,
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("bench/{number:06}"))
}

struct Client {
    op: Op,
    number: u64,
    round: u64,
    kv: KvClient<Connection>,
    lease: LeaseClient<Connection>,
    value: Bytes,
    /// Of this client's own key, for `Cas`.
    revision: i64,
    keep_alive: Option<KeepAlive>,
}

struct KeepAlive {
    id: i64,
    ask: tokio::sync::mpsc::Sender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl Client {
    async fn new(op: Op, number: u64, channel: Connection, value: Bytes) -> anyhow::Result<Client> {
        let mut lease = LeaseClient::new(channel.clone());
        let keep_alive = if op == Op::LeaseKeepalive {
            let granted = lease.lease_grant(LeaseGrantRequest { ttl: 3600, id: 0 }).await?.into_inner();
            let (ask, asked) = tokio::sync::mpsc::channel(1);
            // The first request goes out before the answer's head is waited for: some servers send none before.
            ask.send(LeaseKeepAliveRequest { id: granted.id }).await?;
            let requests = futures::stream::unfold(asked, |mut asked| async move {
                asked.recv().await.map(|request| (request, asked))
            });
            let mut answers = lease.lease_keep_alive(requests).await?.into_inner();
            answers.message().await?.context("the keep-alive stream ended")?;
            Some(KeepAlive { id: granted.id, ask, answers })
        } else {
            None
        };
        let kv = KvClient::new(channel);
        let mut client = Client { op, number, round: 0, kv, lease, value, revision: 0, keep_alive };
        if op == Op::Cas {
            let put = PutRequest { key: client.own_key(), value: client.value.clone(), ..Default::default() };
            let header = client.kv.put(put).await?.into_inner().header;
            client.revision = header.context("an answer without a header")?.revision;
        }
        Ok(client)
    }

    fn own_key(&self) -> Bytes {
        Bytes::from(format!("bench/own/{:06}", self.number))
    }

    /// Microseconds of each operation that counted.
    async fn run(mut self, phase: Arc<Phase>) -> Vec<u32> {
        let mut took = Vec::new();
        while !phase.stop.load(Relaxed) {
            let asked = Instant::now();
            if self.once().await.is_err() {
                phase.failures.fetch_add(1, Relaxed);
                // A server that refuses at once must not turn this into a busy loop.
                tokio::time::sleep(Duration::from_millis(1)).await;
            } else if phase.counting.load(Relaxed) {
                took.push(asked.elapsed().as_micros() as u32);
            }
            self.round += 1;
        }
        took
    }

    async fn once(&mut self) -> anyhow::Result<()> {
        // A large prime step spreads the clients over the keys.
        let number = (self.number * 7919 + self.round * 31) % KEYS;
        match self.op {
            Op::Put => {
                let put = PutRequest { key: key(number), value: self.value.clone(), ..Default::default() };
                self.kv.put(put).await?;
            }
            Op::Get | Op::GetSerializable => {
                let serializable = self.op == Op::GetSerializable;
                let range = RangeRequest { key: key(number), serializable, ..Default::default() };
                let found = self.kv.range(range).await?.into_inner();
                anyhow::ensure!(found.kvs.len() == 1, "{} keys found", found.kvs.len());
            }
            Op::Cas => self.compare_and_put().await?,
            Op::LeaseGrant => {
                self.lease.lease_grant(LeaseGrantRequest { ttl: 3600, id: 0 }).await?;
            }
            Op::LeaseKeepalive => {
                let own = self.keep_alive.as_mut().context("has a lease")?;
                own.ask.send(LeaseKeepAliveRequest { id: own.id }).await?;
                let answer = own.answers.message().await?.context("the keep-alive stream ended")?;
                anyhow::ensure!(answer.ttl > 0, "the lease has ended");
            }
        }
        Ok(())
    }

    async fn compare_and_put(&mut self) -> anyhow::Result<()> {
        let key = self.own_key();
        let put = PutRequest { key: key.clone(), value: self.value.clone(), ..Default::default() };
        let unchanged = Compare {
            result: compare::CompareResult::Equal.into(),
            target: compare::CompareTarget::Mod.into(),
            key,
            target_union: Some(compare::TargetUnion::ModRevision(self.revision)),
            ..Default::default()
        };
        let txn = TxnRequest {
            compare: vec![unchanged],
            success: vec![RequestOp { request: Some(request_op::Request::RequestPut(put)) }],
            failure: Vec::new(),
        };
        let answer = self.kv.txn(txn).await?.into_inner();
        anyhow::ensure!(answer.succeeded, "the key has another revision than {}", self.revision);
        self.revision = answer.header.context("an answer without a header")?.revision;
        Ok(())
    }
}
