//! The one task that owns the sockets and timers of the pool, and the handle by which the process sees it.
//!
//! The task reads datagrams, streams and the clock, hands them to [`Pool`], and does what comes out. Before it fires
//! timers it reads all datagrams that have arrived: an answer that waits in the socket is not a missing one.

mod bind;
mod stream;
mod task;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use weft_core::id::NodeId;
use weft_core::limits::{GOSSIP_LEAVE_MAX, MEMBER_NAME_BYTES_MAX};
use weft_core::metrics::Registry;

use crate::catalog::CatalogView;
use crate::instance::{AdvertiseError, Advertisement, InstanceRecord, RecordVersion};
use crate::member::{Member, MemberView, Role};
use crate::peers::SEEDS_MAX;
use crate::pool::{Pool, PoolConfig};
use crate::stats::Stats;
use crate::timing::GossipTiming;

pub use bind::BoundGossip;

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
    /// The address that others use. By default the bound one; if that is unspecified (`0.0.0.0`), the one that this
    /// machine uses towards others.
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
    /// The id is 0.
    #[error("the node id is 0; it must be random and is kept in the data folder")]
    NoId,
    /// The name is empty or too long.
    #[error("name {name:?} has {seen} bytes, allowed are 1 to {limit}", seen = name.len(), limit = MEMBER_NAME_BYTES_MAX)]
    Name {
        /// What was given.
        name: String,
    },
    /// A seed is not HOST:PORT.
    #[error("{seed:?} is no address to join by; write HOST:PORT")]
    Seed {
        /// What was given.
        seed: String,
    },
    /// Too many seeds.
    #[error("{seen} addresses to join by, the limit is {limit}; a few that are usually up are enough")]
    TooManySeeds {
        /// How many were given.
        seen: usize,
        /// The limit.
        limit: usize,
    },
    /// The times contradict each other.
    #[error("gossip timing: {reason}")]
    Timing {
        /// Which, and why.
        reason: String,
    },
}

impl GossipConfig {
    fn check(&self) -> Result<(), GossipError> {
        if self.id.0 == 0 {
            return Err(GossipError::NoId);
        }
        if !(1..=MEMBER_NAME_BYTES_MAX).contains(&self.name.len()) {
            return Err(GossipError::Name { name: self.name.clone() });
        }
        if self.seeds.len() > SEEDS_MAX {
            return Err(GossipError::TooManySeeds { seen: self.seeds.len(), limit: SEEDS_MAX });
        }
        for seed in &self.seeds {
            let (host, port) = seed.rsplit_once(':').unwrap_or_default();
            if host.is_empty() || !port.parse::<u16>().is_ok_and(|port| port > 0) {
                return Err(GossipError::Seed { seed: seed.clone() });
            }
        }
        self.timing.check().map_err(|reason| GossipError::Timing { reason })
    }
}

impl BoundGossip {
    /// Starts the task. Must be called within a tokio runtime. It ends when [`GossipHandle::leave`] is called or the
    /// last handle is dropped.
    ///
    /// # Errors
    /// If the configuration is out of range.
    pub fn start(self, config: GossipConfig) -> Result<GossipHandle, GossipError> {
        config.check()?;
        let member = Member {
            id: config.id,
            name: config.name,
            role: config.role,
            gossip_addr: self.reachable_addr(config.advertise),
            incarnation: config.incarnation,
        };
        let kept = config.peers_file.as_deref().and_then(bind::read_peers);
        let pool = Pool::new(
            PoolConfig {
                member: member.clone(),
                seeds: config.seeds,
                timing: config.timing,
                peers: kept,
                seed: fastrand::u64(..),
            },
            Instant::now(),
        );
        let shared = Arc::new(Shared {
            local: member,
            stats: pool.stats().clone(),
            members: ArcSwap::new(pool.members()),
            catalog: ArcSwap::new(pool.catalog()),
            changes: watch::Sender::new(0),
            requests: Mutex::new(Requests::default()),
        });
        let (wake, woken) = watch::channel(());
        let (finished, done) = watch::channel(false);
        let task = task::Task::new(pool, self, shared.clone(), woken, config.peers_file);
        let task = tokio::spawn(async move {
            task.run().await;
            finished.send_replace(true);
        });
        let owner = Arc::new(Owner { wake, done, task });
        Ok(GossipHandle { shared, owner })
    }
}

/// What the process sees, and what it asks for.
#[derive(Debug)]
struct Shared {
    local: Member,
    stats: Stats,
    members: ArcSwap<Vec<MemberView>>,
    catalog: ArcSwap<CatalogView>,
    changes: watch::Sender<u64>,
    /// Taken whole by the task when it is woken. Each part is bounded: the newest advertisement replaces one not yet
    /// taken, and seeds are as many as the pool takes.
    requests: Mutex<Requests>,
}

impl Shared {
    fn publish(&self, pool: &Pool) {
        self.members.store(pool.members());
        self.catalog.store(pool.catalog());
        self.changes.send_modify(|n| *n += 1);
    }
}

#[derive(Debug, Default)]
struct Requests {
    advertise: Option<Vec<InstanceRecord>>,
    seeds: Vec<SocketAddr>,
    leave: bool,
}

/// Only handles hold it: when the last is gone, `wake` closes and the task ends.
#[derive(Debug)]
struct Owner {
    wake: watch::Sender<()>,
    done: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

/// What the rest of the process sees of the pool. Cheap to clone; reads take a snapshot and never wait.
#[derive(Debug, Clone)]
pub struct GossipHandle {
    shared: Arc<Shared>,
    owner: Arc<Owner>,
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

    /// Replaces all that this process advertises. What is out of range is logged and changes nothing; see
    /// [`Self::try_advertise`].
    pub fn advertise(&self, instances: Vec<InstanceRecord>) {
        if let Err(error) = self.try_advertise(instances) {
            tracing::error!("not advertised: {error}");
        }
    }

    /// As [`Self::advertise`], with the reason if it is refused.
    ///
    /// # Errors
    /// If the instances are out of range; what was advertised before stays.
    pub fn try_advertise(&self, instances: Vec<InstanceRecord>) -> Result<(), AdvertiseError> {
        let local = self.local();
        let version = RecordVersion { incarnation: local.incarnation, seq: u64::MAX };
        let advertisement =
            Advertisement { owner: local.id, owner_name: local.name.clone(), version, instances };
        advertisement.check()?;
        self.shared.requests.lock().advertise = Some(advertisement.instances);
        self.owner.wake.send_replace(());
        Ok(())
    }

    /// One more member to join by. Ignored, and counted, beyond the limit of seeds.
    pub fn add_seed(&self, addr: SocketAddr) {
        let mut requests = self.shared.requests.lock();
        if requests.seeds.len() >= SEEDS_MAX {
            self.shared.stats.seeds_refused.inc();
            return;
        }
        requests.seeds.push(addr);
        drop(requests);
        self.owner.wake.send_replace(());
    }

    /// What the pool counts.
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// Shows the counters in a registry.
    pub fn register_metrics(&self, registry: &Registry) {
        self.shared.stats.register(registry);
    }

    /// Withdraws our instances, tells the pool and stops the task. Takes at most a second; afterwards the handle still
    /// shows what was last known.
    pub async fn leave(&self) {
        self.shared.requests.lock().leave = true;
        self.owner.wake.send_replace(());
        let mut done = self.owner.done.clone();
        // An error means that the task is gone already.
        if tokio::time::timeout(GOSSIP_LEAVE_MAX, done.wait_for(|done| *done)).await.is_err() {
            self.owner.task.abort();
        }
    }
}

#[cfg(test)]
mod tests;
