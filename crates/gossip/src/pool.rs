//! The pool as this process sees it: SWIM, advertisements, anti-entropy and rejoining in one plain struct.
//!
//! It owns no socket, clock or task. Time and messages are arguments; what is to be sent comes out of
//! [`Pool::poll_output`]. The driver and the simulation in the tests run the same code.
//!
//! *Membership flow:* datagram → envelope → SWIM → [`MemberView`]s and records → one refreshed view a call at most.

mod effects;
mod hand_over;
mod rejoin;
mod session;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
mod view;
mod withdraw;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use foca::{Codec, Foca, Header, Message, OwnedNotification, State, Timer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use weft_core::backoff::Backoff;
use weft_core::id::NodeId;
use weft_core::limits::{GOSSIP_INSTANCES_MAX, GOSSIP_MEMBERS_MAX};

use crate::catalog::{CatalogView, Merge, Records};
use crate::instance::{AdvertiseError, Advertisement, InstanceRecord, RecordVersion};
use crate::local_health::{LATE, LocalHealth};
use crate::member::{Member, MemberView};
use crate::member_id::{MemberCodec, MemberId};
use crate::peers::Peers;
use crate::spread::{Inbox, Item, Spreader};
use crate::stats::Stats;
use crate::sync::Session;
use crate::timing::GossipTiming;
use crate::wire::{self, Kind, WireError};
use effects::Effects;
use withdraw::Withdrawals;

/// Waiting messages to the driver. It takes them after each call, so only a storm within one call gets here.
const OUTPUTS_MAX: usize = 16_384;
/// Suspects that are told directly, each probe period.
const ACCUSED_MAX: usize = 16;
/// Members that are told directly when we leave.
const TOLD_MAX: usize = 64;
/// At most one "you are down" is believed in this time, so that two members that accuse each other by mistake cannot
/// do it as fast as the network carries it (G07).
const UNDEAD_MIN: Duration = Duration::from_millis(500);
/// Updates that fit one datagram, at most: an identity takes more than 20 bytes.
const UPDATES_PER_DATAGRAM: usize = 64;

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

