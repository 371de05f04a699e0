//! Metrics of the data path.

pub mod metrics;
pub mod tunnels;
