//! `/health` and `/version`, as etcd has them.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde_json::json;

use crate::api::etcd::API_VERSION;
use crate::api::probes::{why_not_ready, why_not_ready_alone};
use crate::raft::Coordinator;

/// `GET /health`: whether this server can serve, which takes a majority of the group. With `?serializable=true`, as
/// etcd has it: whether it can answer from what it has.
pub(super) async fn health(State(coordinator): State<Coordinator>, RawQuery(query): RawQuery) -> Response {
    let alone = query.is_some_and(|query| query.split('&').any(|pair| pair == "serializable=true"));
    let reasons = if alone { why_not_ready_alone(&coordinator) } else { why_not_ready(&coordinator).await };
    let healthy = reasons.is_empty();
    let status = if healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    // Text, not a boolean: that is what etcd's clients compare with.
    let body = json!({ "health": healthy.to_string(), "reason": reasons.join("; ") });
    (status, Json(body)).into_response()
}

/// `GET /version`: the version of etcd's API that is spoken.
pub(super) async fn version() -> Response {
    Json(json!({ "etcdserver": API_VERSION, "etcdcluster": API_VERSION })).into_response()
}
