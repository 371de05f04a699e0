//! Metrics of the data path.
