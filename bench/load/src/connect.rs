//! Connections, shared by the clients of one run.

use anyhow::Context;
use tonic::transport::{Channel, Endpoint};

use crate::Target;

/// HTTP/2 connections shared by the clients of one run; more would measure connections, not operations.
pub const CONNECTIONS_MAX: usize = 16;

/// `count` connections at most, spread over all endpoints.
pub async fn connect(target: &Target, count: usize) -> anyhow::Result<Vec<Channel>> {
    let mut channels = Vec::new();
    for i in 0..count.clamp(1, CONNECTIONS_MAX) {
        channels.push(one(&target.endpoints[i % target.endpoints.len()]).await?);
    }
    Ok(channels)
}

/// A connection to one endpoint.
pub async fn one(endpoint: &str) -> anyhow::Result<Channel> {
    Endpoint::from_shared(format!("http://{endpoint}"))?
        .tcp_nodelay(true)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024)
        .connect()
        .await
        .with_context(|| format!("cannot connect to {endpoint}"))
}
