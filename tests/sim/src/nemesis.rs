//! What goes wrong, when, and when it is over. All from the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::net::Link;
use super::operator::Operator;
use super::rng::Rng;
use super::server::{Number, ip};
use super::workload::CLIENT_IP;
use super::world::World;

/// Something that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A machine loses power. Others get resets, or silence until it is back.
    PowerLoss { server: Number, silent: bool },
    /// The same in the middle of one of its next writes.
    TornWrite { server: Number },
    /// All machines lose power at once.
    Blackout,
    /// The machines of one side do not reach those of the other.
    Partition { side: Vec<Number> },
    /// What one sends does not reach the other.
    OneWay { from: Number, to: Number },
    /// Each reaches only its neighbours in a ring.
    Ring,
    /// Two halves that share one machine.
    Bridge { over: Number },
    /// Pieces are lost and sent again.
    Lossy { permille: u64 },
    /// Messages take up to this long, each its own time.
    Slow { ms: u64 },
    /// A process is stopped, and goes on.
    Stopped { server: Number, ms: u64 },
    /// A machine is suspended, with its clock.
    Suspended { server: Number, ms: u64 },
    /// A clock is fast or slow.
    Skew { server: Number, permille: u32 },
    /// The time of day jumps.
    Jump { server: Number, ms: i64 },
    /// A disk has no space for more files.
    Full { server: Number },
    /// A sync takes this long.
    Stall { server: Number, ms: u64 },
    /// Leadership is handed to this one, in the middle of everything.
    Transfer { to: Number },
    /// A server is taken out of the group, and a new one with an empty disk joins in its place; as learner first, if so.
    Replaced { server: Number, learner: bool },
    /// The same for one whose machine and disk are lost.
    DiskLost { server: Number, learner: bool },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// What ends a fault.
#[derive(Debug, Clone)]
enum Relief {
    Boot(Number),
    Network,
    Space(Number),
    Clock(Number),
}

/// Makes faults for as long as it is asked to.
pub(crate) struct Nemesis {
    rng: Rng,
    next: u64,
    relief: BTreeMap<(u64, u64), Relief>,
    count: u64,
    /// How many servers were replaced.
    replaced: u64,
    /// What it did, and when.
    pub(crate) log: Vec<(u64, Fault)>,
}

impl Nemesis {
    pub(crate) fn new(rng: Rng) -> Self {
        Self { rng, next: 0, relief: BTreeMap::new(), count: 0, replaced: 0, log: Vec::new() }
    }

    /// Once a millisecond.
    pub(crate) fn step(&mut self, world: &mut World, operator: &mut Operator) {
        while let Some(entry) = self.relief.first_entry().filter(|e| e.key().0 <= world.now) {
            relieve(world, &entry.remove());
        }
        if world.now < self.next {
            return;
        }
        self.next = world.now + self.rng.between(100, 1_500);
        let fault = self.choose(world, operator);
        world.trace.note(&[6, world.now, self.count]);
        self.start(world, operator, &fault);
        self.log.push((world.now, fault));
    }

    /// Everything is well from now on.
    pub(crate) fn end(&mut self, world: &mut World) {
        self.relief.clear();
        relieve(world, &Relief::Network);
        for server in world.servers() {
            relieve(world, &Relief::Clock(server));
            relieve(world, &Relief::Space(server));
            world.host(server).paused_until = 0;
            world.disk(server).spare();
            world.boot(server);
        }
    }

    fn choose(&mut self, world: &World, operator: &Operator) -> Fault {
        let servers = world.servers();
        let rng = &mut self.rng;
        // Whoever leads has most to lose.
        let leader = world.leader().filter(|_| rng.chance(500));
        let server = leader.unwrap_or_else(|| *rng.pick(&servers));
        let other = *rng.pick(&servers.iter().copied().filter(|s| *s != server).collect::<Vec<_>>());
        // One change of the group at a time, or it would be left without a majority that has its data.
        let kinds = if operator.is_idle() { 120 } else { 107 };
        match rng.below(kinds) {
            0..12 => Fault::PowerLoss { server, silent: rng.chance(400) },
            12..20 => Fault::TornWrite { server },
            20..29 => Fault::Blackout,
            29..43 => {
                let mut side: BTreeSet<Number> = BTreeSet::from([server]);
                while rng.chance(400) && side.len() + 1 < servers.len() {
                    side.insert(*rng.pick(&servers));
                }
                Fault::Partition { side: side.into_iter().collect() }
            }
            43..50 => Fault::OneWay { from: server, to: other },
            50..54 => Fault::Ring,
            54..58 => Fault::Bridge { over: server },
            58..63 => Fault::Lossy { permille: rng.between(10, 250) },
            63..70 => Fault::Slow { ms: rng.between(5, 300) },
            70..77 => Fault::Stopped { server, ms: rng.between(100, 4_000) },
            77..81 => Fault::Suspended { server, ms: rng.between(100, 4_000) },
            81..88 => Fault::Skew { server, permille: rng.between(950, 1_051) as u32 },
            92..96 => Fault::Full { server },
            88..92 => Fault::Jump { server, ms: rng.between(0, 7_200_000) as i64 - 3_600_000 },
            96..100 => Fault::Stall { server, ms: rng.between(50, 3_000) },
            100..107 => Fault::Transfer { to: other },
            // Every second one votes only when it is told to.
            107..114 => Fault::Replaced { server, learner: self.replaced % 2 == 1 },
            _ => Fault::DiskLost { server, learner: self.replaced % 2 == 1 },
        }
    }

