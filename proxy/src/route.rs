//! Host and path to cluster.

pub mod host;
pub mod table;
