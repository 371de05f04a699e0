//! Sockets that accept, and what stands in front of the HTTP parser.
//!
//! accept → (PROXY protocol) → (TLS) → detect HTTP/1 or HTTP/2 → guard (HTTP/1 only: [`scanner`]) → [`http1`] or
//! [`http2`] → [`crate::http`]. Listeners that are declared for other bytes go to [`crate::tcp`] in place of detecting.

pub(crate) mod accept;
mod clock;
pub(crate) mod connection;
pub(crate) mod detect;
pub(crate) mod guard;
pub(crate) mod http1;
pub(crate) mod http2;
pub mod refusal;
pub mod scanner;
pub(crate) mod sniff;
pub(crate) mod socket;
pub(crate) mod stream;
pub(crate) mod unix;
