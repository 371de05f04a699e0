//! All machines, the network between them, and time: a millisecond for everyone, then the next.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use weft_control_plane::raft::Coordinator;

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
    /// Why a server would not start, which no fault here may bring about.
    failed: Arc<Mutex<Option<String>>>,
}

/// A server's machine.
struct Machine {
    host: Host,
    spec: Spec,
    slot: Slot,
}

impl World {
    /// Machines that are off, with empty disks.
    pub(crate) fn new(seed: u64, servers: Number, folder: &Path) -> Self {
        let trace = Trace::default();
        let net = Net::new(Rng::new(seed, "net"), trace.clone());
        let ledger = Ledger::new(trace.clone());
        let group: Vec<Number> = (1..=servers).collect();
        let machine = |number: Number| {
            let data_dir = folder.join(format!("s{number}"));
            std::fs::create_dir_all(&data_dir).expect("the folder for the run is writable");
            let spec = Spec {
                number,
                group: group.clone(),
                data_dir,
                disk: SimDisk::new(Rng::new(seed, &format!("disk {number}"))),
                net: net.clone(),
                observer: ledger.observer(number),
            };
            (number, Machine { host: Host::new(), spec, slot: Slot::default() })
        };
        let machines = group.iter().map(|number| machine(*number)).collect();
        Self { now: 0, net, clients: Host::new(), ledger, trace, machines, failed: Arc::default() }
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
        let lost_power: Vec<Number> = self
            .machines
            .iter()
            .filter(|(_, m)| m.host.is_on() && m.spec.disk.is_off())
            .map(|(n, _)| *n)
            .collect();
        for server in lost_power {
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

    /// Switches a machine on, if it is off, and starts its server.
    pub(crate) fn boot(&mut self, server: Number) {
        let machine = self.machines.get_mut(&server).expect("it exists");
        if machine.host.is_on() {
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
