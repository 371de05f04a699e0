//! All machines, the network between them, and time: a millisecond for everyone, then the next.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use weft_control_plane::raft::{Coordinator, GroupChange, Members};
use weft_core::id::NodeId;

use super::disk::SimDisk;
use super::host::Host;
use super::intercept;
use super::ledger::Ledger;
use super::net::{Link, Net};
use super::rng::Rng;
use super::server::{self, Number, Slot, Spec, ip};
use super::trace::Trace;
use super::workload::CLIENT_IP;

/// What the monotonic clock of the simulation itself begins with.
const CLOCK_START: Duration = Duration::from_secs(1);

/// Everything.
pub(crate) struct World {
    /// Milliseconds since the start.
    pub(crate) now: u64,
    pub(crate) net: Net,
    pub(crate) clients: Host,
    pub(crate) ledger: Ledger,
    pub(crate) trace: Trace,
    machines: BTreeMap<Number, Machine>,
    /// Has a folder for each server.
    folder: PathBuf,
    /// Why a server would not start, which no fault here may bring about.
    failed: Arc<Mutex<Option<String>>>,
}

/// A server's machine.
struct Machine {
    host: Host,
    spec: Spec,
    slot: Slot,
    /// Draws what disks of this machine begin with.
    rng: Rng,
}

impl Machine {
    /// Without power there is nothing but the disk.
    fn has_ended(&self) -> bool {
        self.spec.ended.load(Relaxed)
    }
}

impl World {
    /// Machines that are off, with empty disks.
    pub(crate) fn new(seed: u64, servers: Number, folder: &Path) -> Self {
        let trace = Trace::default();
        let net = Net::new(Rng::new(seed, "net"), trace.clone());
        let ledger = Ledger::new(trace.clone());
        let group: Vec<Number> = (1..=servers).collect();
        let machine = |number: Number| {
            let spec = Spec {
                number,
                predecessors: 0,
                learner: false,
                group: group.clone(),
                data_dir: empty_folder(folder, number, 0),
                disk: SimDisk::new(Rng::new(seed, &format!("disk {number}"))),
                net: net.clone(),
                observer: ledger.observer(number),
                ended: Arc::default(),
            };
            let rng = Rng::new(seed, &format!("machine {number}"));
            (number, Machine { host: Host::new(), spec, slot: Slot::default(), rng })
        };
        let machines = group.iter().map(|number| machine(*number)).collect();
        let folder = folder.to_owned();
        Self { now: 0, net, clients: Host::new(), ledger, trace, machines, folder, failed: Arc::default() }
    }

    /// A millisecond passes.
    pub(crate) fn step(&mut self) {
        self.now += 1;
        intercept::set_now(CLOCK_START + Duration::from_millis(self.now));
        self.net.step(self.now);
        for machine in self.machines.values_mut() {
            machine.host.tick(self.now);
        }
        self.clients.tick(self.now);
        intercept::set_now(CLOCK_START + Duration::from_millis(self.now));
        let gone: Vec<Number> = self
            .machines
            .iter()
            .filter(|(_, m)| m.host.is_on() && (m.spec.disk.is_off() || m.has_ended()))
            .map(|(n, _)| *n)
            .collect();
        for server in gone {
            self.crash(server, false);
        }
    }

    /// All servers.
    pub(crate) fn servers(&self) -> Vec<Number> {
        self.machines.keys().copied().collect()
    }

    /// Servers that are on.
    pub(crate) fn on(&self) -> Vec<Number> {
        self.machines.iter().filter(|(_, m)| m.host.is_on()).map(|(number, _)| *number).collect()
    }

    /// Those that serve, with their inside.
    pub(crate) fn each(&self, mut look: impl FnMut(Number, &Coordinator)) {
        for (number, machine) in &self.machines {
            let coordinator = machine.slot.lock().clone();
            if let Some(coordinator) = coordinator {
                machine.host.enter();
                look(*number, &coordinator);
            }
        }
        intercept::set_now(CLOCK_START + Duration::from_millis(self.now));
    }

    /// What is inside one of them; none if it does not serve.
    pub(crate) fn inside<T>(&self, server: Number, look: impl Fn(&Coordinator) -> T) -> Option<T> {
        let mut seen = None;
        self.each(|number, inside| {
            if number == server {
                seen = Some(look(inside));
            }
        });
        seen
    }

    /// Who leads, in the highest term of those that say so.
    pub(crate) fn leader(&self) -> Option<Number> {
        let mut found: Option<(u64, Number)> = None;
        self.each(|server, inside| {
            if inside.is_leader() {
                found = found.max(Some((inside.status().term, server)));
            }
        });
        found.map(|(_, server)| server)
    }

    /// Why a server would not start.
    pub(crate) fn failed(&self) -> Option<String> {
        self.failed.lock().clone()
    }

    /// The present server of a machine.
    pub(crate) fn id(&self, server: Number) -> NodeId {
        self.machines[&server].spec.id()
    }

