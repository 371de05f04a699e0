//! Sockets that accept, and what stands in front of the HTTP parser.
//!
//! accept → (TLS) → detect HTTP/1 or HTTP/2 → guard (HTTP/1 only: [`scanner`]) → hyper → [`crate::http`].

pub(crate) mod accept;
pub(crate) mod connection;
pub(crate) mod detect;
pub(crate) mod guard;
pub mod refusal;
pub mod scanner;
pub(crate) mod socket;
