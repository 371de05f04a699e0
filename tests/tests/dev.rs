//! `weft dev` as a newcomer meets it: curl against the sidecar of the demo mesh.

use std::time::{Duration, Instant};

use weft_tests::mesh::strings;
use weft_tests::process::{WeftProcess, run_program};
use weft_tests::wait::until;

async fn dev() -> WeftProcess {
    WeftProcess::start("dev", &strings(&["dev", "--ephemeral"])).await
}

async fn curl(args: &[&str]) -> String {
    let mut all = vec!["--silent", "--show-error", "--max-time", "10", "--noproxy", ""];
    all.extend(args);
    let done = run_program("curl", &all, &[], "").await;
    assert_eq!(done.code, 0, "{args:?}: {done:?}");
    done.stdout
}

/// The instance named in an answer of the demo service.
fn instance(answer: &str) -> &'static str {
    ["hello-1", "hello-2", "hello-3"]
        .into_iter()
        .find(|name| answer.contains(name))
        .unwrap_or_else(|| panic!("no instance named in {answer:?}"))
}

/// Five calls see the rotation: some order of the three, repeated exactly (SD-12).
fn assert_exact_rotation(seen: &[&str]) {
    let mut first: Vec<_> = seen[..3].to_vec();
    first.sort_unstable();
    assert_eq!(first, ["hello-1", "hello-2", "hello-3"], "{seen:?}");
    for (i, name) in seen.iter().enumerate() {
        assert_eq!(*name, seen[i % 3], "{seen:?}");
    }
}

/// By `Host` and as HTTP proxy, three instances answer in exact round-robin order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hello_rotates_over_three_instances_in_exact_order() {
    let dev = dev().await;
    let url = format!("http://{}/", dev.addr("outbound"));
    // The first answer may find instances whose first health check is still on its way.
    until("three instances in rotation", Duration::from_secs(10), || async {
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(instance(&curl(&[&url, "-H", "Host: hello"]).await));
        }
        seen.sort_unstable();
        seen.dedup();
        if seen.len() == 3 { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    let mut seen = Vec::new();
    for _ in 0..9 {
        seen.push(instance(&curl(&[&url, "-H", "Host: hello"]).await));
    }
    assert_exact_rotation(&seen);
    let proxy = format!("http://{}", dev.addr("outbound"));
    seen.clear();
    for _ in 0..9 {
        seen.push(instance(&curl(&["-x", &proxy, "http://hello/"]).await));
    }
    assert_exact_rotation(&seen);
    let greeting = curl(&[&url, "-H", "Host: greeter"]).await;
    assert!(
        greeting.contains("hello-"),
        "the second service calls the first through the sidecar: {greeting}"
    );
    assert_eq!(dev.stop().await, 0);
}

/// D05: a stopped instance is out at once without a failed call, and back after it returns.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopped_instance_is_out_at_once_without_an_error_and_back_after_it_returns() {
    let dev = dev().await;
    let url = format!("http://{}/", dev.addr("outbound"));
    let demo = dev.addr("demo");
    for _ in 0..6 {
        curl(&["--fail", &url, "-H", "Host: hello"]).await;
    }
    curl(&["--fail", "-X", "POST", &format!("http://{demo}/hello-2/stop")]).await;
    for _ in 0..12 {
        let answer = curl(&["--fail", &url, "-H", "Host: hello"]).await;
        assert_ne!(instance(&answer), "hello-2");
    }
    curl(&["--fail", "-X", "POST", &format!("http://{demo}/hello-2/start")]).await;
    until("hello-2 is back", Duration::from_secs(15), || async {
        let answer = curl(&["--fail", &url, "-H", "Host: hello"]).await;
        if instance(&answer) == "hello-2" { Ok(()) } else { Err(answer) }
    })
    .await;
    assert_eq!(dev.stop().await, 0);
}

/// The first minute: addresses and things to try within a second, and a clean end within two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_stops_within_two_seconds_and_leaves_nothing_behind() {
    let dev = dev().await;
    assert!(dev.log().matches("curl").count() >= 3, "commands to paste: {}", dev.log());
    let outbound = dev.addr("outbound");
    let asked = Instant::now();
    assert_eq!(dev.stop().await, 0);
    let took = asked.elapsed();
    // Two seconds is the promise on a quiet machine; tests run beside others.
    assert!(took < Duration::from_secs(4), "took {took:?}");
    assert!(tokio::net::TcpStream::connect(outbound).await.is_err(), "the listener is closed");
}

/// The policy is switched at run time, over the control plane, and no call fails meanwhile (SD-37).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn balancing_policy_is_switched_at_run_time() {
    let dev = dev().await;
    let (grpc, url) = (dev.addr("grpc").to_string(), format!("http://{}/", dev.addr("outbound")));
    curl(&["--fail", &url, "-H", "Host: hello"]).await;
    for policy in ["random", "least-connections", "peak-ewma", "maglev:header=x-user", "round-robin"] {
        let set = weft_tests::process::run(&["lb", "hello", policy, "--endpoints", &grpc]).await;
        assert_eq!(set.code, 0, "{set:?}");
        let admin = format!("http://{}/clusters", dev.addr("admin"));
        until(&format!("the proxy balances {policy}"), Duration::from_secs(10), || async {
            curl(&["--fail", &url, "-H", "Host: hello"]).await;
            let clusters = curl(&[&admin]).await;
            if clusters.contains(policy) { Ok(()) } else { Err(clusters) }
        })
        .await;
    }
    let refused = weft_tests::process::run(&["lb", "hello", "fastest", "--endpoints", &grpc]).await;
    assert_ne!(refused.code, 0);
    for allowed in ["round-robin", "random", "least-connections", "maglev:KEY"] {
        assert!(refused.stderr.contains(allowed), "{refused:?}");
    }
}
