//! `weft run`: an app and its sidecar start, stop and end together, in order (P44, P45, P46).

use std::time::Duration;

use http::StatusCode;
use rustix::process::Signal;
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::load::{Connections, Load};
use weft_tests::mesh::{Mesh, strings};
use weft_tests::process::{WeftProcess, run};
use weft_tests::wait::until;

const SOON: Duration = Duration::from_secs(20);

/// `weft run` on free ports, with its data in a folder of the mesh.
fn run_args(mesh: &Mesh, name: &str, more: &[&str], app: &str) -> Vec<String> {
    let folder = mesh.folder(name).display().to_string();
    let mut args = strings(&["run", "--name", name, "--data-dir", &folder, "--gossip-port", "0"]);
    args.extend(strings(&[
        "--outbound",
        "127.0.0.1:0",
        "--inbound",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
    ]));
    args.extend(strings(more));
    args.extend(strings(&["--", "sh", "-c", app]));
    args
}

/// P44, P45: the first call of the app already succeeds, and a job ends when the app does, with its code.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_calls_a_service_at_once_and_ends_with_its_own_code() {
    let mesh = Mesh::with_servers(1).await;
    let orders = FakeUpstream::start("orders-1").await;
    mesh.register(&mesh.servers[0], "orders", "one", orders.addr(), "60s").await;
    let join = mesh.servers[0].gossip().to_string();
    let app =
        "curl -sS --noproxy '*' -H 'Host: orders' http://$WEFT_SIDECAR/ && curl -sS http://orders/; exit 7";
    let args = run_args(&mesh, "job", &["--join", &join, "--http-proxy"], app);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let job = run(&args).await;
    assert_eq!((job.code, job.stdout.as_str()), (7, "orders-1\norders-1\n"), "{job:?}");
}

/// P44: an app whose sidecar is not ready is not started; the answer says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_is_not_started_without_a_ready_sidecar() {
    let mesh = Mesh::empty();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound");
    let args = run_args(
        &mesh,
        "early",
        &["--server", &nobody.to_string(), "--start-timeout", "300ms"],
        "echo started",
    );
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let refused = run(&args).await;
    assert_eq!((refused.code, refused.stdout.as_str()), (124, ""), "{refused:?}");
    assert!(
        refused.stderr.contains("not ready after 300ms") && refused.stderr.contains("no control plane"),
        "{refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_not_there_is_named_as_shells_do() {
    let mesh = Mesh::empty();
    let mut args = run_args(&mesh, "typo", &[], "");
    args.truncate(args.len() - 3);
    args.push("weft-no-such-app".to_owned());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let refused = run(&args).await;
    assert!(refused.code == 127 && refused.stderr.contains("weft-no-such-app"), "{refused:?}");
}

