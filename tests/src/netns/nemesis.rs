//! Faults, one after another, from a seed: what is broken, for how long, and its repair.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::netns::cluster::Cluster;
use crate::netns::fabric::Link;

/// A fault. Servers and hosts are numbers; the clients' host is the one after the servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// kill -9, and a start when it is repaired.
    Kill(Vec<usize>),
    /// SIGTERM: one that leads hands over first. Started again when it is repaired.
    Stop(usize),
    /// A server is asked to lead.
    Transfer(usize),
    /// A server is taken out of the group and ends. Repaired, the machine joins again with an empty folder.
    Remove(usize),
    /// A server is killed and its disk is lost. Repaired, the machine joins again with an empty folder, and what it was is
    /// taken out of the group.
    Lose(usize),
    /// SIGSTOP and SIGCONT.
    Pause(usize),
    /// The network device is down.
    LinkDown(usize),
    /// One server is cut from the others, clients reach all.
    Isolate(usize),
    /// Two servers cannot reach each other; the third reaches both.
    Bridge(usize, usize),
    /// What one host sends does not reach the other.
    OneWay(usize, usize),
    /// Answers of a server do not reach the clients.
    Mute(usize),
    /// So many of 1000 packets are lost, on every link.
    Loss(u32),
    /// Packets are late by so many milliseconds, and up to so many more.
    Delay(u64, u64),
    /// Packets come twice and overtake each other.
    Disorder,
}

/// Shortest and longest time that a fault lasts.
const LASTS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(6));
/// Shortest and longest time between two faults.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(3));
/// Longest time that a group of which a majority runs and hears each other may need until it has a leader again, on a
/// machine that does much else.
const RECOVERY_MAX: Duration = Duration::from_secs(10);

/// For how long there may be no leader at a stretch.
pub const OUTAGE_MAX: Duration = LASTS.1.saturating_add(RECOVERY_MAX);

/// Breaks and repairs until `deadline`, and leaves everything repaired. Answers what was done.
pub async fn torment(cluster: &mut Cluster, seed: u64, deadline: Instant) -> Vec<Fault> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut done = Vec::new();
    let started = Instant::now();
    sleep(PAUSE.0).await;
    while Instant::now() < deadline {
        // The leader is the more interesting victim.
        let victim = match cluster.leader().await {
            Some(leader) if rng.bool() => leader,
            _ => rng.usize(0..cluster.nodes.len()),
        };
        let fault = Fault::choose(victim, cluster.nodes.len(), &mut rng);
        let end = Instant::now() + between(LASTS, &mut rng);
        eprintln!("[{:6.1} s] {fault}", started.elapsed().as_secs_f64());
        fault.inflict(cluster).await;
        sleep_until(end.min(deadline)).await;
        fault.repair(cluster).await;
        done.push(fault);
        sleep(between(PAUSE, &mut rng)).await;
    }
    done
}

fn between((low, high): (Duration, Duration), rng: &mut fastrand::Rng) -> Duration {
    low + (high - low).mul_f64(rng.f64())
}

impl Fault {
    fn choose(victim: usize, servers: usize, rng: &mut fastrand::Rng) -> Self {
        let other = (victim + 1 + rng.usize(0..servers - 1)) % servers;
        match rng.u32(0..16) {
            0 | 1 => Self::Kill(vec![victim]),
            2 => Self::Kill((0..servers).collect()),
            3 | 4 => Self::Pause(victim),
            5 => Self::LinkDown(victim),
            6 => Self::Isolate(victim),
            7 => Self::Bridge(victim, other),
            8 => Self::OneWay(victim, other),
            9 => Self::Mute(victim),
            10 => Self::Loss(rng.u32(50..300)),
            11 => Self::Stop(victim),
            12 => Self::Transfer(other),
            13 => Self::Remove(victim),
            14 => Self::Lose(victim),
            _ if rng.bool() => Self::Delay(rng.u64(10..100), rng.u64(1..50)),
            _ => Self::Disorder,
        }
    }

