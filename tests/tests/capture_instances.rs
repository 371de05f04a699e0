//! Captured connections to the address of an instance, in namespaces of the test's own.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_tests::http_client;
use weft_tests::mesh::strings;
use weft_tests::netns::inside;
use weft_tests::process::{WeftProcess, run};
use weft_tests::wait::until;

/// The sidecars' user: their own connections are left alone.
const SIDECAR_UID: u32 = 1337;
/// Addresses of this machine that are not its loopback, so that connections to them are redirected.
const ELSEWHERE: [&str; 2] = ["10.99.0.1", "fd99::1"];
/// Longest wait for something that happens by itself.
const WAIT: Duration = Duration::from_secs(20);

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// Says who it is first, and then everything again.
async fn database(name: &'static str, addr: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(addr).await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(name.as_bytes()).await;
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    addr
}

/// A connection to a database, and who has greeted; empty if it was closed.
async fn greeted(addr: SocketAddr) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(addr).await.expect("connects");
    let mut seen = [0; 1];
    let read = stream.read(&mut seen).await.unwrap_or_default();
    (stream, String::from_utf8_lossy(&seen[..read]).into_owned())
}

async fn counted(proxy: &WeftProcess, series: &str) -> u64 {
    let metrics = http_client::get(proxy.addr("admin"), "admin", "/metrics").await.expect("metrics").body;
    let value = metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
    value.unwrap_or_default()
}

