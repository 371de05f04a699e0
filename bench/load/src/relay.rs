//! The least that a proxy can do: bytes from one socket to another.

use std::net::SocketAddr;

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};

/// Copies the bytes of every connection to one of its own and back, on one thread, until the process is ended.
pub async fn run(listen: SocketAddr, to: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {}", listener.local_addr()?);
    loop {
        let (mut client, _) = listener.accept().await?;
        client.set_nodelay(true)?;
        tokio::spawn(async move {
            let Ok(mut server) = TcpStream::connect(to).await else { return };
            let _ = server.set_nodelay(true);
            // Either side may go away at any time; that is no error here.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
    }
}
