//! Many pools on one virtual clock and a seeded network that loses, delays and cuts. The pools are the real code;
//! the same seed gives the same run.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use weft_core::id::NodeId;

use super::{Output, Pool, PoolConfig, StreamId};
use crate::instance::InstanceRecord;
use crate::member::{Member, MemberState, Role};
use crate::timing::GossipTiming;

/// Delay of what goes over a stream; the same for all, so that it stays in order.
const STREAM_DELAY: Duration = Duration::from_millis(2);
/// After which a stream to nobody fails.
const STREAM_FAILS: Duration = Duration::from_secs(1);

pub(super) struct Sim {
    start: Instant,
    now: Duration,
    rng: fastrand::Rng,
    nodes: BTreeMap<u64, Node>,
    events: BTreeMap<(Duration, u64), Event>,
    sequence: u64,
    links: BTreeMap<(u64, StreamId), (u64, StreamId)>,
    pub(super) timing: GossipTiming,
    pub(super) loss: f64,
    /// Ordered pairs between which nothing passes.
    cut: BTreeSet<(u64, u64)>,
    /// All datagrams sent, if wanted: (from, to, bytes).
    pub(super) recorded: Option<Vec<(u64, u64, Bytes)>>,
    pub(super) datagrams: u64,
}

struct Node {
    pool: Pool,
    incarnation: u64,
    paused_until: Duration,
    peers: Option<String>,
    alive: bool,
}

enum Event {
    Datagram {
        from: u64,
        to: u64,
        bytes: Bytes,
    },
    Open {
        from: (u64, StreamId),
        to: u64,
    },
    Frame {
        from: (u64, StreamId),
        bytes: Bytes,
    },
    /// The other end of this one closed it.
    Close {
        from: (u64, StreamId),
    },
    /// This end of it failed.
    Fail {
        at: (u64, StreamId),
    },
}

pub(super) fn addr(n: u64) -> SocketAddr {
    SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 7946))
}

fn number(addr: SocketAddr) -> u64 {
    match addr {
        SocketAddr::V4(v4) => u64::from(v4.ip().octets()[2]) << 8 | u64::from(v4.ip().octets()[3]),
        SocketAddr::V6(_) => unreachable!("the simulation gives out IPv4 only"),
    }
}

impl Sim {
    pub(super) fn new(seed: u64) -> Self {
        eprintln!("REPRODUCE: seed {seed}");
        Self {
            start: Instant::now(),
            now: Duration::ZERO,
            rng: fastrand::Rng::with_seed(seed),
            nodes: BTreeMap::new(),
            events: BTreeMap::new(),
            sequence: 0,
            links: BTreeMap::new(),
            timing: GossipTiming::default(),
            loss: 0.0,
            cut: BTreeSet::new(),
            recorded: None,
            datagrams: 0,
        }
    }

    /// Nodes 1 to `count`, all but the first joining by it, each advertising `web/<n>`, run until they agree.
    pub(super) fn cluster(seed: u64, count: u64) -> Self {
        let mut sim = Self::new(seed);
        for n in 1..=count {
            sim.start_node(n, 1, &[1]);
            sim.advertise(n, vec![super::tests::web(n)]);
        }
        let took = sim.run_until(Duration::from_secs(10), |sim| sim.all_agree());
        assert!(took.is_some(), "did not form: {}", sim.describe());
        sim
    }

    pub(super) fn start_node(&mut self, n: u64, incarnation: u64, seeds: &[u64]) {
        self.start_as(n, n, incarnation, seeds);
    }

    /// A process at the address of `n` that has the id of another.
    pub(super) fn start_twin(&mut self, n: u64, id: u64, seeds: &[u64]) {
        let incarnation = self.nodes[&id].incarnation;
        self.start_as(n, id, incarnation, seeds);
    }

    fn start_as(&mut self, n: u64, id: u64, incarnation: u64, seeds: &[u64]) {
        let former = self.nodes.remove(&n);
        let config = PoolConfig {
            member: Member {
                id: NodeId(id),
                name: format!("n{n}"),
                role: Role::Proxy,
                gossip_addr: addr(n),
                incarnation,
            },
            seeds: seeds.iter().map(|n| addr(*n).to_string()).collect(),
            timing: self.timing.clone(),
            peers: former.and_then(|f| f.peers),
            seed: self.rng.u64(..),
        };
        let pool = Pool::new(config, self.instant());
        let node = Node { pool, incarnation, paused_until: Duration::ZERO, peers: None, alive: true };
        self.nodes.insert(n, node);
        self.drain(n);
    }