    fn start(&mut self, world: &mut World, operator: &mut Operator, fault: &Fault) {
        let now = world.now;
        let network = |world: &World, cut: &dyn Fn(IpAddr, IpAddr) -> bool| {
            world.set_links(|from, to| Link { cut: cut(from, to), ..Link::GOOD });
        };
        match fault {
            Fault::PowerLoss { server, silent } => {
                world.crash(*server, *silent);
                self.later(now, 100, 4_000, Relief::Boot(*server));
            }
            Fault::TornWrite { server } => {
                world.disk(*server).fail_in(self.rng.below(8) as u32);
                self.later(now, 1_500, 4_000, Relief::Boot(*server));
            }
            Fault::Blackout => {
                for server in world.servers() {
                    world.crash(server, false);
                    self.later(now, 100, 2_000, Relief::Boot(server));
                }
            }
            Fault::Partition { side } => {
                let side: Vec<IpAddr> = side.iter().map(|server| ip(*server)).collect();
                // Clients reach both sides: a deposed leader must not answer them.
                network(world, &|from, to| {
                    from != CLIENT_IP && to != CLIENT_IP && side.contains(&from) != side.contains(&to)
                });
                self.later(now, 500, 6_000, Relief::Network);
            }
            Fault::OneWay { from, to } => {
                let way = (ip(*from), ip(*to));
                network(world, &|from, to| (from, to) == way);
                self.later(now, 500, 6_000, Relief::Network);
            }
            Fault::Ring => {
                let count = world.servers().len() as u8;
                let number = |at: IpAddr| world.servers().into_iter().find(|server| ip(*server) == at);
                network(world, &|from, to| {
                    let (Some(from), Some(to)) = (number(from), number(to)) else { return false };
                    let apart = from.abs_diff(to);
                    apart != 1 && apart != count - 1
                });
                self.later(now, 500, 6_000, Relief::Network);
            }
            Fault::Bridge { over } => {
                let others: Vec<IpAddr> = world
                    .servers()
                    .iter()
                    .filter(|server| *server != over)
                    .map(|server| ip(*server))
                    .collect();
                let (left, right) = others.split_at(others.len() / 2);
                network(world, &|from, to| {
                    left.contains(&from) && right.contains(&to) || right.contains(&from) && left.contains(&to)
                });
                self.later(now, 500, 6_000, Relief::Network);
            }
            Fault::Lossy { permille } => {
                let link = Link { loss_permille: *permille, ..Link::GOOD };
                world.set_links(|_, _| link);
                self.later(now, 500, 6_000, Relief::Network);
            }
            Fault::Slow { ms } => {
                let link = Link { delay: (1, *ms), ..Link::GOOD };
                world.set_links(|_, _| link);
                self.later(now, 500, 6_000, Relief::Network);
            }
            Fault::Stopped { server, ms } => {
                let host = world.host(*server);
                (host.suspended, host.paused_until) = (false, now + ms);
            }
            Fault::Suspended { server, ms } => {
                let host = world.host(*server);
                (host.suspended, host.paused_until) = (true, now + ms);
            }
            Fault::Skew { server, permille } => {
                world.host(*server).rate_permille = *permille;
                self.later(now, 2_000, 10_000, Relief::Clock(*server));
            }
            Fault::Jump { server, ms } => world.host(*server).wall_offset = *ms,
            Fault::Full { server } => {
                world.disk(*server).set_full(true);
                self.later(now, 1_000, 5_000, Relief::Space(*server));
            }
            Fault::Stall { server, ms } => world.disk(*server).stall(Duration::from_millis(*ms)),
            Fault::Transfer { to } => operator.transfer(world, *to),
            Fault::Replaced { server, learner } => {
                self.replaced += 1;
                operator.replace(world, *server, *learner);
            }
            Fault::DiskLost { server, learner } => {
                self.replaced += 1;
                world.lose(*server);
                operator.replace(world, *server, *learner);
            }
        }
    }

    fn later(&mut self, now: u64, from: u64, to: u64, relief: Relief) {
        self.count += 1;
        self.relief.insert((now + self.rng.between(from, to), self.count), relief);
    }
}

fn relieve(world: &mut World, relief: &Relief) {
    match relief {
        Relief::Boot(server) => world.boot(*server),
        Relief::Network => world.set_links(|_, _| Link::GOOD),
        Relief::Space(server) => world.disk(*server).set_full(false),
        Relief::Clock(server) => {
            let host = world.host(*server);
            (host.rate_permille, host.wall_offset) = (1000, 0);
        }
    }
}
