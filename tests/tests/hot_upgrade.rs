//! A proxy is replaced by another process while it serves (P47).

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::installed::Installed;
use weft_tests::load::{Connections, Load};
use weft_tests::mesh::{Mesh, strings};
use weft_tests::notified::{Notified, ready};
use weft_tests::pki::{ca, identity};
use weft_tests::process::WeftProcess;
use weft_tests::wait::until;

const SOON: Duration = Duration::from_secs(20);

const ALL: [Connections; 3] = [Connections::New, Connections::Kept, Connections::Http2];

/// Flags of a sidecar on free ports, which are the same ones again for who takes over.
fn flags(name: &str, folder: &Path, join: &str, extra: &[&str]) -> Vec<String> {
    let mut args =
        strings(&["proxy", "--name", name, "--outbound", "127.0.0.1:0", "--inbound", "127.0.0.1:0"]);
    args.extend(strings(&["--admin", "127.0.0.1:0", "--gossip-port", "0", "--join", join, "--data-dir"]));
    args.push(folder.display().to_string());
    args.extend(strings(extra));
    args
}

fn taking_over(args: &[String]) -> Vec<String> {
    let mut args = args.to_vec();
    args.push("--take-over".to_owned());
    args
}

async fn answers(caller: &WeftProcess, host: &str) {
    until(&format!("{host} answers"), SOON, async || {
        let answer = http_client::get(caller.addr("outbound"), host, "/x").await?;
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
}

/// Both sidecars of a call are replaced, again and again, while clients of all kinds call through them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_both_sidecars_are_replaced_again_and_again() {
    let mesh = Mesh::with_servers(1).await;
    replaced_under_load(&mesh, &[], &[]).await;
}

/// The same with sidecars that speak TLS with each other and with nobody else: connections are made anew and sessions begin
/// anew with each new process, and the other end must not count that against it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_two_strict_sidecars_with_identities_are_replaced() {
    let mesh = Mesh::with_servers(1).await;
    let ca = ca();
    let flags = |name: &str| {
        let folder = mesh.folder(&format!("{name}-pem"));
        identity(&folder, &ca, &format!("spiffe://mesh.example/ns/shop/sa/{name}"))
    };
    let (callee, caller) = (flags("callee"), flags("caller"));
    replaced_under_load(&mesh, &callee, &caller).await;
}

/// `callee` and `caller` are further flags of the two.
async fn replaced_under_load(mesh: &Mesh, callee: &[String], caller: &[String]) {
    let strict = !callee.is_empty();
    let join = mesh.servers[0].gossip().to_string();
    let upstream = FakeUpstream::start("one").await;
    let service = format!("orders={}", upstream.addr());
    let mut callee_flags = flags("callee", &mesh.folder("callee"), &join, &["--service", &service]);
    let mut caller_flags = flags("caller", &mesh.folder("caller"), &join, &[]);
    callee_flags.extend_from_slice(callee);
    caller_flags.extend_from_slice(caller);
    let mut callee = WeftProcess::start("callee", &callee_flags).await;
    let mut caller = WeftProcess::start("caller", &caller_flags).await;
    answers(&caller, "orders").await;
    let plain = http_client::get(callee.addr("inbound"), "orders", "/x").await;
    assert_eq!(plain.is_err(), strict, "plaintext: {plain:?}");
    let members = || async { mesh.cli(&mesh.servers[0], &["members", "--output", "json"]).await.stdout };
    let before: serde_json::Value = serde_json::from_str(&members().await).expect("JSON");
    let load = Load::with(caller.addr("outbound"), "orders", &ALL);
    for workers in ["3", "1", "2"] {
        for (old, flags) in [(&mut callee, &callee_flags), (&mut caller, &caller_flags)] {
            let mut args = taking_over(flags);
            args.extend(strings(&["--workers", workers]));
            let new = WeftProcess::start(old.name(), &args).await;
            for port in ["outbound", "inbound", "admin", "gossip"] {
                if old.ready()[port].is_string() {
                    assert_eq!(new.addr(port), old.addr(port), "the same {port} port");
                }
            }
            let served = load.done();
            assert_eq!(old.wait(SOON).await, 0, "the old one ends by itself: {}", old.log());
            assert!(load.done() > served, "it served until then");
            *old = new;
        }
    }
    load.finish().await;
    let after: serde_json::Value = serde_json::from_str(&members().await).expect("JSON");
    let lives = |members: &serde_json::Value| {
        let all = members["members"].as_array().or(members.as_array()).expect("a list").clone();
        let life = |m: &serde_json::Value| format!("{} {} {}", m["name"], m["incarnation"], m["state"]);
        all.iter().map(life).collect::<Vec<_>>()
    };
    assert_eq!(lives(&before), lives(&after), "to the mesh they are the same members");
    let log = mesh.servers[0].process().log();
    assert!(!log.contains("member down"), "nobody was missed: {log}");
    assert_eq!(callee.stop().await, 0);
    assert_eq!(caller.stop().await, 0);
}

