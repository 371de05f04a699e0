//! Connections to endpoints: one pool a worker, nothing shared between workers.

pub(crate) mod answer;
pub(crate) mod connect;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod once;
pub(crate) mod pool;
pub(crate) mod replay;
pub(crate) mod request_body;
pub(crate) mod stream;
