//! What each door does with input that it should not get: one clear answer, nothing forwarded, nothing lost.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::StatusCode;
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::mesh::{Mesh, strings};
use weft_tests::process::{WeftProcess, run};

/// A proxy from a file alone, with one route to `upstream`.
async fn static_proxy(dir: &Path, upstream: &FakeUpstream) -> WeftProcess {
    let file = dir.join("proxy.yaml");
    std::fs::write(&file, static_config(&upstream.addr().to_string()))
        .expect("a temporary folder is writable");
    WeftProcess::start("static", &strings(&["proxy", "--config", &file.display().to_string()])).await
}

fn static_config(endpoint: &str) -> String {
    format!(
        "name: edge\nadmin: 127.0.0.1:0\nlisteners:\n  - name: web\n    address: 127.0.0.1:0\nroutes:\n  - host: orders\n    cluster: orders\nclusters:\n  - name: orders\n    load-balancing: round-robin\n    endpoints:\n      - {endpoint}\n"
    )
}

/// A proxy runs from a file alone, with no server and no gossip.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxy_runs_from_a_file_alone() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let upstream = FakeUpstream::start("orders-1").await;
    let proxy = static_proxy(dir.path(), &upstream).await;
    let answer = http_client::get(proxy.addr("outbound"), "orders", "/").await.expect("answers");
    assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, "orders-1\n"));
    let ready = http_client::get(proxy.addr("admin"), "x", "/ready").await.expect("answers");
    assert_eq!(ready.status, StatusCode::OK, "{}", ready.body);
    for path in ["/clusters", "/config_dump", "/metrics"] {
        let answer = http_client::get(proxy.addr("admin"), "x", path).await.expect("answers");
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.body);
        assert!(answer.body.contains("orders"), "{path} knows the cluster: {}", answer.body);
    }
    assert_eq!(proxy.stop().await, 0);
}

/// An unknown host is answered by name with what is known; no healthy endpoint with the counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_host_and_dead_endpoints_are_named() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut upstream = FakeUpstream::start("orders-1").await;
    let proxy = static_proxy(dir.path(), &upstream).await;
    let answer = http_client::get(proxy.addr("outbound"), "ordres", "/").await.expect("answers");
    assert_eq!(answer.status, StatusCode::NOT_FOUND, "{}", answer.body);
    assert!(answer.body.contains("ordres") && answer.body.contains("orders"), "{}", answer.body);
    upstream.crash().await;
    let mut last = String::new();
    for _ in 0..5 {
        let answer = http_client::get(proxy.addr("outbound"), "orders", "/").await.expect("answers");
        assert!(matches!(answer.status.as_u16(), 502 | 503), "{answer:?}");
        last = answer.body;
    }
    assert!(last.contains("orders") && last.contains('1'), "the cluster and the counts: {last}");
}

/// With servers: an unknown host names the known services; a service without instances has counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_host_names_what_the_control_plane_knows() {
    let mesh = Mesh::with_servers(1).await;
    let orders = FakeUpstream::start("orders-1").await;
    mesh.register(&mesh.servers[0], "orders", "one", orders.addr(), "60s").await;
    let proxy = mesh.proxy("p", &[mesh.servers[0].gossip()], &[]).await;
    let answer = weft_tests::wait::until("the server answers", Duration::from_secs(15), || async {
        let answer = http_client::get(proxy.addr("outbound"), "ordres", "/").await?;
        if answer.status == StatusCode::NOT_FOUND { Ok(answer) } else { Err(format!("{answer:?}")) }
    })
    .await;
    assert!(answer.body.contains("ordres") && answer.body.contains("orders"), "{}", answer.body);
}

