//! `/log-level`: what is logged to stderr, shown and changed while the proxy runs.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use weft_core::telemetry::{self, SetLevelError};

use super::text;

/// Longest level, in bytes: one of a few modules.
const LEVEL_BYTES_MAX: usize = 1024;

pub(super) fn show() -> Response<Full<Bytes>> {
    let level = telemetry::level().unwrap_or_else(|| "set by the process that this proxy runs in".to_owned());
    text(StatusCode::OK, format!("{level}\n"))
}

/// Takes the level from the request's body.
pub(super) async fn change(body: Incoming) -> Response<Full<Bytes>> {
    let Ok(read) = Limited::new(body, LEVEL_BYTES_MAX).collect().await else {
        let why = format!("the level did not come, or is longer than {LEVEL_BYTES_MAX} bytes\n");
        return text(StatusCode::BAD_REQUEST, why);
    };
    let bytes = read.to_bytes();
    let level = String::from_utf8_lossy(&bytes);
    match telemetry::set_level(level.trim()) {
        Ok(()) => {
            tracing::info!(level = level.trim(), "the log level was changed");
            show()
        }
        Err(error @ SetLevelError::Refused(_)) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        Err(error @ SetLevelError::NotOurs) => text(StatusCode::CONFLICT, format!("{error}\n")),
    }
}
