//! `/explain`: [`crate::explain`] of what this proxy knows now.

use http::StatusCode;
use serde_json::Value;

use super::AdminState;
use crate::explain;

/// The answer, or what is wrong with the question: `host=orders&path=/a&method=GET&header=NAME:VALUE`.
pub(super) fn json(state: &AdminState, query: &str) -> Result<Value, (StatusCode, String)> {
    let pairs: Result<Vec<_>, _> = super::pairs(query).collect();
    let head = pairs.and_then(|pairs| explain::question(pairs, &[]));
    let head = head.map_err(|why| (StatusCode::BAD_REQUEST, format!("{why}\n")))?;
    let mut told = explain::explain(&state.outbound.view(), &head);
    told["identity"] = state.tls.mesh.as_ref().map(|mesh| mesh.id.as_str()).into();
    Ok(told)
}
