//! The data path over real sockets on loopback: clients, a proxy from a static configuration, upstreams.

mod access_log;
mod balancing;
mod connect;
mod declared;
mod drain;
mod failure;
mod forwarding;
mod grpc;
mod hostile;
mod hostile_upstream;
mod http2_abuse;
mod inbound;
mod mesh;
mod names;
mod near;
mod proxy_protocol;
mod resilience;
mod routes;
mod shortage;
mod sni;
mod support;
mod trace;
mod upgrade;
