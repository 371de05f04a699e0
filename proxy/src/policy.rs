//! What happens to a request beside its being forwarded: one file a policy, each a value of a route or a service. Pure: time and
//! randomness are arguments.

pub(crate) mod authz;
pub mod cache;
pub mod compression;
pub mod cors;
pub mod deadline;
pub mod edits;
pub mod fault;
pub(crate) mod forwarding;
pub(crate) mod gate;
pub(crate) mod jwt;
pub mod overload;
pub mod rate_limit;
pub mod sticky;