/// Request smuggling forms and malformed heads: refused with the right status, closed, never forwarded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggling_forms_and_malformed_heads_are_refused_and_never_forwarded() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let upstream = FakeUpstream::start("orders-1").await;
    let proxy = static_proxy(dir.path(), &upstream).await;
    let huge = format!("GET / HTTP/1.1\r\nHost: orders\r\nX-Big: {}\r\n\r\n", "a".repeat(1 << 20));
    let many: String = (0..1000).map(|i| format!("X-{i}: 1\r\n")).collect();
    let many = format!("GET / HTTP/1.1\r\nHost: orders\r\n{many}\r\n");
    let long_uri = format!("GET /{} HTTP/1.1\r\nHost: orders\r\n\r\n", "a".repeat(1 << 17));
    let cases: [(&str, &[u8], &[u16]); 20] = [
        ("CL.TE", b"POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG", &[400]),
        ("TE.CL", b"POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n1\r\nG\r\n0\r\n\r\n", &[400]),
        ("two equal lengths", b"POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", &[400]),
        ("two lengths", b"POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", &[400]),
        ("length list", b"POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 1, 1\r\n\r\nx", &[400]),
        ("signed length", b"POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: +1\r\n\r\nx", &[400]),
        ("obs-fold", b"GET / HTTP/1.1\r\nHost: orders\r\nX-A: 1\r\n 2\r\n\r\n", &[400]),
        ("space before colon", b"GET / HTTP/1.1\r\nHost: orders\r\nX-A : 1\r\n\r\n", &[400]),
        ("bare CR in a value", b"GET / HTTP/1.1\r\nHost: orders\r\nX-A: 1\r2\r\n\r\n", &[400]),
        ("NUL in a value", b"GET / HTTP/1.1\r\nHost: orders\r\nX-A: 1\x002\r\n\r\n", &[400]),
        ("TE with another coding", b"POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", &[400, 501]),
        ("TE obfuscated", b"POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", &[400, 501]),
        ("no host", b"GET / HTTP/1.1\r\n\r\n", &[400]),
        ("two hosts", b"GET / HTTP/1.1\r\nHost: orders\r\nHost: other\r\n\r\n", &[400]),
        ("malformed request line", b"GET\r\nHost: orders\r\n\r\n", &[400]),
        ("garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03garbage\r\n\r\n", &[400]),
        ("unknown version", b"GET / HTTP/3.7\r\nHost: orders\r\n\r\n", &[400, 505]),
        ("oversized header", huge.as_bytes(), &[431]),
        ("too many headers", many.as_bytes(), &[431]),
        ("oversized URI", long_uri.as_bytes(), &[414, 431]),
    ];
    for (what, bytes, allowed) in cases {
        let answer = http_client::raw(proxy.addr("outbound"), bytes, Duration::from_secs(5)).await;
        let status: u16 = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        assert!(allowed.contains(&status), "{what}: {allowed:?} expected, got {answer:?}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{what}: one answer, then closed: {answer:?}");
    }
    assert_eq!(upstream.served(), 0, "nothing of it reached the upstream");
    // Bad chunking can only be seen after the head was forwarded; the exchange is cut, not completed.
    let bad_chunk =
        b"POST / HTTP/1.1\r\nHost: orders\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nhello\r\n0\r\n\r\n";
    let answer = http_client::raw(proxy.addr("outbound"), bad_chunk, Duration::from_secs(5)).await;
    assert!(
        !answer.starts_with("HTTP/1.1 200") || answer.to_lowercase().contains("connection: close"),
        "{answer:?}"
    );
    let fine = http_client::get(proxy.addr("outbound"), "orders", "/").await.expect("answers");
    assert_eq!(fine.status, StatusCode::OK, "the proxy goes on serving");
}

fn wal_segments(data_dir: &Path) -> Vec<PathBuf> {
    let mut segments: Vec<_> = std::fs::read_dir(data_dir.join("wal"))
        .expect("a WAL folder")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "wal"))
        .collect();
    segments.sort();
    assert!(!segments.is_empty(), "segments in {}", data_dir.display());
    segments
}

/// Offset just after the last byte that is not zero: segments are preallocated.
fn end_of_data(path: &Path) -> u64 {
    let mut bytes = Vec::new();
    std::fs::File::open(path).and_then(|mut f| f.read_to_end(&mut bytes)).expect("readable");
    bytes.iter().rposition(|b| *b != 0).expect("records") as u64 + 1
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = std::fs::OpenOptions::new().write(true).open(path).expect("writable");
    file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes)).expect("written");
}

/// A07: a torn tail is cut off with a log line; corruption in the middle stops the server with a reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn torn_wal_tail_is_truncated_and_corrupt_middle_stops_the_server() {
    let mut mesh = Mesh::with_servers(1).await;
    for i in 0..20 {
        let put = mesh.cli(&mesh.servers[0], &["kv", "put", &format!("k{i:02}"), &"v".repeat(100)]).await;
        assert_eq!(put.code, 0, "{put:?}");
    }
    mesh.servers[0].kill().await;
    let segment = wal_segments(mesh.servers[0].data_dir()).pop().expect("one");
    let end = end_of_data(&segment);
    // A record that was being written when the machine died: a plausible length, half a payload.
    overwrite(&segment, end, &[0x40, 0, 0, 0, 1, 2, 3, 4, 1, 9, 9, 9]);
    mesh.servers[0].start().await;
    mesh.wait_for_voters(1).await;
    let log = mesh.servers[0].process().log();
    assert!(log.contains("cut off the end of the log"), "the cut is logged: {log}");
    let got = mesh.cli(&mesh.servers[0], &["kv", "get", "--prefix", "k"]).await;
    assert!(
        got.stdout.contains("k00") && got.stdout.contains("k19"),
        "nothing acknowledged is lost: {got:?}"
    );
    mesh.servers[0].kill().await;

    let segment = wal_segments(mesh.servers[0].data_dir()).remove(0);
    let middle = end_of_data(&segment) / 2;
    overwrite(&segment, middle, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");
    let args =
        strings(&["server", "--name", "s1", "--data-dir", &mesh.servers[0].data_dir().display().to_string()]);
    let args = [
        args,
        strings(&[
            "--grpc-port",
            "0",
            "--http-port",
            "0",
            "--dns-port",
            "0",
            "--peer-port",
            "0",
            "--gossip-port",
            "0",
        ]),
    ]
    .concat();
    let Err(log) = WeftProcess::try_start("corrupt", &args).await else { panic!("it must not start") };
    assert!(log.contains("is damaged at offset") && log.contains("wal"), "where and what: {log}");
}

