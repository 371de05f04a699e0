//! etcd's JSON gateway: the etcd API as HTTP with JSON, for `curl` and for clients without gRPC.
//!
//! ```text
//! POST /v3/kv/put {"key":"Zm9v","value":"YmFy"}
//!   ─► JSON to protobuf, by the message's descriptor ([`transcode`])
//!   ─► the same gRPC service that clients on the port call, in this process ([`call`])
//!   ─► protobuf to JSON
//! ```
//! Since it is the same service, what is permitted, limited and counted is the same: the gateway decides nothing. The
//! rules of the mapping are grpc-gateway's as etcd 3.5 has them: bytes in base64, 64-bit integers as text (numbers are
//! read too), enums by name (numbers are read too), fields in snake_case (camelCase is read too), fields with default
//! values left out, unknown fields refused. A stream is one JSON object a line, `{"result":…}`, and at last
//! `{"error":…}` if it was cut. Refusals are `{"error","message","code"}` under the HTTP status that belongs to the
//! code ([`refusal`]).
//!
//! Where it departs: more than one JSON value in the body of a call that takes one is refused, not ignored, and a path
//! or method that does not exist is answered in JSON too.

mod call;
mod health;
mod methods;
mod refusal;
mod stream;
mod transcode;

use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use tonic::Code;

use super::etcd::limits::REQUEST_BYTES_MAX;
use super::front::says_grpc;
use super::probes::{self, ProbesApi};
use crate::telemetry::Telemetry;
use methods::Call;
use refusal::Refusal;
use stream::Values;

/// Largest body, and largest single message of a stream, in bytes: the largest request that etcd takes, in base64
/// (a third more), with room for names and quotes. So the largest requests are still refused in etcd's own words.
pub const BODY_BYTES_MAX: usize = 2 * REQUEST_BYTES_MAX;

/// How long a client may take to send the body of a call, or the first message of a stream.
const BODY_MAX: Duration = Duration::from_secs(30);

/// Headers with this prefix become metadata, without it: grpc-gateway's way to say `hasleader` and the like.
const METADATA_PREFIX: &str = "grpc-metadata-";

/// Headers that become metadata under their own name: who asks.
const METADATA: [&str; 2] = ["authorization", "token"];

/// Weft's own metadata, such as the name of a request that may be repeated (see [`super::caller`]).
const METADATA_OF_WEFT: &str = "weft-";

/// What the handlers share.
#[derive(Clone)]
struct Gateway {
    /// The services of the port.
    grpc: Router,
}

/// Everything on the gRPC port that is not gRPC; `grpc` is what is.
pub fn router(grpc: Router, probes: ProbesApi) -> Router {
    let telemetry = probes.telemetry.clone();
    let health_routes = Router::new()
        .route("/health", get(health::health))
        .route("/version", get(health::version))
        .with_state(probes.coordinator.clone());
    // etcd has them on this port too, and `etcdctl check datascale` reads them here.
    let metrics_route = Router::new().route("/metrics", get(probes::metrics)).with_state(probes);
    Router::new()
        .route("/v3/{*path}", any(answer))
        .with_state(Gateway { grpc })
        .merge(health_routes)
        .merge(metrics_route)
        .fallback(no_such_path)
        .method_not_allowed_fallback(only_get)
        .layer(middleware::from_fn_with_state(telemetry, observe))
}

async fn answer(State(gateway): State<Gateway>, request: Request) -> Response {
    let found = methods::find(request.uri().path());
    match found {
        None => no_such_path(request).await.into_response(),
        Some(_) if request.method() != Method::POST => {
            not_allowed(&request, "POST", "POST, with the request as JSON").into_response()
        }
        Some(Call::Refused { text, .. }) => {
            Refusal::new(Code::Unimplemented, text.to_owned()).into_response()
        }
        Some(Call::Of { method, .. }) => match gateway.call(method, request).await {
            Ok(response) => response,
            Err(refusal) => refusal.into_response(),
        },
    }
}

