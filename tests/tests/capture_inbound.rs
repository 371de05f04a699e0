//! Connections of other machines to an app's own port, which the kernel redirects to its sidecar, in namespaces of the test's
//! own: nobody gets around the sidecar.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_tests::http_client;
use weft_tests::mesh::strings;
use weft_tests::netns::inside;
use weft_tests::process::{WeftProcess, run, run_program};

/// This machine, in both families.
const HERE: [&str; 2] = ["10.98.0.1", "[fd98::1]"];
const POLICY: &str = "\
---
apiVersion: weft.dev/v1
kind: AuthorizationPolicy
metadata: {name: no-secrets}
spec:
  targetRef: {kind: Service, name: orders}
  action: DENY
  rules: [{to: [{paths: [\"/secret\"]}]}]
";

/// Another machine, at the other end of a cable. Its namespace ends with this.
struct Other(Child);

impl Other {
    fn new() -> Self {
        let keeper =
            Command::new("unshare").args(["--net", "sleep", "infinity"]).stdin(Stdio::null()).spawn();
        let other = Self(keeper.expect("unshare can be started"));
        let pid = other.0.id();
        let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/net")).ok();
        // The keeper is in its namespace only once it is no longer `unshare`.
        while namespace(&pid.to_string()).is_none_or(|theirs| Some(theirs) == namespace("self")) {
            std::thread::yield_now();
        }
        let there = format!("nsenter --net=/proc/{pid}/ns/net ");
        for command in [
            "ip link set lo up".to_owned(),
            format!("ip link add cable0 type veth peer name cable1 netns {pid}"),
            "ip addr add 10.98.0.1/24 dev cable0".to_owned(),
            "ip -6 addr add fd98::1/64 dev cable0 nodad".to_owned(),
            "ip link set cable0 up".to_owned(),
            format!("{there}ip addr add 10.98.0.2/24 dev cable1"),
            format!("{there}ip -6 addr add fd98::2/64 dev cable1 nodad"),
            format!("{there}ip link set cable1 up"),
        ] {
            let mut words = command.split(' ');
            let ended = Command::new(words.next().expect("a command")).args(words).status().expect("starts");
            assert!(ended.success(), "{command}");
        }
        other
    }

    /// What a command says there.
    async fn run(&self, command: &[&str]) -> String {
        let namespace = format!("--net=/proc/{}/ns/net", self.0.id());
        let ended = run_program("nsenter", &[&[namespace.as_str()], command].concat(), &[], "").await;
        ended.stdout
    }

    /// Status and body of an answer, and what went wrong where there is none: `000`.
    async fn get(&self, url: &str, more: &[&str]) -> String {
        let curl = ["curl", "-s", "-g", "--max-time", "10", "-w", " %{http_code}"];
        self.run(&[&curl[..], more, &[url]].concat()).await
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn head(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(head)
}

/// Answers whether requests have come by a proxy.
async fn app(at: &str) {
    let listener = TcpListener::bind(at).await.expect("binds");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(head) = head(&mut stream).await else { return };
                let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
                let body = if head.contains("\r\nvia:") { "guarded" } else { "direct" };
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            });
        }
    });
}

/// Speaks first.
async fn database(at: &str) {
    let listener = TcpListener::bind(at).await.expect("binds");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"ready\n").await;
        }
    });
}

async fn sidecar(policy: &str, more: &[&str]) -> WeftProcess {
    // In a namespace of its own each test has the same process id.
    let file = std::env::temp_dir().join(format!("weft-capture-inbound-{:x}.yaml", fastrand::u64(..)));
    std::fs::write(&file, format!("name: orders\n{policy}")).expect("writes");
    let mut args = strings(&["proxy", "--config", &file.display().to_string(), "--admin", "127.0.0.1:0"]);
    args.extend(strings(&["--outbound", "127.0.0.1:0", "--inbound", "10.98.0.1:15006"]));
    args.extend(strings(&["--service", "orders=127.0.0.1:8080", "--capture-inbound", "[::]:15007"]));
    args.extend(strings(more));
    let proxy = WeftProcess::start("orders", &args).await;
    let _ = std::fs::remove_file(file);
    proxy
}

async fn redirect(args: &[&str], backend: &str) {
    let ended = run(&[&["proxy"], args, &["--backend", backend]].concat()).await;
    assert_eq!(ended.code, 0, "{ended:?}");
}

async fn metric(proxy: &WeftProcess, line: &str) -> bool {
    let metrics = http_client::get(proxy.addr("admin"), "admin", "/metrics").await.expect("metrics").body;
    metrics.lines().any(|l| l == line)
}

