//! `/runtime`: what this process is and uses now.

use serde_json::{Value, json};
use weft_core::process::resident_bytes;

use super::AdminState;

pub(super) fn json(state: &AdminState) -> Value {
    let config = &state.config;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "pid": std::process::id(),
        "up_secs": state.started.elapsed().as_secs(),
        "not_ready": state.why_not_ready(),
        "draining": state.is_draining(),
        "workers": config.workers,
        "memory_bytes": resident_bytes(),
        "connections": { "open": state.metrics.connections.get(), "max": state.config.connections_max },
        "log_level": weft_core::telemetry::level(),
        "access_log": config.access_log.as_ref().map(|log| log.target.to_string()),
        "trace": config.trace.as_ref().map(|trace| json!({
            "endpoint": trace.endpoint.to_string(), "sample_percent": trace.sample_percent,
        })),
    })
}
