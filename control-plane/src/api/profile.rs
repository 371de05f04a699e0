//! `GET /profile?seconds=N`: where this process spends its CPU time, as folded stacks.

use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use weft_state::auth::AuthState;

use super::caller::Asking;
use super::problem::ApiError;
use crate::profile::{ProfileError, Profiler, SECONDS_MAX};
use crate::raft::Coordinator;

/// Seconds, where none are said.
const SECONDS_DEFAULT: u64 = 10;

/// What the handler needs.
#[derive(Clone)]
pub struct ProfileApi {
    /// For who asks.
    pub coordinator: Coordinator,
    /// Takes the profile; none if the server was started without `--profile`.
    pub profiler: Option<Profiler>,
}

/// `GET /profile`, for administrators; for anybody while authentication is off.
pub async fn profile(
    State(api): State<ProfileApi>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Some(profiler) = &api.profiler else {
        let off = "profiling is off: start the server with --profile";
        return Err(ApiError::new(StatusCode::NOT_FOUND, off));
    };
    let asking = Asking::of(&api.coordinator, &headers).await?;
    asking.check(&api.coordinator, AuthState::check_admin).await?;
    let seconds = seconds(query.as_deref().unwrap_or_default())?;
    let folded = profiler.take(seconds).await?;
    tracing::info!(seconds, samples = folded.samples(), "a profile was taken");
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], folded.text()).into_response())
}

fn seconds(query: &str) -> Result<u64, ApiError> {
    let mut seconds = SECONDS_DEFAULT;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        seconds = match (name, value.parse::<u64>()) {
            ("seconds", Ok(value)) if (1..=SECONDS_MAX).contains(&value) => value,
            _ => {
                let text =
                    format!("{pair:?} is not understood: allowed is seconds=1 to seconds={SECONDS_MAX}");
                return Err(ApiError::new(StatusCode::BAD_REQUEST, text).with("field", name));
            }
        };
    }
    Ok(seconds)
}

impl From<ProfileError> for ApiError {
    fn from(error: ProfileError) -> Self {
        let status = match error {
            ProfileError::Busy => StatusCode::TOO_MANY_REQUESTS,
            ProfileError::NoPerf { .. } => StatusCode::NOT_IMPLEMENTED,
            ProfileError::Failed { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_bounded_and_nothing_else_is_understood() {
        assert_eq!(seconds("").ok(), Some(SECONDS_DEFAULT));
        assert_eq!(seconds("seconds=30").ok(), Some(30));
        for bad in ["seconds=0", "seconds=31", "seconds=-1", "seconds=", "seconds=1s", "second=1", "x"] {
            let refused = seconds(bad).expect_err(bad);
            assert_eq!(refused.status, StatusCode::BAD_REQUEST);
            assert!(refused.body["error"].as_str().is_some_and(|e| e.contains("seconds=30")), "{refused:?}");
        }
    }

    #[test]
    fn each_reason_has_its_status() {
        let no_perf = ProfileError::NoPerf { source: std::io::ErrorKind::NotFound.into() };
        for (error, status, text) in [
            (ProfileError::Busy, 429, "one at a time"),
            (no_perf, 501, "install it"),
            (ProfileError::Failed { said: "no permission".to_owned() }, 500, "no permission"),
        ] {
            let answer = ApiError::from(error);
            assert_eq!(answer.status.as_u16(), status);
            assert!(answer.body["error"].as_str().is_some_and(|e| e.contains(text)), "{answer:?}");
        }
    }
}
