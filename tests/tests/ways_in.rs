//! Ways into a sidecar beside its port for all services, with real processes.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use weft_tests::mesh::Mesh;
use weft_tests::wait::until;

const SOON: Duration = Duration::from_secs(20);

/// A database of sorts: it speaks first, and then says everything again.
async fn database() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.write_all(b"ready\n").await;
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    addr
}

async fn ask<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> Result<String, String> {
    let mut seen = [0; 11];
    stream.write_all(b"query").await.map_err(|e| e.to_string())?;
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut seen)).await;
    read.map_err(|_| "no answer".to_owned())?.map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(&seen).into_owned())
}

/// A service that speaks no HTTP, from an app's port and socket through both sidecars, found by gossip alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_is_reached_through_both_sidecars_on_a_port_and_a_unix_socket() {
    let mesh = Mesh::with_servers(1).await;
    let join = [mesh.servers[0].gossip()];
    let service = format!("db={},protocol=tcp", database().await);
    let beside_db = ["--service", &service, "--inbound-tcp", "127.0.0.1:0=db"];
    let db = mesh.proxy("db", &join, &beside_db).await;
    let socket = mesh.folder("sockets.db");
    let unix = format!("unix:{}=db,protocol=tcp", socket.display());
    let app =
        mesh.proxy("app", &join, &["--upstream", "127.0.0.1:0=db,protocol=tcp", "--upstream", &unix]).await;
    let port = app.ready()["upstreams"][0]["address"].as_str().expect("an address").to_owned();
    until("the database answers", SOON, async || {
        let stream = TcpStream::connect(&port).await.map_err(|e| e.to_string())?;
        match ask(stream).await? {
            said if said == "ready\nquery" => Ok(()),
            other => Err(other),
        }
    })
    .await;
    let stream = UnixStream::connect(&socket).await.expect("the socket is there");
    assert_eq!(ask(stream).await.as_deref(), Ok("ready\nquery"));
    let told = mesh.cli(&mesh.servers[0], &["endpoints", "db", "--output", "json"]).await.stdout;
    let inbound = db.ready()["inbound_tcp"][0]["address"].as_str().expect("an address");
    assert!(told.contains(inbound), "peers are told the sidecar's port {inbound}: {told}");
    assert_eq!(app.stop().await, 0);
    assert!(!socket.exists(), "removed with its proxy");
}
