//! A whole group of servers in one thread, from one seed: the servers' own code, from the log on disk to the gRPC
//! handlers, on machines whose clock, disk and network follow a seed, with everything going wrong that the seed says.
//!
//! ```text
//! world ── a millisecond ──▶ net ──▶ each machine ──▶ clients ──▶ what must hold at every step
//!            │                         runtime of one thread, clock that moves when it is told to
//!            └── nemesis: power loss, torn writes, partitions, loss, delay, stopped processes, skewed clocks, slow disks
//! ```
//! - [`mod@run`]: one run: form a group, let clients work while things go wrong, heal, check.
//! - [`world`]: machines ([`host`]), disks ([`disk`]), the network ([`net`]), and time.
//! - [`server`]: what runs on a machine. [`ledger`]: what it applied. [`workload`]: what clients do.
//! - [`stage`]: time passes. [`nemesis`]: what goes wrong by chance. [`plots`]: what goes wrong by a script. [`operator`]: who
//!   changes the group. [`invariants`]: what must hold.
//! - [`intercept`]: time and random bytes of the system, from the seed. [`trace`]: a hash of all that happened.
//! - [`cli`]: many seeds, each in a process of its own, and how to run one again.
//!
//! What is not simulated: gossip, DNS and the HTTP API are not started, servers know each other's addresses; the cluster's
//! id and snapshots are files of the real file system, which are replaced whole or not at all.
//!
//! One process runs one seed: a few things that chance depends on (tokio counts its runtimes) belong to the process.

mod disk;
mod host;
mod intercept;
mod invariants;
mod ledger;
mod nemesis;
mod net;
mod operator;
pub mod plots;
mod rng;
mod server;
mod stage;
mod trace;
mod workload;
mod world;

pub mod cli;
pub mod run;

pub use run::{Options, Report, run};