    async fn inflict(&self, cluster: &mut Cluster) {
        let clients = cluster.clients();
        match self {
            Self::Kill(victims) => {
                for victim in victims {
                    cluster.nodes[*victim].kill().await;
                }
            }
            Self::Stop(victim) => {
                let code = cluster.nodes[*victim].stop().await;
                assert_eq!(code, 0, "a server that is told to stop ends well");
            }
            // One that is behind, or whose leader has just changed, is refused: that is an answer too.
            Self::Transfer(to) => cluster.transfer(*to).await,
            Self::Remove(victim) => {
                cluster.remove(*victim).await;
                cluster.nodes[*victim].has_ended().await;
                cluster.nodes[*victim].lose_disk();
            }
            Self::Lose(victim) => {
                cluster.nodes[*victim].kill().await;
                cluster.nodes[*victim].lose_disk();
            }
            Self::Pause(victim) => cluster.nodes[*victim].pause(),
            Self::LinkDown(victim) => cluster.nodes[*victim].set_link(false),
            Self::Isolate(victim) => {
                for other in (0..clients).filter(|other| other != victim) {
                    cluster.switch.fabric().cut(*victim, other);
                }
            }
            Self::Bridge(a, b) => cluster.switch.fabric().cut(*a, *b),
            Self::OneWay(from, to) => cluster.switch.fabric().change(*from, *to, |link| link.cut = true),
            Self::Mute(victim) => cluster.switch.fabric().change(*victim, clients, |link| link.cut = true),
            Self::Loss(permille) => {
                cluster.switch.fabric().change_all(|link| link.lost_permille = *permille);
            }
            Self::Delay(delay, jitter) => {
                let (delay, jitter) = (Duration::from_millis(*delay), Duration::from_millis(*jitter));
                cluster.switch.fabric().change_all(|link| *link = Link { delay, jitter, ..*link });
            }
            Self::Disorder => {
                let jitter = Duration::from_millis(20);
                cluster
                    .switch
                    .fabric()
                    .change_all(|link| *link = Link { repeated_permille: 200, jitter, ..*link });
            }
        }
    }

    async fn repair(&self, cluster: &mut Cluster) {
        cluster.switch.fabric().heal();
        match self {
            // One that starts alone waits for the others, so they have to start together.
            Self::Kill(victims) => {
                let nodes = cluster.nodes.iter_mut().enumerate().filter(|(i, _)| victims.contains(i));
                futures::future::join_all(nodes.map(|(_, node)| node.start())).await;
            }
            Self::Stop(victim) => cluster.nodes[*victim].start().await,
            // Only a whole group can lose another disk.
            Self::Remove(victim) => {
                cluster.join(*victim).await;
                cluster.wait_for_voters(cluster.nodes.len()).await;
            }
            Self::Lose(victim) => {
                cluster.remove(*victim).await;
                cluster.join(*victim).await;
                cluster.wait_for_voters(cluster.nodes.len()).await;
            }
            Self::Pause(victim) => cluster.nodes[*victim].resume(),
            Self::LinkDown(victim) => cluster.nodes[*victim].set_link(true),
            _ => {}
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |i: &usize| format!("s{}", i + 1);
        match self {
            Self::Kill(victims) => {
                write!(f, "kill -9 {}", victims.iter().map(name).collect::<Vec<_>>().join(", "))
            }
            Self::Stop(victim) => write!(f, "SIGTERM {}", name(victim)),
            Self::Transfer(to) => write!(f, "{} is asked to lead", name(to)),
            Self::Remove(victim) => write!(f, "{} is taken out of the group", name(victim)),
            Self::Lose(victim) => write!(f, "kill -9 {} and its disk is lost", name(victim)),
            Self::Pause(victim) => write!(f, "SIGSTOP {}", name(victim)),
            Self::LinkDown(victim) => write!(f, "the link of {} is down", name(victim)),
            Self::Isolate(victim) => write!(f, "{} is cut from the other servers", name(victim)),
            Self::Bridge(a, b) => write!(f, "{} and {} do not reach each other", name(a), name(b)),
            Self::OneWay(from, to) => write!(f, "nothing gets from {} to {}", name(from), name(to)),
            Self::Mute(victim) => write!(f, "no answer of {} reaches a client", name(victim)),
            Self::Loss(permille) => write!(f, "{}.{} % of packets are lost", permille / 10, permille % 10),
            Self::Delay(delay, jitter) => write!(f, "packets are late by {delay} to {} ms", delay + jitter),
            Self::Disorder => f.write_str("packets come twice and overtake each other"),
        }
    }
}
