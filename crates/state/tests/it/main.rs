//! The state machine from outside: against naive models, and scene by scene.

#![allow(missing_docs)]

mod auth;
mod image;
mod leases;
mod model;
mod recipes;
mod retention;
mod semaphore_model;
mod store;
mod store_model;
mod support;
mod watch;
mod watch_model;
