//! HTTP/1.1 requests at a constant rate.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use http::{Request, header::HOST};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::{cpu, report::Report};

const WARM_UP: Duration = Duration::from_secs(1);

/// Sends `rate` requests a second over `connections`, each at the time that is due to it, and prints the line. The latency of a
/// request that had to wait for the one before on its connection counts from when it was due: it waited for the server (no
/// coordinated omission). That of another counts from when it was sent: timers wake to the millisecond only.
pub async fn run(
    to: SocketAddr,
    host: &str,
    pids: &[u32],
    rate: u64,
    connections: u64,
    length: Duration,
) -> anyhow::Result<()> {
    let period = Duration::from_secs_f64(connections as f64 / rate as f64);
    let begin = Instant::now() + Duration::from_millis(200);
    let (count_from, end) = (begin + WARM_UP, begin + WARM_UP + length);
    let mut tasks = Vec::new();
    for number in 0..connections {
        // Spread over the period, so that the requests of all connections are evenly apart.
        let first = begin + period.mul_f64(number as f64 / connections as f64);
        let requests = connect(to).await?;
        let host = host.to_owned();
        tasks.push(tokio::spawn(async move { one(requests, &host, first, period, count_from, end).await }));
    }
    tokio::time::sleep_until(count_from.into()).await;
    let cpu_before = cpu::nanos(pids)?;
    tokio::time::sleep_until(end.into()).await;
    let cpu_nanos = cpu::nanos(pids)? - cpu_before;
    let (mut took_micros, mut failures) = (Vec::new(), 0);
    for task in tasks {
        let (took, failed) = task.await??;
        took_micros.extend(took);
        failures += failed;
    }
    let count = took_micros.len() as u64;
    Report { what: format!("http1-r{rate}"), count, elapsed: length, took_micros, failures, cpu_nanos }
        .print();
    Ok(())
}

/// A connection that sends one request at a time.
pub async fn connect(to: SocketAddr) -> anyhow::Result<http1::SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(to).await.with_context(|| format!("cannot connect to {to}"))?;
    stream.set_nodelay(true)?;
    let (requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(requests)
}

/// Sends a request and reads its whole answer; its status is 200 or it is an error.
pub async fn request(requests: &mut http1::SendRequest<Empty<Bytes>>, host: &str) -> anyhow::Result<()> {
    requests.ready().await?;
    let request = Request::get("/").header(HOST, host).body(Empty::new())?;
    let answer = requests.send_request(request).await?;
    let status = answer.status();
    answer.into_body().collect().await?;
    anyhow::ensure!(status == 200, "answered {status}");
    Ok(())
}

async fn one(
    mut requests: http1::SendRequest<Empty<Bytes>>,
    host: &str,
    first: Instant,
    period: Duration,
    count_from: Instant,
    end: Instant,
) -> anyhow::Result<(Vec<u32>, u64)> {
    let (mut took, mut failures) = (Vec::new(), 0);
    for number in 0.. {
        let due = first + period.mul_f64(f64::from(number));
        if due >= end {
            break;
        }
        let had_to_wait = Instant::now() > due;
        tokio::time::sleep_until(due.into()).await;
        let from = if had_to_wait { due } else { Instant::now() };
        let answered = request(&mut requests, host).await;
        if due < count_from {
            answered?;
        } else if answered.is_err() {
            failures += 1;
        } else {
            took.push(from.elapsed().as_micros() as u32);
        }
    }
    Ok((took, failures))
}
