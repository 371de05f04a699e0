//! No file descriptors left. Each test has its process to itself (nextest), as it needs the limits of one.

use std::fs::File;
use std::time::Duration;

use http::StatusCode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpStream;

use crate::support::*;

/// All file descriptors that are left, up to a limit that is lowered first.
fn take_all() -> Vec<File> {
    let limits = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(300), ..limits }).unwrap();
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

/// Processor time of this process so far, in hundredths of a second.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_file_descriptors_no_endpoint_is_blamed_and_no_processor_burnt() {
    let upstreams = [Upstream::start("a").await, Upstream::start("b").await, Upstream::start("c").await];
    let more = "    health-check: {interval: 100ms, unhealthy-threshold: 1}\n";
    let proxy = proxy(&orders(&upstreams.each_ref().map(|u| u.addr), more)).await;
    let mut client = Client::http1(proxy.outbound).await;
    assert_eq!(client.get("unknown", "/").await.status, StatusCode::NOT_FOUND, "it is accepted");
    let waits = tokio::net::TcpSocket::new_v4().unwrap();
    let before = ticks();
    let mut taken = take_all();
    // A check that was under way gives its own back.
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        taken.extend(take_all());
    }
    // Connects to the kernel's queue; the proxy has no descriptor to accept it with.
    let mut waits = waits.connect(proxy.outbound).await.unwrap();
    for _ in 0..6 {
        let reply = client.get("orders", "/").await;
        assert_eq!(
            (reply.status, reply.header("x-weft-error")),
            (StatusCode::SERVICE_UNAVAILABLE, "shortage"),
            "{}",
            reply.body
        );
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    drop(taken);
    let burnt = ticks() - before;
    assert!(burnt < 50, "{burnt} hundredths of a second in one");
    let clusters = get(proxy.admin, "admin", "/clusters").await.body;
    assert!(clusters.contains("(3 ready of 3)"), "{clusters}");
    assert_eq!(client.get("orders", "/").await.status, StatusCode::OK);
    answers(&mut waits).await;
}

async fn answers(stream: &mut TcpStream) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n").await.unwrap();
    let mut head = [0; 12];
    tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut head)).await.unwrap().unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
}
