//! A small HTTP service that says who it is, and can be told to fail, to be slow, and to stop and start on the same port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

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
    manner: Arc<Manner>,
    task: Option<JoinHandle<()>>,
}

/// How requests are answered; health checks are answered with 200 and at once.
struct Manner {
    status: AtomicU16,
    /// Every so manieth answer has the status, and the others have 200.
    each: AtomicU64,
    delay_millis: AtomicU64,
}

impl FakeUpstream {
    /// Starts on a free loopback port.
    pub async fn start(name: &str) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), name).await
    }

    /// Starts at an address of this machine; port 0 is a free one.
    pub async fn start_at(addr: SocketAddr, name: &str) -> Self {
        let listener = TcpListener::bind(addr).await.expect("the address is ours and free");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let mut upstream = Self {
            name: name.to_owned(),
            addr,
            served: Arc::default(),
            manner: Arc::new(Manner {
                status: AtomicU16::new(200),
                each: AtomicU64::new(1),
                delay_millis: AtomicU64::new(0),
            }),
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
        self.answer_each_with(1, status);
    }

    /// Answer one request of so many with this status from now on, the others with 200.
    pub fn answer_each_with(&self, each: u64, status: StatusCode) {
        self.manner.each.store(each, Ordering::Relaxed);
        self.manner.status.store(status.as_u16(), Ordering::Relaxed);
    }

    /// Take so long for each answer from now on (health checks are answered at once).
    pub fn answer_after(&self, delay: Duration) {
        self.manner.delay_millis.store(delay.as_millis() as u64, Ordering::Relaxed);
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
        let (name, served, manner) = (self.name.clone(), self.served.clone(), self.manner.clone());
        self.task = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (name, served, manner) = (name.clone(), served.clone(), manner.clone());
                connections.spawn(async move {
                    let service = service_fn(|request: Request<Incoming>| async {
                        Ok::<_, std::convert::Infallible>(answer(request, &name, &served, &manner).await)
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

async fn answer(
    request: Request<Incoming>,
    name: &str,
    served: &AtomicU64,
    manner: &Manner,
) -> Response<Full<Bytes>> {
    let mut status = StatusCode::OK;
    if request.uri().path() != "/health" {
        let before = served.fetch_add(1, Ordering::Relaxed);
        if before.is_multiple_of(manner.each.load(Ordering::Relaxed)) {
            let said = manner.status.load(Ordering::Relaxed);
            status = StatusCode::from_u16(said).expect("set from a status code");
        }
        let delay = Duration::from_millis(manner.delay_millis.load(Ordering::Relaxed));
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }
    Response::builder()
        .status(status)
        .body(Full::new(Bytes::from(format!("{name}\n"))))
        .expect("a plain answer")
}
