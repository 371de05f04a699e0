//! `/livez`, `/readyz` and `/metrics`.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde_json::json;

use crate::raft::{Coordinator, DiskState};
use crate::telemetry::Telemetry;

/// How long `/readyz` waits for a quorum: less than a prober's usual patience of a second.
const QUORUM_PATIENCE: Duration = Duration::from_millis(800);

/// What the handlers need.
#[derive(Clone)]
pub struct ProbesApi {
    /// For readiness.
    pub coordinator: Coordinator,
    /// For the numbers.
    pub telemetry: Telemetry,
}

/// `GET /livez`: the process answers. Says nothing about the others, since restarting this one would not
/// bring them back.
pub async fn livez() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: this server can serve reads and writes; or why not.
pub async fn readyz(State(api): State<ProbesApi>) -> Response {
    let reasons = why_not_ready(&api.coordinator).await;
    let status = if reasons.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(json!({ "ready": reasons.is_empty(), "reasons": reasons }))).into_response()
}

/// Why this server cannot answer from what it has, whatever the others do; empty if it can.
pub fn why_not_ready_alone(coordinator: &Coordinator) -> Vec<String> {
    let status = coordinator.status();
    if status.cluster_id.is_none() {
        return vec!["not a member of a raft group yet: waiting to be taken in".to_owned()];
    }
    let mut reasons = Vec::new();
    if status.disk == DiskState::Stalled {
        reasons.push("the disk of the log is full: waiting for space".to_owned());
    }
    match status.peers.iter().find(|p| p.id == status.id) {
        Some(own) if own.voter => {}
        Some(_) => reasons
            .push("not a voter yet: catching up with the leader, or a learner to be promoted".to_owned()),
        None => reasons.push("not a member of the raft group: it was not taken in yet".to_owned()),
    }
    reasons
}

/// Why this server cannot serve reads and writes; empty if it can.
pub async fn why_not_ready(coordinator: &Coordinator) -> Vec<String> {
    let mut reasons = why_not_ready_alone(coordinator);
    if coordinator.cluster_id().is_none() {
        return reasons; // no group to ask
    }
    match tokio::time::timeout(QUORUM_PATIENCE, coordinator.read_barrier()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => reasons.push(error.to_string()),
        Err(_) if !coordinator.has_leader() => reasons.push("no leader is known".to_owned()),
        Err(_) => reasons.push(format!("no quorum confirmed the leader within {QUORUM_PATIENCE:?}")),
    }
    reasons
}

/// `GET /metrics`.
pub async fn metrics(State(api): State<ProbesApi>) -> Response {
    ([(header::CONTENT_TYPE, weft_core::metrics::CONTENT_TYPE)], api.telemetry.scrape()).into_response()
}
