//! Connections that the kernel redirects to a sidecar, in namespaces of the test's own.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::mesh::strings;
use weft_tests::netns::inside;
use weft_tests::process::{WeftProcess, run};
use weft_tests::wait::until;

/// Longest wait for something that happens by itself.
const WAIT: Duration = Duration::from_secs(20);

/// The sidecar's user: its own connections are left alone.
const SIDECAR_UID: u32 = 1337;
/// Addresses of this machine that are not its loopback, so that connections to them are redirected.
const ELSEWHERE: [&str; 2] = ["10.99.0.1", "fd99::1"];
/// The last address of each of these networks is this machine's too.
const EXCLUDED: [(&str, &str); 2] = [("10.99.9.0/28", "10.99.9.15"), ("fd99:9::/124", "fd99:9::f")];
/// The address behind it, which is in none of them.
const BESIDE: [&str; 2] = ["10.99.9.16", "fd99:9::10"];

fn set_up() {
    let mut commands = vec!["ip link set lo up".to_owned()];
    for ip in ELSEWHERE.into_iter().chain(EXCLUDED.map(|(_, ip)| ip)).chain(BESIDE) {
        commands.push(format!("ip addr add {ip} dev lo"));
    }
    for command in commands {
        let mut words = command.split(' ');
        let ended = Command::new(words.next().expect("a command")).args(words).status().expect("starts");
        assert!(ended.success(), "{command}");
    }
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().expect("an address"), port)
}

/// A sidecar that knows `orders` alone, and runs as a user of its own.
async fn sidecar(orders: SocketAddr, more: &[&str]) -> WeftProcess {
    // In a namespace of its own each test has the same process id.
    let file = std::env::temp_dir().join(format!("weft-capture-{:x}.yaml", fastrand::u64(..)));
    let text = format!("clusters:\n  - name: orders\n    endpoints: [\"{orders}\"]\n");
    std::fs::write(&file, text).expect("writes");
    let uid = SIDECAR_UID.to_string();
    let prefix = strings(&["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"]);
    let mut args = strings(&["proxy", "--config", &file.display().to_string(), "--admin", "127.0.0.1:0"]);
    args.extend(strings(&["--outbound", "127.0.0.1:0", "--capture", "127.0.0.1:15002,[::1]:15002"]));
    args.extend(strings(more));
    let proxy = WeftProcess::start_under("sidecar", &prefix, &args).await;
    let _ = std::fs::remove_file(file);
    proxy
}

async fn install(backend: &str, more: &[&str]) {
    let uid = SIDECAR_UID.to_string();
    let args = [&["proxy", "install-redirect", "--backend", backend, "--exclude-uid", &uid], more].concat();
    let ended = run(&args).await;
    assert_eq!(ended.code, 0, "{ended:?}");
}

async fn remove(backend: &str) {
    let ended = run(&["proxy", "remove-redirect", "--backend", backend]).await;
    assert_eq!(ended.code, 0, "{ended:?}");
}

/// A server that speaks first, and then says everything again.
async fn greeter(addr: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(addr).await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(b"220 ready\r\n").await;
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    addr
}

async fn metric(proxy: &WeftProcess, line: &str) -> bool {
    let metrics = http_client::get(proxy.addr("admin"), "admin", "/metrics").await.expect("metrics").body;
    metrics.lines().any(|l| l == line)
}

async fn greeting_of(addr: SocketAddr) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("connects");
    let mut seen = vec![0; 11];
    stream.read_exact(&mut seen).await.expect("a greeting");
    stream.write_all(b"EHLO me\r\n").await.expect("writes");
    let mut echo = [0; 9];
    stream.read_exact(&mut echo).await.expect("an answer");
    seen.extend(echo);
    String::from_utf8_lossy(&seen).into_owned()
}