impl Gateway {
    async fn call(&self, name: &str, request: Request) -> Result<Response, Refusal> {
        let (head, body) = request.into_parts();
        if let Some(encoding) = head.headers.get(header::CONTENT_ENCODING).filter(|e| *e != "identity") {
            return Err(Refusal::new(
                Code::InvalidArgument,
                format!("content-encoding {encoding:?} is not understood: send the JSON as it is"),
            )
            .with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let method = transcode::method(name);
        let metadata = metadata(&head.headers);
        let mut values = Values::new(body, method.input());
        if method.is_client_streaming() {
            let first = in_time(values.next()).await?;
            let first =
                first.ok_or_else(|| Refusal::invalid("the body is empty: it begins with a JSON object"))?;
            return stream::both_ways(self.grpc.clone(), &method, metadata, head.extensions, first, values)
                .await;
        }
        let message = in_time(values.only()).await?;
        let mut answers =
            call::start(self.grpc.clone(), name, metadata, head.extensions, message.into()).await?;
        if method.is_server_streaming() {
            return Ok(stream::lines(answers, method.output(), Default::default()));
        }
        let answer = answers.only().await?;
        Ok(json(transcode::json(method.output(), answer)?))
    }
}

/// Names and values for the service: as little as possible of what a client may put into headers.
fn metadata(headers: &HeaderMap) -> HeaderMap {
    let mut metadata = HeaderMap::new();
    for (name, value) in headers {
        let name = match name.as_str().strip_prefix(METADATA_PREFIX) {
            // What frames a message, or is gRPC's own, is not the client's to say.
            Some("te" | "content-type" | "content-length" | "host" | "connection") => continue,
            Some(rest) if rest.starts_with("grpc-") => continue,
            Some(rest) => match HeaderName::try_from(rest) {
                Ok(name) => name,
                Err(_) => continue,
            },
            None if METADATA.contains(&name.as_str()) || name.as_str().starts_with(METADATA_OF_WEFT) => {
                name.clone()
            }
            None => continue,
        };
        metadata.append(name, value.clone());
    }
    metadata
}

async fn in_time<T>(read: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    tokio::time::timeout(BODY_MAX, read).await.unwrap_or_else(|_| {
        Err(Refusal::new(Code::DeadlineExceeded, format!("the body did not arrive within {BODY_MAX:?}"))
            .with_status(StatusCode::REQUEST_TIMEOUT))
    })
}

fn json(body: impl Into<Bytes>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body.into()).into_response()
}

async fn no_such_path(request: Request) -> Refusal {
    if says_grpc(request.headers()) {
        return Refusal::new(
            Code::Unimplemented,
            format!("gRPC over {:?}: it needs HTTP/2 from the first byte on", request.version()),
        )
        .with_status(StatusCode::HTTP_VERSION_NOT_SUPPORTED);
    }
    Refusal::new(
        Code::NotFound,
        format!(
            "there is no {}: this port has gRPC, /v3/… as etcd's gateway has it (POST /v3/kv/range), /health, /version and /metrics",
            request.uri().path()
        ),
    )
}

async fn only_get(request: Request) -> Response {
    not_allowed(&request, "GET", "GET").into_response()
}

fn not_allowed(request: &Request, allow: &'static str, allowed: &str) -> Response {
    let text = format!("{} is not allowed on {}: use {allowed}", request.method(), request.uri().path());
    let refusal = Refusal::new(Code::Unimplemented, text).with_status(StatusCode::METHOD_NOT_ALLOWED);
    ([(header::ALLOW, allow)], refusal).into_response()
}

/// Counts and times requests by route, as on the HTTP port. What they call is counted as gRPC's.
async fn observe(State(telemetry): State<Telemetry>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let path = request.uri().path();
    let route = match methods::find(path) {
        Some(known) => known.path(),
        None => {
            ["/health", "/version", "/metrics"].into_iter().find(|known| *known == path).unwrap_or("unknown")
        }
    };
    let response = next.run(request).await;
    telemetry.http_request(route, response.status().as_u16(), started.elapsed());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_asks_and_what_is_meant_as_metadata_reaches_the_service() {
        let headers: HeaderMap = [
            ("authorization", "t"),
            ("host", "h"),
            ("cookie", "c"),
            ("weft-seq", "7"),
            ("grpc-metadata-hasleader", "true"),
            ("grpc-metadata-grpc-timeout", "1S"),
            ("grpc-metadata-te", "x"),
            ("grpc-metadata-", "x"),
        ]
        .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
        .into_iter()
        .collect();
        let metadata = metadata(&headers);
        let mut names: Vec<&str> = metadata.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "hasleader", "weft-seq"]);
    }
}