    /// Whether the server of a machine has ended for good.
    pub(crate) fn has_ended(&self, server: Number) -> bool {
        self.machines[&server].has_ended()
    }

    /// Power and disk are lost: the server is no more.
    pub(crate) fn lose(&mut self, server: Number) {
        self.crash(server, false);
        self.machines[&server].spec.ended.store(true, Relaxed);
    }

    /// Another server takes the place of one that has ended: nothing is on its disk, and it will join.
    pub(crate) fn replace(&mut self, server: Number, learner: bool) {
        let machine = self.machines.get_mut(&server).expect("it exists");
        assert!(machine.has_ended() && !machine.host.is_on(), "its predecessor is gone");
        let spec = &mut machine.spec;
        spec.predecessors += 1;
        spec.learner = learner;
        spec.data_dir = empty_folder(&self.folder, server, spec.predecessors);
        spec.disk = SimDisk::new(Rng::new(machine.rng.next(), "disk"));
        spec.ended = Arc::default();
        self.boot(server);
    }

    /// Has the group changed by what a server knows of it. Says when that is over, whatever came of it.
    pub(crate) fn change_group(&self, at: Number, change: GroupChange) -> Option<Arc<AtomicBool>> {
        let machine = &self.machines[&at];
        let coordinator = machine.slot.lock().clone()?;
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        machine.host.spawn(async move {
            let _ = coordinator.change_group(change).await;
            told.store(true, Relaxed);
        });
        intercept::set_now(CLOCK_START + Duration::from_millis(self.now));
        Some(over)
    }

    /// Whether all servers are on and vote, and each has applied that they are the group. One that leads may have a
    /// configuration that is not committed, so all are asked.
    pub(crate) fn is_whole(&self) -> bool {
        let all: BTreeSet<NodeId> = self.machines.values().map(|machine| machine.spec.id()).collect();
        let mut count = 0;
        self.each(|_, inside| {
            let Members { voters, learners, joint, .. } = inside.members();
            count += usize::from(voters == all && learners.is_empty() && !joint);
        });
        count == self.machines.len()
    }

    /// Who is in the group as each server has applied it, for people.
    pub(crate) fn views(&self) -> String {
        let mut views: Vec<String> =
            self.machines.iter().map(|(number, m)| format!("{number} is {}", m.spec.id())).collect();
        self.each(|number, inside| {
            let (members, status) = (inside.members(), inside.status());
            let leads = if inside.is_leader() { ", leads" } else { "" };
            views.push(format!(
                "{number} at {} of {} in term {}{leads}: {members:?}",
                status.applied, status.last_log, status.term
            ));
        });
        views.join("; ")
    }

    /// Switches a machine on, if it is off and its server has not ended for good, and starts its server.
    pub(crate) fn boot(&mut self, server: Number) {
        let machine = self.machines.get_mut(&server).expect("it exists");
        if machine.host.is_on() || machine.has_ended() {
            return;
        }
        let lost = machine.spec.disk.switch_on();
        self.trace.note(&[4, self.now, u64::from(server), lost]);
        self.net.boot(ip(server));
        machine.host.boot();
        machine.host.spawn(server::run(machine.spec.clone(), machine.slot.clone(), self.failed.clone()));
    }

    /// Power is lost: what it was doing is gone, and what it had not synced.
    pub(crate) fn crash(&mut self, server: Number, silent: bool) {
        let machine = self.machines.get_mut(&server).expect("it exists");
        if !machine.host.is_on() {
            return;
        }
        self.trace.note(&[5, self.now, u64::from(server)]);
        machine.spec.disk.switch_off();
        self.net.crash(ip(server), silent);
        machine.slot.lock().take();
        machine.host.crash();
    }

    pub(crate) fn disk(&self, server: Number) -> &SimDisk {
        &self.machines[&server].spec.disk
    }

    pub(crate) fn host(&mut self, server: Number) -> &mut Host {
        &mut self.machines.get_mut(&server).expect("it exists").host
    }

    /// Every directed link between two machines of these.
    pub(crate) fn links(&self) -> Vec<(IpAddr, IpAddr)> {
        let mut all: Vec<IpAddr> = self.machines.keys().map(|number| ip(*number)).collect();
        all.push(CLIENT_IP);
        let pairs = all.iter().flat_map(|from| all.iter().map(move |to| (*from, *to)));
        pairs.filter(|(from, to)| from != to).collect()
    }

    /// All links are as `link` says.
    pub(crate) fn set_links(&self, link: impl Fn(IpAddr, IpAddr) -> Link) {
        for (from, to) in self.links() {
            self.net.set_link(from, to, link(from, to));
        }
    }
}

fn empty_folder(folder: &Path, server: Number, predecessors: u8) -> PathBuf {
    let data_dir = folder.join(format!("s{server}-{predecessors}"));
    std::fs::create_dir_all(&data_dir).expect("the folder for the run is writable");
    data_dir
}