/// A service that only gossip knows is not looked for again: the new process begins with what the old one knew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_process_knows_what_the_old_one_knew_with_no_server_left() {
    let mut mesh = Mesh::with_servers(1).await;
    let join = mesh.servers[0].gossip().to_string();
    let upstream = FakeUpstream::start("one").await;
    let service = format!("orders={}", upstream.addr());
    let _callee = WeftProcess::start(
        "callee",
        &flags("callee", &mesh.folder("callee"), &join, &["--service", &service]),
    )
    .await;
    let args = flags("caller", &mesh.folder("caller"), &join, &[]);
    let mut caller = WeftProcess::start("caller", &args).await;
    answers(&caller, "orders").await;
    mesh.servers[0].kill().await;
    let load = Load::with(caller.addr("outbound"), "orders", &ALL);
    let new = WeftProcess::start("caller", &taking_over(&args)).await;
    assert_eq!(caller.wait(SOON).await, 0);
    load.finish().await;
    answers(&new, "orders").await;
}

/// What was learnt of endpoints at the cost of failed requests is not paid for again by each upgrade.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_ejected_stays_so_in_the_new_process() {
    let mesh = Mesh::empty();
    let (good, bad) = (FakeUpstream::start("good").await, FakeUpstream::start("bad").await);
    let file = mesh.folder("proxy.yaml");
    let text = format!(
        r#"{{
        name: edge,
        admin: "127.0.0.1:0",
        clusters: [{{
            name: orders, endpoints: ["{}", "{}"],
            outlier-detection: {{consecutive-failures: 3, base-ejection-time: 4m}},
        }}],
        }}"#,
        good.addr(),
        bad.addr()
    );
    std::fs::write(&file, text).expect("a folder of our own");
    let file = file.display().to_string();
    let mut args = strings(&["proxy", "--config", &file, "--outbound", "127.0.0.1:0", "--data-dir"]);
    args.push(mesh.folder("edge").display().to_string());
    let mut old = WeftProcess::start("edge", &args).await;
    bad.answer_with(StatusCode::INTERNAL_SERVER_ERROR);
    let ejected = |proxy: &WeftProcess| {
        let admin = proxy.addr("admin");
        async move {
            http_client::get(admin, "admin", "/clusters")
                .await
                .map(|answer| answer.body.contains("ejected consecutive-failures"))
        }
    };
    until("the bad one is ejected", SOON, async || {
        http_client::get(old.addr("outbound"), "orders", "/x").await?;
        if ejected(&old).await? { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    let failed = bad.served();
    for _ in 0..2 {
        let new = WeftProcess::start("edge", &taking_over(&args)).await;
        assert_eq!(old.wait(SOON).await, 0, "{}", old.log());
        for _ in 0..20 {
            let answer = http_client::get(new.addr("outbound"), "orders", "/x").await.expect("an answer");
            assert_eq!((answer.status.as_u16(), answer.body.trim()), (200, "good"));
        }
        assert_eq!(ejected(&new).await, Ok(true), "and it is shown");
        old = new;
    }
    assert_eq!(bad.served(), failed, "it was never tried again");
    assert_eq!(old.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_process_that_fails_half_way_changes_nothing() {
    let mesh = Mesh::with_servers(1).await;
    let join = mesh.servers[0].gossip().to_string();
    let upstream = FakeUpstream::start("one").await;
    let service = format!("orders={}", upstream.addr());
    let folder = mesh.folder("sidecar");
    let socket = mesh.folder("orders.sock");
    let upstream_flag = format!("unix:{}=orders", socket.display());
    let args = flags("sidecar", &folder, &join, &["--service", &service, "--upstream", &upstream_flag]);
    let proxy = WeftProcess::start("sidecar", &args).await;
    answers(&proxy, "orders").await;
    let load = Load::with(proxy.addr("outbound"), "orders", &ALL);

    // It cannot start with these flags, after it got the sockets.
    let mut bad = taking_over(&args);
    bad.extend(strings(&["--access-log", "/nowhere/access.log"]));
    let said = WeftProcess::try_start("bad", &bad).await.expect_err("does not start");
    assert!(said.contains("access log"), "{said}");

    // It dies between its promise and its first request: the place in the mesh was already on its way.
    let mut stream = UnixStream::connect(folder.join("handover.sock")).expect("the old one listens");
    say(&mut stream, r#"{"hello":{"protocol":1,"version":"9.9.9","pid":1}}"#);
    assert!(hear(&mut stream).contains("offer"));
    say(&mut stream, r#""prepared""#);
    drop(stream);

    // It speaks another protocol.
    let mut stream = UnixStream::connect(folder.join("handover.sock")).expect("the old one listens");
    say(&mut stream, r#"{"hello":{"protocol":2,"version":"9.9.9","pid":1}}"#);
    let refused = hear(&mut stream);
    assert!(
        refused.contains("weft 9.9.9 hands over by protocol 2") && refused.contains("restart it instead"),
        "{refused}"
    );

    // Something else altogether.
    UnixStream::connect(folder.join("handover.sock"))
        .expect("listens")
        .write_all(&[255; 64])
        .expect("writes");

    assert!(socket.exists(), "the file of its socket is still there");
    // It took its place in the mesh up again.
    until("it goes on in the mesh", SOON, async || {
        let log = proxy.log();
        if log.matches("did not; going on").count() == 4 { Ok(()) } else { Err(log) }
    })
    .await;
    let other = mesh.proxy("other", &[mesh.servers[0].gossip()], &[]).await;
    answers(&other, "orders").await;
    load.finish().await;
    // And it can still be taken over.
    let mut proxy = proxy;
    let new = WeftProcess::start("sidecar", &taking_over(&args)).await;
    assert_eq!(proxy.wait(SOON).await, 0);
    answers(&new, "orders").await;
    assert_eq!(new.stop().await, 0);
    assert!(!socket.exists() && !folder.join("handover.sock").exists(), "removed by the last one");
}

/// What takes longer than the exchange is finished by the old process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_in_flight_are_finished_by_the_process_that_has_them() {
    let mesh = Mesh::with_servers(1).await;
    let join = mesh.servers[0].gossip().to_string();
    let slow = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let service = format!("slow={}", slow.local_addr().expect("bound"));
    let (release, released) = tokio::sync::watch::channel(false);
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = slow.accept().await {
            let mut released = released.clone();
            tokio::spawn(async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let mut seen = [0; 1024];
                if stream.read(&mut seen).await.is_ok_and(|n| n > 0) {
                    let _ = released.wait_for(|released| *released).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate").await;
                }
            });
        }
    });
    let args = flags("sidecar", &mesh.folder("sidecar"), &join, &["--service", &service]);
    let mut old = WeftProcess::start("sidecar", &args).await;
    until("the service is known", SOON, async || {
        let seen = http_client::get(old.addr("admin"), "admin", "/clusters").await?.body;
        let _ = tokio::time::timeout(
            Duration::from_millis(200),
            http_client::get(old.addr("outbound"), "slow", "/"),
        )
        .await;
        if seen.contains("slow") { Ok(()) } else { Err(seen) }
    })
    .await;
    let outbound = old.addr("outbound");
    let waiting: Vec<_> = (0..4).map(|_| tokio::spawn(http_client::get(outbound, "slow", "/x"))).collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let new = WeftProcess::start("sidecar", &taking_over(&args)).await;
    release.send_replace(true);
    for answer in waiting {
        assert_eq!(answer.await.expect("no panic").expect("an answer").body, "late");
    }
    assert_eq!(old.wait(SOON).await, 0);
    assert_eq!(new.stop().await, 0);
    serving.abort();
}

/// As by `systemctl reload`: the signal starts the successor, and the supervisor is told which process counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_starts_the_successor_and_the_supervisor_hears_its_pid() {
    let mesh = Mesh::with_servers(1).await;
    let join = mesh.servers[0].gossip().to_string();
    let upstream = FakeUpstream::start("one").await;
    let service = format!("orders={}", upstream.addr());
    let supervisor = Notified::listen(&mesh.folder("notify.sock"), false);
    let folder = mesh.folder("sidecar");
    let args = flags("sidecar", &folder, &join, &["--service", &service]);
    let weft = Installed::new(&mesh.folder(""));
    let env = supervisor.environment();
    let mut first = WeftProcess::start_program("sidecar", weft.path(), &args, &env).await.expect("starts");
    assert_eq!(supervisor.hears().await, ready(first.pid()));
    answers(&first, "orders").await;
    let load = Load::with(first.addr("outbound"), "orders", &ALL);
    // One that comes to nothing.
    weft.install_script("exit 1");
    first.signal(rustix::process::Signal::USR2);
    assert_eq!(supervisor.hears_of_an_upgrade().await, ready(first.pid()));
    weft.install();
    first.signal(rustix::process::Signal::USR2);
    let told = supervisor.hears_of_an_upgrade().await;
    assert_eq!(first.wait(SOON).await, 0, "{}", first.log());
    load.finish().await;
    let pid = std::fs::read_to_string(folder.join("pid")).expect("a pid");
    assert_eq!(told, ready(pid.trim()));
    supervisor.heard_all();
    let pid = pid.trim().parse().ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    assert_ne!(Some(pid), rustix::process::Pid::from_raw(1), "ours");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    assert_eq!(supervisor.hears().await, "STOPPING=1\n");
    until("it has drained", SOON, async || {
        if folder.join("handover.sock").exists() { Err("its socket is there".to_owned()) } else { Ok(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_running_process_there_is_nothing_to_take_over_and_it_starts() {
    let mesh = Mesh::empty();
    let folder = mesh.folder("alone");
    let args = flags("alone", &folder, "127.0.0.1:1", &[]);
    let proxy = WeftProcess::start("alone", &taking_over(&args)).await;
    let refused = WeftProcess::try_start("second", &args).await.expect_err("the folder is in use");
    assert!(refused.contains("in use"), "{refused}");
    assert_eq!(proxy.stop().await, 0);
    let nowhere = strings(&["proxy", "--outbound", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--take-over"]);
    let refused = WeftProcess::try_start("nowhere", &nowhere).await.expect_err("no folder");
    assert!(refused.contains("--data-dir"), "{refused}");
}

fn say(stream: &mut UnixStream, json: &str) {
    let mut bytes = u32::try_from(json.len()).expect("short").to_be_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(json.as_bytes());
    stream.write_all(&bytes).expect("writes");
}

fn hear(stream: &mut UnixStream) -> String {
    let mut lengths = [0; 8];
    stream.read_exact(&mut lengths).expect("an answer");
    let length = u32::from_be_bytes([lengths[0], lengths[1], lengths[2], lengths[3]]);
    let mut json = vec![0; length as usize];
    stream.read_exact(&mut json).expect("a whole answer");
    String::from_utf8_lossy(&json).into_owned()
}
