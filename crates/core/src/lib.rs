//! What every part of Weft shares and none of them decides: ids, limits, back-off, drain, configuration
//! layering, telemetry, TLS material, files and what is reloaded from them, where
//! connections come from. This crate knows no policy and depends on nothing of ours.

#[cfg(test)]
mod any_input;
pub mod backoff;
pub mod config;
pub mod drain;
pub mod fsio;
pub mod id;
pub mod limits;
pub mod metrics;
pub mod net;
pub mod process;
pub mod reload;
pub mod telemetry;
pub mod tls;
