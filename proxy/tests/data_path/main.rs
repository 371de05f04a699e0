//! The data path over real sockets on loopback: clients, a proxy from a static configuration, upstreams.

#[allow(dead_code, reason = "the tests of discovery use all of it")]
#[path = "../shared/ads.rs"]
mod ads;
#[path = "../shared/wire.rs"]
mod wire;

mod access_log;
mod admission;
mod authz;
mod balancing;
mod body_retries;
mod cipher_suites;
mod connect;
mod declared;
mod drain;
mod extended;
mod failure;
mod forwarded;
mod forwarding;
mod grpc;
mod hostile;
mod hostile_upstream;
mod http2_abuse;
mod inbound;
mod interim;
mod limits;
mod listener_tls;
mod mesh;
mod mesh_tls;
mod names;
mod near;
mod pki;
mod proxy_protocol;
mod refused_streams;
mod resilience;
mod routes;
mod sds;
mod semantics;
mod send_proxy;
mod shortage;
mod sni;
mod socket_match;
mod spared;
mod standstill;
mod support;
mod trace;
mod upgrade;
mod upstream_tls;
mod watched;
