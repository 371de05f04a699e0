//! Join token and TLS: what belongs together finds each other, and everyone else is told why not.

use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use weft_tests::fake_upstream::FakeUpstream;
use weft_tests::http_client;
use weft_tests::mesh::strings;
use weft_tests::process::{Finished, WeftProcess, run, run_program};
use weft_tests::wait::until;

const SOON: Duration = Duration::from_secs(40);

/// All CAs have this name: another one made under it must be told apart by its key.
fn ca() -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).expect("names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "Weft test CA");
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("signed")
}

/// Writes `ca.pem`, `cert.pem` and `key.pem`, good for a server, its peers and a client.
fn pem_files(folder: &Path, ca: &CertifiedIssuer<'static, KeyPair>) {
    std::fs::create_dir_all(folder).expect("a folder");
    let names = strings(&["server.weft", "localhost", "127.0.0.1"]);
    let mut params = CertificateParams::new(names).expect("names");
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().expect("a key");
    let cert = params.signed_by(&key, ca).expect("signed");
    for (name, pem) in [("ca.pem", ca.pem()), ("cert.pem", cert.pem()), ("key.pem", key.serialize_pem())] {
        std::fs::write(folder.join(name), pem).expect("written");
    }
}

fn at(folder: &Path, file: &str) -> String {
    folder.join(file).display().to_string()
}

fn server(folder: &Path, name: &str, more: &[&str]) -> Vec<String> {
    let mut args = strings(&["server", "--name", name, "--data-dir", &at(folder, name)]);
    for port in ["grpc", "http", "dns", "peer", "gossip"] {
        args.extend([format!("--{port}-port"), "0".to_owned()]);
    }
    args.extend(strings(more));
    args
}

async fn voters(endpoint: &str, tls: &[&str], count: usize) {
    until(&format!("{count} voters"), SOON, || async {
        let status = run(&[&["status", "--output", "json", "--endpoints", endpoint], tls].concat()).await;
        let json: serde_json::Value =
            serde_json::from_str(&status.stdout).map_err(|e| format!("{e}: {status:?}"))?;
        let voters =
            json["servers"].as_array().map_or(0, |all| all.iter().filter(|s| s["voter"] == true).count());
        if voters == count { Ok(()) } else { Err(status.stdout) }
    })
    .await;
}

