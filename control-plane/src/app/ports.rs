//! Every port, bound before anything starts, so that a port in use is one clear line and nothing was done.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;
use weft_gossip::driver::{BoundGossip, GossipError};

use crate::config::ServerConfig;
use crate::dns::server::BoundDns;
use crate::error::StartError;

/// All ports, not served yet.
pub(super) struct Ports {
    pub(super) grpc: TcpListener,
    pub(super) http: TcpListener,
    pub(super) dns: BoundDns,
    pub(super) peer: TcpListener,
    pub(super) gossip: BoundGossip,
    pub(super) addrs: ServerAddrs,
}

/// Where a server listens, with the real ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerAddrs {
    /// etcd, weft.v1, xDS.
    pub grpc: SocketAddr,
    /// Registry API, probes, metrics.
    pub http: SocketAddr,
    /// DNS over UDP and TCP.
    pub dns: SocketAddr,
    /// Raft peers.
    pub peer: SocketAddr,
    /// Gossip over UDP and TCP.
    pub gossip: SocketAddr,
}

impl Ports {
    pub(super) async fn bind(config: &ServerConfig) -> Result<Self, StartError> {
        let [grpc, http, dns, peer, gossip] =
            config.ports().map(|(flag, port)| Port { flag, addr: SocketAddr::new(config.bind, port) });
        let (grpc, grpc_addr) = grpc.tcp().await?;
        let (http, http_addr) = http.tcp().await?;
        let dns = BoundDns::bind(dns.addr).await.map_err(|e| dns.error(e))?;
        let (peer, peer_addr) = peer.tcp().await?;
        let gossip = BoundGossip::bind(gossip.addr).await.map_err(|e| match e {
            GossipError::Bind { source, .. } => gossip.error(source),
            other => other.into(),
        })?;
        let addrs = ServerAddrs {
            grpc: grpc_addr,
            http: http_addr,
            dns: dns.local_addr(),
            peer: peer_addr,
            gossip: gossip.local_addr(),
        };
        Ok(Self { grpc, http, dns, peer, gossip, addrs })
    }
}

struct Port {
    flag: &'static str,
    addr: SocketAddr,
}

impl Port {
    async fn tcp(&self) -> Result<(TcpListener, SocketAddr), StartError> {
        let listener = TcpListener::bind(self.addr).await.map_err(|e| self.error(e))?;
        let addr = listener.local_addr().map_err(|e| self.error(e))?;
        Ok((listener, addr))
    }

    fn error(&self, source: io::Error) -> StartError {
        StartError::Port { flag: self.flag, addr: self.addr, source }
    }
}
