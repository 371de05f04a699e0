//! The product's thesis on real processes: traffic and discovery go on while servers die, and what was
//! acknowledged is still there when they return.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::mesh::Mesh;
use weft_tests::wait::until;

/// Calls `service` through a proxy without pause until told to stop; counts what failed and why.
struct Caller {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Caller {
    fn start(outbound: std::net::SocketAddr, service: &'static str) -> Self {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted) = (stop.clone(), done.clone());
        let task = tokio::spawn(async move {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                match http_client::get(outbound, service, "/").await {
                    Ok(answer) if answer.status == StatusCode::OK => {}
                    other => failures.push(format!("{other:?}")),
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
            failures
        });
        Self { stop, done, task }
    }

    async fn more_calls(&self, count: u64) {
        let goal = self.done.load(Ordering::Relaxed) + count;
        until(&format!("{count} more calls"), Duration::from_secs(30), || async {
            let seen = self.done.load(Ordering::Relaxed);
            if seen >= goal { Ok(()) } else { Err(seen.to_string()) }
        })
        .await;
    }

    async fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.task.await.expect("the caller does not panic");
        (self.done.load(Ordering::Relaxed), failures)
    }
}

async fn answers_ok(outbound: std::net::SocketAddr, service: &str) -> Result<String, String> {
    match http_client::get(outbound, service, "/").await {
        Ok(answer) if answer.status == StatusCode::OK => Ok(answer.body.trim().to_owned()),
        other => Err(format!("{other:?}")),
    }
}

/// D06 for the control plane: no request fails because a server, the leader, or all servers die; and
/// acknowledged writes survive (A07).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_go_on_while_servers_die_and_kv_data_is_there_when_they_return() {
    let mut mesh = Mesh::with_servers(3).await;
    let orders = FakeUpstream::start("orders-1").await;

    let registered = mesh.register(&mesh.servers[0], "orders", "orders-1", orders.addr(), "300s").await;
    assert_eq!(registered.status, StatusCode::OK, "{}", registered.body);
    let put = mesh.cli(&mesh.servers[0], &["kv", "put", "config/color", "blue"]).await;
    assert_eq!(put.code, 0, "{put:?}");

    let seeds = [mesh.servers[0].gossip(), mesh.servers[2].gossip()];
    let third = mesh.servers[2].grpc().to_string();
    let caller_proxy = mesh.proxy("caller", &seeds, &["--server", &third]).await;
    let outbound = caller_proxy.addr("outbound");
    until("registered at server 1, reached through server 3", Duration::from_secs(15), || {
        answers_ok(outbound, "orders")
    })
    .await;

    // One server, the leader, dies: nobody who calls notices.
    let caller = Caller::start(outbound, "orders");
    caller.more_calls(20).await;
    let leader = mesh.leader().await;
    mesh.servers[leader].kill().await;
    let new_leader = mesh.leader().await;
    assert_ne!(new_leader, leader);
    caller.more_calls(50).await;

    // All servers die: calls go on.
    for server in mesh.servers.iter_mut().filter(|s| s.runs()) {
        server.kill().await;
    }
    caller.more_calls(50).await;

    // A service that nobody registered appears by gossip, with its own sidecar, while no server lives.
    let billing = FakeUpstream::start("billing-1").await;
    let service = format!("billing={}", billing.addr());
    let gossip = caller_proxy.addr("gossip");
    let billing_proxy = mesh.proxy("billing", &[gossip], &["--service", &service]).await;
    let answer = until("billing is reached by gossip alone", Duration::from_secs(20), || {
        answers_ok(outbound, "billing")
    })
    .await;
    assert_eq!(answer, "billing-1");

