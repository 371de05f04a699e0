//! The HTTP request path.
//!
//! *Request:* accept → detect → guard → `server`: host → route (`resolve`; what it says: `routed`) → cluster → pick →
//! pool checkout or connect → `forward` → one outcome goes back to outlier detection and metrics. Errors leave through `rescue` only.

pub(crate) mod body;
pub(crate) mod cached;
pub(crate) mod compress;
pub(crate) mod connect;
pub(crate) mod context;
pub(crate) mod course;
pub(crate) mod downgrade;
pub(crate) mod error;
pub(crate) mod extended;
pub(crate) mod forward;
pub(crate) mod grpc_status;
pub(crate) mod guarded;
pub(crate) mod headers;
pub(crate) mod hedge;
pub(crate) mod mirror;
pub(crate) mod plan;
pub(crate) mod present;
pub(crate) mod rescue;
pub(crate) mod resolve;
pub(crate) mod routed;
pub(crate) mod seen;
pub(crate) mod server;
pub(crate) mod target;
pub(crate) mod upgrade;
