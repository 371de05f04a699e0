//! Load generator and plain upstream for the scripts in `bench/`.
//!
//! `weft-load put` writes to an etcd v3 endpoint and prints one line of figures; `weft-load upstream`
//! answers every HTTP request with 128 bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use clap::{Parser, Subcommand};
use http::Response;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};
use weft_xds_proto::etcdserverpb::PutRequest;
use weft_xds_proto::etcdserverpb::kv_client::KvClient;

/// HTTP/2 connections shared by the clients of one run; more would measure connections, not writes.
const CONNECTIONS_MAX: usize = 16;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Write small values from many clients at once; print writes per second and latency.
    Put {
        /// Comma-separated HOST:PORT of etcd v3 gRPC endpoints.
        #[arg(long, value_delimiter = ',', required = true)]
        endpoints: Vec<String>,
        /// Clients, each with one write in flight.
        #[arg(long, default_value_t = 64)]
        clients: usize,
        /// Seconds that count, after one second of warm-up.
        #[arg(long, default_value_t = 5)]
        seconds: u64,
        /// Bytes of each value.
        #[arg(long, default_value_t = 256)]
        value_bytes: usize,
    },
    /// Answer every HTTP/1.1 request with 128 bytes.
    Upstream {
        /// Where to listen.
        #[arg(long)]
        listen: SocketAddr,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Args::parse().what {
        What::Put { endpoints, clients, seconds, value_bytes } => {
            put(&endpoints, clients, Duration::from_secs(seconds), value_bytes).await
        }
        What::Upstream { listen } => upstream(listen).await,
    }
}

async fn connect(endpoints: &[String], clients: usize) -> anyhow::Result<Vec<KvClient<Channel>>> {
    let mut channels = Vec::new();
    for i in 0..clients.clamp(1, CONNECTIONS_MAX) {
        let endpoint = &endpoints[i % endpoints.len()];
        let channel = Endpoint::from_shared(format!("http://{endpoint}"))?
            .connect()
            .await
            .with_context(|| format!("cannot connect to {endpoint}"))?;
        channels.push(KvClient::new(channel));
    }
    Ok(channels)
}

async fn put(
    endpoints: &[String],
    clients: usize,
    length: Duration,
    value_bytes: usize,
) -> anyhow::Result<()> {
    let channels = connect(endpoints, clients).await?;
    let (counting, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let failures = Arc::new(AtomicU64::new(0));
    let mut tasks = Vec::new();
    for client in 0..clients {
        let mut kv = channels[client % channels.len()].clone();
        let (counting, stop, failures) = (counting.clone(), stop.clone(), failures.clone());
        tasks.push(tokio::spawn(async move {
            let value = Bytes::from(vec![b'v'; value_bytes]);
            let mut took_micros = Vec::new();
            let mut round = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let key = Bytes::from(format!("bench/{client}/{}", round % 100));
                round += 1;
                let asked = Instant::now();
                let answer = kv.put(PutRequest { key, value: value.clone(), ..Default::default() }).await;
                if answer.is_err() {
                    failures.fetch_add(1, Ordering::Relaxed);
                } else if counting.load(Ordering::Relaxed) {
                    took_micros.push(asked.elapsed().as_micros() as u64);
                }
            }
            took_micros
        }));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    counting.store(true, Ordering::Relaxed);
    let started = Instant::now();
    tokio::time::sleep(length).await;
    let elapsed = started.elapsed();
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await?);
    }
    all.sort_unstable();
    let at =
        |share: f64| all.get(((all.len() as f64 * share) as usize).min(all.len().saturating_sub(1))).copied();
    println!(
        "clients {clients} puts_per_s {:.0} p50_us {} p99_us {} failures {}",
        all.len() as f64 / elapsed.as_secs_f64(),
        at(0.50).unwrap_or(0),
        at(0.99).unwrap_or(0),
        failures.load(Ordering::Relaxed),
    );
    Ok(())
}

async fn upstream(listen: SocketAddr) -> anyhow::Result<()> {
    let listener =
        tokio::net::TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {}", listener.local_addr()?);
    let body = Bytes::from_static(&[b'x'; 128]);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let body = body.clone();
        tokio::spawn(async move {
            let service = service_fn(move |_| {
                let answer = Response::new(Full::new(body.clone()));
                async move { Ok::<_, std::convert::Infallible>(answer) }
            });
            // A load generator that goes away ends its connections; that is no error here.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
