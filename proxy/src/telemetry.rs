//! What the data path tells of itself: metrics, and a line for each request.

pub mod access_log;
pub mod answers;
pub mod cluster_metrics;
pub mod flag;
pub(crate) mod jwks_metrics;
pub mod metrics;
pub mod route_metrics;
pub mod tap;
pub mod trace;
pub mod tunnels;
