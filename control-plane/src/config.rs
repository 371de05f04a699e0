//! What a server is told at start. Built with [`ServerConfig::new`], whose defaults are the constants
//! here, and checked as a whole by [`ServerConfig::check`] before anything is opened.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use weft_core::limits::MEMBER_NAME_BYTES_MAX;
use weft_gossip::timing::GossipTiming;
pub use weft_state::retention::HistoryLimits;

use crate::backup::BackupOptions;
use crate::gate::{PeerTlsFiles, TokenSource};
use crate::listener::TlsFiles;
use crate::raft::{RaftTiming, SNAPSHOT_EVERY};

/// gRPC: etcd v3, weft.v1, xDS. etcd's own port, so that its clients need no option.
pub const GRPC_PORT: u16 = 2379;
/// HTTP: registry API, probes, metrics.
pub const HTTP_PORT: u16 = 8500;
/// DNS, UDP and TCP.
pub const DNS_PORT: u16 = 8600;
/// Raft peers.
pub const PEER_PORT: u16 = 2380;
/// Gossip, UDP and TCP.
pub const GOSSIP_PORT: u16 = 7946;
/// Most threads that serve requests; more than any machine has cores only cost memory.
pub const WORKERS_MAX: usize = 256;

/// Threads that serve requests, if nobody says: half of the cores, at least one. With as many as cores a
/// server that is not busy wakes an idle thread for each small thing that another has just done, which costs more
/// than it does; and the log's own thread, snapshots and the system's network work want cores too. On two cores
/// the CPU time of a linearizable get fell by 12 to 30 %, of a put at 16 clients by 16 %.
pub fn workers_default() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() / 2).max(1)
}

/// Least time between two backups.
const BACKUP_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Nothing is reachable from other machines unless asked for.
pub const BIND: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Everything a server is told.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// A label for people, 1 to 128 printable characters. The identity is in the data folder.
    pub name: String,
    /// Holds identity, log and snapshots. One process at a time.
    pub data_dir: PathBuf,
    /// The address that every port listens on.
    pub bind: IpAddr,
    /// The address that others are told to use; needed if `bind` is unspecified (`0.0.0.0`, `::`) and this
    /// machine's own address cannot be guessed.
    pub advertise: Option<IpAddr>,
    /// Port of the gRPC APIs; 0 is any free port, as for all ports.
    pub grpc_port: u16,
    /// Port of the HTTP API.
    pub http_port: u16,
    /// Port of DNS.
    pub dns_port: u16,
    /// Port of the Raft group.
    pub peer_port: u16,
    /// Port of gossip.
    pub gossip_port: u16,
    /// Gossip addresses (`HOST:PORT`) of any members of the mesh to join. Empty: form a new group, unless
    /// the data folder holds the state of one.
    pub join: Vec<String>,
    /// What proves to the other servers that this one may take part.
    pub join_token: TokenSource,
    /// TLS on the peer port; all servers of the group have it, or none.
    pub peer_tls: Option<PeerTlsFiles>,
    /// TLS on the ports of clients: gRPC and HTTP.
    pub tls: Option<TlsFiles>,
    /// Follow the group without a vote until promoted.
    pub learner: bool,
    /// Clocks of the Raft group; all servers should have the same.
    pub raft: RaftTiming,
    /// Clocks of gossip; all members should have the same.
    pub gossip: GossipTiming,
    /// Log entries between two snapshots, at least 1. Fewer make restarts faster and cost writes.
    pub snapshot_every: u64,
    /// How much history the group keeps while this server leads it; all servers should have the same.
    pub history: HistoryLimits,
    /// Backups to a folder, if any are made.
    pub backup: Option<BackupOptions>,
    /// Whether `GET /profile` is answered.
    pub profile: bool,
}

/// Why a configuration was refused. Each is one line that names the flag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A name that people could not read.
    #[error("--name {seen:?}: allowed are 1 to {limit} printable characters")]
    Name {
        /// As given.
        seen: String,
        /// Most bytes.
        limit: usize,
    },
    /// Two services on one port.
    #[error("{first} and {second} are both {port}: each needs its own port, 0 for any free one")]
    SamePort {
        /// One flag.
        first: &'static str,
        /// The other flag.
        second: &'static str,
        /// The port.
        port: u16,
    },
    /// A member to join that is no address.
    #[error("--join {seen:?}: expected HOST:PORT, such as 127.0.0.1:7946")]
    Join {
        /// As given.
        seen: String,
    },
    /// An address that nobody can connect to.
    #[error("--advertise {seen}: others cannot connect to it; give an address of this machine")]
    Advertise {
        /// As given.
        seen: IpAddr,
    },
    /// No address to tell others.
    #[error("--bind {bind} needs --advertise IP: this machine has no address that others are sure to reach")]
    NeedsAdvertise {
        /// As given.
        bind: IpAddr,
    },
    /// Backups without a pause, or none that are kept.
    #[error("--backup-interval {interval:?} and --backup-keep {keep}: allowed are 1s or more, and 1 or more")]
    Backup {
        /// As given.
        interval: Duration,
        /// As given.
        keep: usize,
    },
    /// No snapshots at all.
    #[error("snapshot_every is 0: allowed is 1 or more log entries")]
    SnapshotEvery,
}

