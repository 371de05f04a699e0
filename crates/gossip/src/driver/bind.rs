//! Sockets, and the address under which others reach them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use tokio::net::{TcpListener, UdpSocket};

use super::GossipError;

/// Tries to find a port that is free for both UDP and TCP, when any may be used.
const ANY_PORT_TRIES: usize = 32;

/// Sockets that are bound but not yet used, so that the address is known before the process decides who it is.
#[derive(Debug)]
pub struct BoundGossip {
    pub(super) udp: UdpSocket,
    pub(super) tcp: TcpListener,
    addr: SocketAddr,
}

impl BoundGossip {
    /// Binds UDP and TCP to the same port; port 0 means any that is free for both.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn bind(addr: SocketAddr) -> Result<Self, GossipError> {
        let mut tries = if addr.port() == 0 { ANY_PORT_TRIES } else { 1 };
        loop {
            tries -= 1;
            match bind_both(addr).await {
                Ok((udp, tcp)) => {
                    let addr = udp.local_addr().map_err(|source| GossipError::Bind { addr, source })?;
                    return Ok(Self { udp, tcp, addr });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
                Err(source) => return Err(GossipError::Bind { addr, source }),
            }
        }
    }

    /// Takes over sockets that another process has bound, both to one address.
    ///
    /// # Errors
    /// If they are no such sockets.
    pub fn inherit(udp: std::net::UdpSocket, tcp: std::net::TcpListener) -> io::Result<Self> {
        let addr = udp.local_addr()?;
        if tcp.local_addr()? != addr {
            let tcp = tcp.local_addr()?;
            return Err(io::Error::other(format!("gossip sockets of two addresses, {addr} and {tcp}")));
        }
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        Ok(Self { udp: UdpSocket::from_std(udp)?, tcp: TcpListener::from_std(tcp)?, addr })
    }

    /// Further handles on the sockets, UDP and TCP, for a process that takes them over.
    ///
    /// # Errors
    /// If there are no more descriptors.
    pub fn handles(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        Ok((self.udp.as_fd().try_clone_to_owned()?, self.tcp.as_fd().try_clone_to_owned()?))
    }

    /// The bound address, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address that others are told.
    pub(super) fn reachable_addr(&self, advertise: Option<IpAddr>) -> SocketAddr {
        let bound = self.addr.ip();
        let ip = match advertise {
            Some(ip) => ip,
            None if bound.is_unspecified() => outgoing_ip(bound).unwrap_or_else(|| loopback(bound)),
            None => bound,
        };
        SocketAddr::new(ip, self.addr.port())
    }
}

async fn bind_both(addr: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let tcp = TcpListener::bind(addr).await?;
    let udp = UdpSocket::bind(tcp.local_addr()?).await?;
    Ok((udp, tcp))
}

/// The address that this machine would send from. Connecting a UDP socket only asks the routing table; nothing is
/// sent. The targets are documentation addresses (RFC 5737, RFC 3849).
fn outgoing_ip(unspecified: IpAddr) -> Option<IpAddr> {
    let target: IpAddr = match unspecified {
        IpAddr::V4(_) => Ipv4Addr::new(192, 0, 2, 1).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
    };
    let socket = std::net::UdpSocket::bind((unspecified, 0)).ok()?;
    socket.connect((target, 9)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

fn loopback(unspecified: IpAddr) -> IpAddr {
    match unspecified {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

/// Peers kept by a former process. Without them the seeds have to do, so trouble is only logged.
pub(super) fn read_peers(path: &Path) -> Option<String> {
    match std::fs::read(path) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!("known peers not read from {}: {error}", path.display());
            None
        }
    }
}
