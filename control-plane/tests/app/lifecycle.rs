//! Start, refusals to start, stop, restart.

use std::time::Duration;

use http::StatusCode;
use weft_control_plane::app;
use weft_control_plane::config::ServerConfig;
use weft_xds_proto::weft as pb;

use crate::harness::{TestServer, config};

async fn refused(config: ServerConfig) -> String {
    match app::start(config).await {
        Ok(_) => panic!("must not start"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use_is_one_line_naming_flag_and_address() {
    let server = TestServer::start().await;
    let dir = tempfile::tempdir().unwrap();
    let addrs = *server.server().addrs();
    type Set = fn(&mut ServerConfig, u16);
    let taken: [(&str, u16, Set); 5] = [
        ("--grpc-port", addrs.grpc.port(), |c, p| c.grpc_port = p),
        ("--http-port", addrs.http.port(), |c, p| c.http_port = p),
        ("--dns-port", addrs.dns.port(), |c, p| c.dns_port = p),
        ("--peer-port", addrs.peer.port(), |c, p| c.peer_port = p),
        ("--gossip-port", addrs.gossip.port(), |c, p| c.gossip_port = p),
    ];
    for (flag, port, set) in taken {
        let mut config = config(dir.path());
        set(&mut config, port);
        let error = refused(config).await;
        let starts = format!("{flag}: cannot listen on 127.0.0.1:{port}: address already in use");
        assert!(error.starts_with(&starts) && !error.contains('\n'), "{error}");
    }
    assert!(!dir.path().join("data").exists(), "nothing was touched");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_folder_is_used_by_one_server_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let first = app::start(config(dir.path())).await.unwrap();
    let error = refused(config(dir.path())).await;
    assert!(error.contains("in use by another process") && !error.contains('\n'), "{error}");
    first.shutdown().await;
    app::start(config(dir.path())).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unusable_data_folder_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let error = refused(ServerConfig::new("s", file.join("data")).with_any_ports()).await;
    assert!(error.contains("data folder") && !error.contains('\n'), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_is_quick_with_every_kind_of_client_connected() {
    let mut server = TestServer::start().await;
    let (a, b) = (server.session().await, server.session().await);
    let acquire = |lease| pb::AcquireRequest { name: "db".into(), lease, permits: 1, ..Default::default() };
    server.semaphores().await.acquire(acquire(a)).await.unwrap();
    let mut client = server.semaphores().await;
    let waiter = tokio::spawn(async move { client.acquire(acquire(b)).await });
    let observe = pb::ObserveRequest { name: "job".into() };
    let mut observer = server.elections().await.observe(observe).await.unwrap().into_inner();
    observer.message().await.unwrap();
    let _idle = tokio::net::TcpStream::connect(server.server().addrs().http).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;

    let took = server.stop().await;
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(waiter.await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
    assert!(observer.message().await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_registered_is_there_after_a_restart() {
    let mut server = TestServer::start().await;
    server.register("web", "one", 80, "60s").await;
    let id = server.server().coordinator().status().id;
    server.restart().await;
    assert_eq!(server.server().coordinator().status().id, id);
    let found = server.get("/discover/web").await;
    assert_eq!(found.status, StatusCode::OK, "{}", found.body);
}
