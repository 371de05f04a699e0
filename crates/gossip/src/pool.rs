//! The pool as this process sees it: SWIM, advertisements, anti-entropy and rejoining in one plain struct.
//!
//! It owns no socket, clock or task. Time and messages are arguments; what is to be sent comes out of
//! [`Pool::poll_output`]. The driver and the simulation in the tests run the same code.
//!
//! - [`swim`]: what goes into SWIM and comes out of it. [`advertise`], [`withdraw`]: instances. [`session`]: anti-entropy.
//! - [`rejoin`]: finding the pool again. [`view`]: what is shown of it. [`hand_over`]: to another process in our place.
//!
//! *Membership flow:* datagram → envelope → SWIM → [`MemberView`]s and records → one refreshed view a call at most.

mod advertise;
mod effects;
mod hand_over;
mod rejoin;
mod session;
#[cfg(test)]
mod sim;
mod swim;
#[cfg(test)]
mod tests;
mod view;
mod withdraw;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use foca::{Foca, Message};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weft_core::backoff::Backoff;
use weft_core::id::NodeId;
use weft_core::limits::GOSSIP_INSTANCES_MAX;

use crate::catalog::{CatalogView, Records};
use crate::instance::RecordVersion;
use crate::local_health::{LATE, LocalHealth};
use crate::member::{Member, MemberView};
use crate::member_id::{MemberCodec, MemberId};
use crate::peers::Peers;
use crate::spread::{Inbox, Spreader};
use crate::stats::Stats;
use crate::sync::Session;
use crate::timing::GossipTiming;
use crate::wire::{self, Kind, WireError};
use effects::Effects;
use withdraw::Withdrawals;

/// Waiting messages to the driver. It takes them after each call, so only a storm within one call gets here.
const OUTPUTS_MAX: usize = 16_384;
/// Members that are told directly when we leave.
const TOLD_MAX: usize = 64;

/// What a pool is made from.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// This process.
    pub member: Member,
    /// Members to join by, as `HOST:PORT`.
    pub seeds: Vec<String>,
    /// Times.
    pub timing: GossipTiming,
    /// Peers kept by a former process, as [`Output::SavePeers`] gave them.
    pub peers: Option<String>,
    /// Seed of all random choices.
    pub seed: u64,
}

/// Names one anti-entropy stream between pool and driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// What the driver is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send a datagram. It may be lost.
    Datagram {
        /// To whom.
        to: SocketAddr,
        /// Complete.
        bytes: Bytes,
    },
    /// Look up a seed, then call [`Pool::handle_resolved`].
    Resolve {
        /// `HOST:PORT`.
        seed: String,
    },
    /// Open a stream; [`Pool::handle_stream_closed`] if that fails.
    Connect {
        /// The new stream.
        stream: StreamId,
        /// To whom.
        to: SocketAddr,
    },
    /// Send a frame on a stream, after those before it.
    Frame {
        /// The stream.
        stream: StreamId,
        /// Complete, with its length.
        bytes: Bytes,
    },
    /// Close a stream after what was sent on it.
    Close {
        /// The stream.
        stream: StreamId,
    },
    /// Keep the known peers for the next start.
    SavePeers(
        /// Content of the file.
        String,
    ),
    /// [`Pool::members`] or [`Pool::catalog`] changed.
    Changed,
}

type Swim = Foca<MemberId, MemberCodec, StdRng, Spreader>;

/// See the module.
pub struct Pool {
    local: Member,
    started: Instant,
    timing: GossipTiming,
    swim: Swim,
    inbox: Inbox,
    effects: Effects,
    rng: StdRng,
    health: LocalHealth,
    records: Records,
    /// Version of our own advertisement.
    seq: u64,
    peers: Peers,
    stats: Stats,
    outputs: VecDeque<Output>,
    left: bool,

    /// Owners of whom a newer record is known to exist: from whom to fetch it, and when.
    pulls: BTreeMap<NodeId, Pull>,
    withdrawals: Withdrawals,
    sessions: BTreeMap<StreamId, Session>,
    streams: u64,
    nonce: u64,

    /// What is shown, and what it was made from.
    members: Arc<Vec<MemberView>>,
    catalog: Arc<CatalogView>,
    /// Addresses of the other members that are up.
    active: BTreeMap<NodeId, SocketAddr>,
    records_changed: bool,

    refreshed_at: Instant,
    /// Set while something may have changed since.
    refresh_at: Option<Instant>,
    sync_at: Instant,
    rejoin_at: Instant,
    rejoin_backoff: Backoff,
    accuse_at: Option<Instant>,
    save_at: Option<Instant>,
    undead_at: Option<Instant>,
    conflict_logged_at: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Pull {
    at: Instant,
    from: SocketAddr,
    want: RecordVersion,
    tries: u32,
}

impl Pool {
    /// Starts with nobody but ourselves; the first calls go out with the first outputs.
    pub fn new(config: PoolConfig, now: Instant) -> Self {
        let identity = MemberId::new(&config.member);
        let mut pool = Self::alone(config, identity, now);
        pool.put_own(Vec::new());
        pool.refresh(now);
        pool
    }