/// Everything that a sidecar may meet there, with rules of one tool.
async fn captured_with(backend: &str) {
    set_up();
    let orders = FakeUpstream::start("orders").await;
    let proxy = sidecar(orders.addr(), &[]).await;
    let networks = EXCLUDED.map(|(network, _)| network).join(",");
    let exclude = ["--exclude-port", "9", "--exclude-network", &networks];
    install(backend, &exclude).await;
    // A second time is the same.
    install(backend, &exclude).await;
    for ip in ELSEWHERE {
        // A service by its host, although nobody listens where the app connects to.
        let nowhere = at(ip, 81);
        for _ in 0..3 {
            let answer = http_client::get(nowhere, "orders", "/x").await.expect("an answer");
            assert_eq!((answer.status.as_u16(), answer.body.trim()), (200, "orders"), "{ip}");
        }
        // A host that is no service goes on to where it was on its way.
        let listener = TcpListener::bind(at(ip, 0)).await.expect("binds");
        let elsewhere = listener.local_addr().expect("bound");
        let plain = tokio::spawn(async move {
            let (mut stream, from) = listener.accept().await.expect("accepts");
            let mut seen = vec![0; 4096];
            let read = stream.read(&mut seen).await.expect("reads");
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.expect("writes");
            (String::from_utf8_lossy(&seen[..read]).into_owned(), from)
        });
        let answer = http_client::get(elsewhere, "example.com", "/y").await.expect("an answer");
        assert_eq!(answer.body, "ok");
        let (seen, _) = plain.await.expect("no panic");
        assert!(
            seen.starts_with("GET /y HTTP/1.1\r\nhost: example.com\r\n") && !seen.contains("via"),
            "{seen}"
        );
        // A server that speaks first is not waited for by the sidecar.
        let mail = greeter(at(ip, 0)).await;
        assert_eq!(greeting_of(mail).await, "220 ready\r\nEHLO me\r\n");
    }
    // Nobody there: the app learns it.
    let refused = http_client::get(at(ELSEWHERE[0], 82), "example.com", "/").await;
    assert!(refused.is_err(), "{refused:?}");
    // An excluded port, and the loopback, are not captured.
    assert!(TcpStream::connect(at(ELSEWHERE[0], 9)).await.is_err(), "nobody listens there");
    assert_eq!(greeting_of(greeter("127.0.0.1:0".parse().expect("an address")).await).await.len(), 20);
    // Nor is an excluded network to its last address; behind that one it ends.
    for (network, ip) in EXCLUDED {
        assert!(TcpStream::connect(at(ip, 81)).await.is_err(), "nobody listens there in {network}");
        let own = FakeUpstream::start_at(at(ip, 0), "itself").await;
        let answer = http_client::get(own.addr(), "orders", "/x").await.expect("an answer");
        assert_eq!(answer.body.trim(), "itself", "{network}");
    }
    for ip in BESIDE {
        let answer = http_client::get(at(ip, 81), "orders", "/x").await.expect("an answer");
        assert_eq!(answer.body.trim(), "orders", "{ip}");
    }
    // Whoever connects to the listener itself was not redirected.
    let raw = http_client::raw(
        at("127.0.0.1", 15002),
        b"GET / HTTP/1.1\r\nHost: orders\r\n\r\n",
        Duration::from_secs(5),
    )
    .await;
    assert_eq!(raw, "");
    assert!(metric(&proxy, r#"weft_proxy_refused_total{kind="not_captured"} 1"#).await);

    remove(backend).await;
    remove(backend).await;
    assert!(TcpStream::connect(at(ELSEWHERE[0], 81)).await.is_err(), "nothing is redirected any more");
    assert_eq!(proxy.stop().await, 0);
}

#[test]
fn connections_to_services_are_balanced_and_others_go_on_with_nftables() {
    inside("connections_to_services_are_balanced_and_others_go_on_with_nftables", || captured_with("nft"));
}

#[test]
fn connections_to_services_are_balanced_and_others_go_on_with_iptables() {
    inside("connections_to_services_are_balanced_and_others_go_on_with_iptables", || {
        captured_with("iptables")
    });
}

/// With rules that forget to exclude the sidecar its connections come back to it: that ends at once, and is counted.
#[test]
fn a_connection_of_the_sidecar_that_is_captured_in_turn_is_refused() {
    inside("a_connection_of_the_sidecar_that_is_captured_in_turn_is_refused", || async {
        set_up();
        let orders = teller(at(ELSEWHERE[0], 0)).await;
        let proxy = sidecar(orders, &[]).await;
        let ended = run(&["proxy", "install-redirect", "--exclude-uid", "4242"]).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        let _listener = TcpListener::bind(at(ELSEWHERE[0], 83)).await.expect("binds");
        // To nobody that is known, and to an instance of a service.
        for (to, times) in [(at(ELSEWHERE[0], 83), 1), (orders, 2)] {
            assert_eq!(http_client::raw(to, b"hello\r\n", Duration::from_secs(5)).await, "");
            let line = format!("weft_proxy_refused_total{{kind=\"capture_loop\"}} {times}");
            assert!(metric(&proxy, &line).await, "{to}");
        }
        assert_eq!(proxy.stop().await, 0);
    });
}

/// An endpoint that answers each connection with what came first: HTTP by 200, anything else by its first byte.
async fn teller(addr: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(addr).await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut seen = vec![0; 4096];
                let Ok(read) = stream.read(&mut seen).await else { return };
                let answer = match seen[..read].starts_with(b"GET ") {
                    true => "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_owned(),
                    false => format!("began with {}", seen[0]),
                };
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    addr
}

/// The first message of a TLS client that wants this server.
fn client_hello(name: &str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(config.into(), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("into memory");
    bytes
}

async fn said(addr: SocketAddr, bytes: &[u8]) -> Result<String, std::io::Error> {
    let mut stream = TcpStream::connect(addr).await?;
    stream.write_all(bytes).await?;
    let mut seen = String::new();
    stream.read_to_string(&mut seen).await?;
    Ok(seen)
}

/// What does not say its service in clear text at its beginning.
#[test]
fn tls_goes_by_its_name_and_http2_by_where_it_was_on_its_way() {
    inside("tls_goes_by_its_name_and_http2_by_where_it_was_on_its_way", || async {
        set_up();
        let orders = teller(at(ELSEWHERE[0], 0)).await;
        let proxy = sidecar(orders, &[]).await;
        install("nft", &[]).await;
        // Nobody listens there; the name decides.
        let tls = said(at(ELSEWHERE[1], 443), &client_hello("orders.weft")).await.expect("an answer");
        assert_eq!(tls, "began with 22");
        let gone = said(at(ELSEWHERE[1], 443), &client_hello("example.com")).await;
        assert!(gone.is_err() || gone.is_ok_and(|said| said.is_empty()), "nobody listens there");

        let stream = TcpStream::connect(orders).await.expect("connects");
        let io = hyper_util::rt::TokioIo::new(stream);
        let handshake = hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io);
        let (mut sender, connection) = handshake.await.expect("HTTP/2");
        tokio::spawn(connection);
        let request = http::Request::get("http://whatever.example/x");
        let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).expect("a request");
        let answer = sender.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), 200, "the endpoint speaks HTTP/1.1 only, so it went by the service");

        // Neither says a service, but it is an instance of one where they were on their way.
        let mut sent = 0;
        for bytes in [b"hello".to_vec(), client_hello("example.com")] {
            let told = said(orders, &bytes).await.expect("an answer");
            assert_eq!(told, format!("began with {}", bytes[0]));
            sent += bytes.len();
        }
        let labels = r#"direction="outbound",service="orders",way="sent""#;
        let hello = client_hello("orders.weft").len();
        let line = format!("weft_proxy_tunnel_bytes_total{{{labels}}} {}", sent + hello);
        until("both are counted", WAIT, || async {
            if metric(&proxy, &line).await { Ok(()) } else { Err(line.clone()) }
        })
        .await;
        assert_eq!(proxy.stop().await, 0);
    });
}

