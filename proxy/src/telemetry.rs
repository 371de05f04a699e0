//! Metrics of the data path.

pub mod metrics;
