//! The proxy's half of xDS: an incremental ADS client that subscribes to what is called, and to nothing else (P35).
//!
//! - [`subscription`]: what is asked for and held; requests and responses as values. Pure.
//! - [`apply`]: pairs clusters with their endpoints, so that no half of an update is used. Pure.
//! - [`routes`]: routes come into use with the clusters that they lead to. Pure.
//! - [`cache`]: the last good state on disk.
//! - [`stream`]: the connection.
//!
//! [`crate::discovery`] drives them from one task.

pub mod apply;
pub mod cache;
pub mod routes;
pub mod stream;
pub mod subscription;