    /// Replaces what this process advertises, and tells some members at once.
    ///
    /// # Errors
    /// If it is out of range; then nothing changes.
    pub fn advertise(&mut self, now: Instant, instances: Vec<InstanceRecord>) -> Result<(), AdvertiseError> {
        let own = self.records.get(self.local.id);
        if self.left || own.is_some_and(|own| own.instances == instances) {
            return Ok(());
        }
        self.own_advertisement(instances.clone()).check()?;
        self.put_own(instances);
        let result = self.swim.gossip(self.effects.at(now));
        self.settle(now, result);
        Ok(())
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

    fn handle_timer(&mut self, now: Instant, timer: Timer<MemberId>) {
        if let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &timer {
            // foca 2.0 tells a member that it is down when this timer fires, even if it refuted in time and stays up;
            // it would believe that and come back under a new identity, once for each suspicion. Without that
            // message the timer does nothing for a member that refuted, so it ends here.
            let still_accused =
                |m: &foca::Member<MemberId>| m.id() == member_id && m.incarnation() == *incarnation;
            if !self.swim.iter_members().any(still_accused) {
                return;
            }
        }
        let ends_probe = matches!(timer, Timer::ProbeRandomMember(_));
        let result = self.swim.handle_timer(timer, self.effects.at(now));
        if ends_probe {
            // SWIM starts a suspicion in this call exactly if the probe that ends here was not answered.
            let failed = self.effects.suspicion_started;
            if failed {
                self.stats.probes_failed.inc();
            }
            self.health.probe_ended(failed, self.swim.num_members());
            self.effects.multiplier = self.health.multiplier();
            self.stats.health_multiplier.set(self.effects.multiplier.into());
        }
        self.settle(now, result);
    }

    fn handle_swim(&mut self, now: Instant, payload: &[u8]) -> Result<(), WireError> {
        let mut rest = payload;
        let header = MemberCodec.decode_header(&mut rest).map_err(|_| WireError::Malformed)?;
        if header.src.id == self.local.id {
            self.identity_conflict(now, &header.src);
            return Ok(());
        }
        if header.message == Message::TurnUndead {
            if self.undead_at.is_some_and(|at| now < at + UNDEAD_MIN) {
                self.stats.datagrams_limited.inc();
                return Ok(());
            }
            self.undead_at = Some(now);
        }
        if !self.has_room_for(&header, rest) {
            self.stats.datagrams_limited.inc();
            return Ok(());
        }
        let result = self.swim.handle_data(payload, self.effects.at(now));
        let malformed = matches!(
            result,
            Err(foca::Error::Decode(_) | foca::Error::MalformedPacket | foca::Error::DataTooBig)
        );
        self.settle(now, if malformed { Ok(()) } else { result });
        if malformed { Err(WireError::Malformed) } else { Ok(()) }
    }

    /// SWIM has no limit on members, so a datagram that names unknown ones is dropped when the table is full (G06).
    fn has_room_for(&self, header: &Header<MemberId>, mut rest: &[u8]) -> bool {
        let known = self.swim.iter_membership_state().len();
        if known + UPDATES_PER_DATAGRAM <= GOSSIP_MEMBERS_MAX {
            return true;
        }
        let table: BTreeSet<NodeId> = self.swim.iter_membership_state().map(|m| m.id().id).collect();
        let mut unknown = usize::from(!table.contains(&header.src.id));
        if rest.len() >= 2 && header.message != Message::Broadcast {
            for _ in 0..rest.get_u16() {
                let Ok(member) = MemberCodec.decode_member(&mut rest) else { break };
                unknown += usize::from(!table.contains(&member.id().id));
            }
        }
        known + unknown <= GOSSIP_MEMBERS_MAX
    }

    fn identity_conflict(&mut self, now: Instant, other: &MemberId) {
        self.stats.identity_conflicts.inc();
        if self.conflict_logged_at.is_none_or(|at| now > at + Duration::from_secs(60)) {
            self.conflict_logged_at = Some(now);
            tracing::error!(
                id = %self.local.id, other = %other.addr, name = %other.name,
                "another process uses our id; give each process its own --data-dir"
            );
        }
    }

    /// Does what follows from any call into SWIM.
    fn settle(&mut self, now: Instant, result: Result<(), foca::Error>) {
        if let Err(error) = result {
            tracing::debug!("swim: {error}");
        }
        for (to, payload) in std::mem::take(&mut self.effects.sends) {
            self.send(to, wire::seal(Kind::Swim, &payload));
        }
        for note in std::mem::take(&mut self.effects.notes) {
            self.note(now, note);
        }
        let items = std::mem::take(&mut *self.inbox.lock());
        for (item, sender) in items {
            match item {
                Item::Whole(advertisement) => self.merge(now, advertisement),
                Item::Notice { owner, version } => self.pull_from(now, owner, version, sender.addr),
            }
        }
        self.touch(now);
    }

    fn note(&mut self, now: Instant, note: OwnedNotification<MemberId>) {
        match note {
            OwnedNotification::MemberUp(m) if m.id != self.local.id => {
                tracing::info!(member = %m.name, id = %m.id, addr = %m.addr, "member up");
            }
            OwnedNotification::MemberDown(m) if m.id != self.local.id => {
                tracing::info!(member = %m.name, id = %m.id, addr = %m.addr, "member down");
            }
            OwnedNotification::Rejoin(_) => {
                self.stats.rejoins.inc();
                tracing::warn!("others declared this process down; it is back");
            }
            OwnedNotification::Idle => {
                tracing::warn!("no other member is seen any more");
                self.rejoin_backoff.reset();
                self.rejoin_at = now;
            }
            _ => {}
        }
    }

    /// Takes in an advertisement, from a broadcast or a stream.
    fn merge(&mut self, now: Instant, advertisement: Advertisement) {
        let owner = advertisement.owner;
        if owner == self.local.id {
            self.defend_own(&advertisement);
            return;
        }
        // One of an unknown owner would outlive it: nobody here would ever see it go down.
        let owner_is_known = self.swim.iter_membership_state().any(|m| m.id().id == owner);
        if !owner_is_known || advertisement.check().is_err() {
            self.stats.records_refused.inc();
            return;
        }
        let item = Item::encode(&advertisement);
        match self.records.merge(advertisement) {
            Merge::News => {
                self.records_changed = true;
                self.broadcast(&item);
                self.touch(now);
            }
            Merge::Full => self.stats.records_refused.inc(),
            Merge::Stale => {}
        }
    }

    /// What we advertise is ours to say. A larger version of it can only come from a process with our id.
    fn defend_own(&mut self, claimed: &Advertisement) {
        let version = claimed.version;
        let own = RecordVersion { incarnation: self.local.incarnation, seq: self.seq };
        if version.incarnation == own.incarnation && version.seq > own.seq && version.seq < u64::MAX {
            self.stats.identity_conflicts.inc();
            self.seq = version.seq;
            let instances = self.records.get(self.local.id).map(|own| own.instances.clone());
            self.put_own(instances.unwrap_or_default());
        }
    }

    fn own_advertisement(&self, instances: Vec<InstanceRecord>) -> Advertisement {
        let version = RecordVersion { incarnation: self.local.incarnation, seq: self.seq };
        Advertisement { owner: self.local.id, owner_name: self.local.name.clone(), version, instances }
    }

    fn put_own(&mut self, instances: Vec<InstanceRecord>) {
        self.seq += 1;
        let own = self.own_advertisement(instances);
        let item = Item::encode(&own);
        self.records.merge(own);
        self.records_changed = true;
        self.broadcast(&item);
    }

    fn broadcast(&mut self, item: &[u8]) {
        if let Err(error) = self.swim.add_broadcast(item) {
            // Anti-entropy carries it anyway.
            tracing::debug!("broadcast not queued: {error}");
        }
    }

    /// Tells suspects directly that they are suspected (Lifeguard's buddy system), with a ping, so that the answer
    /// that refutes it comes straight back instead of by gossip.
    fn accuse(&mut self, now: Instant) {
        let suspects: Vec<_> = self
            .swim
            .iter_members()
            .filter(|m| m.state() == State::Suspect)
            .take(ACCUSED_MAX)
            .cloned()
            .collect();
        self.accuse_at = (!suspects.is_empty()).then(|| now + self.timing.probe_period);
        for suspect in suspects {
            self.tell(suspect.id().clone(), Message::Ping(0), &suspect);
        }
    }

    /// Sends one SWIM message of our own making with one update.
    fn tell(&mut self, dst: MemberId, message: Message<MemberId>, update: &foca::Member<MemberId>) {
        let to = dst.addr;
        // SWIM keeps our suspicion number to itself; 0 never overrides what they know of us.
        let header = Header { src: self.swim.identity().clone(), src_incarnation: 0, dst, message };
        let mut payload = Vec::new();
        let encoded = MemberCodec.encode_header(&header, &mut payload).and_then(|()| {
            payload.put_u16(1);
            MemberCodec.encode_member(update, &mut payload)
        });
        if encoded.is_ok() {
            self.send(to, wire::seal(Kind::Swim, &payload));
        }
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