/// Start-up problems: one clear line and a non-zero exit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_up_problems_are_one_clear_line_and_a_non_zero_exit() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port().to_string();
    let data = dir.path().join("data").display().to_string();
    let free = ["--http-port", "0", "--dns-port", "0", "--peer-port", "0", "--gossip-port", "0"];
    let in_use =
        run(&[["server", "--data-dir", &data, "--grpc-port", &port].as_slice(), &free].concat()).await;
    assert_ne!(in_use.code, 0);
    assert!(in_use.stderr.contains(&port) && in_use.stderr.contains("in use"), "{in_use:?}");

    let file = dir.path().join("file");
    std::fs::write(&file, "not a folder").expect("written");
    let file = file.display().to_string();
    let unwritable =
        run(&[["server", "--data-dir", &file, "--grpc-port", "0"].as_slice(), &free].concat()).await;
    assert_ne!(unwritable.code, 0);
    assert!(unwritable.stderr.contains(&file), "{unwritable:?}");

    let unknown_flag = run(&["server", "--colour", "red"]).await;
    assert_ne!(unknown_flag.code, 0);
    assert!(unknown_flag.stderr.contains("--colour"), "{unknown_flag:?}");

    let config = dir.path().join("weft.yaml");
    std::fs::write(&config, "name: a\ncolour: red\n").expect("written");
    for role in ["server", "proxy"] {
        let unknown_key = run(&[role, "--config", &config.display().to_string()]).await;
        assert_ne!(unknown_key.code, 0);
        assert!(unknown_key.stderr.contains("colour"), "{unknown_key:?}");
    }

    let out_of_range = run(&["server", "--grpc-port", "70000"]).await;
    assert_ne!(out_of_range.code, 0);
    assert!(out_of_range.stderr.contains("70000"), "{out_of_range:?}");

    let bad = dir.path().join("bad.yaml");
    std::fs::write(&bad, static_config("not-an-address").replace("cluster: orders", "cluster: missing"))
        .expect("written");
    let refused = run(&["proxy", "--config", &bad.display().to_string()]).await;
    assert_ne!(refused.code, 0);
    for part in [
        "bad.yaml:8:14: route orders: routes[0].cluster: \"missing\" is not defined; defined are: orders",
        "bad.yaml:13:9: cluster orders: clusters[0].endpoints[0]: \"not-an-address\"; allowed is IP:PORT",
    ] {
        assert!(refused.stderr.contains(part), "{part:?} not in {}", refused.stderr);
    }
}

/// Two processes never share a data folder.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_server_on_one_data_folder_is_refused() {
    let mesh = Mesh::with_servers(1).await;
    let data = mesh.servers[0].data_dir().display().to_string();
    let free =
        ["--grpc-port", "0", "--http-port", "0", "--dns-port", "0", "--peer-port", "0", "--gossip-port", "0"];
    let second = run(&[["server", "--data-dir", &data].as_slice(), &free].concat()).await;
    assert_ne!(second.code, 0);
    assert!(second.stderr.contains(&data), "{second:?}");
}

/// Precedence: flag, then variable, then file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flag_wins_over_variable_and_variable_over_file() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let config = dir.path().join("weft.yaml");
    let data = dir.path().join("data");
    let yaml = format!(
        "name: from-file\ndata-dir: {}\ngrpc-port: 0\nhttp-port: 0\ndns-port: 0\npeer-port: 0\ngossip-port: 0\n",
        data.display()
    );
    std::fs::write(&config, yaml).expect("written");
    let config = config.display().to_string();
    let variable = [("WEFT_NAME", "from-variable")];
    for (args, env, expected) in [
        (vec!["server", "--config", &config], [].as_slice(), "from-file"),
        (vec!["server", "--config", &config], variable.as_slice(), "from-variable"),
        (vec!["server", "--config", &config, "--name", "from-flag"], variable.as_slice(), "from-flag"),
    ] {
        let server = WeftProcess::try_start_with_env(expected, &strings(&args), env).await;
        let server = server.unwrap_or_else(|log| panic!("{args:?}: {log}"));
        assert_eq!(server.ready()["name"], expected, "{}", server.ready());
        assert_eq!(server.stop().await, 0);
    }
}
