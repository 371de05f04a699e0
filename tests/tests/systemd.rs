//! Servers under systemd, and the unit files in `deploy/systemd`. Sidecars: `hot_upgrade.rs`; apps with theirs: `run_upgrade.rs`.

use std::fs;

use rustix::process::Signal;
use weft_tests::mesh::{Mesh, strings};
use weft_tests::notified::{Notified, ready};
use weft_tests::process::{WeftProcess, run_program, weft_bin, workspace};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_says_when_it_serves_and_when_it_stops() {
    let mesh = Mesh::empty();
    let supervisor = Notified::listen(&mesh.folder("notify"), true);
    let mut args = strings(&["server", "--name", "s", "--bind", "127.0.0.1", "--data-dir"]);
    args.push(mesh.folder("s").display().to_string());
    for port in ["--grpc-port", "--http-port", "--dns-port", "--peer-port", "--gossip-port"] {
        args.extend(strings(&[port, "0"]));
    }
    let server =
        WeftProcess::try_start_with_env("s", &args, &supervisor.environment()).await.expect("starts");
    assert_eq!(supervisor.hears().await, ready(server.pid()));
    server.signal(Signal::TERM);
    assert_eq!(supervisor.hears().await, "STOPPING=1\n");
    supervisor.heard_all();
}

/// What systemd itself says of them, where there is one.
#[tokio::test]
async fn the_unit_files_are_right() {
    let folder = tempfile::tempdir().expect("a folder");
    let units = ["weft-proxy.service", "weft-server.service"].map(|name| {
        let unit = fs::read_to_string(workspace().join("deploy/systemd").join(name)).expect("a unit");
        assert!(unit.contains("\nType=notify\n") && unit.contains("\nKillMode=mixed\n"), "{unit}");
        // It looks for the program too.
        let unit = unit.replace("/usr/local/bin/weft", &weft_bin().display().to_string());
        let path = folder.path().join(name);
        fs::write(&path, unit).expect("written");
        path.display().to_string()
    });
    if !std::path::Path::new("/usr/bin/systemd-analyze").exists() {
        return;
    }
    let said = run_program("systemd-analyze", &["verify", &units[0], &units[1]], &[], "").await;
    assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{said:?}");
}
