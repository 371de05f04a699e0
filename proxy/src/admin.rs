//! The admin port: what this proxy knows and does, for people and probes. Reads snapshots only, on the control
//! runtime.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::{AbortHandle, JoinSet};
use weft_core::id::NodeId;
use weft_gossip::GossipHandle;

use crate::app::ProxyAddrs;
use crate::cluster::security::ProxyTls;
use crate::config::ProxyConfig;
use crate::health::LocalServices;
use crate::limits::ADMIN_HEAD_BYTES_MAX;
use crate::mesh_view::MeshState;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::tap::Taps;

mod admission;
mod certs;
pub(crate) mod clusters;
mod config_dump;
mod explain;
mod log_level;
mod ready;
mod runtime;
mod tap;

/// Everything that is shown.
pub(crate) struct AdminState {
    pub config: ProxyConfig,
    pub addrs: ProxyAddrs,
    pub node_id: NodeId,
    pub outbound: Arc<MeshState>,
    pub inbound: Arc<MeshState>,
    pub local: Arc<LocalServices>,
    pub gossip: Option<GossipHandle>,
    pub metrics: Metrics,
    pub tls: ProxyTls,
    pub taps: Arc<Taps>,
    pub draining: Arc<AtomicBool>,
    pub started: Instant,
}

impl AdminState {
    /// See [`ready`].
    pub fn why_not_ready(&self) -> Option<String> {
        ready::why_not(self)
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}

/// Connections at once; an admin port has few visitors. One more ends the oldest.
const CONNECTIONS_MAX: usize = 64;
/// For a request head, and for the next request on a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

const PATHS: [(&str, &str); 11] = [
    ("/ready", "200 if this proxy takes requests, else 503 and why not"),
    (
        "/clusters",
        "services with endpoints, health, ejection, requests in flight, source and age; ?format=json",
    ),
    ("/config_dump", "configuration and the present snapshot, as JSON"),
    ("/certs", "certificates in use: names, end, source, when they were loaded, as JSON"),
    ("/members", "the gossip pool as this proxy sees it; ?format=json"),
    ("/explain", "what becomes of a request and why: ?host=orders&path=/a&method=GET&header=NAME:VALUE"),
    (
        "/admission",
        "whether a request would be let in here and why: as /explain, with identity=SPIFFE_ID&address=IP",
    ),
    ("/tap", "requests as they end, one JSON object a line: ?service=orders&status=5xx&limit=10"),
    ("/metrics", "Prometheus metrics"),
    ("/runtime", "this process: version, memory, connections, what is logged and traced, as JSON"),
    ("/log-level", "what is logged to stderr; PUT another level to change it"),
];

/// Serves until it is aborted; its connections end with it.
pub(crate) async fn run(socket: std::net::TcpListener, state: Arc<AdminState>) {
    let listener = match tokio::net::TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "admin port does not work");
            return;
        }
    };
    let mut connections = JoinSet::new();
    let mut oldest_first = VecDeque::new();
    loop {
        while connections.try_join_next().is_some() {}
        oldest_first.retain(|task: &AbortHandle| !task.is_finished());
        if oldest_first.len() >= CONNECTIONS_MAX
            && let Some(oldest) = oldest_first.pop_front()
        {
            // Visitors who never leave must not keep a probe out.
            oldest.abort();
        }
        let Ok((stream, _)) = listener.accept().await else {
            // Such as no free file descriptor: it may pass.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let state = state.clone();
        let task = connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let state = state.clone();
                async move {
                    Ok::<_, Infallible>(match (request.method(), request.uri().path()) {
                        (&Method::PUT, "/log-level") => {
                            log_level::change(request.into_body()).await.map(Either::Left)
                        }
                        (&Method::GET, "/tap") => {
                            match tap::open(&state.taps, request.uri().query().unwrap_or_default()) {
                                Ok(lines) => lines.map(Either::Right),
                                Err((status, why)) => text(status, why).map(Either::Left),
                            }
                        }
                        _ => answer(&state, &request).map(Either::Left),
                    })
                }
            });
            let serving = http1::Builder::new()
                .max_buf_size(ADMIN_HEAD_BYTES_MAX)
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = serving.await {
                tracing::debug!(%error, "admin connection ended");
            }
        });
        oldest_first.push_back(task);
    }
}