    // A second instance joins the rotation while no server lives.
    let second = FakeUpstream::start("billing-2").await;
    let service = format!("billing={}", second.addr());
    let _second_proxy = mesh.proxy("billing2", &[gossip], &["--service", &service]).await;
    until("both instances answer", Duration::from_secs(20), || async {
        let mut seen = HashSet::new();
        for _ in 0..8 {
            seen.insert(answers_ok(outbound, "billing").await?);
        }
        if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;

    // The servers return with their data, and the catalogue is whole.
    for server in &mut mesh.servers {
        server.start().await;
    }
    mesh.wait_for_voters(3).await;
    let got = mesh.cli(&mesh.servers[1], &["kv", "get", "config/color"]).await;
    assert_eq!(got.code, 0, "{got:?}");
    assert!(got.stdout.contains("blue"), "{got:?}");
    let (calls, failures) = caller.finish().await;
    assert!(failures.is_empty(), "{} of {calls} calls failed: {failures:#?}", failures.len());
    drop(billing_proxy);
}

/// G02 and G03: a killed member's instances are withdrawn within a bound, and a member that comes back
/// is up again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_sidecar_is_declared_down_and_its_instances_withdrawn_until_it_returns() {
    let mesh = Mesh::with_servers(1).await;
    let seeds = [mesh.servers[0].gossip()];
    let app = FakeUpstream::start("cart-1").await;
    let service = format!("cart={}", app.addr());
    let sidecar = mesh.proxy("cart", &seeds, &["--service", &service]).await;
    let endpoints = |expected: usize| {
        let mesh = &mesh;
        async move {
            let listed = mesh.cli(&mesh.servers[0], &["endpoints", "cart", "--output", "json"]).await;
            let json: serde_json::Value =
                serde_json::from_str(&listed.stdout).unwrap_or_else(|_| serde_json::json!({"endpoints": []}));
            let all = json.as_array().or_else(|| json["endpoints"].as_array()).cloned().unwrap_or_default();
            let passing = all.iter().filter(|e| e["health"] == "passing").count();
            if passing == expected && all.len() == expected { Ok(()) } else { Err(format!("{listed:?}")) }
        }
    };
    until("one passing endpoint", Duration::from_secs(15), || endpoints(1)).await;
    sidecar.kill().await;
    until("the endpoint is withdrawn", Duration::from_secs(20), || endpoints(0)).await;
    let members = mesh.cli(&mesh.servers[0], &["members"]).await;
    assert!(members.stdout.contains("down"), "it stays listed as down: {members:?}");
    let _again = mesh.proxy("cart", &seeds, &["--service", &service]).await;
    until("the endpoint is back", Duration::from_secs(20), || endpoints(1)).await;
}

/// A restarted server catches up with what it missed, and no acknowledged write is lost (A07).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_killed_and_restarted_catches_up_with_writes_it_missed() {
    let mut mesh = Mesh::with_servers(3).await;
    for victim in 0..3 {
        let alive = (victim + 1) % 3;
        mesh.servers[victim].kill().await;
        let (key, value) = (format!("round/{victim}"), format!("written without server {victim}"));
        let put = mesh.cli(&mesh.servers[alive], &["kv", "put", &key, &value]).await;
        assert_eq!(put.code, 0, "{put:?}");
        mesh.servers[victim].start().await;
        mesh.wait_for_voters(3).await;
        let got = mesh.cli(&mesh.servers[victim], &["kv", "get", "--prefix", "round/"]).await;
        for earlier in 0..=victim {
            assert!(got.stdout.contains(&format!("written without server {earlier}")), "{got:?}");
        }
    }
}

/// With quorum lost, writes and linearizable reads are refused with a reason, never answered stale (A01).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_quorum_coordination_refuses_and_says_why() {
    let mut mesh = Mesh::with_servers(3).await;
    let put = mesh.cli(&mesh.servers[0], &["kv", "put", "a", "1"]).await;
    assert_eq!(put.code, 0, "{put:?}");
    mesh.servers[1].kill().await;
    mesh.servers[2].kill().await;
    for command in [["kv", "put", "a", "2"].as_slice(), ["kv", "get", "a"].as_slice()] {
        let refused = mesh.cli(&mesh.servers[0], command).await;
        assert_ne!(refused.code, 0, "{refused:?}");
        let text = refused.stderr.to_lowercase();
        assert!(
            text.contains("leader") || text.contains("quorum") || text.contains("timed out"),
            "{refused:?}"
        );
    }
}

