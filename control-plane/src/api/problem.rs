//! Errors of the HTTP API: always JSON, always with what was seen and what is allowed.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use weft_state::error::StoreError;

use super::caller::CallerError;
use super::registry::validate::Problem;
use super::status;
use crate::raft::{LeaseError, ProposeError};

/// Most problems of one request that are told: a body of wrong fields only would else be answered with fifty
/// times its size.
const PROBLEMS_SHOWN_MAX: usize = 20;

/// An error answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// The JSON object that is answered; has at least `error`.
    pub body: Value,
}

impl ApiError {
    /// With a text alone.
    pub fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, body: json!({ "error": error.into() }) }
    }

    /// One more member of the object.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.body[key] = value.into();
        self
    }

    /// 400 for everything that is wrong with a request. The first problem is at the top level; all are in
    /// `problems` if there are several.
    pub fn invalid(problems: &[Problem]) -> Self {
        let Some(first) = problems.first() else {
            return Self::new(StatusCode::BAD_REQUEST, "bad request");
        };
        let shown = &problems[..problems.len().min(PROBLEMS_SHOWN_MAX)];
        let mut texts: Vec<String> = shown.iter().map(|p| format!("{} {}", p.field, p.error)).collect();
        if shown.len() < problems.len() {
            texts.push(format!("and {} more", problems.len() - shown.len()));
        }
        let error = Self::new(StatusCode::BAD_REQUEST, texts.join("; "))
            .with("field", first.field.as_str())
            .with("allowed", first.allowed.as_str());
        if problems.len() == 1 {
            return error;
        }
        let all: Vec<Value> = shown
            .iter()
            .map(|p| json!({ "field": p.field, "error": p.error, "allowed": p.allowed }))
            .collect();
        error.with("problems", all)
    }
}

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        Self::new(status::http_propose(&error), error.to_string())
    }
}

impl From<CallerError> for ApiError {
    fn from(error: CallerError) -> Self {
        match error {
            CallerError::InvalidToken => Self::new(StatusCode::UNAUTHORIZED, error.to_string()),
            CallerError::Auth(error) => StoreError::from(error).into(),
            CallerError::Unavailable(error) => error.into(),
            CallerError::BadEntry { .. } => Self::new(StatusCode::BAD_REQUEST, error.to_string()),
        }
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::new(status::http_store(&error), error.to_string())
    }
}

impl From<LeaseError> for ApiError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Store(e) => e.into(),
            LeaseError::Unavailable(e) => e.into(),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body)).into_response();
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            // An election takes about a second.
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::super::registry::validate;
    use super::*;

    #[test]
    fn a_body_of_wrong_fields_is_not_answered_with_a_larger_one() {
        let fields: Vec<String> = (0..10_000).map(|i| format!("\"f{i}\":1")).collect();
        let body = format!("{{{}}}", fields.join(","));
        let problems = validate::registration(body.as_bytes()).expect_err("all are unknown");
        let answer = ApiError::invalid(&problems).body.to_string();
        assert!(answer.len() < 16 * 1024, "{} bytes", answer.len());
        assert!(answer.contains("service is missing") && answer.contains("more"), "{answer}");
    }
}
