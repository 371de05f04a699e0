//! The control plane: one `weft server`. Three or five of them form one Raft group.
//!
//! What it keeps, it keeps in one replicated state machine ([`weft_state`]); what it knows of liveness,
//! it hears by gossip ([`weft_gossip`]); what proxies need, it derives from both.
//!
//! - [`app`]: starts and stops everything, in order. Knows everyone; nobody knows it.
//! - [`config`], [`error`]: what a server is told at start, and why it would not start.
//! - [`raft`]: the one place that names openraft. [`raft::Coordinator`] proposes, reads, and tells who leads.
//! - [`gate`]: who is let in on the port between servers: join token and TLS.
//! - [`wal`]: the log on disk: segments, checksums, group commit, recovery.
//! - [`backup`]: files with the whole state; making them at intervals.
//! - [`lease_driver`]: the leader's clock for leases.
//! - [`watch_driver`]: hands the watch hub's events to the tasks that wait for them.
//! - [`catalog`]: registry and gossip merged with provenance.
//! - [`auth`]: passwords and tokens.
//! - [`api`]: etcd v3 and `weft.v1` over gRPC; registry, probes and metrics over HTTP.
//! - [`meshconfig`]: routes as documents: checked, stored, and made into what proxies are told.
//! - [`dns`]: A, AAAA and SRV answers from the catalogue.
//! - [`listener`]: accepting connections on the HTTP and gRPC ports, with limits.
//! - [`xds`]: what proxies subscribe to.
//! - [`profile`]: where CPU time goes, on request.
//! - [`telemetry`]: the numbers on `/metrics`.
//!
//! Three flows start here, each described where it starts: *write* ([`api`] → [`raft`] → `apply` →
//! [`watch_driver`]), *linearizable read* ([`raft::Coordinator`]) and *config push* ([`catalog`] → [`xds`]).

pub mod api;
pub mod app;
pub mod auth;
pub mod backup;
mod blocking;
pub mod catalog;
pub mod config;
pub mod dns;
pub mod error;
pub mod gate;
pub mod lease_driver;
pub mod listener;
pub mod meshconfig;
pub mod profile;
pub mod raft;
pub mod telemetry;
pub mod wal;
pub mod watch_driver;
pub mod xds;
