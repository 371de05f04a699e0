//! Clients that use a group of servers while it suffers, and record what they saw for the checkers.
//!
//! - [`keys`]: puts, gets, deletes and transactions, through the Rust client.
//! - [`stale`]: serializable reads, each reader at one server.
//! - [`streaming`]: writes on one stream of our own API, several at a time.
//! - [`watching`]: watchers at one server each, with progress requests, over the bare etcd API.
//! - [`leases`]: leases that are kept alive for a while and then left to end.
//! - [`locks`]: sessions that take a lock in turn and write under its fence.
//! - [`hashes`]: what each server's store comes to.
//! - [`report`]: all of it judged.

pub mod hashes;
pub mod keys;
pub mod leases;
pub mod locks;
pub mod report;
pub mod stale;
pub mod streaming;
pub mod watching;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use weft_client::{Client, Options};

use crate::checker::kv;
use crate::checker::{lease, lock};
use crate::history::{Moment, Process, Recorder};

/// What all clients of one run share.
#[derive(Debug, Clone)]
pub struct Run {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    endpoints: Vec<String>,
    seed: u64,
    started: Instant,
    stopped: AtomicBool,
    processes: AtomicU32,
    keys: Recorder<kv::Call, kv::Answer>,
    locks: Recorder<lock::Call, lock::Answer>,
    leases: std::sync::Mutex<Vec<lease::Note>>,
}

impl Run {
    /// A run against servers at these addresses.
    pub fn new(endpoints: Vec<String>, seed: u64) -> Self {
        let inner = Inner {
            endpoints,
            seed,
            started: Instant::now(),
            stopped: AtomicBool::new(false),
            processes: AtomicU32::new(0),
            keys: Recorder::default(),
            locks: Recorder::default(),
            leases: std::sync::Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Addresses of the servers.
    pub fn endpoints(&self) -> &[String] {
        &self.inner.endpoints
    }

    /// A client of all servers that begins with number `first`, or of that one only.
    pub fn client(&self, first: usize, only: bool) -> Client {
        let endpoints = self.endpoints();
        let count = if only { 1 } else { endpoints.len() };
        let chosen = (0..count).map(|i| &endpoints[(first + i) % endpoints.len()]);
        // Short, so that a server that is cut off or stopped holds few operations up.
        let options = Options {
            attempt_timeout: Duration::from_secs(3),
            retry_for: Duration::from_secs(5),
            ..Options::default()
        };
        Client::connect_with(chosen, options).expect("the addresses of servers are good ones")
    }

    /// A process with a name of its own, and randomness.
    pub fn process(&self) -> (Process, fastrand::Rng) {
        let number = self.inner.processes.fetch_add(1, Ordering::Relaxed);
        (
            Process(number),
            fastrand::Rng::with_seed(self.inner.seed.wrapping_mul(1_000_003).wrapping_add(number.into())),
        )
    }

    /// Since the start of the run.
    pub fn at(&self, instant: Instant) -> Duration {
        instant.saturating_duration_since(self.inner.started)
    }

    /// Now, since the start of the run.
    pub fn now(&self) -> Duration {
        self.at(Instant::now())
    }

    /// A place in the order of all that is recorded of keys, watches and leases.
    pub fn moment(&self) -> Moment {
        let now = self.now();
        self.keys().lock().moment(now)
    }

    /// Tells all clients to finish what they are at and stop.
    pub fn stop(&self) {
        self.inner.stopped.store(true, Ordering::Relaxed);
    }

    /// Whether they were told to.
    pub fn is_stopped(&self) -> bool {
        self.inner.stopped.load(Ordering::Relaxed)
    }

    /// What was done to keys.
    pub fn keys(&self) -> &Recorder<kv::Call, kv::Answer> {
        &self.inner.keys
    }

    /// What was done to locks.
    pub fn locks(&self) -> &Recorder<lock::Call, lock::Answer> {
        &self.inner.locks
    }

    /// Notes something about a lease.
    pub fn note(&self, note: lease::Note) {
        self.inner.leases.lock().expect("no holder panics").push(note);
    }

    /// What was noted about leases.
    pub fn lease_notes(&self) -> Vec<lease::Note> {
        self.inner.leases.lock().expect("no holder panics").clone()
    }
}