/// A client of a database picks an instance by the address of its app, and gets that one: by its sidecar, which is strict,
/// with the limits of the service.
#[test]
fn bytes_on_their_way_to_an_instance_go_to_that_one_by_its_sidecar() {
    inside("bytes_on_their_way_to_an_instance_go_to_that_one_by_its_sidecar", || async {
        for command in
            ["ip link set lo up", "ip addr add 10.99.0.1/32 dev lo", "ip -6 addr add fd99::1/128 dev lo"]
        {
            let mut words = command.split(' ');
            let ended = Command::new(words.next().expect("a command")).args(words).status().expect("starts");
            assert!(ended.success(), "{command}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        let open = |path: &Path| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("it is ours")
        };
        open(folder.path());
        let ca = weft_tests::pki::ca();
        let uid = SIDECAR_UID.to_string();
        let prefix = strings(&["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"]);
        let start = async |name: &str, service: &str, more: &[&str]| {
            let own = folder.path().join(name);
            let id = format!("spiffe://mesh.example/ns/shop/sa/{service}");
            let mut args =
                strings(&["proxy", "--name", name, "--admin", "127.0.0.1:0", "--gossip-port", "0"]);
            args.extend(weft_tests::pki::identity(&own, &ca, &id));
            open(&own);
            args.extend(strings(&["--data-dir", &own.join("data").display().to_string()]));
            args.extend(strings(more));
            WeftProcess::start_under(name, &prefix, &args).await
        };
        let apps = [database("a", at(ELSEWHERE[0], 0)).await, database("b", at(ELSEWHERE[1], 0)).await];
        let db = async |name: &str, app: SocketAddr, more: &[&str]| {
            let service = format!("db={app},protocol=tcp");
            let own = format!("{}=db", SocketAddr::new(app.ip(), 0));
            let args = ["--outbound", "off", "--service", &service, "--inbound-tcp", &own];
            start(name, "db", &[&args, more].concat()).await
        };
        let a = db("db-a", apps[0], &[]).await;
        let pool = a.addr("gossip").to_string();
        let b = db("db-b", apps[1], &["--join", &pool]).await;
        let file = folder.path().join("web.yaml");
        let policy = "outbound: 127.0.0.1:0\n---\napiVersion: weft.dev/v1\nkind: TrafficPolicy\nmetadata: {name: db}\nspec: {targetRef: {kind: Service, name: db}, circuitBreaker: {maxRequests: 20}}\n";
        std::fs::write(&file, policy).expect("written");
        let captures = ["--capture", "127.0.0.1:15002,[::1]:15002", "--join", &pool];
        let config = ["--config", &file.display().to_string()];
        let web = start("web", "web", &[&captures[..], &config].concat()).await;
        let installed = run(&["proxy", "install-redirect", "--exclude-uid", &uid]).await;
        assert_eq!(installed.code, 0, "{installed:?}");

        let outbound = |metric: &str| format!("weft_proxy_{metric}{{direction=\"outbound\",service=\"db\"");
        let connects = outbound("upstream_connects_total") + "}";
        until("gossip tells of both", WAIT, || async {
            let told = counted(&web, "weft_gossip_instances").await;
            if told == 2 { Ok(()) } else { Err(format!("{told} instances")) }
        })
        .await;
        // Nobody has asked for the service yet; whoever speaks first waits until it is there.
        let mut first = TcpStream::connect(apps[0]).await.expect("connects");
        first.write_all(b"hello").await.expect("writes");
        let mut seen = [0; 6];
        first.read_exact(&mut seen).await.expect("an answer");
        assert_eq!(&seen, b"ahello");
        assert_eq!(counted(&web, &connects).await, 1, "the very first one went by the sidecar");
        drop(first);

        // A first one to a server that speaks first may be sooner than what is known of the service.
        until("both instances are known", WAIT, || async {
            let both = [greeted(apps[0]).await.1, greeted(apps[1]).await.1];
            assert_eq!(both, ["a", "b"], "never another one");
            let endpoints = counted(&web, &(outbound("endpoints") + ",kind=\"usable\"}")).await;
            if endpoints == 2 { Ok(()) } else { Err(format!("{endpoints} endpoints")) }
        })
        .await;
        let by_sidecars = async || {
            let series = r#"weft_proxy_upstream_connects_total{direction="inbound",service="db"}"#;
            [counted(&a, series).await, counted(&b, series).await]
        };
        let (before, mine) = (by_sidecars().await, counted(&web, &connects).await);
        for _ in 0..5 {
            for (app, name) in apps.iter().zip(["a", "b"]) {
                let (mut stream, greeting) = greeted(*app).await;
                assert_eq!(greeting, name);
                stream.write_all(b"select").await.expect("writes");
                let mut echo = [0; 6];
                stream.read_exact(&mut echo).await.expect("an answer");
                assert_eq!(&echo, b"select");
            }
        }
        assert_eq!(by_sidecars().await, before.map(|n| n + 5), "strict sidecars take nothing but TLS");
        assert_eq!(counted(&web, &connects).await, mine + 10);

        // As many as the service's policy lets be under way.
        let all_ended = async || {
            until("all have ended", WAIT, || async {
                let load = counted(&web, &(outbound("load") + ",kind=\"requests\"}")).await;
                if load == 0 { Ok(()) } else { Err(load.to_string()) }
            })
            .await;
        };
        all_ended().await;
        let mut held = Vec::new();
        for _ in 0..20 {
            held.push(greeted(apps[1]).await);
        }
        assert!(held.iter().all(|(_, name)| name == "b"));
        assert_eq!(greeted(apps[1]).await.1, "");
        assert_eq!(counted(&web, &(outbound("overflows_total") + ",kind=\"requests\"}")).await, 1);
        drop(held);
        all_ended().await;

        // One whose sidecar takes no connection is left out for others, and is not replaced for whoever wants it.
        b.kill().await;
        assert_eq!(greeted(apps[1]).await.1, "");
        assert_eq!(counted(&web, &(outbound("upstream_connect_failures_total") + "}")).await, 1);
        assert_eq!(counted(&web, &(outbound("ejections_total") + "}")).await, 1);
        assert_eq!(greeted(apps[0]).await.1, "a");
        assert_eq!(web.stop().await, 0);
        assert_eq!(a.stop().await, 0);
    });
}
