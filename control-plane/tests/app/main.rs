//! Real servers in this process, on free ports and a temporary folder, driven over its sockets.

mod about;
mod auth;
mod cluster;
mod coordination;
mod gateway;
mod gossip;
mod harness;
mod lifecycle;
mod mesh;
mod metrics;
mod profile;
mod registry;
mod write;
mod xds;
