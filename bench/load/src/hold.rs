//! Connections that do nothing, for what one costs.

use std::net::SocketAddr;

use crate::http_rate::Connection;

/// Opens the connections, sends one request on each, says `holding`, and holds them until the process is ended.
pub async fn run(to: SocketAddr, host: &str, connections: usize) -> anyhow::Result<()> {
    let mut held = Vec::with_capacity(connections);
    for _ in 0..connections {
        let mut one = Connection::new(to);
        one.expect_ok(host).await?;
        held.push(one);
    }
    println!("holding {}", held.len());
    std::future::pending::<()>().await;
    Ok(())
}
