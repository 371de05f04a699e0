//! Weft's coordination state machine: the part of the control plane that every replica computes alike.
//!
//! This crate is pure. It knows no clock, no randomness, no network, no disk and no runtime; what it
//! needs of them is an argument. Replicas that apply the same commands in the same order hold the same
//! state, byte for byte. The dependency list enforces it: there is no tokio here.
//!
//! - [`command`]: what enters the replicated log, and what applying it answers.
//! - [`machine`]: [`Machine::apply`](machine::Machine::apply), the only way state changes; reads; images.
//! - [`store`]: the MVCC key-value store beneath it.
//! - [`lease`]: leases as replicated state, and the leader's clock for them ([`lease::Lessor`]).
//! - [`watch`]: who is told about which event ([`watch::WatchHub`]).
//! - [`retention`]: how much history the leader keeps ([`retention::Retention`]).
//! - [`auth`]: users, roles and what they may do. [`requests`]: which requests were carried out already.
//! - [`recipes`]: locks, semaphores, elections and the service registry, on ordinary keys under `weft/`.
//! - [`defect`]: mistakes that only a simulation plants, to prove that it finds them.

pub mod auth;
pub mod command;
pub mod defect;
pub mod error;
pub mod lease;
pub mod machine;
pub mod recipes;
pub mod requests;
pub mod retention;
pub mod store;
pub mod watch;