/// The last good state is on disk: a sidecar that restarts while no server lives serves what it knew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarted_sidecar_serves_its_last_good_state_while_no_server_lives() {
    let mut mesh = Mesh::with_servers(1).await;
    let orders = FakeUpstream::start("orders-1").await;
    mesh.register(&mesh.servers[0], "orders", "orders-1", orders.addr(), "300s").await;
    let seeds = [mesh.servers[0].gossip()];
    let proxy = mesh.proxy("caller", &seeds, &[]).await;
    until("orders is reached", Duration::from_secs(15), || answers_ok(proxy.addr("outbound"), "orders"))
        .await;
    assert_eq!(proxy.stop().await, 0);
    mesh.servers[0].kill().await;
    let proxy = mesh.proxy("caller", &seeds, &[]).await;
    assert_eq!(answers_ok(proxy.addr("outbound"), "orders").await.as_deref(), Ok("orders-1"));
    let unknown = http_client::get(proxy.addr("outbound"), "unheard-of", "/").await.expect("answers");
    assert_eq!(unknown.status, StatusCode::SERVICE_UNAVAILABLE, "nobody can say that it does not exist");
    assert!(unknown.body.contains("unheard-of"), "{}", unknown.body);
}

/// D06: a sidecar that is told to stop withdraws first and finishes what it has; nobody's call fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_sidecar_fails_no_call() {
    let mesh = Mesh::with_servers(1).await;
    let seeds = [mesh.servers[0].gossip()];
    let (one, two) = (FakeUpstream::start("cart-1").await, FakeUpstream::start("cart-2").await);
    let first = mesh.proxy("cart1", &seeds, &["--service", &format!("cart={}", one.addr())]).await;
    let _second = mesh.proxy("cart2", &seeds, &["--service", &format!("cart={}", two.addr())]).await;
    let caller_proxy = mesh.proxy("caller", &seeds, &[]).await;
    let outbound = caller_proxy.addr("outbound");
    until("both instances answer", Duration::from_secs(20), || async {
        let mut seen = HashSet::new();
        for _ in 0..6 {
            seen.insert(answers_ok(outbound, "cart").await?);
        }
        if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    let caller = Caller::start(outbound, "cart");
    caller.more_calls(50).await;
    assert_eq!(first.stop().await, 0);
    caller.more_calls(50).await;
    let (calls, failures) = caller.finish().await;
    assert!(failures.is_empty(), "{} of {calls} calls failed: {failures:#?}", failures.len());
}

/// Puts and reads back through a client that knows all servers, until told to stop; every failure is told.
async fn write_and_read(
    client: weft_client::Client,
    key: String,
    stop: Arc<AtomicBool>,
) -> (u64, Vec<String>) {
    let (mut done, mut failures) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        let value = done.to_string();
        if let Err(error) = client.kv().put(key.clone(), value.clone()).await {
            failures.push(format!("put {value}: {error}"));
            continue;
        }
        match client.kv().get(key.clone()).await {
            Ok(Some(kv)) if kv.value == value.as_bytes() => {}
            other => failures.push(format!("get after {value}: {other:?}")),
        }
        done += 1;
    }
    (done, failures)
}

/// A07, A01: whoever uses the client as it is does not notice that all servers are replaced one after the other. Each
/// hands leadership over before it goes, and what a stopping server has not answered is asked again elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_linearizable_request_fails_while_three_servers_are_restarted_one_after_the_other() {
    let mut mesh = Mesh::with_servers(3).await;
    let endpoints: Vec<String> = mesh.servers.iter().map(|server| server.grpc().to_string()).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..4)
        .map(|number| {
            // Each begins at another server.
            let mut endpoints = endpoints.clone();
            endpoints.rotate_left(number % 3);
            let client = weft_client::Client::connect(endpoints).expect("addresses");
            tokio::spawn(write_and_read(client, format!("rolling/{number}"), stop.clone()))
        })
        .collect();
    for index in 0..mesh.servers.len() {
        let code = mesh.servers[index].stop().await;
        assert_eq!(code, 0, "server {index} ends well");
        mesh.servers[index].start().await;
        mesh.wait_for_voters(3).await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in load {
        let (done, failures) = task.await.expect("the writer does not panic");
        assert!(failures.is_empty(), "{} of {done} failed: {failures:?}", failures.len());
        assert!(done > 20, "only {done} puts were made meanwhile");
    }
}
