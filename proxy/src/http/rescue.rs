//! The one place where errors become answers: a total match, so that a new error cannot be forgotten.

use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};

use super::body::ResponseBody;
use super::error::RequestError;

/// Says that the answer is the proxy's own, and why, in one word.
pub(crate) const X_WEFT_ERROR: HeaderName = HeaderName::from_static("x-weft-error");

/// [`X_WEFT_ERROR`] of a sidecar whose app is down: the request reached nobody, so a peer may send it elsewhere.
pub(crate) const LOCAL_APP_DOWN: &str = "local-app-down";

/// Status and one-word reason.
pub(crate) fn status(error: &RequestError) -> (StatusCode, &'static str) {
    use RequestError as E;
    match error {
        E::Refused(refusal) => (refusal.status(), refusal.label()),
        E::Connect => (StatusCode::NOT_IMPLEMENTED, "connect"),
        E::ConnectTarget(_) => (StatusCode::BAD_REQUEST, "connect-target"),
        E::ConnectRefused { .. } => (StatusCode::FORBIDDEN, "connect-refused"),
        E::NoHost | E::BadHost { .. } | E::TwoHosts { .. } => (StatusCode::BAD_REQUEST, "bad-host"),
        E::Scheme(_) => (StatusCode::BAD_REQUEST, "bad-scheme"),
        E::Expectation(_) => (StatusCode::EXPECTATION_FAILED, "expectation"),
        E::Loop(_) => (StatusCode::LOOP_DETECTED, "loop"),
        E::UnknownHost { .. } | E::Absent { .. } => (StatusCode::NOT_FOUND, "unknown-host"),
        E::NoControlPlane { .. } => (StatusCode::SERVICE_UNAVAILABLE, "no-control-plane"),
        E::NotResolved { .. } => (StatusCode::SERVICE_UNAVAILABLE, "not-resolved"),
        E::NoRoute { .. } => (StatusCode::NOT_FOUND, "no-route"),
        E::BadPath(_) => (StatusCode::BAD_REQUEST, "bad-path"),
        E::BadRewrite { .. } => (StatusCode::BAD_REQUEST, "bad-rewrite"),
        E::NoCluster { .. } => (StatusCode::SERVICE_UNAVAILABLE, "no-cluster"),
        E::NoReadyEndpoint { .. } => (StatusCode::SERVICE_UNAVAILABLE, "no-endpoint"),
        E::CannotConnect { .. } => (StatusCode::SERVICE_UNAVAILABLE, "connect-failed"),
        E::Shortage(_) => (StatusCode::SERVICE_UNAVAILABLE, "shortage"),
        E::LocalAppDown { .. } => (StatusCode::SERVICE_UNAVAILABLE, LOCAL_APP_DOWN),
        E::Broken { .. } => (StatusCode::BAD_GATEWAY, "upstream-closed"),
        E::BadAnswer { .. } => (StatusCode::BAD_GATEWAY, "upstream-invalid"),
        E::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, "upstream-timeout"),
        E::BadDeadline(_) => (StatusCode::BAD_REQUEST, "bad-deadline"),
        E::DeadlineSpent | E::DeadlineExceeded { .. } => (StatusCode::GATEWAY_TIMEOUT, "deadline"),
        E::Overflow { .. } => (StatusCode::SERVICE_UNAVAILABLE, "overflow"),
        E::SlowBody(_) => (StatusCode::REQUEST_TIMEOUT, "timeout"),
        E::ClientBody(_) => (StatusCode::BAD_REQUEST, "client-body"),
    }
}

/// The answer. After a refusal the connection is closed: what follows on it cannot be trusted.
pub(crate) fn answer(error: &RequestError) -> Response<ResponseBody> {
    let (status, reason) = status(error);
    let mut response = Response::new(ResponseBody::text(format!("{error}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(X_WEFT_ERROR, HeaderValue::from_static(reason));
    match error {
        RequestError::Refused(_)
        | RequestError::Connect
        | RequestError::ConnectTarget(_)
        | RequestError::ConnectRefused { .. }
        | RequestError::SlowBody(_)
        | RequestError::ClientBody(_) => {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        RequestError::NoReadyEndpoint { .. }
        | RequestError::NoControlPlane { .. }
        | RequestError::Overflow { .. }
        | RequestError::Shortage(_) => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    response
}