    /// Without a word, as by `kill -9`.
    pub(super) fn kill(&mut self, n: u64) {
        self.nodes.get_mut(&n).unwrap().alive = false;
        let ends: Vec<_> = self.links.keys().filter(|(node, _)| *node == n).copied().collect();
        for end in ends {
            self.schedule(STREAM_DELAY, Event::Close { from: end });
        }
    }

    /// A new process with the same identity and the next incarnation, which knows the peers that were saved.
    pub(super) fn restart(&mut self, n: u64) {
        let incarnation = self.nodes[&n].incarnation + 1;
        self.start_node(n, incarnation, &[]);
    }

    /// The process does not run for a while; what is sent to it waits.
    pub(super) fn pause(&mut self, n: u64, time: Duration) {
        self.nodes.get_mut(&n).unwrap().paused_until = self.now + time;
    }

    pub(super) fn cut_between(&mut self, one: &[u64], other: &[u64]) {
        for a in one {
            for b in other {
                self.cut.insert((*a, *b));
                self.cut.insert((*b, *a));
            }
        }
    }

    pub(super) fn cut_one_way(&mut self, from: u64, to: u64) {
        self.cut.insert((from, to));
    }

    pub(super) fn heal(&mut self) {
        self.cut.clear();
    }

    pub(super) fn advertise(&mut self, n: u64, instances: Vec<InstanceRecord>) {
        let now = self.instant();
        self.nodes.get_mut(&n).unwrap().pool.advertise(now, instances).unwrap();
        self.drain(n);
    }

    pub(super) fn withdraw(&mut self, n: u64) {
        let now = self.instant();
        let node = self.nodes.get_mut(&n).unwrap();
        node.pool.withdraw(now);
        self.drain(n);
    }

    pub(super) fn leave(&mut self, n: u64) {
        let now = self.instant();
        self.nodes.get_mut(&n).unwrap().pool.leave(now);
        self.drain(n);
        self.kill(n);
    }

    /// Delivers a datagram now, whoever it is from.
    pub(super) fn inject(&mut self, from: u64, to: u64, bytes: Bytes) {
        self.schedule(Duration::ZERO, Event::Datagram { from, to, bytes });
    }

    pub(super) fn pool(&self, n: u64) -> &Pool {
        &self.nodes[&n].pool
    }

    pub(super) fn alive(&self) -> Vec<u64> {
        self.nodes.iter().filter(|(_, node)| node.alive).map(|(n, _)| *n).collect()
    }

    pub(super) fn state(&self, viewer: u64, of: u64) -> Option<MemberState> {
        let members = self.nodes[&viewer].pool.members();
        members.iter().find(|v| v.member.id == NodeId(of)).map(|v| v.state)
    }

    /// Members that are up, as one sees it.
    pub(super) fn up(&self, viewer: u64) -> Vec<u64> {
        let members = self.nodes[&viewer].pool.members();
        members.iter().filter(|v| v.state != MemberState::Down).map(|v| v.member.id.0).collect()
    }

    /// `service/instance` as one sees it.
    pub(super) fn names(&self, viewer: u64) -> Vec<String> {
        let catalog = self.nodes[&viewer].pool.catalog();
        catalog.all().map(|i| format!("{}/{}", i.record.service, i.record.instance_id)).collect()
    }

    /// Everyone who runs sees exactly those who run, none suspected, and exactly what they advertise.
    pub(super) fn all_agree(&self) -> bool {
        let alive = self.alive();
        let own: BTreeSet<String> = alive
            .iter()
            .flat_map(|n| {
                let pool = &self.nodes[n].pool;
                let own = pool.records.get(NodeId(*n)).unwrap();
                own.instances.iter().map(|i| format!("{}/{}", i.service, i.instance_id)).collect::<Vec<_>>()
            })
            .collect();
        alive.iter().all(|viewer| {
            self.up(*viewer) == alive
                && alive.iter().all(|of| self.state(*viewer, *of) == Some(MemberState::Alive))
                && self.names(*viewer).into_iter().collect::<BTreeSet<_>>() == own
        })
    }

    pub(super) fn describe(&self) -> String {
        let views = self.alive().into_iter().map(|n| format!("{n}: {:?} {:?}\n", self.up(n), self.names(n)));
        format!("at {:?}\n{}", self.now, views.collect::<String>())
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
        self.now = end;
    }

