//! The one task that owns the sockets and timers of the pool, and the handle by which the process sees it.
//!
//! The task reads datagrams, streams and the clock, hands them to [`Pool`], and does what comes out. Before it fires
//! timers it reads all datagrams that have arrived: an answer that waits in the socket is not a missing one.

mod bind;
pub(crate) mod stream;
mod task;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use weft_core::id::NodeId;
use weft_core::limits::{GOSSIP_LEAVE_MAX, MEMBER_NAME_BYTES_MAX};
use weft_core::metrics::Registry;

use crate::catalog::CatalogView;
use crate::continuation::Continuation;
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
        let kept = config.peers_file.as_deref().and_then(bind::read_peers);
        let pool = Pool::new(self.pool_config(&config, kept), Instant::now());
        Ok(self.drive(pool, config.peers_file, false))
    }

    /// Goes on in the place of another process, whose id and life the configuration must name. It is silent until
    /// [`GossipHandle::resume`]; what is known is shown at once.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn go_on(self, config: GossipConfig, from: Continuation) -> Result<GossipHandle, GossipError> {
        config.check()?;
        let pool = Pool::go_on(self.pool_config(&config, None), from, Instant::now());
        Ok(self.drive(pool, config.peers_file, true))
    }

    fn pool_config(&self, config: &GossipConfig, peers: Option<String>) -> PoolConfig {
        let member = Member {
            id: config.id,
            name: config.name.clone(),
            role: config.role.clone(),
            gossip_addr: self.reachable_addr(config.advertise),
            incarnation: config.incarnation,
        };
        let (seeds, timing) = (config.seeds.clone(), config.timing.clone());
        PoolConfig { member, seeds, timing, peers, seed: fastrand::u64(..) }
    }

    fn drive(self, pool: Pool, peers_file: Option<PathBuf>, held: bool) -> GossipHandle {
        let shared = Arc::new(Shared {
            local: pool.local().clone(),
            stats: pool.stats().clone(),
            members: ArcSwap::new(pool.members()),
            catalog: ArcSwap::new(pool.catalog()),
            changes: watch::Sender::new(0),
            unheard: watch::Sender::new(0),
            requests: Mutex::new(Requests::default()),
        });
        let (wake, woken) = watch::channel(());
        let (finished, done) = watch::channel(false);
        let task = task::Task::new(pool, self, shared.clone(), woken, peers_file, held);
        let task = tokio::spawn(async move {
            task.run().await;
            finished.send_replace(true);
        });
        let owner = Arc::new(Owner { wake, done, task });
        GossipHandle { shared, owner }
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
    /// Members that may still use what was withdrawn.
    unheard: watch::Sender<usize>,
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
    withdraw: Option<oneshot::Sender<()>>,
    turn: Option<Turn>,
}

/// What becomes of the task.
#[derive(Debug)]
enum Turn {
    /// Be silent, and say what another process needs to go on.
    Hold(oneshot::Sender<Continuation>),
    /// Go on.
    Resume,
    /// End without a word: another process goes on.
    LetGo,
    /// Leave the pool.
    Leave,
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

    /// Withdraws our instances, and waits until every member that is up has taken them out of use, or `limit` has passed.
    ///
    /// # Errors
    /// How many members have not said so.
    pub async fn withdraw(&self, limit: Duration) -> Result<(), usize> {
        let mut unheard = self.shared.unheard.subscribe();
        let (begin, begun) = oneshot::channel();
        let waiting = async {
            // An error means that the task has ended, and with it all that we advertised.
            if begun.await.is_ok() {
                let _ = unheard.wait_for(|left| *left == 0).await;
            }
        };
        self.shared.requests.lock().withdraw = Some(begin);
        self.owner.wake.send_replace(());
        let heard = tokio::time::timeout(limit, waiting).await;
        heard.map_err(|_| *self.shared.unheard.borrow())
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
        self.end(Turn::Leave).await;
    }

    /// Falls silent, so that another process can go on in our place, and says what it needs for that. `None` if the task has
    /// ended. Then call [`Self::resume`] or [`Self::let_go`].
    pub async fn hold(&self) -> Option<Continuation> {
        let (answer, held) = oneshot::channel();
        self.turn(Turn::Hold(answer));
        held.await.ok()
    }

    /// Ends the silence.
    pub fn resume(&self) {
        self.turn(Turn::Resume);
    }

    /// Ends the task without leaving the pool: another process goes on.
    pub async fn let_go(&self) {
        self.end(Turn::LetGo).await;
    }

    fn turn(&self, turn: Turn) {
        self.shared.requests.lock().turn = Some(turn);
        self.owner.wake.send_replace(());
    }

    async fn end(&self, turn: Turn) {
        self.turn(turn);
        let mut done = self.owner.done.clone();
        // An error means that the task is gone already.
        if tokio::time::timeout(GOSSIP_LEAVE_MAX, done.wait_for(|done| *done)).await.is_err() {
            self.owner.task.abort();
        }
    }
}

#[cfg(test)]
mod tests;