fn answer(state: &AdminState, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let json = request.uri().query().is_some_and(|q| q.split('&').any(|p| p == "format=json"));
    let known = path == "/" || PATHS.iter().any(|(p, _)| *p == path);
    if known && !matches!(*request.method(), Method::GET | Method::HEAD) {
        let (words, allow) = match path {
            "/log-level" => ("GET and PUT", "GET, HEAD, PUT"),
            _ => ("GET", "GET, HEAD"),
        };
        let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, format!("{path} takes {words}\n"));
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        return answer;
    }
    match path {
        "/ready" => match ready::why_not(state) {
            None => text(StatusCode::OK, "ready\n".to_owned()),
            Some(reason) => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")),
        },
        "/clusters" if json => json_answer(&clusters::json(state)),
        "/clusters" => text(StatusCode::OK, clusters::text(state)),
        "/config_dump" => json_answer(&config_dump::json(state)),
        "/certs" => json_answer(&certs::json(state)),
        "/members" if json => json_answer(&config_dump::members(state)),
        "/members" => text(StatusCode::OK, config_dump::members_text(state)),
        "/metrics" => {
            state.outbound.show_load();
            state.inbound.show_load();
            let mut answer = text(StatusCode::OK, state.metrics.encode());
            let kind = HeaderValue::from_static(weft_core::metrics::CONTENT_TYPE);
            answer.headers_mut().insert(CONTENT_TYPE, kind);
            answer
        }
        "/explain" | "/admission" => {
            let query = request.uri().query().unwrap_or_default();
            let told = match path {
                "/explain" => explain::json(state, query),
                _ => admission::json(state, query),
            };
            told.map_or_else(|(status, why)| text(status, why), |told| json_answer(&told))
        }
        "/tap" => text(StatusCode::OK, String::new()),
        "/runtime" => json_answer(&runtime::json(state)),
        "/log-level" => log_level::show(),
        "/" => text(StatusCode::OK, known_paths()),
        other => text(StatusCode::NOT_FOUND, format!("no {other} here; known are:\n{}", known_paths())),
    }
}

/// The pairs of a query; the last of equal keys counts.
pub(crate) fn query(text: &str) -> Result<HashMap<String, String>, String> {
    pairs(text).collect()
}

/// All of them, in their order.
fn pairs(text: &str) -> impl Iterator<Item = Result<(String, String), String>> {
    text.split('&').filter(|pair| !pair.is_empty()).map(pair)
}

/// A key and its value, without their escapes.
fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} has no ="))?;
    let plain = |text: &str| {
        let text = text.replace('+', " ");
        let bytes = text.as_bytes();
        let mut out = Vec::with_capacity(bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            let escape = |b: &[u8]| u8::from_str_radix(std::str::from_utf8(b).ok()?, 16).ok();
            match (bytes[at], bytes.get(at + 1..at + 3).and_then(escape)) {
                (b'%', Some(byte)) => {
                    out.push(byte);
                    at += 2;
                }
                (byte, _) => out.push(byte),
            }
            at += 1;
        }
        String::from_utf8(out).map_err(|_| format!("{text:?} is no UTF-8"))
    };
    Ok((plain(key)?, plain(value)?))
}

fn known_paths() -> String {
    PATHS.iter().map(|(path, what)| format!("  {path:<13} {what}\n")).collect()
}

fn text(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

fn json_answer(value: &serde_json::Value) -> Response<Full<Bytes>> {
    let mut answer = text(StatusCode::OK, format!("{value:#}\n"));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// Shown where an address may be missing.
fn optional(addr: Option<SocketAddr>) -> Option<String> {
    addr.map(|a| a.to_string())
}
