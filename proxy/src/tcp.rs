//! Bytes that are no HTTP of ours, from one connection to another: upgraded connections, CONNECT, raw TCP.

pub(crate) mod far_end;
pub(crate) mod forward;
pub(crate) mod keepalive;
pub(crate) mod relay;
pub(crate) mod serve;
pub(crate) mod sni;
