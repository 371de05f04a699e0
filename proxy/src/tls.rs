//! Certificates in use: what they are made of, and when they are made anew.
//!
//! - [`live`]: a TLS configuration made of PEM, and the list of all of them, which one task looks through each second.
//! - [`client`]: TLS to endpoints that are no sidecars. [`mesh`]: TLS between sidecars, by SPIFFE IDs.
//! - [`door`]: TLS on a port, [`ports`]: on all of them, [`client_cert`]: what others are told of who came.
//! - [`secure`]: what makes a connection to one endpoint a TLS connection.
//!
//! The request path reads what is in use and never a file. A configuration that was made anew has a generation of its
//! own: pooled connections belong to one, so that none outlives its certificate in the pool.

pub mod client;
pub(crate) mod client_cert;
pub(crate) mod door;
pub mod live;
pub mod mesh;
pub(crate) mod ports;
pub(crate) mod secure;
mod spoken;
