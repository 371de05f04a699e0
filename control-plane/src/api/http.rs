//! The HTTP port: one router, with JSON answers also for what it does not know.

use std::time::Instant;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use http::{Method, StatusCode, Uri};

use super::probes::{self, ProbesApi};
use super::problem::ApiError;
use super::profile::{self, ProfileApi};
use super::registry::{self, BODY_BYTES_MAX, RegistryApi};
use crate::listener::ShownCertificate;
use crate::telemetry::Telemetry;

/// What there is, for whoever asks for something else.
const ROUTES: [&str; 9] = [
    "POST /register",
    "PUT /heartbeat/{service}/{id}",
    "DELETE /deregister/{service}/{id}",
    "GET /discover/{service}",
    "GET /services",
    "GET /livez",
    "GET /readyz",
    "GET /metrics",
    "GET /profile",
];

/// The router of the HTTP port.
///
/// With `certificates`, all but the probes needs a client that has shown one: probes come from what runs the
/// processes, which has none, and change nothing.
pub fn router(registry: RegistryApi, probes: ProbesApi, profile: ProfileApi, certificates: bool) -> Router {
    let telemetry = probes.telemetry.clone();
    let registry_routes = Router::new()
        .route("/register", post(registry::register))
        .route("/heartbeat/{service}/{id}", put(registry::heartbeat))
        .route("/deregister/{service}/{id}", delete(registry::deregister))
        .route("/discover/{service}", get(registry::discover))
        .route("/services", get(registry::services))
        .with_state(registry);
    let probe_routes = Router::new()
        .route("/livez", get(probes::livez))
        .route("/readyz", get(probes::readyz))
        .route("/metrics", get(probes::metrics))
        .with_state(probes);
    let profile_routes = Router::new().route("/profile", get(profile::profile)).with_state(profile);
    let guarded = registry_routes.merge(profile_routes);
    let guarded = match certificates {
        true => guarded.route_layer(middleware::from_fn(with_certificate)),
        false => guarded,
    };
    guarded
        .merge(probe_routes)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(telemetry, observe))
}

async fn with_certificate(request: Request, next: Next) -> Response {
    if request.extensions().get() == Some(&ShownCertificate(true)) {
        return next.run(request).await;
    }
    ApiError::new(
        StatusCode::FORBIDDEN,
        "a client certificate is required for this, and none was shown: give one that the servers' --tls-client-ca signed",
    )
    .into_response()
}

async fn no_such_path(method: Method, uri: Uri) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no {method} {}", uri.path()))
        .with("allowed", ROUTES.to_vec())
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let first = uri.path().split('/').nth(1).unwrap_or_default();
    let here: Vec<&str> =
        ROUTES.into_iter().filter(|r| r.split('/').nth(1).is_some_and(|segment| segment == first)).collect();
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not allowed on {}", uri.path()))
        .with("allowed", here)
}

/// Counts and times every request by route, never by path: paths are chosen by clients.
async fn observe(State(telemetry): State<Telemetry>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map(|m| m.as_str().to_owned());
    let response = next.run(request).await;
    telemetry.http_request(
        route.as_deref().unwrap_or("unknown"),
        response.status().as_u16(),
        started.elapsed(),
    );
    response
}
