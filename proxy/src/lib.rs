//! The sidecar's data path: listeners, routing, balancing, forwarding, and the control loop that feeds them.
//!
//! - [`app`]: starts and drains a proxy from a [`config::ProxyConfig`]; knows everyone, nobody knows it.
//! - [`config_snapshot`], [`discovery`], [`xds`]: what the mesh says. They only *produce* snapshots.
//! - [`cluster`]: endpoints with their health, and the choice among them; [`mesh_view`] is what a request reads.
//! - [`listener`]: sockets and the guard in front of the HTTP/1 parser; [`http`]: the request path; [`route`]: which
//!   route a request takes, [`policy`]: what happens to it beside; [`upstream`]: connections to endpoints, one pool a
//!   worker. `tcp`: tunnels, for bytes that are no HTTP of ours.
//! - [`health`]: checks of the services beside this sidecar; [`admin`], [`explain`], [`telemetry`], [`tls`], [`drain`],
//!   [`handover`]: operation.
//!
//! The request path never waits for the control plane, except for the first request to a service that it has not
//! asked for yet, and then with a deadline.

pub mod admin;
#[cfg(test)]
mod any_input;
pub mod app;
pub mod cluster;
mod coarse_timer;
pub mod config;
pub mod config_snapshot;
mod courtesy;
pub mod discovery;
pub mod drain;
pub mod error;
pub mod explain;
pub mod handover;
pub mod health;
pub mod http;
mod http1;
mod http2;
mod identity;
mod jwks;
pub mod limits;
pub mod listener;
mod local;
pub mod mesh_view;
pub mod policy;
pub mod proxy_protocol;
pub mod route;
mod scratch;
mod sockets;
pub mod static_routes;
mod tcp;
pub mod telemetry;
pub mod tls;
pub mod upstream;
mod worker;
pub mod xds;
