//! What the demo services answer.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;

use super::http::{call, json, text};

/// The path on which each instance says that it is well.
pub(crate) const HEALTH_PATH: &str = "/health";

/// What an instance does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Service {
    /// Says which instance it is.
    Hello,
    /// Calls `hello` through the sidecar and passes its answer on.
    Greeter {
        /// The sidecar's outbound listener.
        sidecar: SocketAddr,
    },
}

impl Service {
    /// Name in the registry.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Hello => "hello",
            Self::Greeter { .. } => "greeter",
        }
    }

    pub(crate) async fn answer(
        &self,
        request: Request<Incoming>,
        instance: &str,
        address: SocketAddr,
    ) -> Response<Full<Bytes>> {
        if request.uri().path() == HEALTH_PATH {
            return json(StatusCode::OK, "{\"status\":\"UP\"}\n");
        }
        match self {
            Self::Hello => text(StatusCode::OK, format!("hello from {instance} at {address}\n")),
            Self::Greeter { sidecar } => match call(*sidecar, "hello", Method::GET, "/", None).await {
                Ok(answer) if answer.status == StatusCode::OK => {
                    text(StatusCode::OK, format!("{instance} asked the mesh for hello: {}", answer.body))
                }
                Ok(answer) => text(
                    StatusCode::BAD_GATEWAY,
                    format!("{instance}: hello answered {}: {}", answer.status, answer.body),
                ),
                Err(why) => {
                    text(StatusCode::BAD_GATEWAY, format!("{instance}: the sidecar did not answer: {why}\n"))
                }
            },
        }
    }
}
