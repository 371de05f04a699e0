//! A small HTTP service that says who it is, and can be stopped and started on the same port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// Answers every request with its name, `/health` with 200.
pub struct FakeUpstream {
    name: String,
    addr: SocketAddr,
    served: Arc<AtomicU64>,
    status: Arc<AtomicU16>,
    task: Option<JoinHandle<()>>,
}

impl FakeUpstream {
    /// Starts on a free loopback port.
    pub async fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let mut upstream = Self {
            name: name.to_owned(),
            addr,
            served: Arc::default(),
            status: Arc::new(AtomicU16::new(200)),
            task: None,
        };
        upstream.serve(listener);
        upstream
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its name, which is also its answer.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Requests answered, health checks not counted.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Answer with this status from now on (health checks stay 200).
    pub fn answer_with(&self, status: StatusCode) {
        self.status.store(status.as_u16(), Ordering::Relaxed);
    }

    /// Closes the listener and every connection, as a crash.
    pub async fn crash(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            // A cancelled task is what we asked for.
            let _ = task.await;
        }
    }

    /// Listens again on the same port.
    pub async fn restart(&mut self) {
        self.crash().await;
        let listener = TcpListener::bind(self.addr).await.expect("the port was ours a moment ago");
        self.serve(listener);
    }

    fn serve(&mut self, listener: TcpListener) {
        let (name, served, status) = (self.name.clone(), self.served.clone(), self.status.clone());
        self.task = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (name, served, status) = (name.clone(), served.clone(), status.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let answer = answer(&request, &name, &served, &status);
                        async move { Ok::<_, std::convert::Infallible>(answer) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        }));
    }
}

impl Drop for FakeUpstream {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

fn answer(
    request: &Request<Incoming>,
    name: &str,
    served: &AtomicU64,
    status: &AtomicU16,
) -> Response<Full<Bytes>> {
    let status = if request.uri().path() == "/health" {
        StatusCode::OK
    } else {
        served.fetch_add(1, Ordering::Relaxed);
        StatusCode::from_u16(status.load(Ordering::Relaxed)).expect("set from a status code")
    };
    Response::builder()
        .status(status)
        .body(Full::new(Bytes::from(format!("{name}\n"))))
        .expect("a plain answer")
}
