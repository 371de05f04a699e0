//! Load generator, plain upstream and table printer for the scripts in `bench/`.
//!
//! `weft-load kv` runs one operation of the etcd v3 API from many clients and prints one line of figures, so
//! that the same generator measures Weft and etcd; `weft-load table` turns such lines into ratios.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand};

mod answers;
mod app;
mod bare;
mod churn;
mod connect;
mod cpu;
mod disturb;
mod failover;
mod fill;
mod hold;
mod http_rate;
mod kv;
mod leases;
mod relay;
mod report;
mod table;
mod upstream;
mod watch;
mod write_stream;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One operation, again and again, from many clients at once.
    Kv {
        #[command(flatten)]
        target: Target,
        /// The operation.
        #[arg(long)]
        op: kv::Op,
        /// Clients, each with one request in flight.
        #[arg(long, default_value_t = 64)]
        clients: usize,
        /// Seconds that count, after one second of warm-up.
        #[arg(long, default_value_t = 4)]
        seconds: u64,
        /// Bytes of each value.
        #[arg(long, default_value_t = 256)]
        value_bytes: usize,
        /// Compact and take snapshots meanwhile, again and again.
        #[arg(long)]
        disturb: bool,
    },
    /// Puts through Weft's own pipelined stream, `weft.v1.Kv/Write`.
    WriteStream {
        #[command(flatten)]
        target: Target,
        /// Writes in flight, over all streams.
        #[arg(long, default_value_t = 256)]
        in_flight: usize,
        /// Writes of one message.
        #[arg(long, default_value_t = 16)]
        per_message: usize,
        /// Seconds that count, after one second of warm-up.
        #[arg(long, default_value_t = 4)]
        seconds: u64,
    },
    /// Many watches on one key over ten streams, while it is written.
    Watch {
        #[command(flatten)]
        target: Target,
        /// Watches.
        #[arg(long)]
        watchers: usize,
        /// Writes per second; 0: the next as soon as the one before is answered.
        #[arg(long, default_value_t = 0)]
        rate: u64,
        /// Seconds that count, after one second of warm-up.
        #[arg(long, default_value_t = 4)]
        seconds: u64,
    },
    /// Write values of 256 bytes, many at a time: the same work for every server, however fast it is.
    Fill {
        #[command(flatten)]
        target: Target,
        /// Keys.
        #[arg(long, default_value_t = 1_000_000)]
        keys: u64,
        /// How often each is written.
        #[arg(long, default_value_t = 1)]
        times: u64,
    },
    /// Very many leases: granted, kept alive once, and left to expire.
    Leases {
        #[command(flatten)]
        target: Target,
        /// Leases; every hundredth has a key.
        #[arg(long, default_value_t = 1_000_000)]
        leases: u64,
        /// Their time to live in seconds: longer than granting and keeping alive takes.
        #[arg(long, default_value_t = 240)]
        ttl: i64,
    },
    /// Wait until the first endpoint answers a linearizable get.
    Answers {
        #[command(flatten)]
        target: Target,
    },
    /// Kill a process and measure the time until a write is acknowledged again.
    Failover {
        #[command(flatten)]
        target: Target,
        /// The leader's process, ended with SIGKILL.
        #[arg(long)]
        kill: u32,
    },
    /// Which of the endpoints leads: its place in the list.
    Leader {
        #[command(flatten)]
        target: Target,
    },
    /// Print medians and ratios of a file of result lines.
    Table {
        /// The file.
        file: PathBuf,
        /// What the others are compared with.
        #[arg(long, default_value = "etcd-3.5")]
        base: String,
    },
    /// Answer every gRPC call with the same range of one key.
    Bare {
        /// Where to listen.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// A control plane (xDS) whose endpoints change all the time.
    Churn {
        /// Where to listen.
        #[arg(long)]
        listen: SocketAddr,
        /// Where the service `upstream` is, always.
        #[arg(long)]
        endpoint: SocketAddr,
        /// Endpoints of each other service that is asked for.
        #[arg(long, default_value_t = 100)]
        each: u32,
        /// How many of these change in a second.
        #[arg(long, default_value_t = 10_000)]
        rate: u32,
    },
    /// HTTP/1.1 requests at a constant rate; a latency counts from when a request was due.
    HttpRate {
        /// Where to send them.
        #[arg(long)]
        to: SocketAddr,
        /// The Host header.
        #[arg(long)]
        host: String,
        /// Processes whose CPU time is counted.
        #[arg(long, value_delimiter = ',')]
        pids: Vec<u32>,
        /// Requests a second, over all connections.
        #[arg(long, default_value_t = 2500)]
        rate: u64,
        /// Connections.
        #[arg(long, default_value_t = 16)]
        connections: u64,
        /// Seconds that count, after one second of warm-up.
        #[arg(long, default_value_t = 4)]
        seconds: u64,
    },
    /// Connections that do nothing after one request, until the process is ended.
    Hold {
        /// Where to.
        #[arg(long)]
        to: SocketAddr,
        /// The Host header.
        #[arg(long)]
        host: String,
        /// Connections.
        #[arg(long)]
        connections: usize,
    },
    /// Copy the bytes of every connection to another one and back.
    Relay {
        /// Where to listen.
        #[arg(long)]
        listen: SocketAddr,
        /// Where they go.
        #[arg(long)]
        to: SocketAddr,
    },
    /// A service of the demo: answers with its name, calls another one, and is slow or fails when told with PUT.
    App {
        /// Where to listen.
        #[arg(long)]
        listen: SocketAddr,
        /// What it answers.
        #[arg(long)]
        name: String,
        /// The service that it calls for each request.
        #[arg(long, requires = "through")]
        calls: Option<String>,
        /// The sidecar that takes its calls.
        #[arg(long, env = "WEFT_SIDECAR")]
        through: Option<SocketAddr>,
    },
    /// Answer every HTTP/1.1 or HTTP/2 request with 128 bytes, and `/bytes/N` with N.
    Upstream {
        /// Where to listen.
        #[arg(long)]
        listen: SocketAddr,
    },
}