async fn in_the_log(process: &WeftProcess, words: &str) {
    until(words, SOON, || async {
        let log = process.log();
        if log.contains(words) { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_joins_with_the_token_that_the_first_one_made_and_not_without() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    let first = WeftProcess::start("s1", &server(folder, "s1", &[])).await;
    let token = folder.join("s1").join("join-token");
    assert_eq!(std::fs::read_to_string(&token).expect("made").trim().len(), 64);
    let join = first.addr("gossip").to_string();

    let without = WeftProcess::try_start("s2", &server(folder, "s2", &["--join", &join])).await;
    assert!(without.as_ref().is_err_and(|e| e.contains("--join-token-file")), "{:?}", without.err());

    let wrong = folder.join("wrong");
    weft_core::fsio::write_atomic_private(&wrong, "w".repeat(40).as_bytes()).expect("written");
    let wrong = wrong.display().to_string();
    let stranger =
        WeftProcess::start("s3", &server(folder, "s3", &["--join", &join, "--join-token-file", &wrong]))
            .await;
    in_the_log(&stranger, "does not accept this server's join token").await;
    in_the_log(&first, "its join token is not the one of this server").await;
    stranger.kill().await;

    let token = token.display().to_string();
    // `join` as a command is the same as the flag.
    let second =
        WeftProcess::start("s2", &server(folder, "s2", &["--join-token-file", &token, "join", &join])).await;
    let endpoint = first.addr("grpc").to_string();
    voters(&endpoint, &[], 2).await;

    // What is no server says something and is closed; the log says what it was, once for each.
    let peer = first.addr("peer");
    for garbage in [
        b"GET / HTTP/1.1\r\n\r\n".as_slice(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x00\x05hello",
        &[0; 5000],
    ] {
        for _ in 0..3 {
            http_client::raw(peer, garbage, Duration::from_secs(10)).await;
        }
    }
    in_the_log(&first, "from a Weft server").await;
    in_the_log(&first, "without a proof of the join token").await;
    in_the_log(&first, "it speaks TLS, but this server has none").await;
    assert_eq!(first.log().matches("refuse a connection to the peer port").count(), 4, "{}", first.log());
    let put = run(&["kv", "put", "a", "1", "--endpoints", &endpoint]).await;
    assert_eq!(put.code, 0, "{put:?}");
    assert_eq!((second.stop().await, first.stop().await), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tls_on_every_port_servers_clients_and_sidecars_go_on_and_strangers_are_told_why() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    let (ours, stranger) = (folder.join("tls"), folder.join("stranger"));
    pem_files(&ours, &ca());
    pem_files(&stranger, &ca());
    let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|file| at(&ours, file));
    let other_ca = at(&stranger, "ca.pem");
    let tls = [
        ["--tls-cert", &cert],
        ["--tls-key", &key],
        ["--tls-client-ca", &ca],
        ["--peer-tls-cert", &cert],
        ["--peer-tls-key", &key],
        ["--peer-tls-ca", &ca],
    ]
    .concat();
    let first = WeftProcess::start("s1", &server(folder, "s1", &tls)).await;
    let join = first.addr("gossip").to_string();
    let token = folder.join("s1").join("join-token").display().to_string();
    let joins = ["--join", &join, "--join-token-file", &token];
    let plain = WeftProcess::start("s3", &server(folder, "s3", &joins)).await;
    in_the_log(&plain, "its peer port speaks TLS, but this server has no --peer-tls-cert").await;
    in_the_log(&first, "it does not speak TLS, but this server's peer port does").await;
    plain.kill().await;
    let second = WeftProcess::start("s2", &server(folder, "s2", &[tls.as_slice(), &joins].concat())).await;

    let endpoint = first.addr("grpc").to_string();
    let trust = ["--cacert", &ca, "--cert", &cert, "--key", &key];
    voters(&endpoint, &trust, 2).await;
    let kv = async |words: &[&str], tls: &[&str]| -> Finished {
        run(&[["kv"].as_slice(), words, &["--endpoints", &endpoint], tls].concat()).await
    };
    let put = kv(&["put", "a", "1"], &trust).await;
    assert_eq!(put.code, 0, "{put:?}");
    for (tls, said) in [
        (
            ["--cacert", &other_ca, "--cert", &cert, "--key", &key].as_slice(),
            "was not signed by the CA that is trusted here",
        ),
        (&["--cacert", &ca], ""),
        (&[], ""),
    ] {
        let refused = kv(&["get", "a"], tls).await;
        assert!(refused.code != 0 && refused.stderr.contains(said), "{tls:?}: {refused:?}");
    }

    let etcd = [
        format!("--endpoints=https://{endpoint}"),
        format!("--cacert={ca}"),
        format!("--cert={cert}"),
        format!("--key={key}"),
    ];
    let etcd = etcd.each_ref().map(String::as_str);
    let etcdctl =
        async |words: &[&str]| run_program("etcdctl", &[etcd.as_slice(), words].concat(), &[], "").await;
    let got = etcdctl(&["get", "a"]).await;
    assert_eq!((got.code, got.stdout.as_str()), (0, "a\n1\n"), "{got:?}");
    let members = etcdctl(&["member", "list"]).await;
    assert_eq!(
        members.stdout.matches("https://127.0.0.1").count(),
        4,
        "peer and client URLs of two: {members:?}"
    );

    // Probes need no certificate, the registry does.
    let http = first.addr("http");
    let curl = async |words: &[&str]| {
        run_program("curl", &[["-sS", "--cacert", &ca].as_slice(), words].concat(), &[], "").await
    };
    let ready = curl(&["-f", &format!("https://{http}/readyz")]).await;
    assert_eq!(ready.code, 0, "{ready:?}");
    let services = format!("https://{http}/services");
    let refused = curl(&[&services]).await;
    assert!(refused.stdout.contains("client certificate is required"), "{refused:?}");
    let plaintext = run_program("curl", &["-sS", &format!("http://{http}/readyz")], &[], "").await;
    assert!(plaintext.stdout.contains("use https://"), "{plaintext:?}");

    let upstream = FakeUpstream::start("orders-1").await;
    let registered = format!(
        r#"{{"service":"orders","instance_id":"orders-1","host":"127.0.0.1","port":{},"ttl":"60s"}}"#,
        upstream.addr().port()
    );
    let shown = ["--cert", &cert, "--key", &key, "-f", "-d", &registered];
    let done = curl(&[shown.as_slice(), &[&format!("https://{http}/register")]].concat()).await;
    assert_eq!(done.code, 0, "{done:?}");
    let proxy = strings(&[
        "proxy",
        "--name",
        "p1",
        "--data-dir",
        &at(folder, "p1"),
        "--outbound",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--join",
        &join,
        "--server-ca",
        &ca,
        "--server-cert",
        &cert,
        "--server-key",
        &key,
    ]);
    let proxy = WeftProcess::start("p1", &proxy).await;
    until("the sidecar knows the service", SOON, || async {
        let answer = http_client::get(proxy.addr("outbound"), "orders", "/").await?;
        if answer.body == "orders-1\n" { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    assert_eq!((proxy.stop().await, second.stop().await, first.stop().await), (0, 0, 0));
}

/// Renewed certificates count for the next connection, also if a symlink was swapped, as Kubernetes does; files that cannot
/// be used change nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_the_client_ports_are_replaced_while_the_server_runs() {
    let dir = tempfile::tempdir().expect("a folder");
    let folder = dir.path();
    for version in ["v1", "v2", "broken"] {
        pem_files(&folder.join(version), &ca());
    }
    std::fs::write(folder.join("broken").join("cert.pem"), "-----BEGIN CERT").expect("written");
    let live = folder.join("live");
    let swap_to = |version: &str| {
        let next = folder.join("next");
        std::os::unix::fs::symlink(version, &next).expect("a symlink");
        std::fs::rename(&next, &live).expect("swapped");
    };
    swap_to("v1");
    let [cert, key] = ["cert.pem", "key.pem"].map(|file| at(&live, file));
    let [old, new] = ["v1", "v2"].map(|version| at(&folder.join(version), "ca.pem"));
    let first =
        WeftProcess::start("s1", &server(folder, "s1", &["--tls-cert", &cert, "--tls-key", &key])).await;
    let (grpc, http) = (first.addr("grpc").to_string(), first.addr("http"));
    let asked = async |ca: &str| {
        let grpc = run(&["kv", "get", "a", "--endpoints", &grpc, "--cacert", ca]).await;
        let url = format!("https://{http}/readyz");
        let http = run_program("curl", &["-sSf", "--cacert", ca, &url], &[], "").await;
        // An absent key is another code than a server that cannot be asked.
        (!grpc.stderr.contains("trusted"), http.code == 0)
    };
    assert_eq!((asked(&old).await, asked(&new).await), ((true, true), (false, false)));

    swap_to("broken");
    until("the log says that the files cannot be used", SOON, || async {
        assert_eq!(asked(&old).await, (true, true), "the last good certificate stays in use");
        let log = first.log();
        if log.contains("what was loaded before stays in use") { Ok(()) } else { Err(log) }
    })
    .await;

    swap_to("v2");
    until("both ports show the new certificate", SOON, || async {
        match (asked(&old).await, asked(&new).await) {
            ((false, false), (true, true)) => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await;
    assert_eq!(first.stop().await, 0);
}