async fn captured_with(backend: &str) {
    let other = Other::new();
    app("[::]:8080").await;
    app("[::]:8081").await;
    database("[::]:5432").await;
    let db = ["--service", "db=127.0.0.1:5432,protocol=tcp", "--inbound-tcp", "10.98.0.1:15432=db"];
    let proxy = sidecar(POLICY, &db).await;
    let secret = HERE.map(|ip| format!("http://{ip}:8080/secret"));
    for url in &secret {
        assert_eq!(other.get(url, &[]).await, "direct 200", "without rules anybody gets around the sidecar");
    }

    let install = ["install-redirect", "--inbound-port", "8080,5432,9999"];
    redirect(&install, backend).await;
    // A second time is the same.
    redirect(&install, backend).await;
    for (ip, secret) in HERE.iter().zip(&secret) {
        let refused = other.get(secret, &["-D", "-"]).await;
        assert!(refused.contains("x-weft-error: forbidden") && refused.ends_with(" 403"), "{ip}: {refused}");
        // Whatever the host says.
        assert_eq!(other.get(&format!("http://{ip}:8080/x"), &[]).await, "guarded 200", "{ip}");
        let http2 = other.get(&format!("http://{ip}:8080/x"), &["--http2-prior-knowledge"]).await;
        assert_eq!(http2, "guarded 200", "{ip}");
        assert_eq!(
            other.get(&format!("http://{ip}:8081/secret"), &[]).await,
            "direct 200",
            "not one of these"
        );
        assert_eq!(other.get(&format!("http://{ip}:9999/"), &[]).await, " 000", "no service has this port");
        assert_eq!(
            other.get(&format!("http://{ip}:15007/"), &[]).await,
            " 000",
            "it was not redirected there"
        );
    }
    // Bash has connections without a tool for them.
    let ready = other.run(&["bash", "-c", "exec 3<>/dev/tcp/10.98.0.1/5432; head -c 6 <&3"]).await;
    assert_eq!(ready, "ready\n");
    for line in [
        r#"weft_proxy_refused_total{kind="no_service"} 2"#,
        r#"weft_proxy_refused_total{kind="not_captured"} 2"#,
        r#"weft_proxy_tunnel_bytes_total{direction="inbound",service="db",way="received"} 6"#,
    ] {
        assert!(metric(&proxy, line).await, "{line}");
    }
    // The port that peers are told of is as it was, and so is what this machine says to itself.
    assert_eq!(other.get("http://10.98.0.1:15006/x", &["-H", "host: orders"]).await, "guarded 200");
    let own = http_client::get("10.98.0.1:8080".parse().expect("an address"), "orders", "/secret").await;
    assert_eq!(own.expect("an answer").body, "direct");

    // Probes of one address, and rules for outgoing connections beside them.
    let more = ["--exclude-source", "10.98.0.2", "--exclude-uid", "0"];
    redirect(&[&install[..], &more].concat(), backend).await;
    assert_eq!(other.get(&secret[0], &[]).await, "direct 200", "left alone");
    assert!(other.get(&secret[1], &[]).await.ends_with(" 403"), "another address");

    redirect(&["install-redirect", "--exclude-uid", "0"], backend).await;
    assert_eq!(other.get(&secret[1], &[]).await, "direct 200", "rules are replaced whole");

    let all = ["install-redirect", "--inbound-port", "*", "--exclude-inbound-port", "15432,8082"];
    redirect(&all, backend).await;
    app("[::]:22").await;
    app("[::]:8082").await;
    for (ip, secret) in HERE.iter().zip(&secret) {
        assert!(other.get(secret, &[]).await.ends_with(" 403"), "{ip}");
        assert_eq!(other.get(&format!("http://{ip}:8081/"), &[]).await, " 000", "{ip}: no service has it");
        for left_alone in [22, 8082] {
            assert_eq!(other.get(&format!("http://{ip}:{left_alone}/"), &[]).await, "direct 200", "{ip}");
        }
        let itself = other.get(&format!("http://{ip}:15007/"), &[]).await;
        assert_eq!(itself, " 000", "{ip}: what is not redirected is closed, and goes round in no loop");
    }
    assert_eq!(other.get("http://10.98.0.1:15006/x", &["-H", "host: orders"]).await, "guarded 200");
    let ready = other.run(&["bash", "-c", "exec 3<>/dev/tcp/10.98.0.1/15432; head -c 6 <&3"]).await;
    assert_eq!(ready, "ready\n", "peers come by the port that they are told of");
    for line in [
        r#"weft_proxy_refused_total{kind="no_service"} 4"#,
        r#"weft_proxy_refused_total{kind="not_captured"} 4"#,
    ] {
        assert!(metric(&proxy, line).await, "{line}");
    }
    redirect(&install, backend).await;
    redirect(&["remove-redirect"], backend).await;
    redirect(&["remove-redirect"], backend).await;
    for url in &secret {
        assert_eq!(other.get(url, &[]).await, "direct 200", "nothing is redirected any more");
    }
    assert_eq!(proxy.stop().await, 0);
}