/// Who is measured.
#[derive(clap::Args)]
pub struct Target {
    /// Comma-separated HOST:PORT of etcd v3 gRPC endpoints.
    #[arg(long, value_delimiter = ',', required = true)]
    endpoints: Vec<String>,
    /// Processes whose CPU time is counted, in the order of the endpoints.
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Args::parse().what {
        What::Kv { target, op, clients, seconds, value_bytes, disturb } => {
            kv::run(&target, op, clients, Duration::from_secs(seconds), value_bytes, disturb).await
        }
        What::WriteStream { target, in_flight, per_message, seconds } => {
            write_stream::run(&target, in_flight, per_message, Duration::from_secs(seconds)).await
        }
        What::Watch { target, watchers, rate, seconds } => {
            watch::run(&target, watchers, rate, Duration::from_secs(seconds)).await
        }
        What::Fill { target, keys, times } => fill::run(&target, keys, times).await,
        What::Leases { target, leases, ttl } => leases::run(&target, leases, ttl).await,
        What::Answers { target } => answers::wait(&target).await,
        What::Failover { target, kill } => failover::run(&target, kill).await,
        What::Leader { target } => failover::print_leader(&target).await,
        What::Table { file, base } => table::print(&file, &base),
        What::Bare { listen } => bare::run(listen).await,
        What::HttpRate { to, host, pids, rate, connections, seconds } => {
            http_rate::run(to, &host, &pids, rate, connections, Duration::from_secs(seconds)).await
        }
        What::Churn { listen, endpoint, each, rate } => churn::run(listen, endpoint, each, rate).await,
        What::Hold { to, host, connections } => hold::run(to, &host, connections).await,
        What::Relay { listen, to } => relay::run(listen, to).await,
        What::Upstream { listen } => upstream::run(listen).await,
        What::App { listen, name, calls, through } => app::run(listen, name, calls.zip(through)).await,
    }
}