impl ServerConfig {
    /// A server on loopback with the default ports, alone.
    pub fn new(name: impl Into<String>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            data_dir: data_dir.into(),
            bind: BIND,
            advertise: None,
            grpc_port: GRPC_PORT,
            http_port: HTTP_PORT,
            dns_port: DNS_PORT,
            peer_port: PEER_PORT,
            gossip_port: GOSSIP_PORT,
            join: Vec::new(),
            learner: false,
            join_token: TokenSource::DataFolder,
            peer_tls: None,
            tls: None,
            raft: RaftTiming::default(),
            gossip: GossipTiming::default(),
            snapshot_every: SNAPSHOT_EVERY,
            history: HistoryLimits::default(),
            backup: None,
            profile: false,
        }
    }

    /// The same server on any free ports.
    pub fn with_any_ports(mut self) -> Self {
        (self.grpc_port, self.http_port, self.dns_port, self.peer_port, self.gossip_port) = (0, 0, 0, 0, 0);
        self
    }

    /// Checks all of it, and the fields against each other.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn check(&self) -> Result<(), ConfigError> {
        let printable = !self.name.chars().any(char::is_control);
        if !(1..=MEMBER_NAME_BYTES_MAX).contains(&self.name.len()) || !printable {
            return Err(ConfigError::Name { seen: self.name.clone(), limit: MEMBER_NAME_BYTES_MAX });
        }
        let ports = self.ports();
        for (i, (second, port)) in ports.iter().enumerate() {
            if let Some((first, _)) = ports[..i].iter().find(|(_, p)| p == port && *p != 0) {
                return Err(ConfigError::SamePort { first, second, port: *port });
            }
        }
        if let Some(seen) = self.join.iter().find(|j| !is_host_and_port(j)) {
            return Err(ConfigError::Join { seen: seen.clone() });
        }
        if let Some(seen) = self.advertise.filter(|ip| ip.is_unspecified() || ip.is_multicast()) {
            return Err(ConfigError::Advertise { seen });
        }
        if let Some(BackupOptions { interval, keep, .. }) = &self.backup
            && (*interval < BACKUP_INTERVAL_MIN || *keep == 0)
        {
            return Err(ConfigError::Backup { interval: *interval, keep: *keep });
        }
        if self.snapshot_every == 0 {
            return Err(ConfigError::SnapshotEvery);
        }
        Ok(())
    }

    /// The address that others are told to use.
    ///
    /// # Errors
    /// If it is neither given nor can be told from the routes of this machine.
    pub fn advertised(&self) -> Result<IpAddr, ConfigError> {
        match self.advertise {
            Some(ip) => Ok(ip),
            None if !self.bind.is_unspecified() => Ok(self.bind),
            None => outgoing(self.bind).ok_or(ConfigError::NeedsAdvertise { bind: self.bind }),
        }
    }

    /// Flags and ports, in the order in which they are bound.
    pub(crate) fn ports(&self) -> [(&'static str, u16); 5] {
        [
            ("--grpc-port", self.grpc_port),
            ("--http-port", self.http_port),
            ("--dns-port", self.dns_port),
            ("--peer-port", self.peer_port),
            ("--gossip-port", self.gossip_port),
        ]
    }
}

fn is_host_and_port(text: &str) -> bool {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return addr.port() != 0;
    }
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let plain = host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
        !host.is_empty() && plain && port.parse::<u16>().is_ok_and(|p| p != 0)
    })
}

/// The source address of packets that leave this machine. No packet is sent: connecting a datagram socket
/// only looks up the route.
fn outgoing(bind: IpAddr) -> Option<IpAddr> {
    // Documentation addresses (RFC 5737, RFC 3849): routed like any other, owned by nobody.
    let elsewhere: SocketAddr =
        if bind.is_ipv4() { "192.0.2.1:9".parse().ok()? } else { "[2001:db8::1]:9".parse().ok()? };
    let socket = UdpSocket::bind(SocketAddr::new(bind, 0)).ok()?;
    socket.connect(elsewhere).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified() && !ip.is_loopback()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ServerConfig {
        ServerConfig::new("s1", "/tmp/x")
    }

    #[test]
    fn defaults_are_valid_and_on_loopback() {
        config().check().unwrap();
        config().with_any_ports().check().unwrap();
        assert_eq!(config().advertised().unwrap(), BIND);
    }

    #[test]
    fn two_services_on_one_port_are_refused_by_name() {
        let error = ServerConfig { peer_port: HTTP_PORT, ..config() }.check().unwrap_err().to_string();
        assert_eq!(
            error,
            "--http-port and --peer-port are both 8500: each needs its own port, 0 for any free one"
        );
    }

    #[test]
    fn members_to_join_are_hosts_with_ports() {
        for good in ["127.0.0.1:7946", "[::1]:7946", "weft-0.weft.svc:7946"] {
            ServerConfig { join: vec![good.into()], ..config() }.check().unwrap();
        }
        for bad in ["", "127.0.0.1", ":7946", "host:0", "host:99999", "http://host:1", "127.0.0.1:0", "::1"] {
            let error = ServerConfig { join: vec![bad.into()], ..config() }.check().unwrap_err();
            assert_eq!(error, ConfigError::Join { seen: bad.into() });
        }
    }

    #[test]
    fn names_are_bounded_and_printable() {
        for bad in [String::new(), "x".repeat(129), "a\nb".into()] {
            let error = ServerConfig { name: bad.clone(), ..config() }.check().unwrap_err();
            assert!(matches!(error, ConfigError::Name { .. }), "{bad:?}");
        }
    }

    #[test]
    fn an_advertised_address_can_be_connected_to() {
        let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let error = ServerConfig { advertise: Some(unspecified), ..config() }.check().unwrap_err();
        assert_eq!(error, ConfigError::Advertise { seen: unspecified });
        let config = ServerConfig { bind: unspecified, advertise: Some(BIND), ..config() };
        assert_eq!(config.advertised().unwrap(), BIND);
    }
}