#[tokio::test]
async fn a_dry_run_prints_the_rules_and_bad_flags_are_refused() {
    let install = ["proxy", "install-redirect", "--exclude-uid", "0", "--dry-run", "--backend"];
    for (backend, part) in [("nft", "redirect to :15002"), ("iptables", "ip6tables-restore -w --noflush")] {
        let printed = run(&[&install[..], &[backend]].concat()).await;
        assert_eq!(printed.code, 0, "{printed:?}");
        assert!(printed.stdout.contains(part), "{printed:?}");
    }
    for (bad, part) in [
        (&["proxy", "install-redirect"][..], "--exclude-uid"),
        (&["proxy", "install-redirect", "--exclude-uid", "no-such-user-here"], "there is no user"),
        (&["proxy", "install-redirect", "--exclude-uid", "0", "--exclude-network", "ten"], "IP/BITS"),
        (&["proxy", "install-redirect", "--exclude-uid", "0", "--to-port", "0"], "not in 1..=65535"),
        (&["proxy", "remove-redirect", "--backend", "pf"], "possible values"),
    ] {
        let refused = run(bad).await;
        assert_ne!(refused.code, 0, "{refused:?}");
        assert!(refused.stderr.contains(part), "{refused:?}");
    }
    // Without the right to set rules it says so, and nothing was done.
    let mut unprivileged = Command::new(weft_tests::process::weft_bin());
    unprivileged
        .args(["proxy", "install-redirect", "--exclude-uid", "0", "--backend", "nft"])
        .uid(65534)
        .gid(65534);
    let refused = unprivileged.stdin(Stdio::null()).output();
    if let Ok(refused) = refused {
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("CAP_NET_ADMIN"), "{said}");
    }
}