#[test]
fn nobody_gets_around_the_sidecar_of_an_app_with_nftables() {
    inside("nobody_gets_around_the_sidecar_of_an_app_with_nftables", || captured_with("nft"));
}

#[test]
fn nobody_gets_around_the_sidecar_of_an_app_with_iptables() {
    inside("nobody_gets_around_the_sidecar_of_an_app_with_iptables", || captured_with("iptables"));
}

const NOT_FROM: &str = "\
---
apiVersion: weft.dev/v1
kind: AuthorizationPolicy
metadata: {name: not-from}
spec:
  targetRef: {kind: Service, name: orders}
  action: DENY
  rules: [{from: [{ipBlocks: [203.0.113.66]}]}]
";

/// Answers with the request's head.
async fn teller(at: &str) {
    let listener = TcpListener::bind(at).await.expect("binds");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(head) = head(&mut stream).await else { return };
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", head.len());
                let _ = stream.write_all(&[answer.as_bytes(), &head].concat()).await;
            });
        }
    });
}

/// Answers with the first line that comes.
async fn line_teller(at: &str) {
    let listener = TcpListener::bind(at).await.expect("binds");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = tokio::io::BufReader::new(stream);
            let mut line = Vec::new();
            if stream.read_until(b'\n', &mut line).await.is_ok() {
                let _ = stream.write_all(&line).await;
            }
        }
    });
}

