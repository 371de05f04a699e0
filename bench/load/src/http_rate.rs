//! HTTP/1.1 requests at a constant rate.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Context;
use bytes::Bytes;
use http::{Request, StatusCode, header::HOST};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::{cpu, report::Report};

const WARM_UP: Duration = Duration::from_secs(1);

/// Of a connection, whose cause is printed.
const FAILURES_SHOWN: u64 = 2;

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
        let mut connection = Connection::new(to);
        connection.open().await?;
        let host = host.to_owned();
        tasks.push(tokio::spawn(async move { one(connection, &host, first, period, count_from, end).await }));
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

/// A connection that sends one request at a time, and is opened anew when the other side has ended it.
pub struct Connection {
    to: SocketAddr,
    requests: Option<http1::SendRequest<Empty<Bytes>>>,
}

impl Connection {
    /// Not open yet.
    pub fn new(to: SocketAddr) -> Self {
        Self { to, requests: None }
    }

    /// Opens it unless it is.
    pub async fn open(&mut self) -> anyhow::Result<&mut http1::SendRequest<Empty<Bytes>>> {
        // Whoever says `connection: close` has ended it by the time that the next request is due.
        if self.requests.as_ref().is_none_or(http1::SendRequest::is_closed) {
            let to = self.to;
            let stream = TcpStream::connect(to).await.with_context(|| format!("cannot connect to {to}"))?;
            stream.set_nodelay(true)?;
            let (requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            self.requests = Some(requests);
        }
        let requests = self.requests.as_mut().expect("opened above");
        requests.ready().await?;
        Ok(requests)
    }

    /// Sends `GET /` and reads the whole answer.
    pub async fn get(&mut self, host: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        let requests = self.open().await?;
        let request = Request::get("/").header(HOST, host).body(Empty::new())?;
        let answer = requests.send_request(request).await?;
        let status = answer.status();
        Ok((status, answer.into_body().collect().await?.to_bytes()))
    }

    /// The same; another status than 200 is an error.
    pub async fn expect_ok(&mut self, host: &str) -> anyhow::Result<()> {
        let (status, body) = self.get(host).await?;
        anyhow::ensure!(status == 200, "answered {status}: {}", String::from_utf8_lossy(&body));
        Ok(())
    }
}

async fn one(
    mut connection: Connection,
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
        let answered = connection.expect_ok(host).await;
        match answered {
            Ok(()) if due >= count_from => took.push(from.elapsed().as_micros() as u32),
            Ok(()) => {}
            Err(error) if due < count_from => return Err(error),
            Err(error) => {
                failures += 1;
                if failures <= FAILURES_SHOWN {
                    eprintln!("failed: {error:#}");
                }
            }
        }
    }
    Ok((took, failures))
}
