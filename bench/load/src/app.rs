//! A small service for the demo: it may call another one, be slow, or fail, as it is told.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;

use crate::http_rate::Connection;

/// What it is and calls.
pub struct App {
    name: String,
    /// The service that it calls for each request, and the sidecar's address for calls.
    calls: Option<(String, SocketAddr)>,
    /// Connections to the sidecar that wait for the next call.
    idle: Mutex<Vec<Connection>>,
    delay_ms: AtomicU64,
    status: AtomicU16,
}

/// Answers `GET /` with its name and that of whoever answered its own call, until the process is ended. `PUT
/// /?delay_ms=N&status=N` makes it slow or failing from then on.
pub async fn run(
    listen: SocketAddr,
    name: String,
    calls: Option<(String, SocketAddr)>,
) -> anyhow::Result<()> {
    let listener =
        tokio::net::TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    println!("listening on {}", listener.local_addr()?);
    let app = Arc::new(App {
        name,
        calls,
        idle: Mutex::default(),
        delay_ms: AtomicU64::new(0),
        status: AtomicU16::new(200),
    });
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let app = app.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let app = app.clone();
                async move { Ok::<_, Infallible>(app.answer(&request).await) }
            });
            // A sidecar that goes away ends its connections; that is no error here.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

impl App {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() == Method::PUT {
            return match self.change(request.uri().query().unwrap_or_default()) {
                Ok(()) => say(StatusCode::OK, "changed".to_owned()),
                Err(error) => say(StatusCode::BAD_REQUEST, format!("{error:#}")),
            };
        }
        let delay = self.delay_ms.load(Relaxed);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        let status = StatusCode::from_u16(self.status.load(Relaxed)).unwrap_or(StatusCode::OK);
        let Some((service, sidecar)) = &self.calls else { return say(status, self.name.clone()) };
        match self.call(service, *sidecar).await {
            Ok((StatusCode::OK, below)) => say(status, format!("{} < {below}", self.name)),
            Ok((bad, below)) => {
                say(StatusCode::BAD_GATEWAY, format!("{}: {service} answered {bad}: {below}", self.name))
            }
            Err(error) => {
                say(StatusCode::BAD_GATEWAY, format!("{}: {service} is not reached: {error:#}", self.name))
            }
        }
    }

    async fn call(&self, service: &str, sidecar: SocketAddr) -> anyhow::Result<(StatusCode, String)> {
        let idle = self.idle.lock().pop();
        let mut connection = idle.unwrap_or_else(|| Connection::new(sidecar));
        let (status, body) = connection.get(service).await?;
        self.idle.lock().push(connection);
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Takes `delay_ms=N&status=N`, either or both.
    fn change(&self, query: &str) -> anyhow::Result<()> {
        for pair in query.split('&') {
            match pair.split_once('=') {
                Some(("delay_ms", ms)) => {
                    self.delay_ms.store(ms.parse().with_context(|| format!("delay_ms {ms:?}"))?, Relaxed);
                }
                Some(("status", code)) => {
                    let status: StatusCode = code.parse().with_context(|| format!("status {code:?}"))?;
                    self.status.store(status.as_u16(), Relaxed);
                }
                _ => anyhow::bail!("{pair:?} is neither delay_ms=MILLISECONDS nor status=CODE"),
            }
        }
        Ok(())
    }
}

fn say(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer
}