/// A load balancer says who the client is, as on the sidecar's own ports; whoever is none cannot.
#[test]
fn a_load_balancer_in_front_of_a_captured_port_says_who_the_client_is() {
    inside("a_load_balancer_in_front_of_a_captured_port_says_who_the_client_is", || async {
        let other = Other::new();
        teller("[::]:8080").await;
        line_teller("[::]:5432").await;
        let port = "10.98.0.1:15432=db,accept-proxy=10.98.0.2,send-proxy=v1";
        let db = ["--service", "db=127.0.0.1:5432,protocol=tcp", "--inbound-tcp", port];
        let proxy = sidecar(NOT_FROM, &[&["--inbound-accept-proxy", "10.98.0.2/32"][..], &db].concat()).await;
        redirect(&["install-redirect", "--inbound-port", "8080,5432"], "auto").await;
        // Escapes are for `printf`.
        let bytes = async |ip: &str, port: u16, bytes: &str| {
            let script = format!("exec 3<>/dev/tcp/{ip}/{port}; printf \"$0\" >&3; cat <&3");
            other.run(&["bash", "-c", &script, bytes]).await
        };
        let get = r"GET /x HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n";
        let v1 = |client: &str| format!(r"PROXY TCP4 {client} 10.98.0.1 5555 5432\r\n{get}");
        let v2 = format!(
            r"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\xcb\x00\x71\x07\x0a\x62\x00\x01\x15\xb3\x1f\x90{get}"
        );

        for (version, bytes_of) in [("1", v1("203.0.113.7")), ("2", v2)] {
            let answer = bytes("10.98.0.1", 8080, &bytes_of).await;
            // The port that the connection was for says which service is meant, whatever the header names.
            assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\r\nvia:"), "{version}: {answer}");
            assert!(answer.contains("x-forwarded-for: 203.0.113.7\r\n"), "version {version}: {answer}");
        }
        let denied = bytes("10.98.0.1", 8080, &v1("203.0.113.66")).await;
        assert!(denied.starts_with("HTTP/1.1 403"), "policies go by the client that is named: {denied}");
        let told = bytes("10.98.0.1", 5432, r"PROXY TCP4 203.0.113.7 10.98.0.1 5555 5432\r\nhello\r\n").await;
        assert_eq!(told, "PROXY TCP4 203.0.113.7 10.98.0.1 5555 5432\r\n");

        // Without a header, or with half of one, a load balancer is no one.
        for bad in [get, r"PROXY TCP4 203.0.113.7\r\n", r"PROXY TCP4 a b c d\r\n"] {
            assert_eq!(bytes("10.98.0.1", 8080, bad).await, "", "{bad}");
        }
        assert_eq!(bytes("10.98.0.1", 5432, r"hello\r\n").await, "");
        assert!(metric(&proxy, r#"weft_proxy_refused_total{kind="proxy_protocol"} 4"#).await);

        // From another address nobody else can be named, and no header is needed.
        let named = bytes("fd98::1", 8080, &v1("203.0.113.7")).await;
        assert!(named.starts_with("HTTP/1.1 400"), "{named}");
        let plain = bytes("fd98::1", 8080, get).await;
        assert!(plain.starts_with("HTTP/1.1 200") && plain.contains("x-forwarded-for: fd98::2"), "{plain}");
        assert_eq!(proxy.stop().await, 0);
    });
}

/// PEM files of a sidecar, or of whoever calls it.
fn identity(folder: &Path, ca: &CertifiedIssuer<'static, KeyPair>, name: &str) -> [String; 3] {
    let mut params = CertificateParams::new(Vec::new()).expect("names");
    let id = format!("spiffe://mesh.example/ns/shop/sa/{name}");
    params.subject_alt_names.push(SanType::URI(id.try_into().expect("ASCII")));
    let key = KeyPair::generate().expect("a key");
    let cert = params.signed_by(&key, ca).expect("signed");
    [("cert", cert.pem()), ("key", key.serialize_pem()), ("ca", ca.pem())].map(|(what, pem)| {
        let path = folder.join(format!("{name}-{what}.pem"));
        std::fs::write(&path, pem).expect("written");
        path.display().to_string()
    })
}

#[test]
fn in_strict_mode_an_apps_port_is_for_sidecars_alone() {
    inside("in_strict_mode_an_apps_port_is_for_sidecars_alone", || async {
        let other = Other::new();
        app("[::]:8080").await;
        database("[::]:5432").await;
        let folder = tempfile::tempdir().expect("a folder");
        let mut params = CertificateParams::new(Vec::new()).expect("names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed");
        let [cert, key, trusted] = identity(folder.path(), &ca, "orders");
        let mesh = ["--mesh-cert", &cert, "--mesh-key", &key, "--mesh-ca", &trusted, "--mesh-mode", "strict"];
        let db = ["--service", "db=127.0.0.1:5432,protocol=tcp", "--inbound-tcp", "10.98.0.1:15432=db"];
        let proxy = sidecar("", &[&mesh[..], &db].concat()).await;
        redirect(&["install-redirect", "--inbound-port", "8080,5432"], "auto").await;
        assert_eq!(other.get("http://10.98.0.1:8080/", &[]).await, " 000", "plaintext");
        let bytes =
            other.run(&["bash", "-c", "exec 3<>/dev/tcp/10.98.0.1/5432; echo hello >&3; cat <&3"]).await;
        assert!(!bytes.contains("ready"), "plaintext: {bytes}");
        // It has no DNS name that curl could look for; who calls is what counts here.
        assert_eq!(other.get("https://10.98.0.1:8080/", &["-k"]).await, " 000", "without a certificate");
        let [cert, key, _] = identity(folder.path(), &ca, "web");
        let with = ["-k", "--cert", &cert, "--key", &key];
        assert_eq!(other.get("https://10.98.0.1:8080/", &with).await, "guarded 200");
        assert_eq!(proxy.stop().await, 0);
    });
}

#[tokio::test]
async fn flags_that_do_not_fit_together_are_refused() {
    for (bad, part) in [
        (&["proxy", "install-redirect"][..], "--exclude-uid"),
        (&["proxy", "install-redirect", "--inbound-port", "8080", "--exclude-port", "9"], "--exclude-uid"),
        (
            &["proxy", "install-redirect", "--exclude-uid", "0", "--exclude-source", "10.0.0.1"],
            "--inbound-port",
        ),
        (&["proxy", "install-redirect", "--inbound-port", "15007"], "name the ports of apps"),
        (&["proxy", "install-redirect", "--inbound-port", "0"], "\"0\" is no port from 1 to 65535, nor *"),
        (&["proxy", "install-redirect", "--inbound-port", "*,8080,80"], "is * and 8080, 80; give * alone"),
        (
            &["proxy", "install-redirect", "--inbound-port", "80", "--exclude-inbound-port", "22"],
            "exclude-inbound-port 22 is for inbound-port *",
        ),
        (
            &["proxy", "install-redirect", "--exclude-uid", "0", "--exclude-inbound-port", "22"],
            "--inbound-port",
        ),
        (&["proxy", "--capture-inbound", "[::]:0", "--service", "a=127.0.0.1:9"], "inbound or inbound-tcp"),
    ] {
        let refused = run(bad).await;
        assert_ne!(refused.code, 0, "{refused:?}");
        assert!(refused.stderr.contains(part), "{bad:?}: {refused:?}");
    }
    let printed =
        run(&["proxy", "install-redirect", "--inbound-port", "80", "--dry-run", "--backend", "nft"]).await;
    assert!(printed.stdout.contains("tcp dport { 80 } redirect to :15007"), "{printed:?}");
}