    fn alone(config: PoolConfig, identity: MemberId, now: Instant) -> Self {
        let PoolConfig { member, seeds, timing, peers: kept, seed } = config;
        let mut rng = StdRng::seed_from_u64(seed);
        let spreader = Spreader::default();
        let inbox = spreader.inbox.clone();
        let swim = Foca::with_custom_broadcast(
            identity,
            timing.swim(0),
            StdRng::seed_from_u64(rng.random()),
            MemberCodec,
            spreader,
        );
        let mut peers = Peers::new(seeds);
        if let Some(text) = kept {
            let bad = peers.load_text(&text);
            if bad > 0 {
                tracing::warn!(lines = bad, "left out lines of the file of known peers that make no sense");
            }
        }
        Self {
            started: now,
            nonce: rng.random(),
            effects: Effects::new(now),
            inbox,
            swim,
            health: LocalHealth::default(),
            records: Records::new(GOSSIP_INSTANCES_MAX),
            seq: 0,
            peers,
            stats: Stats::default(),
            outputs: VecDeque::new(),
            left: false,
            pulls: BTreeMap::new(),
            withdrawals: Withdrawals::default(),
            sessions: BTreeMap::new(),
            streams: 0,
            members: Arc::default(),
            catalog: Arc::default(),
            active: BTreeMap::new(),
            records_changed: false,
            refreshed_at: now,
            refresh_at: Some(now),
            sync_at: now + timing.sync_period,
            rejoin_at: now,
            rejoin_backoff: rejoin::backoff(&timing),
            accuse_at: None,
            save_at: None,
            undead_at: None,
            conflict_logged_at: None,
            local: member,
            timing,
            rng,
        }
    }

    /// This process.
    pub fn local(&self) -> &Member {
        &self.local
    }

    /// All known members, sorted by id, ourselves included.
    pub fn members(&self) -> Arc<Vec<MemberView>> {
        self.members.clone()
    }

    /// Everyone's instances.
    pub fn catalog(&self) -> Arc<CatalogView> {
        self.catalog.clone()
    }

    /// Counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// One more `HOST:PORT` to join by.
    pub fn add_seed(&mut self, now: Instant, seed: String) {
        if self.peers.add_seed(seed) {
            self.rejoin_backoff.reset();
            self.rejoin_at = now;
        } else {
            self.stats.seeds_refused.inc();
        }
    }

    /// Withdraws our instances and tells the pool that we go. Afterwards the pool only has outputs left.
    pub fn leave(&mut self, now: Instant) {
        if self.left {
            return;
        }
        self.put_own(Vec::new());
        let result = self.swim.leave_cluster(self.effects.at(now));
        self.settle(now, result);
        // SWIM tells three members. We are not there to pass it on, so more are told, in a small pool everyone.
        let own = foca::Member::down(self.swim.identity().clone());
        let told: Vec<_> = self.swim.iter_members().take(TOLD_MAX).map(|m| m.id().clone()).collect();
        for member in told {
            self.tell(member, Message::Gossip, &own);
        }
        self.outputs.push_back(Output::SavePeers(self.peers.to_text()));
        self.left = true;
    }

    /// A datagram came from `from`.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, bytes: &[u8]) {
        if self.left {
            return;
        }
        self.stats.datagrams_received.inc();
        let handled = wire::open_datagram(bytes).and_then(|(kind, payload)| match kind {
            Kind::Swim => self.handle_swim(now, payload),
            Kind::Hello => self.handle_hello(now, from, wire::decode(payload)?),
            Kind::Welcome => self.handle_welcome(now, wire::decode(payload)?),
            Kind::Withdrawal => self.handle_withdrawal(now, from, wire::decode(payload)?),
            Kind::Heard => self.handle_heard(&wire::decode(payload)?),
            Kind::Frame => Err(WireError::Malformed),
        });
        if let Err(error) = handled {
            match error {
                WireError::Foreign | WireError::Version { .. } | WireError::Key { .. } => {
                    self.stats.datagrams_foreign.inc();
                }
                WireError::Malformed | WireError::TooLarge { .. } => self.stats.datagrams_malformed.inc(),
            }
            tracing::debug!(%from, "dropped a datagram: it {error}");
        }
    }

    /// Next instant at which [`Self::handle_timeout`] has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.left {
            return None;
        }
        let pull = self.pulls.values().map(|p| p.at).min();
        let (swim, told) = (self.effects.timers.next_at(), self.withdrawals.next_at());
        let optional = [swim, self.refresh_at, self.accuse_at, self.save_at, pull, told].into_iter();
        optional.flatten().chain([self.sync_at, self.rejoin_at]).min()
    }

    /// Does what is due. Safe to call early or twice. Call it only after the datagrams that have already arrived were
    /// handed over: an answer that waits in the socket must not count as missing.
    pub fn handle_timeout(&mut self, now: Instant) {
        let Some(due) = self.poll_timeout().filter(|due| *due <= now) else {
            return;
        };
        let lateness = now.saturating_duration_since(due);
        if lateness > LATE {
            self.stats.timers_late.inc();
            self.health.late(lateness);
            self.effects.timers.delay_suspicions(lateness);
        }
        self.effects.multiplier = self.health.multiplier();
        for timer in self.effects.timers.take_due(now) {
            self.handle_timer(now, timer);
        }
        if self.accuse_at.is_some_and(|at| at <= now) {
            self.accuse(now);
        }
        if self.withdrawals.next_at().is_some_and(|at| at <= now) {
            self.tell_unheard(now);
        }
        if self.rejoin_at <= now {
            self.rejoin(now);
        }
        self.start_due_sessions(now);
        if self.save_at.is_some_and(|at| at <= now) {
            self.save_at = None;
            self.outputs.push_back(Output::SavePeers(self.peers.to_text()));
        }
        if self.refresh_at.is_some_and(|at| at <= now) {
            self.refresh(now);
        }
    }

    /// Next thing for the driver to do; drained until `None` after each call.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn send(&mut self, to: SocketAddr, bytes: Bytes) {
        if self.outputs.len() >= OUTPUTS_MAX {
            self.stats.datagrams_limited.inc();
            return;
        }
        self.outputs.push_back(Output::Datagram { to, bytes });
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("identity", self.swim.identity()).field("active", &self.active).finish()
    }
}