    /// Runs until it holds; how long that took, or `None` after `limit`.
    pub(super) fn run_until(&mut self, limit: Duration, holds: impl Fn(&Self) -> bool) -> Option<Duration> {
        let begin = self.now;
        let mut checked = self.now;
        loop {
            if holds(self) {
                return Some(self.now - begin);
            }
            checked += Duration::from_millis(20);
            if checked > begin + limit {
                return None;
            }
            while self.step(checked) {}
            self.now = checked;
        }
    }

    fn instant(&self) -> Instant {
        self.start + self.now
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + after, self.sequence), event);
    }

    /// Does the next thing that happens until `end`. Messages come before timers of the same instant, as in the driver.
    fn step(&mut self, end: Duration) -> bool {
        let timer = self
            .nodes
            .iter()
            .filter(|(_, node)| node.alive)
            .filter_map(|(n, node)| {
                let at = node.pool.poll_timeout()?.saturating_duration_since(self.start);
                Some((at.max(node.paused_until).max(self.now), *n))
            })
            .min();
        let event = self.events.keys().next().copied();
        match (event, timer) {
            (Some(key), timer) if key.0 <= end && timer.is_none_or(|(at, _)| key.0 <= at) => {
                let event = self.events.remove(&key).unwrap();
                self.now = self.now.max(key.0);
                self.deliver(event);
                true
            }
            (_, Some((at, n))) if at <= end => {
                self.now = at;
                let now = self.instant();
                self.nodes.get_mut(&n).unwrap().pool.handle_timeout(now);
                self.drain(n);
                true
            }
            _ => false,
        }
    }

    fn deliver(&mut self, event: Event) {
        let now = self.instant();
        let to = match &event {
            Event::Datagram { to, .. } | Event::Open { to, .. } => Some(*to),
            Event::Frame { from, .. } | Event::Close { from } => self.links.get(from).map(|(to, _)| *to),
            Event::Fail { at } => Some(at.0),
        };
        let Some(to) = to else { return };
        let Some(node) = self.nodes.get_mut(&to).filter(|node| node.alive) else {
            if let Event::Open { from, .. } = event {
                self.schedule(STREAM_DELAY, Event::Fail { at: from });
            }
            return;
        };
        if node.paused_until > self.now {
            let wait = node.paused_until - self.now;
            self.schedule(wait, event);
            return;
        }
        match event {
            Event::Datagram { from, bytes, .. } => node.pool.handle_datagram(now, addr(from), &bytes),
            Event::Open { from, .. } => match node.pool.handle_accept() {
                Some(stream) => {
                    self.links.insert(from, (to, stream));
                    self.links.insert((to, stream), from);
                }
                None => self.schedule(STREAM_DELAY, Event::Fail { at: from }),
            },
            Event::Frame { from, bytes } => {
                let (_, stream) = self.links[&from];
                node.pool.handle_frame(now, stream, &bytes[4..]);
            }
            Event::Close { from } => {
                let end = self.links.remove(&from).unwrap();
                self.links.remove(&end);
                node.pool.handle_stream_closed(end.1);
            }
            Event::Fail { at } => node.pool.handle_stream_closed(at.1),
        }
        self.drain(to);
    }

    fn drain(&mut self, n: u64) {
        while let Some(output) = self.nodes.get_mut(&n).unwrap().pool.poll_output() {
            match output {
                Output::Datagram { to, bytes } => {
                    let to = number(to);
                    self.datagrams += 1;
                    if let Some(recorded) = &mut self.recorded {
                        recorded.push((n, to, bytes.clone()));
                    }
                    if !self.cut.contains(&(n, to)) && self.rng.f64() >= self.loss {
                        let delay = Duration::from_micros(self.rng.u64(200..5_000));
                        self.schedule(delay, Event::Datagram { from: n, to, bytes });
                    }
                }
                Output::Connect { stream, to } => {
                    let to = number(to);
                    if self.cut.contains(&(n, to)) || self.cut.contains(&(to, n)) {
                        self.schedule(STREAM_FAILS, Event::Fail { at: (n, stream) });
                    } else {
                        self.schedule(STREAM_DELAY, Event::Open { from: (n, stream), to });
                    }
                }
                Output::Frame { stream, bytes } => {
                    self.schedule(STREAM_DELAY, Event::Frame { from: (n, stream), bytes });
                }
                Output::Close { stream } => self.schedule(STREAM_DELAY, Event::Close { from: (n, stream) }),
                Output::SavePeers(text) => self.nodes.get_mut(&n).unwrap().peers = Some(text),
                Output::Resolve { seed } => panic!("{seed}: all seeds here are addresses"),
                Output::Changed => {}
            }
        }
    }
}
