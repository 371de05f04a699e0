//! Refusals as grpc-gateway writes them, with the HTTP statuses that it gives gRPC's codes.

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;
use tonic::{Code, Status};

use crate::api::etcd::status::DETAIL;

/// The header in which what Weft knows beyond etcd's text travels: grpc-gateway's form of metadata.
const DETAIL_HEADER: HeaderName = HeaderName::from_static("grpc-metadata-weft-detail");

/// A refused request.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    code: Code,
    status: StatusCode,
    message: String,
    detail: Option<HeaderValue>,
}

impl Refusal {
    /// With the HTTP status of the code.
    pub(super) fn new(code: Code, message: String) -> Self {
        Self { code, status: http_status(code), message, detail: None }
    }

    /// Something is wrong with what the client sent.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message.into())
    }

    /// With an HTTP status that says it better than the code's.
    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// As the last line of a stream that has begun, when there is no status any more to say it with.
    pub(super) fn line(&self) -> Bytes {
        let line = json!({ "error": {
            "grpc_code": self.code as i32,
            "http_code": self.status.as_u16(),
            "message": self.message,
            "http_status": self.status.canonical_reason().unwrap_or_default(),
        } });
        format!("{line}\n").into()
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        let detail = status.metadata().as_ref().get(DETAIL).cloned();
        Self { detail, ..Self::new(status.code(), status.message().to_owned()) }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        // `error` is the older name of `message`; clients read either.
        let body = json!({ "error": self.message, "message": self.message, "code": self.code as i32 });
        let mut response = (self.status, axum::Json(body)).into_response();
        if let Some(detail) = self.detail {
            response.headers_mut().insert(DETAIL_HEADER, detail);
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            // An election takes about a second.
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

/// grpc-gateway's table (its `HTTPStatusFromCode`), as etcd's clients know it.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refusal_has_its_text_under_both_names_its_code_and_the_detail_as_a_header() {
        let mut status = Status::not_found("etcdserver: requested lease not found");
        status.metadata_mut().insert(DETAIL, "lease 7".parse().expect("a value"));
        let response = Refusal::from(status).into_response();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()["grpc-metadata-weft-detail"], "lease 7");
        let body = axum::body::to_bytes(response.into_body(), 1024).await.expect("a body");
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let text = "etcdserver: requested lease not found";
        assert_eq!(body, json!({ "error": text, "message": text, "code": 5 }));
    }

    #[test]
    fn within_a_stream_a_refusal_is_a_line_with_both_statuses() {
        let line = Refusal::from(Status::unavailable("etcdserver: no leader")).line();
        let line: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
        assert_eq!(
            line,
            json!({ "error": {
                "grpc_code": 14, "http_code": 503, "message": "etcdserver: no leader",
                "http_status": "Service Unavailable",
            } })
        );
    }
}
