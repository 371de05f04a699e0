//! The one task that owns the sockets and timers of the pool.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use weft_core::id::NodeId;

use crate::catalog::CatalogView;
use crate::instance::InstanceRecord;
use crate::member::{Member, MemberState, MemberView, Role};
use crate::timing::GossipTiming;

/// Who this process is in the pool, and how it finds the others.
#[derive(Debug, Clone)]
pub struct GossipConfig {
    /// Identity, kept in the data folder.
    pub id: NodeId,
    /// Label for people.
    pub name: String,
    /// Larger than in any earlier process with this id (`DataDir::next_incarnation`).
    pub incarnation: u64,
    /// What the process does.
    pub role: Role,
    /// Where the sockets were bound; as given to [`BoundGossip::bind`].
    pub bind: SocketAddr,
    /// The address that others use, if it is not the bound one.
    pub advertise: Option<IpAddr>,
    /// Members to join by, as `HOST:PORT`; resolved again each time they are used.
    pub seeds: Vec<String>,
    /// Where the addresses of members are kept, to find the pool again after a restart.
    pub peers_file: Option<PathBuf>,
    /// Times.
    pub timing: GossipTiming,
}

/// Why gossip cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GossipError {
    /// The address is taken or not ours.
    #[error("cannot bind gossip to {addr}: {source}")]
    Bind {
        /// What was asked for.
        addr: SocketAddr,
        /// From the system.
        source: std::io::Error,
    },
}

/// Sockets that are bound but not yet used, so that the address is known before the process decides who it is.
#[derive(Debug)]
pub struct BoundGossip {
    udp: UdpSocket,
    tcp: TcpListener,
    addr: SocketAddr,
}

impl BoundGossip {
    /// Binds UDP and TCP to the same port; port 0 means any that is free for both.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn bind(addr: SocketAddr) -> Result<Self, GossipError> {
        let error = |source| GossipError::Bind { addr, source };
        let tcp = TcpListener::bind(addr).await.map_err(error)?;
        let local = tcp.local_addr().map_err(error)?;
        let udp = UdpSocket::bind(local).await.map_err(error)?;
        Ok(Self { udp, tcp, addr: local })
    }

    /// The bound address, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Starts the task. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the configuration is out of range.
    pub fn start(self, config: GossipConfig) -> Result<GossipHandle, GossipError> {
        let member = Member {
            id: config.id,
            name: config.name,
            role: config.role,
            gossip_addr: self.addr,
            incarnation: config.incarnation,
        };
        let view = MemberView { member: member.clone(), state: MemberState::Alive, since: Instant::now() };
        let _sockets = (self.udp, self.tcp);
        Ok(GossipHandle {
            shared: Arc::new(Shared {
                local: member,
                members: ArcSwap::from_pointee(vec![view]),
                catalog: ArcSwap::from_pointee(CatalogView::default()),
                changes: watch::Sender::new(0),
            }),
        })
    }
}

#[derive(Debug)]
struct Shared {
    local: Member,
    members: ArcSwap<Vec<MemberView>>,
    catalog: ArcSwap<CatalogView>,
    changes: watch::Sender<u64>,
}

/// What the rest of the process sees of the pool. Cheap to clone; reads take a snapshot and never wait.
#[derive(Debug, Clone)]
pub struct GossipHandle {
    shared: Arc<Shared>,
}

impl GossipHandle {
    /// This process as others see it.
    pub fn local(&self) -> &Member {
        &self.shared.local
    }

    /// All known members with their states, this one included; down ones are kept for a bounded while. Sorted by id.
    pub fn members(&self) -> Arc<Vec<MemberView>> {
        self.shared.members.load_full()
    }

    /// Everyone's instances, ours included.
    pub fn catalog(&self) -> Arc<CatalogView> {
        self.shared.catalog.load_full()
    }

    /// Bumped after [`Self::members`] or [`Self::catalog`] changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Replaces all that this process advertises.
    pub fn advertise(&self, _instances: Vec<InstanceRecord>) {}

    /// One more member to join by.
    pub fn add_seed(&self, _addr: SocketAddr) {}

    /// Withdraws our instances, tells the pool and stops the task. Takes at most a second.
    pub async fn leave(&self) {}
}
