//! Checkers: pure functions from what was seen to a verdict, used alike by the simulation and by runs over real
//! processes. None of them knows a clock, a network or a server.
//!
//! - [`linear`]: is a history linearizable? A search (Wing and Gong; Lowe's memoisation), per connected set of keys.
//! - [`kv`], [`append`], [`lock`]: the sequential models that it checks against.
//! - [`revision`]: revisions of answers in real time and per process (A08, A11).
//! - [`watch`]: what watchers were told against what happened (W01 to W05, W07, W10, W12).
//! - [`lease`]: when leases and their keys ended (S01 to S04).
//!
//! How to use them together: record a [`History`](crate::history::History) of [`kv::Call`]s; when the run is over,
//! read everything once more, [`kv::learn`] what became of the operations with unknown end, then [`linear::check`].

#![allow(clippy::result_large_err, reason = "a violation is made once, at the end of a run")]

pub mod append;
pub mod kv;
pub mod lease;
pub mod linear;
pub mod lock;
pub mod model;
pub mod revision;
pub mod watch;
