//! The one place where errors become answers: a total match, so that a new error cannot be forgotten.

use std::time::Duration;

use http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};

use super::body::ResponseBody;
use super::error::RequestError;
use super::grpc_status;
use crate::telemetry::flag::Flag;

/// Says that the answer is the proxy's own, and why, in one word.
pub(crate) const X_WEFT_ERROR: HeaderName = HeaderName::from_static("x-weft-error");

/// Of a rate limit, as widely used: what may come at once, what is left of it, and in how many seconds it is whole.
const X_RATELIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATELIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATELIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// [`X_WEFT_ERROR`] of a sidecar whose app is down: the request reached nobody, so a peer may send it elsewhere.
pub(crate) const LOCAL_APP_DOWN: &str = Flag::LocalAppDown.word();

/// Status and reason.
pub(crate) fn status(error: &RequestError) -> (StatusCode, Flag) {
    use RequestError as E;
    match error {
        E::Refused(refusal) => (refusal.status(), Flag::Refused),
        E::Connect | E::NoExtendedConnect { .. } => (StatusCode::NOT_IMPLEMENTED, Flag::Connect),
        E::ConnectTarget(_) => (StatusCode::BAD_REQUEST, Flag::ConnectTarget),
        E::ConnectRefused { .. } => (StatusCode::FORBIDDEN, Flag::ConnectRefused),
        E::NoHost | E::BadHost { .. } | E::TwoHosts { .. } => (StatusCode::BAD_REQUEST, Flag::BadHost),
        E::Scheme(_) => (StatusCode::BAD_REQUEST, Flag::BadScheme),
        E::Expectation(_) => (StatusCode::EXPECTATION_FAILED, Flag::Expectation),
        E::Loop(_) => (StatusCode::LOOP_DETECTED, Flag::Loop),
        E::UnknownHost { .. } | E::Absent { .. } => (StatusCode::NOT_FOUND, Flag::UnknownHost),
        E::NoControlPlane { .. } => (StatusCode::SERVICE_UNAVAILABLE, Flag::NoControlPlane),
        E::NotResolved { .. } => (StatusCode::SERVICE_UNAVAILABLE, Flag::NotResolved),
        E::NoRoute { .. } => (StatusCode::NOT_FOUND, Flag::NoRoute),
        E::BadPath(_) => (StatusCode::BAD_REQUEST, Flag::BadPath),
        E::BadRewrite { .. } => (StatusCode::BAD_REQUEST, Flag::BadRewrite),
        E::NoCluster { .. } => (StatusCode::SERVICE_UNAVAILABLE, Flag::NoCluster),
        E::NoReadyEndpoint { .. } => (StatusCode::SERVICE_UNAVAILABLE, Flag::NoEndpoint),
        E::CannotConnect { .. } => (StatusCode::SERVICE_UNAVAILABLE, Flag::ConnectFailed),
        E::Shortage(_) => (StatusCode::SERVICE_UNAVAILABLE, Flag::Shortage),
        E::LocalAppDown { .. } => (StatusCode::SERVICE_UNAVAILABLE, Flag::LocalAppDown),
        E::Broken { .. } => (StatusCode::BAD_GATEWAY, Flag::UpstreamClosed),
        E::BadAnswer { .. } | E::NotSwitched => (StatusCode::BAD_GATEWAY, Flag::UpstreamInvalid),
        E::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, Flag::UpstreamTimeout),
        E::BadDeadline(_) => (StatusCode::BAD_REQUEST, Flag::BadDeadline),
        E::DeadlineSpent | E::DeadlineExceeded { .. } => (StatusCode::GATEWAY_TIMEOUT, Flag::Deadline),
        E::Forbidden { .. } => (StatusCode::FORBIDDEN, Flag::Forbidden),
        E::BadToken { .. } => (StatusCode::UNAUTHORIZED, Flag::BadToken),
        E::Overflow { .. } => (StatusCode::SERVICE_UNAVAILABLE, Flag::Overflow),
        E::Overloaded => (StatusCode::SERVICE_UNAVAILABLE, Flag::Overloaded),
        E::RateLimited { .. } | E::RouteLimited { .. } => (StatusCode::TOO_MANY_REQUESTS, Flag::RateLimited),
        E::SlowBody(_) => (StatusCode::REQUEST_TIMEOUT, Flag::SlowBody),
        E::ClientBody(_) => (StatusCode::BAD_REQUEST, Flag::ClientBody),
    }
}

/// [`X_WEFT_ERROR`] of an error: what is refused says which rule it breaks.
fn word(error: &RequestError) -> &'static str {
    match error {
        RequestError::Refused(refusal) => refusal.label(),
        error => status(error).1.word(),
    }
}

/// The answer for a gRPC caller, which takes no other for a status.
pub(crate) fn grpc_answer(error: &RequestError) -> Response<ResponseBody> {
    let (status, _) = status(error);
    let code = match error {
        RequestError::DeadlineSpent | RequestError::DeadlineExceeded { .. } => grpc_status::DEADLINE_EXCEEDED,
        _ => grpc_status::code(status),
    };
    let mut response = grpc_status::answer(code, &error.to_string());
    response.headers_mut().insert(X_WEFT_ERROR, HeaderValue::from_static(word(error)));
    response
}

/// The answer. After a refusal the connection is closed: what follows on it cannot be trusted.
pub(crate) fn answer(error: &RequestError) -> Response<ResponseBody> {
    let (status, _) = status(error);
    let mut response = Response::new(ResponseBody::text(format!("{error}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(X_WEFT_ERROR, HeaderValue::from_static(word(error)));
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
        | RequestError::Overloaded
        | RequestError::Shortage(_) => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        RequestError::BadToken { why, .. } => {
            // RFC 6750 §3: without a token nothing is said of it. The reasons have no character that would need quotes.
            let challenge = match why {
                None => "Bearer".to_owned(),
                Some(why) => format!("Bearer error=\"invalid_token\", error_description=\"{why}\""),
            };
            if let Ok(challenge) = HeaderValue::try_from(challenge) {
                headers.insert(WWW_AUTHENTICATE, challenge);
            }
        }
        RequestError::RateLimited { limit, why, .. } | RequestError::RouteLimited { limit, why, .. } => {
            // Whole seconds, and not before it is time.
            let seconds = |t: Duration| HeaderValue::from(t.as_millis().div_ceil(1000) as u64);
            headers.insert(RETRY_AFTER, seconds(why.retry_after));
            headers.insert(X_RATELIMIT_LIMIT, HeaderValue::from(limit.burst));
            headers.insert(X_RATELIMIT_REMAINING, HeaderValue::from(0));
            headers.insert(X_RATELIMIT_RESET, seconds(why.reset));
        }
        _ => {}
    }
    response
}