/// P46: asked to end, the service leaves the mesh while everything is still served, then the app is told; no call of a peer
/// fails, nor one of the app's last ones. The code is the app's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_have_gone_elsewhere_before_the_app_is_told_to_end() {
    let mesh = Mesh::with_servers(1).await;
    let join = mesh.servers[0].gossip().to_string();
    let upstreams = [FakeUpstream::start("orders-1").await, FakeUpstream::start("orders-2").await];
    let told = mesh.folder("told").display().to_string();
    let app = format!(
        "trap 'touch {told}; sleep 0.3; curl -sS -f -H \"Host: orders\" http://$WEFT_SIDECAR/ && exit 3' TERM
        echo 'ready {{}}'
        while :; do sleep 0.02; done"
    );
    let mut instances = Vec::new();
    for (name, upstream) in ["one", "two"].into_iter().zip(&upstreams) {
        let service = format!("orders={}", upstream.addr());
        let args = run_args(&mesh, name, &["--join", &join, "--service", &service], &app);
        instances.push(WeftProcess::start(name, &args).await);
    }
    let caller = mesh.proxy("caller", &[mesh.servers[0].gossip()], &[]).await;
    let call = async || http_client::get(caller.addr("outbound"), "orders", "/").await;
    until("both are called", SOON, || async {
        let answer = call().await?;
        if upstreams.iter().all(|u| u.served() > 0) { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;

    let mut leaving = instances.remove(0);
    leaving.signal(Signal::TERM);
    let mut ended = Box::pin(leaving.wait(SOON));
    let mut when_told = None;
    let code = loop {
        if when_told.is_none() && std::path::Path::new(&told).exists() {
            when_told = Some(upstreams[0].served());
        }
        tokio::select! {
            code = &mut ended => break code,
            answer = call() => {
                let answer = answer.expect("answers");
                assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            }
        }
    };
    assert_eq!(code, 3, "the app's own code, and its last call succeeded");
    assert_eq!(when_told, Some(upstreams[0].served()), "nobody called it after it was told to end");
    for _ in 0..20 {
        assert_eq!(call().await.expect("answers").body, "orders-2\n");
    }
}

/// P47: the sidecar is replaced twice by a process of its own while both ways are called without a pause; the app runs on,
/// and when it is asked to end, all is as with the first sidecar.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_apps_sidecar_is_upgraded_without_a_failed_request_and_the_app_runs_on() {
    let mesh = Mesh::with_servers(1).await;
    let join = mesh.servers[0].gossip().to_string();
    let upstreams = [FakeUpstream::start("orders-1").await, FakeUpstream::start("orders-2").await];
    let told = mesh.folder("told").display().to_string();
    let app = format!(
        "trap 'touch {told}; sleep 0.3; curl -sS -f -H \"Host: orders\" http://$WEFT_SIDECAR/ && exit 3' TERM
        echo \"ready {{\\\"outbound\\\":\\\"$WEFT_SIDECAR\\\"}}\"
        while :; do sleep 0.02; done"
    );
    let service = format!("orders={}", upstreams[0].addr());
    let args = run_args(&mesh, "one", &["--join", &join, "--service", &service], &app);
    let mut whole = WeftProcess::start("one", &args).await;
    let service = format!("orders={}", upstreams[1].addr());
    let _two = mesh.proxy("two", &[mesh.servers[0].gossip()], &["--service", &service]).await;
    let caller = mesh.proxy("caller", &[mesh.servers[0].gossip()], &[]).await;
    let call = async || http_client::get(caller.addr("outbound"), "orders", "/").await;
    until("both are called", SOON, || async {
        let answer = call().await?;
        if upstreams.iter().all(|u| u.served() > 0) { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;

    let pid_file = mesh.folder("one").join("pid");
    let sidecar = || std::fs::read_to_string(&pid_file).expect("a pid").trim().to_owned();
    assert_eq!(sidecar(), whole.pid().to_string());
    let kinds = [Connections::New, Connections::Kept, Connections::Http2];
    let (to_app, of_app) = (caller.addr("outbound"), whole.addr("outbound"));
    let load = [Load::with(to_app, "orders", &kinds), Load::with(of_app, "orders", &kinds)];
    for _ in 0..2 {
        let before = sidecar();
        whole.signal(Signal::USR2);
        until("another process has taken over", SOON, || async {
            let now = sidecar();
            if now != before { Ok(()) } else { Err(format!("{now}\n{}", whole.log())) }
        })
        .await;
        let before = upstreams[0].served();
        until("it serves", SOON, || async {
            if upstreams[0].served() > before + 20 { Ok(()) } else { Err(whole.log()) }
        })
        .await;
    }
    for load in load {
        load.finish().await;
    }
    assert!(!std::path::Path::new(&told).exists(), "the app heard of none of it");

    whole.signal(Signal::TERM);
    let mut ended = Box::pin(whole.wait(SOON));
    let mut when_told = None;
    let code = loop {
        if when_told.is_none() && std::path::Path::new(&told).exists() {
            when_told = Some(upstreams[0].served());
        }
        tokio::select! {
            code = &mut ended => break code,
            answer = call() => {
                let answer = answer.expect("answers");
                assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
            }
        }
    };
    assert_eq!(code, 3, "the app's own code, and its last call succeeded");
    assert!(
        when_told.is_some_and(|n| upstreams[0].served() <= n + 1),
        "but for the app itself nobody called it"
    );
    assert!(!mesh.folder("one").join("handover.sock").exists(), "the last sidecar has ended");
}

/// An app is not left without a sidecar because the new one crashed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_that_crashes_after_an_upgrade_is_started_again() {
    let mesh = Mesh::with_servers(1).await;
    let free = || std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("bound");
    let outbound = free().to_string();
    let join = mesh.servers[0].gossip().to_string();
    let folder = mesh.folder("one").display().to_string();
    let mut args = strings(&["run", "--name", "one", "--data-dir", &folder, "--join", &join]);
    args.extend(strings(&["--outbound", &outbound, "--admin", "127.0.0.1:0", "--", "sh", "-c"]));
    args.push("trap 'exit 4' TERM; echo 'ready {}'; while :; do sleep 0.02; done".to_owned());
    let mut whole = WeftProcess::start("one", &args).await;
    let pid_file = mesh.folder("one").join("pid");
    let sidecar = || std::fs::read_to_string(&pid_file).expect("a pid").trim().to_owned();
    let replaced = async |before: &str| {
        until("another process serves", SOON, async || {
            let now = sidecar();
            tokio::net::TcpStream::connect(&outbound).await.map_err(|e| e.to_string())?;
            if now != before { Ok(()) } else { Err(format!("{now}\n{}", whole.log())) }
        })
        .await;
    };
    let first = sidecar();
    whole.signal(Signal::USR2);
    replaced(&first).await;
    let second = sidecar();
    let pid = second.parse().ok().and_then(rustix::process::Pid::from_raw).expect("a pid");
    rustix::process::kill_process(pid, Signal::KILL).expect("it is ours");
    replaced(&second).await;
    whole.signal(Signal::TERM);
    assert_eq!(whole.wait(SOON).await, 4);
    assert!(tokio::net::TcpStream::connect(&outbound).await.is_err(), "no sidecar is left behind");
}

/// In a container there is no other process to wait for those whose parents have ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_the_first_process_of_a_container_it_waits_for_orphans() {
    let mesh = Mesh::empty();
    let orphan = mesh.folder("orphan").display().to_string();
    // As long as nobody has waited for it, it has a folder in /proc.
    let app = format!(
        "sh -c \"sh -c 'echo \\$\\$ > {orphan}; exec sleep 0.1' &\"
        echo 'ready {{}}'
        until [ -s {orphan} ]; do sleep 0.02; done
        while [ -e /proc/$(cat {orphan}) ]; do sleep 0.02; done
        exit 6"
    );
    let args = run_args(&mesh, "first", &[], &app);
    let namespace =
        strings(&["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    let mut whole = WeftProcess::start_under("first", &namespace, &args).await;
    assert_eq!(whole.wait(SOON).await, 6, "{}", whole.log());
}
