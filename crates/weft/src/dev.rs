//! The demo mesh of `weft dev`: services whose instances can be stopped and started by hand.
//!
//! - [`http`]: one-shot requests and small servers, over real sockets.
//! - [`instance`]: one instance of a service: its listener, its registration, its heartbeats.
//! - [`services`]: what `hello` and `greeter` answer.
//! - [`control`]: the port on which an instance is stopped and started.

pub(crate) mod control;
pub(crate) mod http;
pub(crate) mod instance;
pub(crate) mod services;
